"""The README's map of the code is whole, and modules import only from those above them in it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "iid_dask"


def rows() -> dict[str, int]:
    """Module or folder -> row of the README's table."""
    table = (ROOT / "README.md").read_text().split("## Finding your way in the code")[1]
    lines = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {
        name.removesuffix(".py").rstrip("/"): i for i, line in enumerate(lines) for name in re.findall("`(.*?)`", line)
    }


def imported(path: Path) -> set[str]:
    """What a file imports of the package, in functions too, but not for annotations alone."""
    tree = ast.parse(path.read_text())
    skipped = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    annotations = {id(inner) for node in skipped for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and id(node) not in annotations and node.module:
            parts = node.module.split(".")
            if parts == ["iid_dask"]:
                found |= {alias.name for alias in node.names}
            elif parts[0] == "iid_dask":
                found.add(parts[1])
    return found


def test_every_module_has_its_place():
    held = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(rows()) == held - {"__init__"}


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_upward_only(path):
    order = rows()
    inside = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if inside not in ("__init__", "cli"):  # the command line and the front door see everything
        assert {name for name in imported(path) if order.get(name, 99) > order[inside]} == set()
