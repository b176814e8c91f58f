"""The same command continues a run that was requeued, and refuses to change any other one."""

from __future__ import annotations

import csv
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from torchppo.pipelines.cli.main import main
from torchppo.pipelines.episodes import EvaluateAndSave
from torchppo.pipelines.saving.plain_checkpoints import load_checkpoint

RUN = (
    *("experiment=cartpole", "env.num_envs=2", "collector.frames_per_env=32", "update.epochs=1", "total_frames=256"),
    *("update.minibatch_size=32", "eval.episodes=2", "eval.every_frames=null", "eval.video=false", "compile=false"),
    *("trainer.accelerator=cpu", "policy.body.num_cells=[8]", "logger=csv"),
)
"""Four rollouts."""


def train(run_dir: Path, *words: str) -> int:
    return main(["train", *RUN, f"run_dir={run_dir}", *words])


def send(monkeypatch: pytest.MonkeyPatch, number: int, frames: int) -> None:
    """Send a signal once, after a rollout."""
    original = EvaluateAndSave.on_train_batch_end

    def sending(self: Any, trainer: Any, ppo: Any, *others: Any) -> None:
        if ppo.frames == frames:
            signal.raise_signal(number)
        original(self, trainer, ppo, *others)

    monkeypatch.setattr(EvaluateAndSave, "on_train_batch_end", sending)


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = csv.DictReader(file)
        return [{name: value for name, value in row.items() if value and name[:5] != "time/"} for row in rows]


def end_of(run_dir: Path) -> tuple[str, int]:
    summary = json.loads((run_dir / "summary.json").read_text())
    assert load_checkpoint(run_dir / "checkpoints" / "last.ckpt")["torchppo"]["frames"] == summary["frames"]
    return summary["exit"], summary["frames"]


def test_a_requeued_run_continues_exactly_with_the_same_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, run_dir = tmp_path / "whole", tmp_path / "run"
    assert train(whole) == 0
    with monkeypatch.context() as patch:
        send(patch, signal.SIGUSR1, 128)
        assert train(run_dir) == 75
    assert end_of(run_dir) == ("requeue", 128)
    capsys.readouterr()
    assert train(run_dir, "seed=5", "optimizer.lr=0.5") == 2
    err = capsys.readouterr().err
    assert "seed" in err
    assert "optimizer.lr" in err
    assert err.count("\n") == 1
    assert train(run_dir) == 0
    assert end_of(run_dir) == ("completed", 256)
    assert rows_of(run_dir) == rows_of(whole)
    capsys.readouterr()
    times = {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}
    assert train(run_dir, "resume=auto") == 0
    assert times == {path: path.stat().st_mtime_ns for path in run_dir.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("words", "count", "code"),
    [([], "", 2), ([], "0", 2), (["resume=never"], "", 2), ([], "1", 0), (["resume=auto"], "", 0)],
)
def test_a_stopped_run_continues_on_request(
    words: list[str], count: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    with monkeypatch.context() as patch:
        send(patch, signal.SIGTERM, 64)
        assert train(run_dir) == 143
    assert end_of(run_dir) == ("SIGTERM", 64)
    monkeypatch.setenv("SLURM_RESTART_COUNT", count)
    assert train(run_dir, *words) == code
    assert end_of(run_dir) == (("completed", 256) if code == 0 else ("SIGTERM", 64))


def test_a_run_that_was_killed_in_its_first_rollout_starts_anew(tmp_path: Path) -> None:
    whole, run_dir = tmp_path / "whole", tmp_path / "run"

    class Killed(BaseException):
        """Ends a training without any of its handlers."""

    def kill(*_: Any) -> None:
        raise Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(EvaluateAndSave, "on_train_batch_end", kill)
        with pytest.raises(Killed):
            train(run_dir)
    assert main(["resume", str(run_dir)]) == 0
    assert train(whole) == 0
    assert rows_of(run_dir) == rows_of(whole)


def test_resume_auto_needs_a_directory_and_other_choices_are_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["train", *RUN, "resume=auto"]) == 2
    assert "run_dir" in capsys.readouterr().err
    assert train(tmp_path / "run", "resume=x") == 2
    assert "auto, never" in capsys.readouterr().err
