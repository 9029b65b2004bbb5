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
        """Compile; ``version`` is ``editable`` or ``standard``."""
        self._folder = tempfile.TemporaryDirectory()
        built = None if os.environ.get("GGUFNORM_PURE") else self._compile(self._folder.name)
        if built is None:
            self.app.display_warning("Built without compiled loops: sums are computed in NumPy.")
        if version == "editable":
            self._put_beside_its_source(built)
        elif built is not None:
            build_data["force_include"][str(built)] = LIBRARY
        if built is not None:
            build_data["pure_python"] = False
            build_data["tag"] = f"py3-none-{_platform()}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove what was only needed to build."""
        self._folder.cleanup()

    def _put_beside_its_source(self, built: Path | None) -> None:
        library = Path(self.root, LIBRARY)
        if built is None:
            library.unlink(missing_ok=True)
        else:  # at once: others may be opening it
            copy = library.with_suffix(".new")
            copy.write_bytes(built.read_bytes())
            copy.replace(library)

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
