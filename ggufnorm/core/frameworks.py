"""What a comparison of a source framework with engines found, as plain data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ggufnorm.core.engine import Engine
from ggufnorm.core.feed import FeedFinding
from ggufnorm.core.folding import Side
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.metrics import Difference
from ggufnorm.core.misfolds import FoldCause
from ggufnorm.core.model import NormKind, Skipped
from ggufnorm.core.result import Result
from ggufnorm.core.tolerances import SAME_DOWNSTREAM, SAME_FORMULA
from ggufnorm.core.transforms import Kind

SiteStatus = Literal["agrees", "precision", "engine", "upstream", "harmless", "before", "mistake"]
"""What is to be said of a site:

- ``agrees``: input and output are the source's but for float32 rounding;
- ``precision``: they differ no more than the types of the file explain;
- ``engine``: the norm is right, and before it the two engines are known to differ, whatever
  the file says;
- ``upstream``: the norm is right, and what reaches it went wrong at an earlier site;
- ``harmless``: epsilon or weight are not the source's, and nothing of it shows in this run;
- ``before``: the norm is right, and what reaches it goes wrong just before it;
- ``mistake``: the norm itself gives another result than the source's would.
"""

CauseKind = Literal[
    "kind", "groups", "epsilon", "weight", "bias", "formula", "non-finite", "pixels", Kind,
    FoldCause,
]  # fmt: skip
"""What is not as in the source. Of a weight's values as in
:data:`ggufnorm.core.transforms.Kind`; ``weight`` is missing or too much; ``formula``: the engine
does not compute what it states; ``pixels``: what an image encoder is fed. Of a batch norm as in
:data:`ggufnorm.core.misfolds.FoldCause`."""

FoldStatus = Literal["folded", "rounded", "kept", "harmless", "mistake"]
"""What became of a batch norm of the source:

- ``folded``: it is in the layer beside it, right but for float32 rounding;
- ``rounded``: so too, but for the rounding of the types that the layer is stored in;
- ``kept``: the engine's graph still has it, as one operation or as several, and it is right;
- ``harmless``: its layer holds other values, and nothing of it shows in what comes out;
- ``mistake``: it is folded, kept or left out, and another result comes of it.
"""

LayerStatus = Literal["agrees", "rounded", "harmless", "before", "upstream", "mistake"]
"""What is to be said of a layer of two ONNX graphs:

- ``agrees``: weight, bias and what comes out are the source's but for float32 rounding;
- ``rounded``: they differ no more than the types of the file explain;
- ``harmless``: weight or bias are others, and nothing of it shows in the model's results;
- ``before``: weight and bias are the source's, and what comes out is not;
- ``upstream``: so too, behind something wrong;
- ``mistake``: its weight or its bias is another.
"""


@dataclass(frozen=True)
class Cause:
    """One thing that an engine's norm has not as the source has it.

    Attributes:
        kind: in one word.
        message: the same in words.
        share: relative L2 effect on the result, with everything else the source's; None
            where it cannot be had alone.
        of: the source's norm whose values it has instead, of kind ``elsewhere``.
    """

    kind: CauseKind
    message: str
    share: float | None
    of: str | None = None

    @property
    def size(self) -> float:
        """The share, infinite where it is not known."""
        return math.inf if self.share is None else self.share

    @property
    def is_mistake(self) -> bool:
        """Whether it is more than the rounding of a type."""
        return self.kind != "rounding"


@dataclass(frozen=True)
class AppliedNorm:
    """A norm as one side applies it.

    Attributes:
        name: as that side calls it: a module, a tensor, a node.
        kind: the formula.
        formula: in words.
        epsilon: as applied.
        epsilon_stated: what an attribute or the metadata say; None if they say nothing.
        offset: added to the weight when the model runs.
        residual: relative L2 distance of the side's result from that formula's.
    """

    name: str
    kind: NormKind
    formula: str
    epsilon: float
    epsilon_stated: float | None
    offset: float
    residual: float | None


@dataclass(frozen=True)
class SiteComparison:
    """One norm on both sides.

    Attributes:
        key: that joins them: the weight's tensor in the file, or the engine's name.
        layer: block number, None outside the blocks.
        role: as in :class:`~ggufnorm.core.model.NormSite`, empty where it is not told.
        source: in the source framework.
        engine: in the engine.
        input: how far the engine's input is from the source's.
        output: the same of the result.
        local: relative L2 distance of the engine's result from what the source's norm makes
            of the engine's own input: the norm's own error, whatever reaches it.
        allowed: most of ``local`` that rounding explains.
        status: what is to be said of it.
        causes: what is not as in the source, the largest share first.
        before: relative L2 error that the operations between the norms before and this one
            make by themselves, given the source's values; None where that was not measured
            or is not finite.
        before_allowed: most of ``before`` that rounding explains; None likewise.
    """

    key: str
    layer: int | None
    role: str
    source: AppliedNorm
    engine: AppliedNorm
    input: Difference
    output: Difference
    local: float | None
    allowed: float
    status: SiteStatus
    causes: tuple[Cause, ...]
    before: float | None = None
    before_allowed: float | None = None


OperationStatus = Literal["same", "inside", "engine", "wrong", "behind"]
"""What is to be said of an operation between two norms:

