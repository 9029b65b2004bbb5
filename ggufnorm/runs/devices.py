"""Which devices there are, and what a model takes on each of them, before it is loaded."""

from __future__ import annotations

from dataclasses import dataclass

from ggufnorm.engines import worker
from ggufnorm.engines.llama.devices import Device, find_devices
from ggufnorm.engines.llama.library import choose_build
from ggufnorm.engines.worker import Channel


@dataclass(frozen=True)
class DevicesJob:
    """Whose devices to list; None for the build that runs where none is named."""

    llama_cpp: str | None = None


@dataclass(frozen=True)
class Known:
    """What a build can compute on."""

    devices: tuple[Device, ...]


def known_devices(llama_cpp: str | None = None) -> tuple[Device, ...]:
    """The devices of a build, the CPU among them; a backend that crashes does so in a child.

    Args:
        llama_cpp: the build, as for ``--llama-cpp``.

    Raises:
        EngineError: the build does not load.
    """
    return worker.call(list_devices, DevicesJob(llama_cpp)).devices


def list_devices(job: DevicesJob, _channel: Channel) -> Known:
    """The child's part of :func:`known_devices`."""
    if job.llama_cpp is not None:
        choose_build(job.llama_cpp)
    return Known(find_devices())
