"""The parameters of targets are read from their source code without importing their packages."""

from __future__ import annotations

import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.utils import get_object

from torchppo.pipelines.cli.config import built_in_targets
from torchppo.pipelines.cli.keys.components import imported_parameters
from torchppo.pipelines.cli.keys.signatures import UnknownName, number_names, parameters_of, required_names

MODULE = """
import os.path as paths
from collections import *
from .other import Thing as Renamed

class Base:
    def __init__(self, size, *, color=None): ...

class Child(Base): ...

class Mixin: ...

class Mixed(Mixin, Base): ...

class Unknown(paths.Missing, Base): ...

class Mapping(dict, Base): ...

class Open(Base):
    def __init__(self, width, **kwargs): ...

def function(a, b=1, /, c=2, *, d): ...

@staticmethod
def decorated(a): ...

if True:
    def nested(e): ...

made = type("Made", (), {})
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a package that must not be imported."""
    name = f"signatures_{tmp_path.name.replace('-', '_')}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("from .code import Base\nraise ImportError\n")
    (tmp_path / name / "code.py").write_text(MODULE)
    (tmp_path / name / "other.py").write_text("class Thing:\n    def __init__(self, depth): ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("Base", {"size", "color"}),
        ("code.Base", {"size", "color"}),
        ("code.Child", {"size", "color"}),
        ("code.Mixed", {"size", "color"}),
        ("code.Unknown", None),
        ("code.Mapping", None),
        ("code.Open", None),
        ("code.function", {"c", "d"}),
        ("code.decorated", None),
        ("code.nested", {"e"}),
        ("code.Renamed", {"depth"}),
        ("code.made", None),
        ("code.OrderedDict", None),
    ],
)
def test_parameters_of_a_users_package(path: str, names: set[str] | None, package: str) -> None:
    assert parameters_of(f"{package}.{path}") == names
    assert package not in sys.modules


@pytest.mark.parametrize(
    ("path", "names"),
    [
        ("Base", {"size"}),
        ("Child", set()),
        ("Open", {"width"}),
        ("function", {"a", "d"}),
        ("decorated", set()),
        ("made", set()),
    ],
)
def test_required_arguments_of_a_users_package(path: str, names: set[str], package: str) -> None:
    """Those of a base class are unknown."""
    assert required_names(f"{package}.code.{path}") == names


def test_arguments_that_are_numbers_are_those_with_such_an_annotation() -> None:
    assert number_names("torchrl.envs.StepCounter") == {"max_steps"}
    assert number_names("gymnasium.wrappers.TimeLimit") == {"max_episode_steps"}
    assert number_names("torch.optim.Adam") == {"eps", "weight_decay"}


def test_constructors_that_pass_keyword_arguments_on_are_followed(package: str) -> None:
    assert parameters_of(f"{package}.code.Open", follow_kwargs=True) == {"width", "size", "color"}


@pytest.mark.parametrize(
    "path", ["no_such_package.Thing", "torch.optim.SGDD", "torchrl.envs.NoSuch", "torchppo.nope.Nope"]
)
def test_a_path_that_names_nothing_is_found(path: str) -> None:
    with pytest.raises(UnknownName):
        parameters_of(path)


@pytest.mark.parametrize("target", sorted(built_in_targets()))
def test_parameters_of_our_targets_are_those_of_the_imported_classes(target: str) -> None:
    found = parameters_of(target, follow_kwargs=True)
    function = get_object(target)
    signature = inspect.signature(function.__init__ if isinstance(function, type) else function).parameters.values()
    expected = {one.name for one in signature if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
    assert found is None or expected - {"self"} <= found


def test_functions_of_imported_modules_are_inspected() -> None:
    assert imported_parameters("os.system") == {"command"}
    assert imported_parameters("no_such_module.function") is None


def test_reading_imports_neither_pytorch_nor_lightning() -> None:
    program = (
        "import sys\n"
        "from torchppo.pipelines.cli.keys.signatures import parameters_of\n"
        "print(sorted(parameters_of('torch.optim.Adam'))[:2], 'weight_decay' in parameters_of('torch.optim.AdamW'))\n"
        "print('max_epochs' in parameters_of('lightning.Trainer'), {'torch', 'lightning'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["['amsgrad', 'betas'] True", "True set()"]
