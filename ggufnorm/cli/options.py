"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from decimal import ROUND_DOWN, ROUND_UP, Context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ggufnorm.cli import INTERRUPTED
from ggufnorm.cli.devices import (
    DEVICE_PARAMETERS,
    device_options,
    device_values,
    layers_option,
    option_names,
)
from ggufnorm.cli.output import F
from ggufnorm.cli.process import complain
from ggufnorm.core.drift import DriftReport
from ggufnorm.core.engine import ALL
from ggufnorm.core.frameworks import FrameworksReport
from ggufnorm.core.logits import LogitStatistics
from ggufnorm.core.onnx_drift import OnnxDriftReport
from ggufnorm.core.printable import printable
from ggufnorm.formats import files

if TYPE_CHECKING:
    from ggufnorm.runs.options import SideOptions


class Share(click.ParamType[float]):
    """A share from 0 to 1, or a percentage with its sign: 0.98 or 98%."""

    name = "share"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The share, 0 to 1."""
        text = str(value).strip()
        try:
            share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
        except ValueError:
            self.fail(f"{value!r} is not a number", param, ctx)
        if not 0 <= share <= 1:
            self.fail(f"{value!r} is not from 0 to 1 (or from 0% to 100%)", param, ctx)
        return share


class Size(click.ParamType[int]):
    """A number of bytes: 500MB, 1.5GiB, 250000."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """The bytes."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kMGT]?)(i?)B?", str(value).strip(), re.I)
        if found is None:
            self.fail(f"{value!r} is not a size such as 500MB or 1.5GiB", param, ctx)
        number, unit, binary = found.groups()
        return int(float(number) * (1024 if binary else 1000) ** " KMGT".index(unit.upper() or " "))


