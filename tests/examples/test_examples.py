"""Every example is short and runs."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = ["total_frames=512", "eval.episodes=1", "eval.video=false", "compile=false", "seed=1"]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_has_at_most_60_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("own_policy", []),
        ("own_environment", ["collector.frames_per_env=32", "update.minibatch_size=64"]),
        ("own_objective", []),
    ],
)
def test_trains_from_the_command_line(
    name: str, overrides: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    arguments = [*SMALL, *overrides, f"run_dir={tmp_path / 'run'}"]
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    assert ended.value.code == 0
    assert (tmp_path / "run" / "summary.json").is_file()


def test_trains_from_python() -> None:
    ppo = importlib.import_module("train_from_python").main(total_frames=512)
    assert ppo.frames == 512
