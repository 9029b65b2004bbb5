"""What rules look at: one opened model, everything that several of them need read once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ggufnorm.analysis.audit.manifest import make_manifest
from ggufnorm.analysis.audit.matching import Matches, match_norms
from ggufnorm.analysis.audit.source.tensors import Progress, Tensors, compare_tensors
from ggufnorm.core.capture import Capture
from ggufnorm.core.manifest import Manifest
from ggufnorm.core.model import NormSite, Skipped, WeightStatistics
from ggufnorm.errors import GgufnormError
from ggufnorm.formats.conversion import expected_offsets
from ggufnorm.formats.gguf import Metadata
from ggufnorm.formats.hf import Source
from ggufnorm.formats.model_file import ModelFile

Array = NDArray[np.float32]

_FEWEST_VALUES = 32
"""Values from which a weight cannot be made of half-precision numbers by chance."""


@dataclass(frozen=True)
class Subject:
    """A model under audit.

    Attributes:
        file: opened; closed by who opened it.
        sites: its norms in execution order, ``weight`` filled in.
        skipped: norm-like tensors that are no norm's weight.
        weights: the values of every norm's weight and bias, by tensor name, in NumPy's
            order; what could not be read is not there.
        unreadable: why that is, by tensor name.
        source: what the file was converted from; None if it was not given.
        full: whether all tensors may be read.
        run: runs the model once (:func:`ggufnorm.analysis.audit.capture.capture`); None if that
            was not asked for.
        manifest: what the file should hold; None if it was not given.
        on_progress: is told how far a long comparison is.
        compares: whether some rule compares all tensors with the source's.
    """

    file: ModelFile
    sites: tuple[NormSite, ...]
    skipped: tuple[Skipped, ...]
    weights: Mapping[str, Array]
    unreadable: Mapping[str, str]
    source: Source | None = None
    full: bool = False
    run: Callable[[], Capture] | None = None
    manifest: Manifest | None = None
    on_progress: Progress = lambda _phase, _done, _total: None
    compares: bool = False

    @property
    def architecture(self) -> str:
        """``general.architecture``, or the empty string."""
        return self.file.architecture

    @property
    def metadata(self) -> Metadata:
        """Of the file."""
        return self.file.metadata

    def integer(self, key: str) -> int | None:
        """The integer under a key of gguf-py's, ``{arch}`` in it standing for the architecture."""
        return self.metadata.integer(key.format(arch=self.architecture))

    @cached_property
    def weighted(self) -> tuple[tuple[NormSite, Array, WeightStatistics], ...]:
        """Norms whose weight could be read, with its values and their statistics."""
        return tuple(
            (s, self.weights[s.tensor], s.weight)
            for s in self.sites
            if s.tensor is not None and s.tensor in self.weights and s.weight is not None
        )

    @cached_property
    def precise(self) -> tuple[tuple[NormSite, WeightStatistics], ...]:
        """Norms with values enough to tell their precision by, and with all their digits."""
        return tuple(
            (site, statistics)
            for site, values, statistics in self.weighted
            if np.unique(values).size >= _FEWEST_VALUES
            and not statistics.non_finite
            and site.dtype == "F32"
        )

    @cached_property
    def expected_offsets(self) -> dict[str, float] | None:
        """See :func:`ggufnorm.formats.conversion.expected_offsets`."""
        return expected_offsets(self.file)

    @cached_property
    def outcome(self) -> Capture | GgufnormError:
        """What the model's one run showed, or why there is nothing to see.

        Raises:
            TypeError: ``run`` is None.
        """
        if self.run is None:
            raise TypeError("the model is not to be run")
        try:
            return self.run()
        except GgufnormError as error:
            return error

    @cached_property
    def digests(self) -> Manifest:
        """What the file holds.

        Raises:
            InputError: its bytes cannot be had.
        """
        return make_manifest(self.file, self.on_progress)

    @cached_property
    def matches(self) -> Matches:
        """The norms beside those of the source.

        Raises:
            TypeError: ``source`` is None.
        """
        if self.source is None:
            raise TypeError("the source was not given")
        return match_norms(self.file, self.sites, self.weights, self.source)

    @cached_property
    def tensors(self) -> Tensors:
        """All tensors beside the source's, without the norms that :attr:`matches` has.

        Raises:
            TypeError: ``source`` is None.
        """
        if self.source is None:
            raise TypeError("the source was not given")
        norms = {m.tensor for m in self.matches.found}
        return compare_tensors(self.file, self.source, norms, self.on_progress)

    @cached_property
    def known_finite(self) -> frozenset[str]:
        """Tensors of which a comparison that some rule needs shows that all values are finite."""
        if not (self.compares and self.full) or self.source is None:
            return frozenset()
        try:
            return frozenset() if self.matches.different else self.tensors.finite
        except GgufnormError:  # whose rules say so
            return frozenset()