- ``same``: the source computes its result too;
- ``inside``: the source does not, but a later result that takes it: it is cut another way;
- ``engine``: the two engines differ in it, whatever the file says;
- ``wrong``: the first whose result the source has nowhere, nor any that follows from it;
- ``behind``: such a one that comes later.
"""


@dataclass(frozen=True)
class OperationMatch:
    """An operation of an engine and the source's with the same result.

    Attributes:
        name: of the node, as llama.cpp labels it.
        op: what it does, in ggml's word.
        tensor: of the file, that it reads; None for none.
        counterpart: module and function of the source; None without one.
        distance: relative L2 distance of the two results.
        status: what is to be said of it.
    """

    name: str
    op: str
    tensor: str | None
    counterpart: str | None
    distance: float | None
    status: OperationStatus


@dataclass(frozen=True)
class WrongOperation:
    """The first operation whose result the source computes nowhere, or for another place.

    Attributes:
        name: of the node, as llama.cpp labels it.
        op: what it does, in ggml's word.
        tensor: of the file, that it reads; None for none.
        reason: why, in words.
    """

    name: str
    op: str
    tensor: str | None
    reason: str


@dataclass(frozen=True)
class EngineDifference:
    """An operation that two engines compute in other ways, whatever the file says: no mistake.

    Attributes:
        name: of the node, as llama.cpp labels it.
        op: what it does, in ggml's word.
        reason: how they differ, in words.
        size: relative L2 distance of its result from the source's.
        n_sites: norms that it reaches before another norm.
        effect: the largest relative L2 error of what reaches those, given the source's values.
    """

    name: str
    op: str
    reason: str
    size: float
    n_sites: int = 1
    effect: float = 0.0


@dataclass(frozen=True)
class FoldedNorm:
    """What became of a batch norm of the source.

    The engine's weight and bias of the layer beside it are compared with those that the
    source's layer and norm make together.

    Attributes:
        norm: the source's, by its weight.
        layer: the engine's layer, by its weight: the one behind which (or before which) the
            norm stands in the source; the norm itself where it stands beside none.
        op: ONNX's name of the layer's operation.
        side: on which side of the layer the norm stands.
        status: what became of it.
        weight_error: relative L2 distance of the layer's weight from what it should be with
            all norms beside it; None where it is not finite.
        bias_error: the same of the bias, relative to the terms that it is the sum of.
        weight_allowed: most of it that rounding explains.
        bias_allowed: the same of the bias.
        epsilon: the source's.
        epsilon_applied: that fits, where it is another.
        cause: what is wrong, None for nothing.
        message: the same in words that follow the norm's name.
        of: the norm whose values are there, or the layer that has this one's, of cause
            ``elsewhere``.
    """

    norm: str
    layer: str
    op: str
    side: Side
    status: FoldStatus
    weight_error: float | None
    bias_error: float | None
    weight_allowed: float
    bias_allowed: float
    epsilon: float
    epsilon_applied: float | None
    cause: FoldCause | None
    message: str
    of: str | None


@dataclass(frozen=True)
class LayerComparison:
    """A layer of two ONNX graphs, with all that scales and shifts its channels.

    Attributes:
        source: the source's, by its weight or its node.
        engine: the engine's, likewise.
        op: ONNX's name of the operation.
        weight_error: relative L2 distance of the weight; None where it is not finite.
        bias_error: the same of the bias, relative to the terms that it is the sum of.
        weight_allowed: most of it that rounding explains.
        bias_allowed: the same of the bias.
        output: how far what comes out behind it is off; None where it was not observed.
        status: what is to be said of it.
        message: what is wrong with its weight or bias, empty for nothing.
    """

    source: str
    engine: str
    op: str
    weight_error: float | None
    bias_error: float | None
    weight_allowed: float
    bias_allowed: float
    output: Difference | None
    status: LayerStatus
    message: str


@dataclass(frozen=True)
class OutputDifference:
    """One result of two ONNX graphs.

    Attributes:
        source: its name in the source.
        engine: its name in the engine.
        difference: how far it is off; None where it cannot be compared.
        reason: why it cannot, or why it is another; empty where neither is known.
        unstable: the operation before it that rounding may turn over; None if there is none.
        is_another: whether it is wrong whatever its values are: it has another shape.
    """

    source: str
    engine: str
    difference: Difference | None
    reason: str = ""
    unstable: str | None = None
    is_another: bool = False

    @property
    def tells(self) -> bool:
        """Whether a difference would say something of the model."""
        if self.difference is None:
            return False
        off = self.difference.rel_l2
        return self.unstable is None or (off is not None and off <= SAME_FORMULA)


@dataclass(frozen=True)
class FirstWrong:
    """Where an engine first does something else than the source.

    Attributes:
        key: of the site, or ``logits``.
        layer: block number, None outside the blocks.
        where: ``norm``: the norm itself; ``before``: what lies between the norms before and
            its input, or the logits; ``fold``: what became of a batch norm; ``layer``: a
            layer of an ONNX graph, or what lies before it; ``output``: a result behind all
            of them; ``input``: what is done to the values that a model is fed.
        after: the last site whose output is still right, None if there is none.
        reason: why, in a sentence.
        causes: kinds of the causes, empty where none is known.
        operation: the first wrong one between the norms; None where none was looked for or
            found.
    """

    key: str
    layer: int | None
    where: Literal["norm", "before", "fold", "layer", "output", "input"]
    after: str | None
    reason: str
    causes: tuple[CauseKind, ...]
    operation: WrongOperation | None = None


@dataclass(frozen=True)
class RunSide:
    """One side of a comparison.

    Attributes:
        location: of the model, as given.
        engine: what ran it.
        n_norms: norms that were observed.
        rounding: relative rounding of the coarsest type that its matrices are stored in, or
            of the engine's own kernels where that is coarser; 0 for float32.
        build: which llama.cpp ran it, and where; None for another engine.
    """

    location: str
    engine: str
    n_norms: int
    rounding: float
    build: Engine | None = None


TEXT_RUN = "the text that was run"
"""Name of the text that both models read, among those that were tokenized."""


@dataclass(frozen=True)
class TokenizerFinding:
    """Two tokenizers give other ids for one text.

    Attributes:
        first: position of the first other id.
        source: the source's ids from there on, some of them.
        engine: the engine's ids from there on, some of them.
        message: the same in a sentence.
        probe: what the text tries, in words.
        text: the text around the first other id.
        differing: how many of the texts have other ids.
        n_texts: that were compared; 0 where ids of a text are not what differs.
        keys: settings with which the engine has the source's ids, as ``KEY=TYPE:VALUE`` for
            llama.cpp's ``--override-kv``; empty where none was found.
        remaining: how many texts have other ids with those settings.
        same_again: whether a new conversion by llama.cpp's converter would give the same ids;
            None where that is not known. Without ``keys``, the difference is llama.cpp's then:
            the file has the tokens, scores, types and merges of the source.
    """

    first: int
    source: tuple[int, ...]
    engine: tuple[int, ...]
    message: str
    probe: str = ""
    text: str = ""
    differing: int = 1
    n_texts: int = 0
    keys: tuple[str, ...] = ()
    remaining: int = 0
    same_again: bool | None = None

    @property
    def is_common(self) -> bool:
        """Whether ordinary texts have other ids, and not only such as split tokenizers."""
        return self.probe == TEXT_RUN or 2 * self.differing > self.n_texts

    @property
    def is_engines(self) -> bool:
        """Whether the file is right, and llama.cpp's tokenizer splits otherwise."""
        return self.same_again is True and not self.keys


