"""The import contract that allows libraries to packages."""

from __future__ import annotations

import pytest
from grimp import ImportGraph

from tools.contracts import LibrariesContract


def broken(allowed: dict[str, list[str]], *imports: tuple[str, str]) -> dict[str, object]:
    graph = ImportGraph()
    for importer, imported in imports:
        graph.add_import(importer=importer, imported=imported)
    contract = LibrariesContract("libraries", {"root_packages": ["pkg"]}, {"allowed": allowed})
    check = contract.check(graph, verbose=False)
    assert check.kept is not any(check.metadata.values())
    return check.metadata


@pytest.mark.parametrize(
    ("importer", "imported"),
    [("pkg.new.part", "torch"), ("pkg.enginesx", "torch"), ("pkg.new", "unheard_of")],
)
def test_a_library_is_forbidden_until_it_is_allowed(importer: str, imported: str) -> None:
    table = {"torch": ["pkg.engines"]}
    found = broken(table, ("pkg.engines.hf", "torch"), (importer, imported))
    assert found == {"forbidden": [(importer, imported)], "unused": []}


def test_an_allowance_that_nothing_uses_breaks_the_contract() -> None:
    table = {"torch": ["pkg.engines", "pkg.core"]}
    found = broken(table, ("pkg.engines", "torch"))
    assert found == {"forbidden": [], "unused": [("pkg.core", "torch")]}


def test_of_the_standard_library_only_what_is_listed_is_watched() -> None:
    table = {"ctypes": ["pkg.engines"]}
    imports = [("pkg.engines", "ctypes"), ("pkg.core", "ctypes"), ("pkg.core", "os")]
    found = broken(table, *imports, ("pkg.core", "pkg.errors"))
    assert found == {"forbidden": [("pkg.core", "ctypes")], "unused": []}
