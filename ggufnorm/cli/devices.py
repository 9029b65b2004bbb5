"""Options that say where llama.cpp puts a model, spelled as llama.cpp spells them."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import click

from ggufnorm.cli.output import F
from ggufnorm.core.engine import ALL, GpuLayers


class Layers(click.ParamType[GpuLayers]):
    """A number of layers, auto or all."""

    name = "layers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> GpuLayers:
        """As :data:`~ggufnorm.core.engine.GpuLayers`."""
        text = str(value)
        if text == "auto":
            return "auto"
        if text == "all":
            return "all"
        if not re.fullmatch(r"\d+", text):
            self.fail(f"{value!r} is not a number of layers, auto or all", param, ctx)
        return int(text)


class Devices(click.ParamType[tuple[str, ...]]):
    """Names of devices, or none."""

    name = "devices"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Their names; empty for none."""
        names = tuple(part.strip() for part in str(value).split(","))
        if not all(names):
            self.fail(f"{value!r} are no names of devices, nor none", param, ctx)
        return () if names == ("none",) else names


class Servers(click.ParamType[tuple[str, ...]]):
    """Servers of llama.cpp's RPC backend, or none."""

    name = "servers"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        """Each as ``HOST:PORT``; empty for none."""
        if isinstance(value, tuple):
            return value
        servers = tuple(part.strip() for part in str(value).split(","))
        if servers == ("none",):
            return ()
        for server in servers:
            found = re.fullmatch(r"[^\s:]+:(\d{1,5})", server)
            if found is None or not 0 < int(found[1]) < 1 << 16:
                self.fail(f"{server!r} is no server such as 192.168.1.7:50052", param, ctx)
        if len(set(servers)) < len(servers):
            self.fail(f"{value} names a server twice", param, ctx)
        return servers


class Proportions(click.ParamType[tuple[float, ...]]):
    """Proportions: 3,1."""

    name = "proportions"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[float, ...]:
        """The numbers."""
        try:
            found = tuple(float(part) for part in re.split("[,/]+", str(value)))
        except ValueError:
            found = ()
        if not all(0 <= n < float("inf") for n in found) or not sum(found):
            self.fail(f"{value!r} are no proportions such as 3,1", param, ctx)
        return found


class Overrides(click.ParamType[tuple[tuple[str, str], ...]]):
    """Patterns of tensor names, and the buffer type of each."""

    name = "overrides"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[tuple[str, str], ...]:
        """Pattern and buffer type of each."""
        found = [part.partition("=") for part in str(value).split(",")]
        if not all(pattern and buffer for pattern, _, buffer in found):
            self.fail(f"{value!r} is not a pattern and a buffer type such as exps=CPU", param, ctx)
        return tuple((pattern, buffer) for pattern, _, buffer in found)


def option_names(prefix: str, long: str, brief: str) -> list[str]:
    """``--device`` and ``-dev``; of the reference ``--ref-device`` and ``--ref-dev``."""
    return [f"--{prefix}{long}", f"--{prefix}{brief}" if prefix else f"-{brief}"]


def layers_option(prefix: str = "") -> Callable[[F], F]:
    """``-ngl``.

    Args:
        prefix: of the side's options.
    """
    text = (
        "Layers to offload: a number, all, or auto (as many as fit); 0 for the CPU alone."
        "  [default: 0, or auto with -dev]"
    )
    return _option(prefix, "gpu-layers", "ngl", text, type=Layers(), metavar="N|auto|all",
                   variable="N_GPU_LAYERS")  # fmt: skip


def rpc_option(prefix: str = "") -> Callable[[F], F]:
    """``--rpc``.

    Args:
        prefix: of the side's options.
    """
    text = (
        "Put layers on these servers of llama.cpp's RPC backend: trusted machines and networks"
        " only, it has no authentication."
    )
    return click.option(
        f"--{prefix}rpc", type=Servers(), metavar="HOST:PORT,…", is_eager=not prefix,
        help=_help(prefix, "-rpc", text), **_variable(prefix, "RPC"),
    )  # fmt: skip


