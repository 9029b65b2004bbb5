"""Models on other machines: llama.cpp's RPC backend, and a watch on its servers while they compute.

ggml waits for a server's answer for ever. So each call of llama.cpp that may wait is watched: where
nothing moves for too long, the child process ends with an error that says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ggufnorm.core.engine import Placement
from ggufnorm.engines.llama.binding import ggml, llama
from ggufnorm.engines.llama.rpc_servers import HELLO_SECONDS, hello
from ggufnorm.engines.worker import SERVERS, abandon
from ggufnorm.errors import EngineError, RefusedError
from ggufnorm.formats.llama_libraries import chosen_libraries

SECONDS_VARIABLE = "GGUFNORM_RPC_TIMEOUT"
SECONDS = 300.0
"""How long nothing may move while servers compute."""

_PLUGIN_VARIABLE = "GGML_BACKEND_PATH"
"""ggml's own: a backend that lies elsewhere (``ggml_backend_load_all_from_path``)."""

_DEVICES: dict[str, tuple[str, ...]] = {}
"""Names of the devices of each server that this process is connected to."""

P = TypeVar("P", bound=Placement)


def connect(placement: P, n_gpu_layers: int) -> P:
    """Make the servers' devices known to this process's llama.cpp.

    Returns:
        The same placement; where it leaves the choice of devices to llama.cpp, with their names:
        the servers' first, as ``llama_prepare_model_devices`` in src/llama.cpp has them, and none
        of servers that another model of this process is on.

    Raises:
        RefusedError: this build has no RPC, or no layer is for the servers.
        EngineError: a server does not answer.
    """
    if placement.rpc and n_gpu_layers == 0:
        raise RefusedError(
            "-ngl 0 (or -dev none) puts no layer on the servers of --rpc: leave out one of the two"
        )
    for server in placement.rpc:
        if server not in _DEVICES:
            _add(server)
    if placement.offload_devices is not None or not _DEVICES:
        return placement
    servers = [name for server in placement.rpc for name in _DEVICES[server]]
    remote = {name for names in _DEVICES.values() for name in names}
    return replace(placement, offload_devices=(*servers, *_own_devices(remote)))


def _own_devices(remote: set[str]) -> list[str]:
    from ggufnorm.engines.llama.devices import find_devices

    here = [d for d in find_devices() if d.name not in remote]
    kinds = [[d.name for d in here if d.kind == kind] for kind in ("GPU", "IGPU")]
    return kinds[0] or kinds[1]


def _add(server: str) -> None:
    """Register a server, as ``add_rpc_devices`` in common/arg.cpp does."""
    registry = rpc_registry()
    address = ggml().ggml_backend_reg_get_proc_address(registry, b"ggml_backend_rpc_add_server")
    if not address:
        raise RefusedError("the RPC backend of this llama.cpp is too old to add servers to it")
    hello(server, min(HELLO_SECONDS, seconds()))
    sys.stderr.write(f"{SERVERS}{server}\n")
    sys.stderr.flush()
    before = _names()
    with watched(f"connecting to {server}", (server,)):
        added = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)(address)(server.encode())
    if not added:
        raise EngineError(f"the server at --rpc {server} has no devices")
    ggml().ggml_backend_register(added)
    _DEVICES[server] = tuple(name for name in _names() if name not in before)


def _names() -> list[str]:
    lib = ggml()
    handles = (lib.ggml_backend_dev_get(i) for i in range(lib.ggml_backend_dev_count()))
    return [lib.ggml_backend_dev_name(handle).decode() for handle in handles]


def rpc_registry() -> int:
    """The RPC backend of this build: in it, or a plugin beside it.

    Raises:
        RefusedError: it has none.
    """
    llama()
    lib = ggml()
    registry = lib.ggml_backend_reg_by_name(b"RPC")
    plugin = None if registry else _plugin()
    if plugin is not None:
        registry = lib.ggml_backend_load(os.fsencode(plugin))
        if not registry:
            raise RefusedError(f"{plugin} is no RPC backend for this llama.cpp: it does not load")
    if not registry:
        raise RefusedError(
            "this llama.cpp has no RPC (--rpc): install llama-cpp-python with"
            " CMAKE_ARGS=-DGGML_RPC=on, or name a build of llama.cpp with -DGGML_RPC=ON by"
            " --llama-cpp"
        )
    return int(registry)


def _plugin() -> Path | None:
    named = os.environ.get(_PLUGIN_VARIABLE)
    if named:
        return Path(named)
    libraries = chosen_libraries()
    assert libraries is not None
    return libraries.backend("rpc")


# -- the watch -----------------------------------------------------------------------------------


class _Watch:
    """Ends this process where nothing has moved for too long."""

    def __init__(self) -> None:
        self.moved = time.monotonic()
        self._waiting: list[str] = []
        self._servers: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def begin(self, what: str, servers: tuple[str, ...]) -> None:
        with self._lock:
            self.moved = time.monotonic()
            self._waiting.append(what)
            self._servers = servers
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, daemon=True, name="rpc watch")
                self._thread.start()

    def end(self, what: str) -> None:
        with self._lock:
            self.moved = time.monotonic()
            self._waiting.remove(what)

    def _look(self) -> None:
        limit = seconds()
        while True:
            time.sleep(min(1.0, limit / 4))
            with self._lock:
                waiting = self._waiting[-1] if self._waiting else None
                silent = time.monotonic() - self.moved
            if waiting is not None and silent > limit:
                abandon(
                    EngineError(
                        f"nothing has come from the servers of --rpc for {limit:g} s ({waiting}):"
                        f" one of {', '.join(self._servers)} hangs, or the network does; start it"
                        f" again, or allow for more with {SECONDS_VARIABLE}=SECONDS"
                    )
                )


_WATCH = _Watch()


def seconds() -> float:
    """How long nothing may move while servers compute."""
    return float(os.environ.get(SECONDS_VARIABLE) or SECONDS)


@contextlib.contextmanager
def watched(what: str, servers: tuple[str, ...] | None = None) -> Iterator[None]:
    """A call of llama.cpp that may wait for servers.

    Args:
        what: is done, for the message.
        servers: that may be waited for; None for all that this process is connected to.
    """
    servers = tuple(_DEVICES) if servers is None else servers
    if not servers:
        yield
        return
    _WATCH.begin(what, servers)
    try:
        yield
    finally:
        _WATCH.end(what)


def beat() -> bool:
    """Note that something has moved: a node was computed, a tensor was loaded.

    Returns:
        True, to go on.
    """
    _WATCH.moved = time.monotonic()
    return True


_PROGRESS = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_float, ctypes.c_void_p)
"""``llama_progress_callback``, llama.h."""


def _on_progress(_share: float, _data: int | None) -> bool:
    return beat()


_CALLBACK = _PROGRESS(_on_progress)


def report_progress(params: Any) -> Any:
    """Have each tensor that a load sends to a server count as a move.

    Args:
        params: ``struct llama_model_params`` of any build.

    Returns:
        What the parameters point to: keep it as long as the load.
    """
    if _DEVICES:
        kinds = {name: kind for name, kind, *_ in params._fields_}
        params.progress_callback = ctypes.cast(_CALLBACK, kinds["progress_callback"])
    return _CALLBACK
