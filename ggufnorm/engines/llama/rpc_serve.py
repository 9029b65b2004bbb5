"""A server of llama.cpp's RPC backend, where a build brings no program for it."""

from __future__ import annotations

import ctypes
import socket
import threading
from collections.abc import Sequence
from pathlib import Path

from ggufnorm.engines.llama.binding import ggml, llama
from ggufnorm.engines.llama.devices import Device, find_devices
from ggufnorm.engines.llama.rpc import rpc_registry
from ggufnorm.errors import ConfigError, EngineError, EngineMissingError, RefusedError
from ggufnorm.formats.llama_libraries import MISSING, chosen_libraries

_PROGRAMS = ("ggml-rpc-server", "rpc-server")
"""What llama.cpp calls its program (tools/rpc/CMakeLists.txt), now and before."""

_START = b"ggml_backend_rpc_start_server"


def own_program() -> Path | None:
    """The program of the build that runs, None where it brings none.

    Raises:
        EngineMissingError: there is no build.
    """
    libraries = chosen_libraries()
    if libraries is None:
        raise EngineMissingError(MISSING)
    folders = [libraries.folder, libraries.folder / "bin", libraries.folder.parent / "bin"]
    paths = (
        folder / f"{name}{end}" for folder in folders for name in _PROGRAMS for end in ("", ".exe")
    )
    return next((path for path in paths if path.is_file()), None)


def served(names: Sequence[str]) -> list[Device]:
    """The devices to serve: those named, else the GPUs, else the CPU.

    Raises:
        RefusedError: one is not there.
    """
    devices = find_devices()
    if not names:
        gpus = [d for d in devices if d.kind in ("GPU", "IGPU")]
        return gpus or [d for d in devices if d.kind == "CPU"][:1]
    by_name = {d.name: d for d in devices}
    for name in names:
        if name not in by_name:
            raise RefusedError(f"there is no device {name} (-dev): there are {', '.join(by_name)}")
    return [by_name[name] for name in names]


def serve(host: str, port: int, n_threads: int, devices: Sequence[Device]) -> None:
    """Serve one client after the other, until the process ends.

    Raises:
        ConfigError: nobody can listen there.
        RefusedError: this build has no RPC, or an older one.
        EngineError: the server ended.
    """
    try:
        with socket.socket() as tried:
            tried.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            tried.bind((host, port))
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror or error}") from None
    registry, lib = rpc_registry(), ggml()
    try:
        # Before there was this function, the server took other arguments.
        llama().llama_version()
    except (AttributeError, EngineMissingError):
        raise RefusedError("this llama.cpp is too old: use its own program, rpc-server") from None
    address = lib.ggml_backend_reg_get_proc_address(registry, _START)
    if not address:
        raise RefusedError("the RPC backend of this llama.cpp can run no server")
    size, text, any_ = ctypes.c_size_t, ctypes.c_char_p, ctypes.c_void_p
    start = ctypes.CFUNCTYPE(None, text, text, size, size, any_)(address)
    handles = (any_ * len(devices))(
        *(lib.ggml_backend_dev_by_name(d.name.encode()) for d in devices)
    )
    endpoint = f"{host}:{port}".encode()
    # Not in this thread: a signal is heeded only between two calls.
    server = threading.Thread(
        target=start,
        args=(endpoint, None, n_threads, len(devices), ctypes.cast(handles, any_)),
        daemon=True,
    )
    server.start()
    while server.is_alive():
        server.join(1.0)
    raise EngineError(f"llama.cpp's RPC server at {host}:{port} ended")
