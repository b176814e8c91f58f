"""Imports point one way: pipelines to envs and modules, and those to nobody."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {
    "envs": {"envs", "errors"},
    "modules": {"modules", "errors"},
    "pipelines": {"envs", "modules", "pipelines", "errors", "__version__"},
}
FORBIDDEN = {"lightning", "pytorch_lightning", "hydra", "omegaconf"}
FILES = sorted(path for package in ALLOWED for path in (ROOT / package).rglob("*.py"))
TREES = {path: ast.parse(path.read_text()) for path in FILES}


def package_of(path: Path) -> str:
    return path.relative_to(ROOT).parts[0]


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """Dotted names that a file of the dotted `package` imports; a name of torchppo begins with a dot."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = ["", *package.split(".")]
            base = parents[: len(parents) - (node.level - 1)] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)


def parts_in(path: Path) -> set[str]:
    """The parts of torchppo that a file imports."""
    package = ".".join(path.relative_to(ROOT).parts[:-1])
    return {name.split(".")[1] for name in imported(TREES[path], package) if name.startswith(".")}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import lightning.pytorch as pl", {"lightning.pytorch"}),
        ("from lightning import Trainer, Callback", {"lightning.Trainer", "lightning.Callback"}),
        ("from ..modules.networks import mlp", {".modules.networks.mlp"}),
        ("from .make import make_env", {".envs.make.make_env"}),
        ("def f():\n    from .. import errors", {".errors"}),
    ],
)
def test_the_reader_understands_every_form_of_import(source: str, expected: set[str]) -> None:
    assert set(imported(ast.parse(source), "envs")) == expected


def test_there_is_something_to_read() -> None:
    assert {package_of(path) for path in FILES} == set(ALLOWED)
    assert {"envs", "modules", "errors"} < set().union(*map(parts_in, FILES))


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
class TestEveryFile:
    def test_imports_only_the_parts_below_its_own(self, path: Path) -> None:
        assert parts_in(path) <= ALLOWED[package_of(path)]

    def test_of_envs_and_modules_knows_nothing_of_lightning_or_hydra(self, path: Path) -> None:
        if package_of(path) != "pipelines":
            assert {name.split(".")[0] for name in imported(TREES[path], "")}.isdisjoint(FORBIDDEN)

    def test_imports_torchppo_relatively(self, path: Path) -> None:
        assert "torchppo" not in {name.split(".")[0] for name in imported(TREES[path], "")}

    def test_leaves_instantiating_to_build(self, path: Path) -> None:
        if path.name != "build.py":
            assert not {name for name in imported(TREES[path], "") if name.endswith(".instantiate")}


def test_errors_need_the_standard_library_alone() -> None:
    names = imported(ast.parse((ROOT / "errors.py").read_text()), "")
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names
