"""Where models go before they are loaded: what is asked for is there, and what fits is decided."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ggufnorm.core.engine import ALL, AUTO, Engine, placement_of
from ggufnorm.core.progress import OnProgress, Progress, no_progress, size
from ggufnorm.engines.base import EngineInfo
from ggufnorm.engines.llama.devices import (
    CPU,
    Device,
    override_patterns,
    require_devices,
    used_devices,
)
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.errors import ConfigError, MemoryLimitError, RefusedError
from ggufnorm.formats.model_file import ModelFile
from ggufnorm.formats.naming import layer_of
from ggufnorm.runs.checks import costs_of, free_memory
from ggufnorm.runs.devices import known_engine


@dataclass(frozen=True)
class Side:
    """A model that is about to be loaded.

    Attributes:
        file: the model's.
        options: how it is to run.
        n_replicas: contexts that share its weights.
        layers: the first and the last layer that are run; None for all. The weights of the others
            are mapped, and never read.
    """

    file: ModelFile
    options: EngineOptions
    n_replicas: int
    layers: tuple[int, int] | None = None

    def reads(self, tensor: str) -> bool:
        """Whether a tensor is read at all."""
        layer = layer_of(tensor)
        return self.layers is None or layer is None or self.layers[0] <= layer <= self.layers[1]


Bytes = Counter[str]
"""What is taken of each device's memory, by its name."""


def settle(
    sides: Sequence[Side],
    *,
    sums: bool = False,
    check_memory: bool = True,
    on_progress: OnProgress = no_progress,
    disk: str = "nothing on disk",
) -> list[EngineOptions]:
    """Options with what their build has and with a number of layers, all of which fits.

    Args:
        sides: that run at the same time. Where the number of layers is for ggufnorm to choose
            (``-ngl auto``), it is the same for all.
        sums: whether devices that all of them are on sum their values.
        check_memory: refuse what does not fit into the memory that is free.
        on_progress: gets a note of what is taken; how long it takes the first chunk tells.
        disk: what is written beside the result, for that note.

    Raises:
        ConfigError: an override's pattern is no regular expression.
        RefusedError: a device or a buffer type is not there, or an override matches no tensor.
        MemoryLimitError: the models do not fit.
        EngineError: a build does not load.
    """
    devices = [_devices_of(side) for side in sides]
    free = {CPU: free_memory()}
    free |= {d.name: d.free for known in devices for d in known if d.kind != "CPU" and d.total}
    is_open = any(side.options.n_gpu_layers == AUTO for side in sides)
    most = max(costs_of(side.file, side.options).n_layers + 1 for side in sides)
    for n in [ALL, *range(most - 1, 0, -1)] if is_open else [0]:
        chosen = [_with_layers(side, n) for side in sides]
        taken = taken_by(list(zip(chosen, devices, strict=True)), sums=sums)
        if all(taken[name] <= free.get(name, taken[name]) for name in taken):
            break
    if check_memory:
        _require_room(sides, taken, free)
    on_progress(Progress(f"memory: {_told(taken, free)}; {disk}", note=True))
    return [side.options for side in chosen]


def keeping_others_here(side: Side) -> Side:
    """The same with the layers that are not run on the CPU, where they take no memory."""
    o = side.options
    others = {layer_of(name) for name in side.file.tensors if not side.reads(name)}
    if not others or not o.n_gpu_layers:
        return side
    pattern = rf"^blk\.({'|'.join(str(n) for n in sorted(n for n in others if n is not None))})\."
    overrides = ((pattern, CPU), *o.tensor_overrides)
    return replace(side, options=replace(o, tensor_overrides=overrides))


def _devices_of(side: Side) -> tuple[Device, ...]:
    """Of a side's build, which has all that is asked for; none where the CPU alone is."""
    require_overrides(side.file, side.options)
    if not needs_devices(side.options):
        return ()
    found = known_engine(side.options).devices
    require_devices(found, side.options.n_gpu_layers, side.options)
    return found


