"""`torchppo resume` continues a run as if it had not been interrupted, and `verify-resume` finds differences."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from filelock import FileLock
from gymnasium.wrappers import RecordEpisodeStatistics
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from torchppo.envs.resume.snapshot import save_state
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.episodes import EvaluateAndSave
from torchppo.pipelines.resume.verify import different
from torchppo.pipelines.run_files.continued_logs import continue_csv
from torchppo.pipelines.saving.plain_checkpoints import load_checkpoint

RUN = (
    *("experiment=cartpole", "env.num_envs=2", "collector.frames_per_env=32", "update.epochs=1", "total_frames=512"),
    *("update.minibatch_size=32", "eval.episodes=2", "eval.every_frames=128", "eval.video=false", "compile=false"),
    *("trainer.accelerator=cpu", "policy.body.num_cells=[8]", "reward=normalized", "checkpoint.every_frames=64"),
)
"""Eight rollouts, with an evaluation after every second one."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the directory of a run without interruption. Tests must not write to it."""
    run_dir = tmp_path_factory.mktemp("finished") / "run"
    assert main(["train", *RUN, f"run_dir={run_dir}"]) == 0
    return run_dir


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "copy"))


class Killed(BaseException):
    """Ends a training without any of its handlers."""


def kill(monkeypatch: pytest.MonkeyPatch, method: str, frames: int) -> None:
    """Let a method of `EvaluateAndSave` end the training when it returns after `frames`."""
    original = getattr(EvaluateAndSave, method)

    def killing(self: Any, trainer: Any, ppo: Any, *others: Any) -> Any:
        result = original(self, trainer, ppo, *others)
        if ppo.frames >= frames:
            raise Killed
        return result

    monkeypatch.setattr(EvaluateAndSave, method, killing)


def rows_of(run_dir: Path) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if value and name[:5] != "time/"}
            for row in csv.DictReader(file)
        ]


def events_of(run_dir: Path) -> dict[str, list[tuple[int, float]]]:
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name[:5] != "time/"]
    return {name: [(one.step, one.value) for one in events.Scalars(name)] for name in names}


def state_of(path: Path) -> dict[str, Any]:
    checkpoint = load_checkpoint(path)
    checkpoint["torchppo"].pop("config")
    return {name: checkpoint[name] for name in ("state_dict", "optimizer_states", "torchppo")} | {
        "evaluations": checkpoint["callbacks"]["EvaluateAndSave"]
    }


