"""Sweeps use the launchers and sweepers of Hydra's plugins."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from torchppo.pipelines.cli import hydra_sweep

RunCommand = Callable[[str], Any]


@pytest.fixture(autouse=True)
def _logging() -> Iterator[None]:
    """Restore the logging configuration, which Hydra replaces for a sweep."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    existing = [one for one in root.manager.loggerDict.values() if isinstance(one, logging.Logger)]
    disabled = [(one, one.disabled) for one in existing]
    yield
    root.handlers[:], root.level = handlers, level
    for one, was_disabled in disabled:
        one.disabled = was_disabled


@pytest.mark.parametrize("plugin", ["hydra/launcher=joblib", "hydra/launcher=submitit_slurm", "hydra/sweeper=optuna"])
def test_a_missing_plugin_names_its_package(
    plugin: str, run_command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hydra_sweep, "find_spec", lambda _: None)
    code, out, err, _ = run_command(f"train -m {plugin} seed=0,1")
    assert (code, out) == (2, "")
    assert f"{plugin} needs pip install 'torchppo[sweep]'" in err


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        ("hydra/launcher=basic seed=0,1 optimizer.lr=abc", "optimizer.lr=abc"),
        ("hydra/launcher=basic seed=0,1 run_dir=here", "hydra.sweep.dir="),
        ("hydra/launcher=nothing seed=0,1", "hydra/launcher"),
    ],
)
def test_mistakes_are_found_before_the_first_run(words: str, mistake: str, run_command: RunCommand) -> None:
    code, out, err, _ = run_command(f"train -m {words}")
    assert (code, out) == (2, "")
    assert mistake in err
    assert err.count("\n") == 1


def test_every_run_has_its_folder_and_its_result(
    run_command: RunCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\nfor word; do case $word in run_dir=*) dir=$(echo ${word#run_dir=} | tr -d \\');; esac; done\n"
        'mkdir -p "$dir"; echo \'{"eval_return_mean": 7.5}\' > "$dir/summary.json"\n'
        'case "$*" in *seed=1*) exit 4;; esac\n'
    )
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    code, out, err, _ = run_command("train -m hydra/launcher=basic seed=0,1 total_frames=7 hydra.sweep.dir=sweep")
    assert code == 4
    assert "seed=0: 7.5" in out
    assert "1 of 2 runs failed" in err
    assert {path.name for path in (tmp_path / "sweep").iterdir()} >= {"0-seed-0", "1-seed-1", "jobs"}
