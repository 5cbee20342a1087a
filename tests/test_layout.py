"""Folders import downwards only, in the order of `FOLDERS`, and modules in no circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import lasertri

PACKAGE = Path(lasertri.__file__).parent
# from the one that imports no other to those that may import all before them
FOLDERS = (
    *("errors", "version", "ops", "support", "data", "factored", "model", "measure", "language", "factors", "edit"),
    *("search", "result", "method", "compression", "demo", "reproduce", "integrations", "cli"),
)


def imports(path: Path) -> set[str]:
    """Modules of this package that a file names, whether it imports them at once, later or for types."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "lasertri":
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "lasertri"}
    return found


def module_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in PACKAGE.rglob("*.py") if "lm_eval_yaml" not in path.parts}


def loaded_at_once(path: Path) -> set[str]:
    """Modules that importing this file imports: not those of a function, nor those for types alone."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    names = {
        f"{node.module}.{alias.name}" for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names
    }
    modules = (name if name in MODULES else name.rpartition(".")[0] for name in names)
    return {module for module in modules if module in MODULES} - {"lasertri"}


@pytest.mark.parametrize("name", sorted(MODULES.keys() - {"lasertri", "lasertri.__main__"}))
def test_a_module_imports_from_its_own_folder_and_those_below(name):
    above = FOLDERS[FOLDERS.index(name.split(".")[1]) + 1 :]
    assert [used for used in sorted(imports(MODULES[name])) if used.split(".")[1] in above] == []


def test_no_modules_import_each_other_in_a_circle():
    graph = {name: loaded_at_once(path) - {name} for name, path in MODULES.items()}
    TopologicalSorter(graph).prepare()
