"""What a run on servers of llama.cpp's RPC backend sends: bytes and round trips for each chunk.

Two servers on this machine, each behind a proxy that counts messages. The first chunk (loading,
learning the graph) is taken off: a run of three chunks less a run of one, halved.

    python -m tests.rpc_plugin            # the backend, once
    python -m benchmarks.bench_rpc
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

import ggufnorm
from ggufnorm.formats.llama_libraries import VARIABLE
from ggufnorm.runs.options import SideOptions
from ggufnorm.samples import sample_model
from tests.rpc_plugin import build_with_rpc
from tests.rpc_servers import Server, Traffic, counted


def measure(build: Path, n_servers: int, chunks: int) -> Traffic:
    """A drift run of the sample against itself, pinned pass included."""
    traffic = Traffic()
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(Server(build)) for _ in range(n_servers)]
        names = tuple(stack.enter_context(counted(s.port, traffic)) for s in servers)
        side = SideOptions(rpc=names)
        ggufnorm.drift(
            sample_model(), sample_model(), n_ctx=128, chunks=chunks, n_threads=1, options=side,
            options_ref=side,
        )  # fmt: skip
    return traffic


def main() -> None:
    """Print the table, and which messages a chunk takes."""
    print("| servers | bytes to them | bytes from them | round trips | messages |")
    print("|---|---|---|---|---|")
    of_each = []
    with tempfile.TemporaryDirectory() as folder:
        build = build_with_rpc(Path(folder) / "build")
        os.environ[VARIABLE] = str(build)
        for n in (1, 2):
            one, three = measure(build, n, 1), measure(build, n, 3)
            sent, received = (three.sent - one.sent) / 2, (three.received - one.received) / 2
            trips = (three.answers.total() - one.answers.total()) // 2
            messages = (three.messages.total() - one.messages.total()) // 2
            print(f"| {n} | {sent / 1e6:.2f} MB | {received / 1e6:.2f} MB | {trips} | {messages} |")
            counts = {
                name: (three.messages[name] - one.messages[name]) // 2 for name in three.messages
            }
            answers = {name: (three.answers[name] - one.answers[name]) // 2 for name in counts}
            of_each += [
                f"{n} servers: {count} {name}, {answers[name]} answered"
                for name, count in counts.items()
                if count
            ]
    print(*of_each, sep="\n")


if __name__ == "__main__":
    main()
