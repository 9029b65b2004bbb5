"""An import contract that is an allow-list: who may import which library.

import-linter's own ``forbidden`` contracts name the packages that may *not* import a library, so
a new package may import everything until somebody thinks of it. Here it may import nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

from grimp import ImportGraph
from importlinter.application import output
from importlinter.domain import fields
from importlinter.domain.contract import Contract, ContractCheck

Table = dict[str, list[str]]


class TableField(fields.Field[Table]):
    """A table of lists of strings."""

    def parse(self, raw_data: Any) -> Table:
        if not isinstance(raw_data, dict):
            raise fields.ValidationError("Expected a table: library = [packages].")
        return {library: list(packages) for library, packages in raw_data.items()}


class LibrariesContract(Contract):
    """Each library is imported by the packages that the table allows, and by no other.

    Third-party libraries are forbidden unless the table has them. Of the standard library only
    the modules in the table are watched. An allowance that nothing uses breaks the contract too.
    Indirect imports do not count: the layers see to them.

    Configuration options:
        - allowed: Packages that may import a library, with all that they contain.
    """

    type_name = "libraries"

    allowed = TableField()

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        allowed: Table = self.allowed  # type: ignore[assignment]
        roots = self.session_options["root_packages"]
        found = {
            (library, importer)
            for library in graph.modules
            if not _within(library, roots)
            and (library in allowed or library not in sys.stdlib_module_names)
            for importer in graph.find_modules_that_directly_import(library)
        }
        forbidden = sorted((i, lib) for lib, i in found if not _within(i, allowed.get(lib, ())))
        unused = sorted(
            (package, library)
            for library, packages in allowed.items()
            for package in packages
            if not any(lib == library and _within(i, [package]) for lib, i in found)
        )
        return ContractCheck(
            kept=not (forbidden or unused),
            metadata={"forbidden": forbidden, "unused": unused},
        )

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, library in check.metadata["forbidden"]:
            output.print_error(f"{importer} is not allowed to import {library}.", bold=False)
        for package, library in check.metadata["unused"]:
            output.print_error(f"{package} does not import {library} any more.", bold=False)
        output.print_error("The table is in pyproject.toml: tool.importlinter.", bold=False)


def _within(module: str, packages: Iterable[str]) -> bool:
    return any(module == p or module.startswith(f"{p}.") for p in packages)