class Duration(click.ParamType[float]):
    """Seconds: 90, 90s, 10m, 1.5h."""

    name = "duration"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """The seconds."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", str(value).strip())
        seconds = float(found[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[found[2]] if found else 0
        if seconds <= 0:
            self.fail(f"{value!r} is not a time such as 90s, 10m or 2h", param, ctx)
        return seconds


_CACHE_TYPES = ("f32", "f16", "bf16", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl")


def _add(command: F, *options: Callable[[F], F]) -> F:
    for option in reversed(options):
        command = option(command)
    return command


def resume_option(command: F) -> F:
    """Where a long run keeps its progress."""
    return click.option(
        "--resume", type=click.Path(dir_okay=False, path_type=Path),
        help="Save progress to this file, and resume from it if it exists.",
    )(command)  # fmt: skip


def time_option(command: F) -> F:
    """How long a run may take."""
    return click.option(
        "--budget", type=Duration(),
        help="Time limit (90s, 10m, 2h): no further chunk begins after it.",
    )(command)  # fmt: skip


def tell_cut(cut: str | None) -> int | None:
    """Say on standard error why a run covers less than was planned; an exit code if it was Ctrl-C.

    Args:
        cut: :attr:`ggufnorm.core.drift.RunFacts.cut`.
    """
    if cut is None:
        return None
    click.echo(f"{cut}: the report covers the chunks that were run", err=True)
    return INTERRUPTED if cut == "interrupted" else None


def read_text(path: Path) -> str:
    """The text to run.

    Raises:
        click.UsageError: it is a model or the like.
        TextError: it cannot be read, is not UTF-8 or is empty.
    """
    from ggufnorm.verbs.kinds import wrong_text

    sentence = wrong_text(click.get_current_context().command.name or "", path)
    if sentence is not None:
        raise click.UsageError(sentence)
    return files.read_text(path)


def text_options(command: F) -> F:
    """The text to run, and how much of it."""
    return _add(
        command,
        click.option(
            "-f", "--file", "text_file", type=click.Path(path_type=Path),
            help="Text to run.  [default: bundled]",
        ),
        click.option(
            "-c", "--ctx-size", default=512, show_default=True, type=click.IntRange(min=8),
            help="Tokens per chunk; predictions are scored on the second half of each chunk.",
        ),
        click.option(
            "--chunks", type=click.IntRange(min=1),
            help="Maximum number of chunks to run.  [default: all]",
        ),
    )  # fmt: skip


def found_build(context: click.Context, _option: click.Parameter, place: Path | None) -> str | None:
    """The libllama of a build that an option names."""
    if place is None or context.resilient_parsing:
        return None
    from ggufnorm.engines.llama.library import find_library

    return str(find_library(place))


def _choose_build(
    context: click.Context, _option: click.Parameter, place: Path | None
) -> Path | None:
    """Have this process and its children run another build, until the command ends."""
    if place is not None and not context.resilient_parsing:
        from ggufnorm.engines.llama.library import CHOICE, find_library

        before = os.environ.get(CHOICE)
        os.environ[CHOICE] = str(find_library(place))

        def restore() -> None:
            os.environ.pop(CHOICE, None)
            os.environ.update({} if before is None else {CHOICE: before})

        context.call_on_close(restore)
    return place


llama_cpp_option = click.option(
    "--llama-cpp", type=click.Path(path_type=Path), expose_value=False, callback=_choose_build,
    is_eager=True, metavar="PLACE", help="Another build of llama.cpp: its build tree, install"
    " prefix, release folder, or libllama, or the device of one that `engine get` fetched."
    "  [default: GGUFNORM_LLAMA_CPP, else llama-cpp-python's]",
)  # fmt: skip
"""Which llama.cpp runs models."""


def _list_devices(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    """Print as llama.cpp does (``common_print_available_devices`` in common/arg.cpp), and end."""
    if not wanted or context.resilient_parsing:
        return
    from ggufnorm.runs.devices import ANY, known_engine

    options = replace(ANY, rpc=context.params.get("rpc") or (), n_gpu_layers=ALL)
    click.echo("Available devices:")
    offloaded = [d for d in known_engine(options).devices if d.kind != "CPU"]
    for d in offloaded:
        mib = f"{d.total >> 20} MiB, {d.free >> 20} MiB free"
        click.echo(printable(f"  {d.name}: {d.description} ({mib})"))
    if not offloaded:
        click.echo("  (none)")
    context.exit()


list_devices_option = click.option(
    "--list-devices", is_flag=True, expose_value=False, callback=_list_devices,
    help="List the devices that layers can be offloaded to, and exit.",
)  # fmt: skip
"""What ``-dev`` can name."""


def engine_options_for(threads: str) -> Callable[[F], F]:
    """The hardware that llama.cpp runs on.

    Args:
        threads: how many run where none are named, for the help.
    """

    def add(command: F) -> F:
        return _add(
            command,
            click.option(
                "-t", "--threads", type=click.IntRange(min=1),
                help=f"CPU threads.  [default: {threads}]",
            ),
            layers_option(),
            list_devices_option,
            llama_cpp_option,
            click.option(
                "--no-memory-check", is_flag=True,
                help="Do not refuse models that exceed the free memory.",
            ),
        )  # fmt: skip

    return add


engine_options = engine_options_for("all")
"""The same, on all threads."""


def side_options(sides: Mapping[str, str]) -> Callable[[F], F]:
    """llama.cpp's options for each side.

    Args:
        sides: the prefix of a side's options, and the phrase that ends their help; the side
            without a prefix has llama.cpp's short names too.
    """

    def add(command: F) -> F:
        for prefix, whose in sides.items():
            command = _add(command, *_options_of_side(prefix, whose))
        return command

    return add


def _options_of_side(prefix: str, whose: str) -> tuple[Callable[[F], F], ...]:
    return (
        click.option(
            *option_names(prefix, "flash-attn", "fa"), default="auto", show_default=True,
            type=click.Choice(("auto", "on", "off")), help=f"Use Flash Attention {whose}.",
        ),
        click.option(
            *option_names(prefix, "cache-type-k", "ctk"), default="f16", show_default=True,
            type=click.Choice(_CACHE_TYPES), help=f"KV cache data type for K {whose}.",
        ),
        click.option(
            *option_names(prefix, "cache-type-v", "ctv"), default="f16", show_default=True,
            type=click.Choice(_CACHE_TYPES), help=f"KV cache data type for V {whose}.",
        ),
        click.option(
            f"--{prefix}extra-bufts", f"--{prefix}repack", is_flag=True,
            help=f"Let llama.cpp repack weights for its fastest CPU kernels {whose}.",
        ),
        click.option(
            f"--{prefix}unfused-norms", is_flag=True,
            help=f"Do not let llama.cpp fuse RMSNorm with its weight {whose}.",
        ),
        *device_options(prefix),
    )  # fmt: skip


def side_of(values: Mapping[str, Any], prefix: str = "") -> SideOptions:
    """The values of one side's options."""
    from ggufnorm.runs.options import SideOptions

    return SideOptions(
        flash_attention=values[f"{prefix}flash_attn"],
        cache_type_k=values[f"{prefix}cache_type_k"],
        cache_type_v=values[f"{prefix}cache_type_v"],
        use_extra_bufts=values[f"{prefix}extra_bufts"],
        unfused_norms=values[f"{prefix}unfused_norms"],
        **device_values(values, prefix),
    )


