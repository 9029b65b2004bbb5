"""What a build of llama.cpp is and can compute on, asked in a child: a backend may crash."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.core.engine import Build
from ggufnorm.engines import worker
from ggufnorm.engines.llama import rpc
from ggufnorm.engines.llama.binding import build
from ggufnorm.engines.llama.devices import Device, find_devices
from ggufnorm.engines.llama.library import choose_build
from ggufnorm.engines.llama.session import EngineOptions
from ggufnorm.engines.worker import Channel

ANY = EngineOptions(n_ctx=0, n_threads=1)
"""The build that runs where none is named."""


@dataclass(frozen=True)
class Known:
    """A build.

    Attributes:
        build: which it is.
        devices: what it can compute on, the CPU among them.
    """

    build: Build
    devices: tuple[Device, ...]


def known_engine(options: EngineOptions = ANY) -> Known:
    """The build that options name, and its devices.

    Raises:
        EngineError: the build does not load.
    """
    return worker.call(examine_engine, options)


def examine_engine(options: EngineOptions, _channel: Channel) -> Known:
    """The child's part of :func:`known_engine`."""
    if options.llama_cpp is not None:
        choose_build(options.llama_cpp)
    rpc.connect(options, options.n_gpu_layers)
    return Known(build(), find_devices())
