"""The command line in this process, without the training itself."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest

from torchppo.pipelines.cli.main import main


class Outcome(NamedTuple):
    """Exit code and output of a command, and the configurations that it trained with."""

    code: int
    out: str
    err: str
    trained: list[Any]


@pytest.fixture
def fake_training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Replace `pipelines.train` by a module whose `train` records its configuration.

    It returns the module's `outcome`, or raises it.
    """
    module = ModuleType("torchppo.pipelines.train")
    module.outcome, module.configurations = 0, []

    def train(cfg: Any, overrides: list[str]) -> int:
        module.configurations.append(cfg)
        if isinstance(module.outcome, BaseException):
            raise module.outcome
        return module.outcome

    module.train = train
    monkeypatch.setitem(sys.modules, "torchppo.pipelines.train", module)
    return module


@pytest.fixture
def run_command(
    fake_training: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[[str], Outcome]:
    """Return a function that runs a command in an empty folder with the fake training."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> Outcome:
        try:
            code = main(command.split())
        except SystemExit as error:
            code = int(error.code or 0)
        return Outcome(code, *capsys.readouterr(), fake_training.configurations)

    return run
