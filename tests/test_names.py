"""A public name means one thing: no two modules define the same public class, function or type."""

import ast
from collections import defaultdict

from tests import ROOT

SHARED = {"load_model"}  # of both model families: the same call for another architecture


def public_names() -> dict[str, list[str]]:
    """Public class, function or type alias at the top of a module -> the modules that define it."""
    found = defaultdict(list)
    for path in (ROOT / "oxe_curate").rglob("*.py"):
        if path.parent.name == "cli":  # a command is named after the function it calls
            continue
        for node in ast.parse(path.read_text()).body:
            names = []
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            for name in names:
                if not name.startswith("_") and not name.isupper():
                    found[name].append(str(path.relative_to(ROOT)))
    return found


def test_a_public_name_means_one_thing() -> None:
    found = public_names()
    assert {name: paths for name, paths in found.items() if len(paths) > 1 and name not in SHARED} == {}
    assert len(found) > 500
