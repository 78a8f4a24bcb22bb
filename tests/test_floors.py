"""Imports run one way: a package imports only what is below it. docs/architecture.md draws the same order."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter

import pytest

import oxe_curate
from tests import ROOT

FLOORS = [
    {"process"},
    {"arrays", "atomic", "blas", "errors", "lru"},
    {"inputs", "strict_yaml"},
    {"episode", "config", "sealed", "storage"},
    {"lock"},
    {"outputs", "progress", "ui"},
    {"actions", "beam", "rlds", "registry"},
    {"quality"},
    {"index"},
    {"filter"},
    {"mixture"},
    {"tokenize"},
    {"inspection", "report"},
    {"train"},
    {"editor", "demo"},
    {"cli"},
]
TRAIN = [
    {"settings", "run_folder"},
    {"packages", "config"},
    {"data"},
    {"models"},
    {"loop"},
    {"serving"},
    {"evaluation"},
    {"export"},
]
FILES = {
    ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): p
    for p in (ROOT / "oxe_curate").rglob("*.py")
}


def imports(module: str) -> Iterator[str]:
    """The modules of the package that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == oxe_curate.__name__:
            names = (f"{node.module}.{name.name}" for name in node.names)
            yield from (name if name in FILES else str(node.module) for name in names)
        elif isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in FILES)


GRAPH = {module: set(imports(module)) - {module} for module in FILES}


@pytest.mark.parametrize(("depth", "floors"), [(1, FLOORS), (2, TRAIN)], ids=["package", "train"])
def test_imports_go_down(depth: int, floors: list[set[str]]) -> None:
    floor = {name: number for number, names in enumerate(floors) for name in names}
    climbing = [
        f"{module} -> {other}"
        for module, others in GRAPH.items()
        for other in others
        if (here := floor.get("".join(module.split(".")[depth : depth + 1]))) is not None
        and (there := floor.get("".join(other.split(".")[depth : depth + 1]))) is not None
        and module.split(".")[:depth] == other.split(".")[:depth]
        and module.split(".")[depth] != other.split(".")[depth]
        and there >= here
    ]
    assert climbing == []


def test_every_package_has_a_floor() -> None:
    parts = {module.split(".")[1] for module in FILES if "." in module} - {"__main__"}
    assert parts == set().union(*FLOORS)
    assert {m.split(".")[2] for m in FILES if m.startswith("oxe_curate.train.")} == set().union(*TRAIN)


def test_no_module_imports_itself_through_others() -> None:
    TopologicalSorter(GRAPH).prepare()
