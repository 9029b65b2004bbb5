"""Compiles ``ggufnorm/core/kernels.c`` into the package, where there is a C compiler.

The library needs no headers of Python and serves all its versions. Without a compiler, or with
``GGUFNORM_PURE=1``, the package is built without it and computes in NumPy.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags
from setuptools import Distribution, Extension
from setuptools.command.build_ext import build_ext

SOURCE = "ggufnorm/core/kernels.c"
LIBRARY = "ggufnorm/core/libkernels.so"


class _BuildLibrary(build_ext):
    """Links a library that is no module: it has no ``PyInit`` to export."""

    def get_export_symbols(self, ext: Extension) -> list[str]:
        return []


class Kernels(BuildHookInterface):
    """Adds the library to wheels, and puts it beside its source for editable installs."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile; see :class:`BuildHookInterface`."""
        library = Path(self.root, LIBRARY)
        library.unlink(missing_ok=True)
        if os.environ.get("GGUFNORM_PURE"):
            return
        with tempfile.TemporaryDirectory() as folder:
            built = self._compile(folder)
            if built is None:
                self.app.display_warning("No C compiler: sums are computed in NumPy alone.")
                return
            library.write_bytes(built.read_bytes())
        build_data["artifacts"].append(f"/{LIBRARY}")
        build_data["pure_python"] = False
        build_data["tag"] = f"py3-none-{_platform()}"

    def _compile(self, folder: str) -> Path | None:
        flags = ["/O2"] if sys.platform == "win32" else ["-O3", "-fno-trapping-math"]
        source = str(Path(self.root, SOURCE))
        extension = Extension("kernels", [source], extra_compile_args=flags, optional=True)
        command = _BuildLibrary(Distribution({"ext_modules": [extension]}))
        command.build_lib = command.build_temp = folder
        command.ensure_finalized()
        command.run()
        built = Path(command.get_ext_fullpath(extension.name))
        return built if built.exists() else None


def _platform() -> str:
    """This machine's, as tags name it; whoever publishes a wheel vouches for more."""
    return next(
        t.platform
        for t in sys_tags()
        if "manylinux" not in t.platform and "musllinux" not in t.platform
    )
