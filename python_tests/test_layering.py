"""Nothing on a lower floor imports a floor above it."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "vidkernels"
FLOORS = {
    "ops": set(),
    "functional": {"ops"},
    "nn": {"functional"},
    "data": set(),
    "metrics": {"functional"},
    "models": {"functional", "nn"},
    "codec": {"functional", "nn", "models", "data", "metrics"},
    "cli": {"codec", "data"},
    "train": {"functional", "nn", "models"},
    "methods": {"functional", "nn", "models", "metrics", "data"},
    "integrations": {"functional", "nn", "models"},
    "testing": {"ops"},
}
EVERYONE = {"_check", "_native", "_op", "_backend", "_pool", "_case", "_version", "_info", "_tensors", "_half"}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(path):
    """Dotted names under vidkernels that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.startswith("vidkernels."))
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "vidkernels":
            if node.module == "vidkernels":
                yield from (f"vidkernels.{a.name}" for a in node.names)
            else:
                yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_downwards(path):
    parts = path.relative_to(PACKAGE).parts
    floor = parts[0] if len(parts) > 1 else None
    if floor is None:  # __init__, cli and the private modules sit beside the staircase
        return
    assert floor in FLOORS, f"{floor}/ has no place in the layering"
    for name in imported(path):
        target = name.split(".")[1]
        if target == floor:
            if floor == "ops" and not name.startswith(("vidkernels.ops._", "vidkernels.ops." + parts[1])):
                assert name == "vidkernels.ops", f"{path}: one op imports another ({name})"
            if floor == "methods" and len(name.split(".")) > 3:
                assert ".".join(parts).startswith(".".join(name.split(".")[1:3])), f"{path}: one method imports another"
            continue
        assert target in EVERYONE | FLOORS[floor], f"{path}: {floor} must not import {name}"


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("ops/*/reference.py")), ids=lambda p: p.parent.name)
def test_references_need_torch_only(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            names = [node.module]
        elif isinstance(node, ast.Import):
            names = [a.name for a in node.names]
        else:
            continue
        assert all(n.split(".")[0] in ("torch", "math", "__future__", "collections", "itertools") for n in names), (
            f"{path}: {names}"
        )


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_only_the_op_layer_touches_the_registry_of_torch(path):
    text = path.read_text()
    if path.name != "_op.py":
        assert "torch.library.Library(" not in text
    if path.relative_to(PACKAGE).parts[0] in ("methods", "models", "nn", "functional"):
        assert "torch.ops." not in text


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_file_is_one_room(path):
    assert len(path.read_text().splitlines()) <= 400