def _with_layers(side: Side, n: int) -> Side:
    o = side.options
    return replace(side, options=replace(o, n_gpu_layers=n)) if o.n_gpu_layers == AUTO else side


def taken_by(sides: Sequence[tuple[Side, Sequence[Device]]], *, sums: bool = False) -> Bytes:
    """What several models take together; sides that hold one file alike share its weights.

    Args:
        sides: and the devices of their builds.
        sums: whether devices that all of them are on sum their values.
    """
    taken: Bytes = Counter()
    loaded, on = set(), []
    for side, devices in sides:
        held = side.file.path, held_as(side.options)
        of_side = needs(side, devices, weights=held not in loaded)
        on.append(of_side.keys() - {CPU})
        taken += of_side
        loaded.add(held)
    for name in set.intersection(*map(set, on)) if sums else ():
        taken[name] += max(costs_of(side.file, side.options).sums for side, _ in sides)
    return taken


def _told(taken: Bytes, free: Mapping[str, int]) -> str:
    """What is taken of each device's memory, in words."""
    parts = []
    for name, n in taken.items():
        where = "" if name == CPU else f" of {name}"
        of = f" of {size(free[name])} that are free{where}" if name in free else where
        parts.append(f"about {size(n)}{of}")
    return ", ".join(parts)


def _require_room(sides: Sequence[Side], taken: Bytes, free: Mapping[str, int]) -> None:
    """Refuse what does not fit.

    Raises:
        MemoryLimitError: it does not.
    """
    for name, n in taken.items():
        if n <= free.get(name, n):
            continue
        running = " and ".join(dict.fromkeys(side.file.path for side in sides))
        where = "memory" if name == CPU else f"the memory of {name}"
        instead = "" if name == CPU else "fewer layers there (-ngl auto), "
        raise MemoryLimitError(
            f"running {running} takes about {n / 1e9:.1f} GB of {where}, and"
            f" {free[name] / 1e9:.1f} GB are free: use a machine with more, {instead}smaller"
            " files, or a smaller -c (--no-memory-check tries all the same)"
        )


def needs_devices(options: EngineOptions) -> bool:
    """Whether more than the CPU is asked for, so that the build must say what it has."""
    elsewhere = any(buffer != CPU for _, buffer in options.tensor_overrides)
    return bool(options.n_gpu_layers or options.offload_devices or options.rpc or elsewhere)


def require_overrides(file: ModelFile, options: EngineOptions) -> None:
    """Refuse an override that would change nothing: it is a slip, or of another model.

    llama.cpp searches tensors' names for the pattern (``llama_model_loader::create_tensor`` in
    src/llama-model-loader.cpp).

    Raises:
        ConfigError: a pattern is no regular expression.
        RefusedError: one matches no tensor.
    """
    left = list(file.tensors)
    for pattern, buffer in options.tensor_overrides:
        try:
            found = re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"-ot {pattern}={buffer}: no regular expression: {error}") from None
        unmatched = [name for name in left if not found.search(name)]
        if len(unmatched) == len(left):
            earlier = " that an earlier -ot does not" if len(left) < len(file.tensors) else ""
            raise RefusedError(f"-ot {pattern}={buffer} matches no tensor of {file.path}{earlier}")
        left = unmatched
    experts = [pattern for pattern, _ in override_patterns(replace(options, tensor_overrides=()))]
    if experts and not any(re.search(p, name) for p in experts for name in file.tensors):
        raise RefusedError(f"{file.path} has no experts to keep on the CPU (-cmoe, -ncmoe)")


