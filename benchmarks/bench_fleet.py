"""What auditing an organisation of 2,000 repositories costs, with errors and rate limits.

    python -m benchmarks.bench_fleet [N]

A loopback Hub with models of 40 architectures counts requests and bytes. It answers 20 ms late,
refuses more than 1,000 requests at a time for a second (429), and every 25th file is cut off.
The least possible is a request for each file and one for each page of the list, and of bytes all
headers and norms.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from ggufnorm.formats.gguf import GGUFFile
from tests.hub import Limited, repositories
from tests.servers import Handler, HubServer, Request, running

LATENCY = 0.02


class Slow(Limited):
    """A limited Hub that answers late."""

    def __call__(self, handler: Handler, request: Request, body: bytes) -> bool:
        """Wait, and refuse what is beyond the limit."""
        time.sleep(LATENCY)
        return super().__call__(handler, request, body)


def least_bytes(server: HubServer, folder: Path) -> int:
    sizes: dict[int, int] = {}
    total = 0
    for repo in server.repos.values():
        data = next(f for name, f in repo.files.items() if name.endswith(".gguf"))
        if id(data) not in sizes:
            path = folder / "least.gguf"
            path.write_bytes(data)
            try:
                with GGUFFile(path) as file:
                    norms = sum(t.n_bytes for n, t in file.tensors.items() if "norm" in n)
                    sizes[id(data)] = file.header_size + norms
            except Exception:  # one of those that are cut off
                sizes[id(data)] = len(data)
        total += sizes[id(data)]
    return total


def audit(out: Path, kill_after: int | None = None) -> tuple[float, int]:
    """Seconds and the largest resident size, of the command as a process."""
    command = [sys.executable, "-m", "ggufnorm", "audit", "hf://org", "--format", "jsonl"]
    started, peak = time.monotonic(), 0
    with out.open("wb") as lines:
        process = subprocess.Popen(command, stdout=lines, stderr=subprocess.DEVNULL)
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, watched.memory_info().rss)
            except psutil.Error:
                break
            if kill_after is not None and out.read_bytes().count(b"\n") >= kill_after:
                process.send_signal(signal.SIGKILL)
            time.sleep(0.2)
        process.wait()
    return time.monotonic() - started, peak


def main() -> None:
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        server = repositories(folder, n)
        server.page = 500
        least = least_bytes(server, folder)
        server.trouble = limit = Slow(1000)
        os.environ["GGUFNORM_CACHE"] = str(folder / "cache")
        os.environ.pop("HF_TOKEN", None)
        with running(server):
            os.environ["HF_ENDPOINT"] = server.url
            pages = -(-n // server.page)
            print(
                f"{n:,} repositories, {pages + n:,} requests and {least / 2**20:,.0f} MiB at least"
            )
            print()
            print("| run | seconds | models | requests | refused (429) | MiB | peak MiB |")
            print("|---|---:|---:|---:|---:|---:|---:|")
            for run, kill in ((f"first, killed after {n // 2:,}", n // 2), ("resumed", None),
                              ("again", None)):  # fmt: skip
                server.requests.clear()
                limit.refused = 0
                seconds, peak = audit(folder / "out.jsonl", kill)
                done = (folder / "out.jsonl").read_bytes().count(b"\n")
                print(
                    f"| {run} | {seconds:.1f} | {done:,} | {len(server.requests):,} |"
                    f" {limit.refused:,} | {server.sent / 2**20:,.1f} | {peak / 2**20:,.0f} |"
                )


if __name__ == "__main__":
    main()
