"""Imports point one way: programs -> reporting -> pipeline -> dataset, models -> plotting -> common."""

import ast
from graphlib import CycleError, TopologicalSorter

from helpers import REPOSITORY

SOURCES = REPOSITORY / "src"
LEVELS = {"common": 0, "plotting": 1, "dataset": 2, "models": 2, "pipeline": 3, "reporting": 4}
PROGRAM = 5


def read_imports():
    """For each module of src/, the modules of src/ that it imports anywhere."""
    paths = {path.relative_to(SOURCES).with_suffix(""): path for path in SOURCES.rglob("*.py")}
    modules = {".".join(name.parts).removesuffix(".__init__"): path for name, path in paths.items()}
    imports = {}
    for module, path in modules.items():
        named = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                named |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        imports[module] = (named & modules.keys()) - {module}
    return imports


def test_imports_point_to_lower_levels():
    wrong = []
    for module, imported in read_imports().items():
        room = module.split(".")[0]
        others = [other for other in imported if other.split(".")[0] != room]
        level = LEVELS.get(room, PROGRAM)
        wrong += [f"{module} -> {other}" for other in others if LEVELS.get(other.split(".")[0], PROGRAM) >= level]
    assert wrong == []


def find_circle(imports):
    """Return the modules of a circle of imports; none if there is no circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        return error.args[1]
    return []


def test_no_circular_imports():
    assert find_circle(read_imports()) == []
    assert set(find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}})) == {"a", "b", "c"}