def threshold_options(command: F) -> F:
    """Limits on the predictions of the model under test."""
    return _add(
        command,
        click.option(
            "--max-kld", type=click.FloatRange(min=0),
            help="Exit 1 if the mean KL divergence exceeds this.",
        ),
        click.option(
            "--min-top1", type=Share(),
            help="Exit 1 if the top token agrees at fewer positions than this (0.98 or 98%).",
        ),
    )  # fmt: skip


LLAMA_ONLY = (
    "gpu_layers", "flash_attn", "cache_type_k", "cache_type_v", "extra_bufts", "unfused_norms",
    *DEVICE_PARAMETERS,
)  # fmt: skip
"""Parameters that only llama.cpp knows."""


def given(context: click.Context, names: Collection[str]) -> list[str]:
    """The options, of those parameters, that the command line has: ``--gpu-layers``."""
    return [
        max(option.opts, key=len)
        for option in context.command.params
        if option.name in names
        and context.get_parameter_source(option.name or "") is ParameterSource.COMMANDLINE
    ]


def refuse(context: click.Context, names: Collection[str], why: str) -> None:
    """Refuse options of those parameters.

    Args:
        context: of the command.
        names: of the parameters.
        why: what stands behind the option's name: ``does not go with --image``.

    Raises:
        click.UsageError: one was given.
    """
    for option in given(context, names):
        raise click.UsageError(f"{option} {why}")


def tell_crossed(lines: list[str]) -> int:
    """Print the crossed thresholds on stderr, and return the exit code."""
    for line in lines:
        complain(printable(line), fg="red")
    return 1 if lines else 0


def crossed_logits(
    logits: LogitStatistics | None, max_kld: float | None, min_top1: float | None
) -> list[str]:
    """One line per threshold on predictions that is crossed."""
    lines = []
    if max_kld is not None:
        value = logits.mean_kld if logits else None
        if value is None or value > max_kld or (logits and logits.non_finite_tokens):
            lines.append(_crossed("--max-kld", max_kld, "mean KL divergence", value))
    if min_top1 is not None:
        value = logits.same_top1 if logits else None
        if value is None or value < min_top1:
            lines.append(_crossed("--min-top1", min_top1, "same top token", value))
    return lines


def crossed_sites(report: FrameworksReport, max_rel: float | None) -> list[str]:
    """One line per engine with a norm's result, or the model's, further off than ``max_rel``."""
    if max_rel is None:
        return []
    lines = []
    for c in report.comparisons:
        ends = [s.output for s in c.sites] + ([c.result] if c.result else [])
        found = [d.rel_l2 for d in ends]
        worst = None if None in found else max((f for f in found if f is not None), default=None)
        if worst is None or worst > max_rel:
            what = f"largest difference of {c.engine.location}"
            lines.append(_crossed("--max-rel", max_rel, what, worst))
    return lines


def crossed_thresholds(
    report: DriftReport,
    max_kld: float | None,
    min_top1: float | None,
    max_local: float | None = None,
) -> list[str]:
    """One line per threshold that the report crosses, with the value that would have passed."""
    lines = crossed_logits(report.logits, max_kld, min_top1)
    if max_local is not None:
        worst = max((o.local.rel_l2 or 0.0 for o in report.operations), default=0.0)
        if any(o.local.non_finite_rows for o in report.operations):
            lines.append(_crossed("--max-local", max_local, "finite local error", None))
        elif worst > max_local:
            lines.append(_crossed("--max-local", max_local, "largest local error", worst))
    return lines


def crossed_onnx(
    report: OnnxDriftReport, max_local: float | None, max_rel: float | None
) -> list[str]:
    """One line per threshold that a report of two ONNX files crosses."""
    lines = []
    operations = [o.local for o in report.operations]
    outputs = [o.difference for o in report.outputs]
    for option, limit, what, found in (
        ("--max-local", max_local, "largest local error", operations),
        ("--max-rel", max_rel, "largest error of an output", outputs),
    ):
        if limit is None:
            continue
        worst = max((d.rel_l2 or 0.0 for d in found), default=0.0)
        if any(d.non_finite_rows or not d.rows for d in found):
            lines.append(_crossed(option, limit, f"finite {what}", None))
        elif worst > limit:
            lines.append(_crossed(option, limit, what, worst))
    return lines


def _crossed(option: str, limit: float, what: str, value: float | None) -> str:
    if value is None:
        return f"{option} {limit:g}: crossed: there is no {what}"
    # Rounded to the side that passes.
    shown = _rounded(value, up=option.startswith("--max"))
    return f"{option} {limit:g}: crossed: {what} is {value:.6g}; {option} {shown} would pass"


def _rounded(value: float, *, up: bool) -> str:
    """Four digits, rounded up or down."""
    context = Context(prec=4, rounding=ROUND_UP if up else ROUND_DOWN)
    return f"{context.create_decimal(repr(value)).normalize():g}"
