"""What the files of a run and its sums show, gathered for the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

from ggufnorm.analysis.drift.causes import Sides
from ggufnorm.analysis.drift.edits import how_differs, how_edited
from ggufnorm.analysis.drift.files import read_files
from ggufnorm.analysis.drift.verdict import Evidence
from ggufnorm.analysis.drift.weights import sampled_error, weight_error
from ggufnorm.core.drift import OperationDrift
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.runs.probes.drift import FREE, REFERENCE, DriftSums


def gather_evidence(
    files: Mapping[int, ModelFile],
    sides: Sides,
    sums: DriftSums,
    operations: Sequence[OperationDrift],
) -> Evidence:
    """Look at the files' tensors and keys, and at what operations hide.

    Args:
        files: of both sides.
        sides: how each was run.
        sums: that observed the run.
        operations: in graph order.
    """
    reference, quant = files[REFERENCE], files[FREE]
    typical = {}
    for o in operations:
        channels = sums.hooks[o.node].channels
        if o.role == "attention" and channels is not None:
            typical[o.node] = channels.typical
    return Evidence(
        files=read_files(reference, quant, [o.tensor for o in operations if o.tensor]),
        sides=sides,
        check_weight=partial(weight_error, reference, quant),
        sample_weight=partial(sampled_error, reference, quant),
        how_edited=partial(how_edited, reference, quant),
        how_differs=partial(how_differs, reference, quant),
        bad_ref=frozenset(key for key, total in sums.hooks.items() if total.bad_ref),
        typical=typical,
    )