@pytest.mark.parametrize(
    ("method", "frames"), [("on_train_batch_end", 320), ("_mean_return", 256), ("_mean_return", 512)]
)
def test_a_killed_run_continues_as_if_it_had_not_been_killed(
    method: str, frames: int, finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run_dir, moved = tmp_path / "run", tmp_path / "moved"
    with monkeypatch.context() as patch:
        kill(patch, method, frames)
        with pytest.raises(Killed):
            main(["train", *RUN, f"run_dir={run_dir}"])
    run_dir.rename(moved)
    assert main(["resume", str(moved)]) == 0
    assert rows_of(moved) == rows_of(finished)
    assert events_of(moved) == events_of(finished)
    for name in ("last.ckpt", "best.ckpt"):
        pair = [state_of(folder / "checkpoints" / name) for folder in (moved, finished)]
        assert list(different(*pair, name)) == []
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (moved, finished)]
    for name in ("frames", "train_return_mean", "train_episodes", "eval_return_mean", "exit", "env", "seed"):
        assert summaries[0][name] == summaries[1][name]
    assert not run_dir.exists()


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(
    copied: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (copied / "summary.json").unlink()
    last = copied / "checkpoints" / "last.ckpt"
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    last.write_bytes(content)
    assert main(["resume", str(last)]) == 0
    assert "last.ckpt is damaged" in capsys.readouterr().err
    assert rows_of(copied) == rows_of(finished)


def test_a_complete_run_does_not_change_but_can_become_longer(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(copied)
    for path in (copied, copied / "checkpoints" / "last.ckpt"):
        assert main(["resume", str(path)]) == 0
        assert "complete after 512 frames" in capsys.readouterr().out
    assert rows_of(copied) == rows
    assert main(["resume", str(copied), "total_frames=6.4e2"]) == 0
    assert rows_of(copied)[: len(rows)] == rows
    assert {row["step"] for row in rows_of(copied)[len(rows) :]} == {"576", "640"}
    assert load_checkpoint(copied / "checkpoints" / "last.ckpt")["torchppo"]["config"]["total_frames"] == 640


@pytest.mark.parametrize(
    ("words", "code"),
    [(["missing"], 5), (["copy", "seed=1"], 2), (["copy", "total_frames=512"], 2), (["copy", "total_frames=many"], 2)],
    ids=str,
)
def test_mistakes_are_refused(words: list[str], code: int, copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(copied.parent)
    assert main(["resume", *words]) == code
    assert (copied / "summary.json").exists()


def test_overrides_that_are_not_yaml_are_reported(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (copied / "overrides.yaml").write_text("- [\n\x00")
    assert main(["resume", str(copied), "total_frames=640"]) == 5
    assert "overrides.yaml" in capsys.readouterr().err


def test_a_checkpoint_of_another_run_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "config.yaml"
    text, rows = path.read_text(), rows_of(copied)
    path.write_text(text.replace("seed: 0", "seed: 9"))
    assert main(["resume", str(copied), "total_frames=640"]) == 5
    err = capsys.readouterr().err
    assert "seed is 9, not 0" in err
    assert err.count("\n") == 1
    assert rows_of(copied) == rows
    path.write_text("a: [")
    assert main(["train", *RUN, f"run_dir={copied}", "resume=auto"]) == 2
    assert "config.yaml" in capsys.readouterr().err


def test_damaged_rows_of_metrics_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_bytes(b"step,a,b\n1,0.5,\n2,nan,3\n3,\xff,1\n4,0.5\n5,0.5,6\n" + bytes(10))
    writer = SimpleNamespace(metrics_keys=[])
    continue_csv(SimpleNamespace(log_dir=str(tmp_path), experiment=writer), lambda *_: True)
    assert path.read_text().split() == ["step,a,b", "1,0.5,", "2,nan,3", "5,0.5,6"]
    assert writer.metrics_keys == ["step", "a", "b"]


@pytest.mark.parametrize("name", ["config.yaml", "metrics.csv", ".metrics.csv.part", "videos", "tensorboard/x"])
def test_links_out_of_the_run_are_not_followed(name: str, copied: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("text")
    (copied / name).unlink(missing_ok=True)
    (copied / name).symlink_to(tmp_path / "secret")
    assert main(["resume", str(copied), "total_frames=640"]) == 5
    assert (tmp_path / "secret").read_text() == "text"


def test_a_run_that_is_still_running_is_refused(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()}
    with FileLock(copied / ".lock"):
        assert main(["resume", str(copied), "total_frames=640"]) == 6
    assert capsys.readouterr().err.count("\n") == 1
    assert {path: path.read_bytes() for path in copied.rglob("*") if path.is_file()} == before


class Unsteady(gymnasium.Env[Any, Any]):
    """Its observations depend on a counter of the process."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        type(self).steps += 1
        return np.full(1, np.sin(self.steps), np.float32), 1.0, self.steps % 9 == 0, False, {}


@pytest.mark.parametrize(("env", "code", "text"), [("", 0, "equal"), ("env.id=Unsteady-v0", 1, "differs: metrics/")])
def test_verify_resume_compares_both_ways(
    env: str, code: int, text: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Unsteady-v0", Unsteady, max_episode_steps=50)
    monkeypatch.setitem(gymnasium.registry, "Unsteady-v0", spec)
    assert main(["verify-resume", *RUN, *filter(None, [env]), "--rollouts", "1"]) == code
    assert text in capsys.readouterr().out


def test_verify_resume_refuses_several_devices(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify-resume", *RUN, "trainer.devices=2", "trainer.strategy=ddp"]) == 2
    assert "uses one device, not 2; set trainer.devices=1" in capsys.readouterr().err


def test_clocks_of_wrappers_are_not_compared() -> None:
    wrappers = [RecordEpisodeStatistics(gymnasium.make("CartPole-v1")) for _ in range(2)]
    for env in wrappers:
        env.reset(seed=0)
        while not any(env.step(0)[2:4]):
            pass
    assert list(different(*map(save_state, wrappers), "env")) == []
    wrappers[1].reset()
    assert list(different(*map(save_state, wrappers), "env")) != []
    assert list(different([torch.zeros(2)], [torch.ones(2)], "list")) == ["list/0"]


def test_inexact_environments_are_refused_on_request(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Unsteady-v0", Unsteady, max_episode_steps=50)
    monkeypatch.setitem(gymnasium.registry, "Unsteady-v0", spec)
    words = [*RUN, "env.id=Unsteady-v0", "resume.require_exact=true", f"run_dir={tmp_path / 'run'}"]
    assert main(["train", *words]) == 2
    assert "resume.require_exact=true" in capsys.readouterr().err
