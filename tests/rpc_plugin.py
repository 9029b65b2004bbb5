"""llama.cpp's RPC backend as a plugin of the installed build, which comes without it.

``python -m tests.rpc_plugin`` compiles two files of the source package of the same release (half a
minute, most of it for fetching); ``make`` does so when it sets up ``.venv``. Tests compile nothing
and fetch nothing: without the plugin they are skipped.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from tests.wrong_kernels import installed_libraries

VARIABLE = "GGUFNORM_TEST_RPC"
"""Names a plugin that was compiled elsewhere."""

_SOURCES = ("ggml-rpc.cpp", "transport.cpp")


def plugin_path() -> Path:
    """Where the plugin is, or would be."""
    version = importlib.metadata.version("llama-cpp-python")
    named = os.environ.get(VARIABLE)
    folder = Path(sys.prefix) / "share" / "ggufnorm-tests" / f"rpc-{version}"
    return Path(named) if named else folder / "libggml-rpc.so"


def build_with_rpc(folder: Path) -> Path:
    """The installed build with the plugin beside it; the test is skipped where there is none."""
    plugin = plugin_path()
    if not plugin.is_file():
        pytest.skip(
            "the installed llama.cpp has no RPC, and its plugin was not compiled:"
            " python -m tests.rpc_plugin"
        )
    folder.mkdir()
    for path in (*installed_libraries().glob("*.so*"), plugin):
        shutil.copyfile(path, folder / path.name)
    return folder


def _fetch(folder: Path) -> Path:
    """The ggml of the source package of the installed release."""
    version = importlib.metadata.version("llama-cpp-python")
    wanted = f"llama-cpp-python=={version}"
    command = [
        sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", "download",
        "--no-deps", "--no-binary", "llama-cpp-python", "--dest", str(folder), wanted,
    ]  # fmt: skip
    subprocess.run(command, check=True, timeout=600)
    (archive,) = folder.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = [n for n in packed.getnames() if "/vendor/llama.cpp/ggml/" in n]
        headers = [n for n in names if n.endswith(".h") or n.rpartition("/")[2] in _SOURCES]
        for name in headers:
            content = packed.extractfile(name)
            if content is not None:
                target = folder / name.partition("/vendor/llama.cpp/")[2]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content.read())
    return folder / "ggml"


def make() -> Path:
    """Compile the plugin, unless it is there."""
    target = plugin_path()
    if target.is_file():
        return target
    compiler = shutil.which("c++")
    if compiler is None or not sys.platform.startswith("linux"):
        raise SystemExit("no RPC plugin for the tests: that needs Linux and a C++ compiler")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as work:
        ggml = _fetch(Path(work))
        command = [
            compiler, "-O2", "-fPIC", "-shared", "-std=c++17",
            "-DGGML_BACKEND_DL", "-DGGML_BACKEND_SHARED", "-DGGML_BACKEND_BUILD", "-DGGML_SHARED",
            f"-I{ggml / 'include'}", f"-I{ggml / 'src'}",
            *(str(ggml / "src" / "ggml-rpc" / name) for name in _SOURCES),
            "-o", str(Path(work) / target.name), f"-L{installed_libraries()}", "-lggml-base",
            "-lpthread",
        ]  # fmt: skip
        subprocess.run(command, check=True, timeout=300)
        (Path(work) / target.name).replace(target)
    return target


if __name__ == "__main__":
    print(make())