def device_options(prefix: str) -> tuple[Callable[[F], F], ...]:
    """Where a model is put.

    Args:
        prefix: of the reference's options; those without one are for both sides, and have
            short names and variables.
    """

    def option(long: str, brief: str, text: str, **more: Any) -> Callable[[F], F]:
        return _option(prefix, long, brief, text, **more)

    return (
        rpc_option(prefix),
        option(
            "device", "dev", "Devices to offload layers to (see --list-devices), or none.",
            type=Devices(), metavar="DEV,…|none", also=("dev",),
        ),
        option(
            "tensor-split", "ts", "Proportions of the layers on each device.  [default: by free"
            " memory]", type=Proportions(), metavar="N0,N1,…",
        ),
        option(
            "split-mode", "sm", "Use one device, or spread layers over all.  [default: layer]",
            type=click.Choice(("none", "layer")),
        ),
        option(
            "main-gpu", "mg", "Number of the device that has all layers, with -sm none."
            "  [default: 0]", type=click.IntRange(min=0), metavar="INDEX",
        ),
        option(
            "override-tensor", "ot", "Buffer type of the tensors whose names match; may be"
            " repeated.", type=Overrides(), multiple=True, default=None, metavar="REGEX=BUFFER,…",
        ),
        option("cpu-moe", "cmoe", "Keep all experts on the CPU.", is_flag=True, default=None),
        option(
            "n-cpu-moe", "ncmoe", "Keep the experts of the first N layers on the CPU.",
            type=click.IntRange(min=0), metavar="N",
        ),
        click.option(
            f"--{prefix}op-offload/--{prefix}no-op-offload", default=None,
            help=_help(prefix, "-op-offload", "Copy weights on the CPU to a device for each large"
                       " batch.  [default: op-offload, but not with -ngl 0]"),
        ),
        click.option(
            f"--{prefix}kv-offload/--{prefix}no-kv-offload",
            f"--{prefix}kvo/--{prefix}nkvo" if prefix else "-kvo/-nkvo", default=None,
            help=_help(prefix, "kvo", "Keep K and V where their layer is.  [default: kv-offload]"),
            **_variable(prefix, "KV_OFFLOAD"),
        ),
        option(
            "ubatch-size", "ub", "Most tokens in one decode.  [default: 512]", variable="UBATCH",
            type=click.IntRange(min=1), metavar="N",
        ),
    )  # fmt: skip


def _option(
    prefix: str,
    long: str,
    brief: str,
    text: str,
    *,
    variable: str | None = None,
    also: tuple[str, ...] = (),
    **more: Any,
) -> Callable[[F], F]:
    variable = variable or long.upper().replace("-", "_")
    names = option_names(prefix, long, brief)
    names += [] if prefix else [f"--{name}" for name in also]
    return click.option(*names, help=_help(prefix, brief, text), **_variable(prefix, variable),
                        **more)  # fmt: skip


def _help(prefix: str, brief: str, text: str) -> str:
    return f"-{brief} of the reference alone." if prefix else text


def _variable(prefix: str, name: str) -> dict[str, Any]:
    """llama.cpp's own variable of an option, where it is not the reference's alone."""
    return {} if prefix else {"envvar": f"LLAMA_ARG_{name}", "show_envvar": True}


DEVICE_PARAMETERS = (
    "rpc", "device", "tensor_split", "split_mode", "main_gpu", "override_tensor", "cpu_moe",
    "n_cpu_moe", "kv_offload", "op_offload", "ubatch_size",
)  # fmt: skip
"""What click calls the values of :func:`device_options`."""


def device_values(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Arguments of :class:`~ggufnorm.runs.options.SideOptions`.

    Where the reference's are not given, they are those of the other side.

    Args:
        values: of the command line.
        prefix: of the side's parameters.

    Raises:
        click.UsageError: options do not go together.
    """

    def chosen(name: str) -> Any:
        own = values[f"{prefix}{name}"]
        is_given = own is not None and not (name == "override_tensor" and own == ())
        return own if is_given else values[name]

    overrides = chosen("override_tensor")
    given = {
        "rpc": chosen("rpc"),
        "offload_devices": chosen("device"),
        "split_mode": chosen("split_mode"),
        "tensor_split": chosen("tensor_split"),
        "main_gpu": chosen("main_gpu"),
        "tensor_overrides": tuple(chain(*(overrides or ()))),
        "n_cpu_moe": ALL if chosen("cpu_moe") else chosen("n_cpu_moe"),
        "kv_offload": chosen("kv_offload"),
        "op_offload": chosen("op_offload"),
        "n_ubatch": chosen("ubatch_size"),
    }
    if given["main_gpu"] is not None and given["split_mode"] != "none":
        raise click.UsageError("-mg goes with -sm none: it has no effect on layers spread over all")
    if given["tensor_split"] is not None and given["split_mode"] == "none":
        raise click.UsageError("-ts does not go with -sm none: one device has it all")
    return {name: value for name, value in given.items() if value is not None}
