"""An organisation on a loopback Hub: sound, faulty and broken models of many architectures."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

from tests.conversions import ARCHITECTURES, build, write
from tests.servers import Handler, HubServer, Repo, Request

PUBLISHERS = ("ada", "grace", "linus")


def repositories(folder: Path, n: int, org: str = "org", n_architectures: int = 40) -> HubServer:
    """A Hub with ``n`` repositories of a GGUF file each.

    Every 10th has a norm that is all zero, every 12th a norm with a channel far out of line, and
    every 25th a file that is cut off in its header.
    """
    names = ARCHITECTURES[:n_architectures]
    made: dict[tuple[str, str], bytes] = {}
    server = HubServer()
    for i in range(n):
        arch = names[i % len(names)]
        kind = (
            "broken" if i % 25 == 24 else "zero" if i % 10 == 9 else "outlier" if i % 12 == 11
            else "sound"
        )  # fmt: skip
        publisher = PUBLISHERS[i % len(PUBLISHERS)]
        key = arch, f"{kind} {publisher}"
        if key not in made:
            made[key] = _file(folder / "m.gguf", arch, kind, publisher)
        server.repos[f"{org}/model-{i:05}"] = Repo(
            {"README.md": b"", f"model-{i:05}-F16.gguf": made[key]}, sha=commit(i, 0)
        )
    return server


def commit(number: int, version: int) -> str:
    return hashlib.sha1(f"{number} {version}".encode()).hexdigest()


def _file(path: Path, arch: str, kind: str, publisher: str) -> bytes:
    model = build(arch)
    model.metadata["general.quantized_by"] = publisher
    norms = [n for n, t in model.tensors.items() if "norm" in n and t.ndim == 1 and "weight" in n]
    if kind == "zero":
        model.tensors[norms[0]][:] = 0
    elif kind == "outlier":
        model.tensors[norms[0]][3] = 100
    data = write(path, model).read_bytes()
    return data[:200] if kind == "broken" else data


class Limited:
    """Trouble: no more than so many requests in each period, as the Hub's limits."""

    def __init__(self, most: int) -> None:
        self.left = most
        self.most = most
        self.refused = 0
        self._lock = threading.Lock()

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        with self._lock:
            self.left -= 1
            if self.left > 0:
                return False
            if self.left <= -3:
                self.left = self.most  # the next period begins
            self.refused += 1
        handler.refuse(429, {"Retry-After": "1"})
        return True
