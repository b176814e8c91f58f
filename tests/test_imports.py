"""Imports point in one direction: pipelines to modules and envs, and within pipelines from the commands downwards."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED_PACKAGES = {
    "envs": {"envs", "errors"},
    "modules": {"modules", "errors"},
    "pipelines": {"envs", "modules", "pipelines", "errors", "__version__"},
}
FRAMEWORKS = {"lightning", "pytorch_lightning", "lightning_fabric", "hydra", "omegaconf"}
"""Packages that only `pipelines` may import."""

LAYERS = (
    {"distributed", "health", "metrics", "stopping"},
    {"step_factory", "updates", "advantages", "requirements", "monitoring", "compiled"},
    {"collectors", "ppo", "saving"},
    {"build", "components", "episodes"},
    {"run_files", "checkpoint"},
    {"train", "evaluate", "policy", "resume", "check"},
    {"cli"},
)
"""Files and folders of `pipelines`, the lowest layer first. Each imports its own layer and lower ones."""

LAZY = {
    ("compiled", "ppo"),
    ("ppo", "checkpoint"),
    ("saving", "checkpoint"),
    ("monitoring", "checkpoint"),
    ("monitoring", "run_files"),
    ("monitoring", "saving"),
}
"""Importers and parts of `pipelines` above them that they import inside functions."""

LEVELS = {name: level for level, names in enumerate(LAYERS) for name in names}


class Import(NamedTuple):
    """One imported name.

    Attributes:
        file: that imports, relative to the root.
        name: dotted; a name of torchppo starts with a dot.
        is_lazy: whether it is imported inside a function.

    """

    file: str
    name: str
    is_lazy: bool

    @property
    def package(self) -> str:
        """The package of torchppo that is imported, or an empty string."""
        return self.name.split(".")[1] if self.name.startswith(".") else ""

    @property
    def part(self) -> str:
        """The file or folder of `pipelines` that is imported, or an empty string."""
        return self.name.split(".")[2] if self.package == "pipelines" else ""

    @property
    def importer(self) -> str:
        """The file or folder of `pipelines` that imports."""
        return Path(self.file).parts[1].removesuffix(".py")

    def __str__(self) -> str:
        return f"{self.file} imports {self.name}"


def read_imports(file: str, source: str) -> list[Import]:
    """Return every import of a file, also those inside functions."""
    parents = ["", *Path(file).parts[:-1]]

    def walk(node: ast.AST, *, is_lazy: bool) -> Iterator[Import]:
        if isinstance(node, ast.Import):
            yield from (Import(file, alias.name, is_lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = parents[: len(parents) - (node.level - 1)] if node.level else []
            module = [node.module] if node.module else []
            yield from (Import(file, ".".join([*base, *module, alias.name]), is_lazy) for alias in node.names)
        is_function = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, is_lazy=is_lazy or is_function)

    return list(walk(ast.parse(source), is_lazy=False))


FILES = [path for package in ALLOWED_PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
IMPORTS = [one for path in FILES for one in read_imports(str(path.relative_to(ROOT)), path.read_text())]
PIPELINE_IMPORTS = [one for one in IMPORTS if one.file.startswith("pipelines/")]


def is_downward(one: Import) -> bool:
    """Return whether an import within `pipelines` points to its own layer or a lower one."""
    if (one.importer, one.part) in LAZY:
        return one.is_lazy
    return LEVELS[one.importer] >= LEVELS[one.part]


def may_import_compiled(one: Import) -> bool:
    """Return whether an import of `compiled/` is inside of it, or in a function of the step factory."""
    return one.importer == "compiled" or (one.file == "pipelines/step_factory.py" and one.is_lazy)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import lightning.pytorch as pl", {("lightning.pytorch", False)}),
        ("from lightning import Trainer, Callback", {("lightning.Trainer", False), ("lightning.Callback", False)}),
        ("from ..modules.heads import mlp", {(".modules.heads.mlp", False)}),
        ("from .make import make_env", {(".envs.make.make_env", False)}),
        ("from . import make", {(".envs.make", False)}),
        ("class A:\n    import abc", {("abc", False)}),
        ("def f():\n    from .. import errors", {(".errors", True)}),
    ],
)
def test_every_form_of_import_is_read(source: str, expected: set[tuple[str, bool]]) -> None:
    assert {(one.name, one.is_lazy) for one in read_imports("envs/file.py", source)} == expected


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("pipelines/cli/main.py", "from ..train import train", True),
        ("pipelines/train.py", "from .cli.main import main", False),
        ("pipelines/ppo.py", "from .updates import param_groups", True),
        ("pipelines/updates/param_groups.py", "from .. import ppo", False),
        ("pipelines/build.py", "from .episodes import evaluate", True),
        ("pipelines/compiled/graph.py", "from ..ppo import PPO", False),
        ("pipelines/compiled/graph.py", "def f():\n    from ..ppo import PPO", True),
        ("pipelines/ppo.py", "from .checkpoint import restore", False),
    ],
)
def test_an_upward_import_is_recognized(file: str, source: str, expected: bool) -> None:
    (one,) = read_imports(file, source)
    assert is_downward(one) == expected


@pytest.mark.parametrize(
    ("file", "source", "expected"),
    [
        ("pipelines/step_factory.py", "def f():\n    from .compiled.graph import TracedFunction", True),
        ("pipelines/step_factory.py", "from .compiled.graph import TracedFunction", False),
        ("pipelines/ppo.py", "def f():\n    from .compiled.graph import TracedFunction", False),
        ("pipelines/compiled/graph.py", "from .inductor import CudaGraph", True),
    ],
)
def test_an_import_of_compiled_is_recognized(file: str, source: str, expected: bool) -> None:
    (one,) = read_imports(file, source)
    assert may_import_compiled(one) == expected


def test_every_package_is_read() -> None:
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(ALLOWED_PACKAGES)
    assert {"envs", "modules", "pipelines", "errors"} <= {one.package for one in IMPORTS}
    assert any(one.part == "compiled" for one in IMPORTS if one.importer == "step_factory")


def test_every_part_of_pipelines_has_a_layer() -> None:
    paths = [path for path in (ROOT / "pipelines").iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    assert {path.stem for path in paths} - {"__init__"} == set(LEVELS)


def test_packages_import_only_packages_below() -> None:
    allowed = {package: names | {""} for package, names in ALLOWED_PACKAGES.items()}
    assert [str(one) for one in IMPORTS if one.package not in allowed[Path(one.file).parts[0]]] == []


def test_parts_of_pipelines_import_only_lower_layers() -> None:
    assert [str(one) for one in PIPELINE_IMPORTS if one.part and not is_downward(one)] == []


def test_only_functions_of_the_step_factory_import_compiled() -> None:
    imports = [one for one in PIPELINE_IMPORTS if one.part == "compiled"]
    assert [str(one) for one in imports if not may_import_compiled(one)] == []


def test_envs_and_modules_do_not_import_lightning_hydra_or_omegaconf() -> None:
    others = [one for one in IMPORTS if one not in PIPELINE_IMPORTS]
    assert [str(one) for one in others if one.name.split(".")[0] in FRAMEWORKS] == []


def test_torchppo_is_imported_relatively() -> None:
    assert [str(one) for one in IMPORTS if one.name.split(".")[0] == "torchppo"] == []


def test_only_call_instantiates() -> None:
    imports = [one for one in IMPORTS if one.name.split(".")[-1] == "instantiate"]
    assert [str(one) for one in imports if one.file != "pipelines/components/instantiate.py"] == []


def test_errors_import_only_the_standard_library() -> None:
    imports = read_imports("errors.py", (ROOT / "errors.py").read_text())
    assert [str(one) for one in imports if one.name.split(".")[0] not in sys.stdlib_module_names] == []