def needs(side: Side, devices: Sequence[Device], *, weights: bool = True) -> Bytes:
    """What a model takes of each device's memory.

    Layers go where llama.cpp puts them (``llama_model_base::load_tensors`` in
    src/llama-model.cpp): the last ones, in order, in proportion to ``-ts`` or to free memory; the
    output counts as one more layer, and what comes before the first one stays on the CPU.

    Args:
        side: the model.
        devices: of its build.
        weights: whether to count them, or they are loaded already.
    """
    file, options = side.file, side.options
    costs = costs_of(file, options)
    homes = _homes(options, devices, costs.n_layers + 1)
    taken: Bytes = Counter({CPU: side.n_replicas * costs.logits})
    if weights:
        patterns = [(re.compile(p), buffer) for p, buffer in override_patterns(options)]
        buffers = {d.buffer: d.name for d in devices if d.kind != "CPU"}
        for name, tensor in file.tensors.items():
            if not side.reads(name):
                continue
            buffer = next((b for pattern, b in patterns if pattern.search(name)), None)
            home = _home_of(name, homes) if buffer is None else buffers.get(buffer, CPU)
            taken[home] += tensor.n_bytes
        if "output.weight" not in file.tensors and homes[-1] != CPU:  # tied: one more copy
            tied = file.tensors.get("token_embd.weight")
            taken[homes[-1]] += tied.n_bytes if tied else 0
    for home in dict.fromkeys((CPU, *homes)):
        taken[home] += side.n_replicas * costs.activations
    for home in homes[:-1]:
        taken[home if options.kv_offload else CPU] += side.n_replicas * costs.cache_of_layer
    return taken


def _homes(options: EngineOptions, devices: Sequence[Device], n: int) -> list[str]:
    """The name of each layer's device, the output being the last of ``n`` layers."""
    offloaded = n if options.n_gpu_layers == ALL else min(options.n_gpu_layers, n)
    chosen = used_devices(devices, options) if offloaded else []
    if not chosen:
        return [CPU] * n
    split = list(options.tensor_split) or [float(d.free or 1) for d in chosen]
    split += [0.0] * (len(chosen) - len(split))
    ends = [sum(split[: i + 1]) / sum(split) for i in range(len(chosen))]
    return [CPU] * (n - offloaded) + [
        next(d.name for d, end in zip(chosen, ends, strict=True) if i / offloaded < end)
        for i in range(offloaded)
    ]


def _home_of(name: str, homes: Sequence[str]) -> str:
    layer = layer_of(name)
    if layer is not None:
        return homes[layer] if layer < len(homes) - 1 else homes[-1]
    return homes[-1] if name.startswith("output") else CPU


def held_as(options: EngineOptions) -> tuple[object, ...]:
    """What decides how weights lie in memory."""
    layers = options.n_gpu_layers
    return options.llama_cpp, options.use_extra_bufts, layers, placement_of(options)


_HOST = frozenset(("CPU", "CPU_REPACK", "CPU_Mapped", "AMX"))
"""Names of buffers in the computer's memory, beside those that end in ``_Host``."""


def on_host(engine: Engine | None) -> bool:
    """Whether all values were in the computer's own memory, or of another engine than llama.cpp."""
    names = () if engine is None else engine.devices
    return all(name.endswith("_Host") or name in _HOST for name in names)


def not_offloaded(info: EngineInfo) -> str | None:
    """As :func:`misplaced`.

    Args:
        info: of a model whose graph was seen.
    """
    return misplaced(info.build)


def misplaced(engine: Engine | None) -> str | None:
    """What to say where values were not where they were asked to be; None where they were.

    Args:
        engine: that ran a model whose graph was seen; None for another than llama.cpp.
    """
    if engine is None or not engine.n_gpu_layers:
        return None
    seen = ", ".join(engine.devices)
    if on_host(engine):
        layers = "all" if engine.n_gpu_layers < 0 else engine.n_gpu_layers
        return (
            f"-ngl {layers} had no effect: all values were on {seen}; {engine.build.name} knows no"
            " other device here"
        )
    # A buffer of RPC's is called by its device and server: RPC0[HOST:PORT].
    buffers = {name.partition("[")[0] for name in engine.devices}
    idle = [name for name in engine.offload_devices or () if name not in buffers]
    return f"-dev {','.join(idle)} had no effect: all values were on {seen}" if idle else None


def warn_of_placement(info: EngineInfo, emit: OnProgress) -> None:
    """Say where values are not where they were asked to be.

    Args:
        info: of a model whose graph was seen.
        emit: gets the warning.
    """
    if (text := not_offloaded(info)) is not None:
        emit(Progress(text, warning=True))