@dataclass(frozen=True)
class PaddingComparison:
    """A text alone, and beside another in one batch: padded in the source, apart in llama.cpp.

    Attributes:
        what: comes of it: an embedding or a score.
        side: on which the source's tokenizer pads.
        source: relative L2 distance of the source's two results; None where it failed.
        engine: the same of llama.cpp's.
        reason: why the source's differ or it failed; empty where that is not known.
    """

    what: str
    side: str
    source: float | None
    engine: float | None
    reason: str = ""

    @property
    def in_source(self) -> bool:
        """Whether the source's result depends on padding."""
        return self.source is not None and self.source > SAME_DOWNSTREAM

    @property
    def in_engine(self) -> bool:
        """Whether llama.cpp's depends on what else is in the batch."""
        return self.engine is not None and self.engine > SAME_DOWNSTREAM


@dataclass(frozen=True)
class EngineComparison:
    """One engine against the source.

    Attributes:
        engine: what ran.
        sites: that both sides have, in the engine's order.
        unmatched_source: norms that only the source has.
        unmatched_engine: norms that only the engine has.
        logits: what the differences do to the predictions; None without predictions.
        tokenizer: how the tokenizers disagree; None if they agree or there is only one.
        first_wrong: where the engine first goes wrong; None if it does not.
        operations: what lies between the last right norm and what is first wrong behind it;
            empty where nothing is, or where that was not looked at.
        verdict: all of it in a sentence or two.
        skipped: what was not compared, and why.
        folds: the batch norms of the source in the order of its graph, where both are ONNX.
        result: how far the model's first output is off; None where an engine does not show
            it, or its shape differs.
        pixels: what mtmd does otherwise than the checkpoint's image processor, the most
            severe first; empty for a language model, and where there is no processor.
        compared: what was compared, in words: norms, logits, the pooled embedding, token ids.
        not_compared: results that users get and that were not compared, and why.
        layers: of two ONNX graphs, where the norms do not tell where they part.
        outputs: all results of floating point, where both are ONNX.
        known: known differences of the two engines.
        padding: what padding does to an embedding or a score; None where it was not compared.
    """

    engine: RunSide
    sites: tuple[SiteComparison, ...]
    unmatched_source: tuple[str, ...]
    unmatched_engine: tuple[str, ...]
    logits: LogitStatistics | None
    tokenizer: TokenizerFinding | None
    first_wrong: FirstWrong | None
    verdict: str
    skipped: tuple[Skipped, ...]
    operations: tuple[OperationMatch, ...] = ()
    folds: tuple[FoldedNorm, ...] = ()
    result: Difference | None = None
    pixels: tuple[FeedFinding, ...] = ()
    compared: tuple[str, ...] = ()
    not_compared: tuple[Skipped, ...] = ()
    layers: tuple[LayerComparison, ...] = ()
    outputs: tuple[OutputDifference, ...] = ()
    known: tuple[EngineDifference, ...] = ()
    padding: PaddingComparison | None = None


@dataclass(frozen=True)
class FedPicture:
    """The picture that image encoders got.

    Attributes:
        name: of its file, or what was taken in its place.
        pixels: what made the pixels that all got.
        shape: of the pixels, ``(pictures, height, width, channels)``.
    """

    name: str
    pixels: str
    shape: tuple[int, int, int, int]


@dataclass(frozen=True)
class FrameworksReport(Result):
    """A source framework against one engine or more, on the same token ids or pixels.

    Attributes:
        source: what is right by definition.
        comparisons: one for each engine.
        text: where the tokens came from; empty if there are none.
        n_tokens: how many were run.
        picture: that was run in the place of a text; None for language models.
    """

    source: RunSide
    comparisons: tuple[EngineComparison, ...]
    text: str
    n_tokens: int
    picture: FedPicture | None
