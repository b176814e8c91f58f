"""A training writes the documented files, or reports in one line why it cannot run."""

from __future__ import annotations

import json
import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from csv import DictReader
from io import StringIO
from itertools import count
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock
from gymnasium import spaces
from lightning import Trainer
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import torchppo
from torchppo.pipelines import train as train_module
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.episodes import Evaluation
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.stopping.signals import SIGNALS

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]

TINY = (
    *("experiment=cartpole", "total_frames=512", "collector.frames_per_env=32", "eval.episodes=2"),
    *("eval.video=false", "compile=false", "update.epochs=2", "trainer.accelerator=cpu"),
)
"""Two rollouts of 256 frames each."""

SCRIPTED = (
    *("env.id=Scripted-v0", "env.num_envs=4", "total_frames=64", "collector.frames_per_env=8"),
    "update.minibatch_size=16",
)
"""Two rollouts of 32 frames each."""

ACTION_SPACES = [spaces.Discrete(2), spaces.Box(-1, 1, (1,))]

SUMMARY = {
    *(
        "env",
        "overrides",
        "seed",
        "frames",
        "wall_seconds",
        "frames_per_second",
        "environment_frames_per_second",
        "train_return_mean",
        "train_episodes",
    ),
    *("eval_return_mean", "eval_return_std", "eval_episodes", "eval_episodes_cut", "time", "health"),
    *("collapsed", "exit", "version"),
}
METRICS = {
    *(
        "rollout/ep_rew_mean",
        "rollout/ep_rew_std",
        "rollout/ep_len_mean",
        "train/approx_kl",
        "train/clip_fraction",
        "time/fps",
    ),
    *("train/explained_variance", "train/entropy", "train/grad_norm", "eval/mean_reward"),
}


class Scripted(gymnasium.Env[Any, Any]):
    """An environment with episodes of `length` steps and a constant reward.

    In step `at` since its creation it calls `event`, or its `broken` output (`observation` or `reward`) is `value`.
    """

    def __init__(
        self,
        length: int = 4,
        reward: float = 3.0,
        at: int = 0,
        event: Callable[[], None] | None = None,
        broken: str | None = None,
        value: float = math.nan,
        observation_space: spaces.Space[Any] | None = None,
        action_space: spaces.Space[Any] | None = None,
        **_: Any,
    ) -> None:
        self.observation_space = observation_space or spaces.Box(-1, 1, (2,))
        self.action_space = action_space or spaces.Discrete(2)
        self.length, self.reward = length, reward
        self.at, self.event, self.broken, self.value = at, event, broken, value
        self.steps = self.total_steps = 0

    def observe(self) -> Any:
        value = self.value if self.broken == "observation" and self.total_steps == self.at else 0.0
        return np.full(2, value, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.total_steps += 1
        if self.event is not None and self.total_steps == self.at:
            self.event()
        reward = self.value if self.broken == "reward" and self.total_steps == self.at else self.reward
        return self.observe(), reward, self.steps == self.length, False, {}


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scripted() -> Iterator[Callable[..., list[str]]]:
    """Register a `Scripted` environment and return the overrides to train in it.

    With `only`, the options apply only to the environment of that number, in the order of creation.
    """

    def register(*, only: int | None = None, **options: Any) -> list[str]:
        number = count()

        def make(**keywords: Any) -> Scripted:
            return Scripted(**(options if only is None or next(number) == only else {}), **keywords)

        gymnasium.register("Scripted-v0", entry_point=make)  # type: ignore[arg-type]
        return [*SCRIPTED]

    yield register
    gymnasium.registry.pop("Scripted-v0", None)


def run(*overrides: str, run_dir: Path | str = "run") -> int:
    return main(["train", *TINY, f"run_dir={run_dir}", *overrides])


def assert_fails(code: int, words: list[str], overrides: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Check that a training ends with an exit code and prints one line that contains all words."""
    assert run(*overrides) == code
    err = capsys.readouterr().err
    assert err.startswith("torchppo: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    for word in words:
        assert word in err


def summary(run_dir: Path | str = "run") -> dict[str, Any]:
    def reject(constant: str) -> None:
        raise AssertionError(f"{constant} in summary.json")

    return json.loads((Path(run_dir) / "summary.json").read_text(), parse_constant=reject)


def rows(run_dir: Path | str = "run") -> list[dict[str, str]]:
    with (Path(run_dir) / "metrics.csv").open(newline="") as file:
        return list(DictReader(file))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Return the run directory of a complete training, and what it printed."""
    run_dir, out = tmp_path_factory.mktemp("finished") / "run", StringIO()
    with redirect_stdout(out):
        assert run("seed=3", run_dir=run_dir) == 0
    return run_dir, out.getvalue()


class TestRunFiles:
    def test_are_the_documented_ones(self, finished: tuple[Path, str]) -> None:
        run_dir, _ = finished
        assert {path.name for path in run_dir.iterdir() if path.name != ".lock"} == {
            *("config.yaml", "overrides.yaml", "hparams.yaml", "metrics.csv", "tensorboard"),
            *("checkpoints", "learning_curve.png", "summary.json"),
        }
        names = {path.name for path in (run_dir / "checkpoints").iterdir()}
        assert names == {"last.ckpt", "previous.ckpt", "best.ckpt"}

    def test_summary_has_the_documented_figures(self, finished: tuple[Path, str]) -> None:
        figures = summary(finished[0])
        assert set(figures) == SUMMARY
        assert (figures["env"], figures["seed"], figures["frames"]) == ("CartPole-v1", 3, 512)
        assert "total_frames=512" in figures["overrides"]
        assert (figures["exit"], figures["version"]) == ("completed", torchppo.__version__)
        assert 0 < figures["wall_seconds"] < 100
        assert figures["frames_per_second"] == pytest.approx(512 / figures["wall_seconds"])
        assert figures["eval_episodes"] == 2
        assert figures["train_episodes"] >= 1
        assert 1 <= figures["train_return_mean"] <= 500
        assert 1 <= figures["eval_return_mean"] <= 500
        assert 0 <= figures["eval_return_std"] <= 250

    def test_time_shares_sum_to_one(self, finished: tuple[Path, str]) -> None:
        shares = summary(finished[0])["time"]
        parts_of_collect = {name: shares.pop(name) for name in ("environment", "policy")}
        assert set(shares) == {"collect", "estimate", "update", "other"}
        assert all(0 < share < 1 for share in (*shares.values(), *parts_of_collect.values()))
        assert sum(shares.values()) == pytest.approx(1)
        assert sum(parts_of_collect.values()) < shares["collect"]

    def test_environment_share_is_the_ratio_of_the_speeds(self, finished: tuple[Path, str]) -> None:
        figures = summary(finished[0])
        ratio = figures["frames_per_second"] / figures["environment_frames_per_second"]
        assert ratio == pytest.approx(figures["time"]["environment"])

    def test_configuration_is_resolved_and_follows_from_the_overrides(self, finished: tuple[Path, str]) -> None:
        run_dir, _ = finished
        text = (run_dir / "config.yaml").read_text()
        overrides = yaml.safe_load((run_dir / "overrides.yaml").read_text())
        assert "${" not in text
        assert overrides == [*TINY, f"run_dir={run_dir}", "seed=3"]
        composed = OmegaConf.to_container(compose(overrides), resolve=True)
        stored = yaml.safe_load(text)
        assert [Path(folder).is_dir() for folder in stored.pop("code_dirs")] == [True]
        assert stored == composed

    def test_metrics_have_the_documented_names_and_are_over_frames(self, finished: tuple[Path, str]) -> None:
        table = rows(finished[0])
        assert set(table[0]) >= METRICS
        updates = [row for row in table if row["train/entropy"]]
        assert [float(row["step"]) for row in updates] == [256, 512]
        assert [float(row["step"]) for row in table if row["eval/mean_reward"]] == [512]
        assert all(math.isfinite(float(value)) for row in table for value in row.values() if value)
        assert all(float(row["time/fps"]) > 1 for row in updates)

    def test_metrics_agree_with_the_summary(self, finished: tuple[Path, str]) -> None:
        figures, table = summary(finished[0]), rows(finished[0])
        (evaluated,) = (float(row["eval/mean_reward"]) for row in table if row["eval/mean_reward"])
        assert evaluated == figures["eval_return_mean"]
        returns = [float(row["rollout/ep_rew_mean"]) for row in table if row["rollout/ep_rew_mean"]]
        assert returns[-1] == pytest.approx(figures["train_return_mean"], rel=1e-6)

    def test_tensorboard_has_the_same_metrics_over_frames(self, finished: tuple[Path, str]) -> None:
        events = EventAccumulator(str(finished[0] / "tensorboard")).Reload()
        assert set(events.Tags()["scalars"]) >= METRICS
        assert [event.step for event in events.Scalars("train/entropy")] == [256, 512]

    @pytest.mark.parametrize("name", ["last", "best"])
    def test_checkpoints_are_data_without_code(self, name: str, finished: tuple[Path, str]) -> None:
        checkpoint = torch.load(finished[0] / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["torchppo"]["frames"] == 512
        assert checkpoint["torchppo"]["config"]["env"]["id"] == "CartPole-v1"
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())

    def test_terminal_shows_the_figures_and_the_paths_of_the_files(self, finished: tuple[Path, str]) -> None:
        """A narrow terminal wraps long paths but does not shorten them."""
        run_dir, out = finished
        shown = "".join(re.sub("[│|]", "", out).split())
        for words in ("CartPole-v1,seed3:completed", "512in", "+-"):
            assert words in shown
        for name, path in (("checkpoint", "checkpoints/last.ckpt"), ("learningcurve", "learning_curve.png")):
            assert f"{name}:{run_dir / path}" in shown

    def test_learning_curve_is_a_png(self, finished: tuple[Path, str]) -> None:
        assert (finished[0] / "learning_curve.png").read_bytes().startswith(b"\x89PNG")

    def test_video_is_recorded_if_enabled(self) -> None:
        assert run("eval.video=true", "total_frames=256") == 0
        (video,) = (Path("run") / "videos").iterdir()
        assert video.suffix == ".mp4"
        assert video.read_bytes()[4:8] == b"ftyp"

    @pytest.mark.parametrize(
        ("logger", "present", "absent"),
        [
            ("csv", {"metrics.csv", "learning_curve.png"}, {"tensorboard"}),
            ("tensorboard", {"tensorboard"}, {"metrics.csv", "learning_curve.png"}),
            ("[]", set(), {"metrics.csv", "learning_curve.png", "tensorboard"}),
        ],
    )
    def test_depend_on_the_loggers(
        self, logger: str, present: set[str], absent: set[str], scripted: Callable[..., list[str]]
    ) -> None:
        assert run(*scripted(), f"logger={logger}") == 0
        names = {path.name for path in Path("run").iterdir()}
        assert names >= {"summary.json", "checkpoints", *present}
        assert not names & absent

    def test_learning_curve_is_that_of_a_csv_file_with_another_name(self, scripted: Callable[..., list[str]]) -> None:
        assert run(*scripted(), "logger=csv", "logger.csv.name=a", "logger.csv.version=b") == 0
        assert Path("run/a/b/metrics.csv").exists()
        assert Path("run/learning_curve.png").exists()


class TestFigures:
    def test_returns_are_raw_despite_reward_transforms(self, scripted: Callable[..., list[str]]) -> None:
        transforms = "transforms=[{_target_: torchrl.envs.RewardScaling, loc: 0, scale: 0.1}]"
        assert run(*scripted(length=4, reward=3.0), "reward=normalized", transforms) == 0
        figures = summary()
        assert (figures["train_return_mean"], figures["train_episodes"]) == (12.0, 16)
        assert (figures["eval_return_mean"], figures["eval_return_std"]) == (12.0, 0.0)

    def test_that_do_not_exist_are_null(self, scripted: Callable[..., list[str]]) -> None:
        assert run(*scripted(length=100)) == 0
        figures = summary()
        assert (figures["train_return_mean"], figures["train_episodes"]) == (None, 0)
        assert figures["eval_return_mean"] == 300.0

    @pytest.mark.parametrize(("total_frames", "frames"), [(95, 64), (96, 96), (10, 32)])
    def test_frames_do_not_exceed_the_total_after_the_first_rollout(
        self, total_frames: int, frames: int, scripted: Callable[..., list[str]]
    ) -> None:
        assert run(*scripted(), f"total_frames={total_frames}") == 0
        assert summary()["frames"] == frames

    def test_are_reproducible_by_the_seed(self) -> None:
        results = []
        for number, seed in enumerate((5, 5, 6)):
            run(f"seed={seed}", "logger=csv", "policy.normalize_observation=true", run_dir=f"run{number}")
            results.append([{**row, "time/fps": None} for row in rows(f"run{number}")])
        assert results[0] == results[1]
        assert results[0] != results[2]


class TestEvaluation:
    @pytest.fixture
    def means(self, monkeypatch: pytest.MonkeyPatch) -> list[float]:
        """Return the list of the means that the following evaluations return."""
        remaining: list[float] = []
        monkeypatch.setattr(train_module, "evaluate", lambda *_, **__: Evaluation([remaining.pop(0)], [1]))
        return remaining

    def test_is_logged_and_saves_the_best_and_the_last_checkpoint(
        self, means: list[float], scripted: Callable[..., list[str]]
    ) -> None:
        means.extend([5.0, 9.0, 7.0])
        assert run(*scripted(), "total_frames=160", "eval.every_frames=64") == 0
        evaluated = [(float(row["step"]), float(row["eval/mean_reward"])) for row in rows() if row["eval/mean_reward"]]
        assert evaluated == [(64, 5.0), (128, 9.0), (160, 7.0)]
        frames = {
            name: torch.load(f"run/checkpoints/{name}.ckpt", weights_only=True)["torchppo"]["frames"]
            for name in ("best", "last")
        }
        assert frames == {"best": 128, "last": 160}
        assert summary()["eval_return_mean"] == 7.0

    def test_last_checkpoint_survives_a_failure_of_the_training(
        self, means: list[float], scripted: Callable[..., list[str]]
    ) -> None:
        means.extend([5.0, 4.0])

        def fail() -> None:
            raise ValueError

        assert run(*scripted(at=20, event=fail), "total_frames=96", "eval.every_frames=32") == 3
        assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["torchppo"]["frames"] == 64

    def test_last_checkpoint_survives_a_failure_of_the_evaluation(
        self, scripted: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: Any, **__: Any) -> Evaluation:
            raise ZeroDivisionError

        monkeypatch.setattr(train_module, "evaluate", fail)
        with pytest.raises(ZeroDivisionError):
            run(*scripted())
        assert Path("run/checkpoints/last.ckpt").is_file()

    def test_of_a_torchrl_environment_keeps_the_number_of_threads(self, scripted: Callable[..., list[str]]) -> None:
        """TorchRL's batched environments change it when they are closed."""
        num_threads: list[int] = []
        scripted(at=12, event=lambda: num_threads.append(torch.get_num_threads()))
        env = ("env=torchrl", "env._target_=torchrl.envs.GymEnv", "+env.env_name=Scripted-v0", "num_threads=1")
        sizes = ("collector.frames_per_env=8", "update.minibatch_size=8", "total_frames=16", "eval.every_frames=8")
        assert run(*env, *sizes) == 0
        assert set(num_threads) == {1}

    def test_does_not_change_the_training(self, scripted: Callable[..., list[str]]) -> None:
        weights = []
        overrides = scripted()
        for run_dir, every in (("rare", "null"), ("frequent", "32")):
            assert run(*overrides, f"eval.every_frames={every}", run_dir=run_dir) == 0
            weights.append(torch.load(f"{run_dir}/checkpoints/last.ckpt", weights_only=True)["state_dict"])
        assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])

    def test_makes_its_environments_once_and_closes_them(self, scripted: Callable[..., list[str]]) -> None:
        made, closed = [], []
        scripted()

        class Counted(Scripted):
            def __init__(self, **keywords: Any) -> None:
                super().__init__(**keywords)
                made.append(self)

            def close(self) -> None:
                closed.append(self)

        gymnasium.registry["Scripted-v0"].entry_point = Counted
        assert run(*SCRIPTED, "eval.every_frames=32", "eval.episodes=3") == 0
        assert len(made) == 4 + 3
        assert {id(env) for env in closed} == {id(env) for env in made}

    def test_has_the_workers_of_the_training(self, scripted: Callable[..., list[str]]) -> None:
        processes: list[int] = []
        overrides = scripted(at=1, event=lambda: processes.append(os.getpid()))
        assert run(*overrides, "env.num_workers=2", "eval.every_frames=32") == 0
        assert processes == []  # every step was one of another process
        assert (summary()["eval_episodes"], summary()["eval_return_mean"]) == (2, 12.0)

    @pytest.mark.parametrize("every", ["32", "null"])
    def test_without_episodes_makes_no_environment(self, every: str, scripted: Callable[..., list[str]]) -> None:
        made = []
        scripted()
        gymnasium.registry["Scripted-v0"].entry_point = lambda **_: made.append(Scripted()) or made[-1]  # type: ignore[func-returns-value]
        assert run(*SCRIPTED, "eval.episodes=0", "eval.video=true", f"eval.every_frames={every}") == 0
        assert len(made) == 4
        assert {path.name for path in Path("run/checkpoints").iterdir()} >= {"last.ckpt", "previous.ckpt", "best.ckpt"}
        assert not Path("run/videos").exists()
        figures = summary()
        assert (figures["eval_return_mean"], figures["eval_episodes"], figures["train_return_mean"]) == (None, 0, 12.0)

    def test_has_the_keys_of_eval_env_and_a_limit(self, scripted: Callable[..., list[str]]) -> None:
        scripted()
        gymnasium.registry["Scripted-v0"].entry_point = Scripted
        assert run(*SCRIPTED, "+eval.env.length=1000", "+eval.env.reward=1.5", "eval.max_steps=10") == 0
        figures = summary()
        assert (figures["train_return_mean"], figures["eval_return_mean"]) == (12.0, 15.0)
        assert (figures["eval_episodes"], figures["eval_episodes_cut"]) == (2, 2)

    def test_that_cannot_make_a_second_environment_names_the_option_that_disables_it(
        self, scripted: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        scripted()
        made: list[Scripted] = []

        def make(**_: Any) -> Scripted:
            if made:
                raise RuntimeError("the port is in use")
            made.append(Scripted())
            return made[0]

        gymnasium.registry["Scripted-v0"].entry_point = make  # type: ignore[assignment]
        one = ["env.num_envs=1", "update.minibatch_size=8"]
        assert run(*SCRIPTED, *one) == 3
        message = capsys.readouterr().err.splitlines()[-1]
        assert "the port is in use" in message
        assert "eval.episodes=0" in message
        made.clear()
        assert run(*SCRIPTED, *one, "eval.episodes=0") == 0


def test_an_environment_may_change_the_working_directory(
    scripted: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other").mkdir()
    overrides = scripted(at=10, event=lambda: os.chdir(tmp_path / "other"))
    assert run(*overrides, "num_threads=1") == 0
    assert [*(tmp_path / "other").iterdir()] == []
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {"checkpoints", "metrics.csv", "summary.json"}
    os.chdir(tmp_path)
    assert main(["resume", "run", "total_frames=96"]) == 0
    assert "checkpoint: run/checkpoints/last.ckpt" in capsys.readouterr().out


def test_training_and_evaluation_work_in_a_thread(scripted: Callable[..., list[str]]) -> None:
    """Only the main thread may handle signals."""
    codes: list[int] = []
    overrides = [
        *scripted(),
        "compile=auto",
        "total_frames=320",
        "env.num_workers=1",
        "trainer.enable_checkpointing=true",
    ]

    def work() -> None:
        codes.append(run(*overrides))
        codes.append(main(["eval", "run/checkpoints/last.ckpt", "--no-video", "--episodes", "2", "--json"]))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=120)
    assert codes == [0, 0]


class TestBadInput:
    @pytest.mark.parametrize(
        ("overrides", "code", "words"),
        [
            (["env.id=CartPol-v1"], 3, ["CartPol-v1", "'CartPole-v1'"]),
            (["env.id=no_such_module:Env-v0"], 3, ["no_such_module"]),
            (["+env.nonsense=1"], 2, ["nonsense", "CartPole-v1"]),
            (["update.minibatch_size=512"], 2, ["minibatch_size=512", "256"]),
            (["update.minibatch_size=100"], 2, ["minibatch_size=100", "256", "64", "128"]),
            (["policy=cnn"], 2, ["policy=cnn", "policy=mlp"]),
            (["head=gsde", "policy.head.num_steps=0", "env.id=Pendulum-v1"], 2, ["num_steps=0"]),
            (["ppo.normalize_advantage=true"], 2, ["normalize_advantage=true", "minibatch"]),
            (["policy=gru", "update.sequence_length=48"], 2, ["sequence_length=48", "32"]),
            (["policy=gru", "update.minibatch_size=16"], 2, ["minibatch_size=16", "sequence"]),
            (["memory=transformer", "policy.memory.num_heads=5"], 2, ["num_heads=5", "width=64"]),
            (["critic=hl_gauss", "objective.clip_value=0.2"], 2, ["clip_value=0.2", "CategoricalValue"]),
            (
                [
                    "+policy.encoders.image._target_=torchppo.modules.features.bodies.mlp",
                    "+policy.encoders.image._partial_=true",
                ],
                2,
                ["image", "observation"],
            ),
            (["critic.epochs=0"], 2, ["critic.epochs=0"]),
            (["policy=gru", "update.burn_in=4"], 2, ["burn_in=4", "sequence_length"]),
            (["policy.body.activation=tan"], 2, ["activation=tan", "tanh"]),
            (["policy._target_=torchppo.modules.nothing"], 2, ["torchppo.modules.nothing"]),
            (["+policy.foo=1"], 2, ["foo", "make_actor_critic"]),
            (["+policy.body.foo=1"], 2, ["foo", "mlp"]),
            (["+optimizer.foo=1"], 2, ["foo", "Adam"]),
            (["+controller.lr.foo=1"], 2, ["foo", "Linear"]),
            (["+trainer.foo=1"], 2, ["foo", "Trainer"]),
            (["trainer.precision=8"], 2, ["precision", "8"]),
            (["trainer.accelerator=abacus"], 2, ["abacus", "cpu"]),
            (["compile=maybe"], 2, ["compile=maybe", "auto"]),
            (["seed=-1"], 2, ["seed=-1"]),
            (["num_threads=0"], 2, ["num_threads=0"]),
            (["env.num_envs=0"], 2, ["env.num_envs=0"]),
            (["collector.frames_per_env=0"], 2, ["collector.frames_per_env=0"]),
            (["total_frames=0"], 2, ["total_frames=0"]),
            (["update.epochs=0"], 2, ["update.epochs=0"]),
            (["eval.episodes=-1"], 2, ["eval.episodes=-1"]),
            (["eval.every_frames=0"], 2, ["eval.every_frames=0", "null"]),
            (["+trainer.fast_dev_run=true"], 2, ["trainer.fast_dev_run", "total_frames"]),
            (["+trainer.val_check_interval=5"], 2, ["trainer.val_check_interval", "eval.every_frames"]),
            (["estimator._target_=null"], 2, ["_target_"]),
            (["trainer.enable_progress_bar=true"], 2, ["trainer.enable_progress_bar", "torchppo"]),
            (["policy.body.num_cells=[a]"], 2, ["num_cells=[a]"]),
            (["env=torchrl", "env._target_=collections.OrderedDict"], 3, ["OrderedDict", "EnvBase"]),
            (["transforms=[3]"], 2, ["3", "_target_"]),
            (["ppo.max_grad_norm=-1"], 2, ["ppo.max_grad_norm=-1"]),
            (["ppo.value_pretraining=-1"], 2, ["ppo.value_pretraining=-1"]),
            (["eval.stop_at=high"], 2, ["eval.stop_at=high"]),
            (["seed=null"], 2, ["seed=null"]),
            (["ppo.max_grad_norm=null"], 2, ["ppo.max_grad_norm=null"]),
            (["trainer.strategy=ddp_fork", "trainer.devices=2"], 2, ["trainer.strategy=ddp_fork", "strategy=ddp"]),
            (["trainer.strategy=ddp_spawn", "trainer.devices=2"], 2, ["trainer.strategy=ddp_spawn", "strategy=ddp"]),
            (["trainer.max_epochs=0"], 2, ["trainer.max_epochs=0"]),
            (["+trainer.limit_train_batches=0"], 2, ["trainer.limit_train_batches=0"]),
            (["estimator.gamma=1.5"], 2, ["estimator.gamma=1.5"]),
            (["critic.lmbda=-0.1"], 2, ["critic.lmbda=-0.1"]),
            (["policy=transformer", "policy.memory.num_heads=0"], 2, ["policy.memory.num_heads=0"]),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else None,
    )
    def test_is_rejected_before_the_run_directory_is_created(
        self, overrides: list[str], code: int, words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert_fails(code, words, overrides, capsys)
        assert not Path("run").exists()

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"observation_space": spaces.Sequence(spaces.Discrete(2))}, ["Sequence", "Discrete"]),
            ({"observation_space": spaces.Dict(a=spaces.Sequence(spaces.Discrete(2)))}, ["observation/a", "Sequence"]),
            ({"observation_space": spaces.Graph(spaces.Discrete(2), None)}, ["observation", "Graph"]),
            ({"action_space": spaces.Dict(a=spaces.Text(3))}, ["action/a", "Text"]),
            ({"action_space": spaces.Sequence(spaces.Discrete(2))}, ["action space Sequence"]),
        ],
        ids=lambda value: str(next(iter(value.values()))) if isinstance(value, dict) else None,
    )
    def test_an_unsupported_space_is_named(
        self,
        options: dict[str, Any],
        words: list[str],
        scripted: Callable[..., list[str]],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        assert_fails(3, [*words, "supported"], scripted(**options), capsys)

    @pytest.mark.parametrize("action_space", ACTION_SPACES, ids=["discrete", "continuous"])
    @pytest.mark.parametrize(
        ("broken", "value", "at", "step"),
        [
            *(("observation", math.nan, 3, 2), ("observation", math.inf, 9, 0), ("observation", math.nan, 8, 7)),
            *(("reward", math.nan, 3, 2), ("reward", -math.inf, 9, 0)),
        ],
    )
    def test_a_value_that_is_not_finite_is_reported_with_environment_and_step(
        self,
        broken: str,
        value: float,
        at: int,
        step: int,
        action_space: spaces.Space[Any],
        scripted: Callable[..., list[str]],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """A rollout has 8 steps, so the ninth step of an environment is the first one of the second rollout."""
        overrides = scripted(only=2, length=50, broken=broken, value=value, at=at, action_space=action_space)
        assert_fails(3, [f"{broken} of environment 2 is {value}", f"step {step}"], overrides, capsys)

    @pytest.mark.parametrize("action_space", ACTION_SPACES, ids=["discrete", "continuous"])
    def test_a_first_observation_that_is_not_finite_is_reported_with_its_environment(
        self, action_space: spaces.Space[Any], scripted: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        overrides = scripted(only=2, broken="observation", at=0, action_space=action_space)
        assert_fails(3, ["observation of environment 2 is nan"], overrides, capsys)

    @pytest.mark.parametrize("num_workers", [0, 2])
    def test_a_failing_environment_is_reported_in_process_and_in_workers(
        self, num_workers: int, scripted: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        def fail() -> None:
            raise ValueError("the robot fell off the table")

        overrides = [*scripted(at=9, event=fail), f"env.num_workers={num_workers}"]
        assert run(*overrides) == 3
        err = capsys.readouterr().err
        assert "ValueError: the robot fell off the table" in err.splitlines()[-1]
        assert multiprocessing.active_children() == []

    @pytest.mark.parametrize(
        ("overrides", "words"),
        [
            (["optimizer.lr=-1"], ["optimizer", "-1"]),
            (["trainer.precision=64-true"], ["trainer.precision=64-true", "32-true", "bf16-mixed"]),
            (["compile=true", "+optimizer.amsgrad=true"], ["optimizer.amsgrad=true", "compile=false"]),
            (["+critic.optimizer.learning_rate=1"], ["critic.optimizer.learning_rate", "Adam", "lr, betas"]),
            (["+trainer.gradient_clip_val=0.5"], ["trainer", "gradient_clip_val"]),
        ],
    )
    def test_that_appears_when_training_starts_is_reported_in_one_line(
        self, overrides: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert_fails(2, words, overrides, capsys)

    def test_exploding_weights_are_reported_with_the_learning_rate(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert_fails(4, ["frames", "optimizer.lr"], ["optimizer.lr=1e30"], capsys)

    def test_a_missing_ale_py_is_reported_with_the_command_to_install_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.setitem(sys.modules, "ale_py.vector_env", None)
        assert_fails(3, ["pip install 'torchppo[atari]'"], ["env=pong", "policy=cnn"], capsys)

    @pytest.mark.parametrize(("logger", "package"), [("wandb", "wandb"), ("mlflow", "mlflow")])
    def test_a_missing_logger_is_reported_with_the_command_to_install_it(
        self, logger: str, package: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in (package, f"{package}_skinny"):
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setattr(f"lightning.pytorch.loggers.{logger}._{package.upper()}_AVAILABLE", False)
        assert_fails(2, [f"pip install 'torchppo[{logger}]'"], [f"logger={logger}"], capsys)


class TestRunDir:
    def contents(self) -> dict[Path, bytes]:
        files = (path for path in Path("run").rglob("*") if path.is_file())
        return {path: path.read_bytes() for path in files if path.name != ".lock"}

    def test_without_a_completed_rollout_can_be_used_again(
        self, scripted: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        overrides = scripted()
        assert_fails(2, ["optimizer", "-1"], [*overrides, "optimizer.lr=-1"], capsys)
        assert run(*overrides) == 0

    def test_that_holds_a_run_is_not_changed(
        self, scripted: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        overrides = scripted()
        assert run(*overrides) == 0
        before = self.contents()
        capsys.readouterr()
        assert_fails(2, ["run_dir=run"], overrides, capsys)
        assert self.contents() == before

    def test_that_is_locked_is_not_changed(
        self, scripted: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("run").mkdir()
        with FileLock("run/.lock"):
            assert_fails(6, ["run_dir=run"], scripted(), capsys)
        assert not Path("run/config.yaml").exists()

    def test_that_a_killed_process_has_locked_can_be_used(self, scripted: Callable[..., list[str]]) -> None:
        overrides = scripted()
        hold = (
            "import filelock; lock = filelock.FileLock('run/.lock'); lock.acquire(); print('held', flush=True); input()"
        )
        Path("run").mkdir()
        with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            try:
                assert run(*overrides) == 6
            finally:
                process.kill()
        assert run(*overrides) == 0

    def test_may_exist_and_be_empty(self, scripted: Callable[..., list[str]]) -> None:
        Path("run").mkdir()
        assert run(*scripted()) == 0

    def test_that_cannot_be_created_is_refused(
        self, scripted: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
    ) -> None:
        Path("file").write_text("text")
        assert run(*scripted(), run_dir="file/run") == 2
        err = capsys.readouterr().err
        assert re.fullmatch(r"torchppo: run_dir=file/run .*Not a directory.*\n", err)


class TestSignals:
    def test_sigterm_ends_the_training_after_the_rollout_and_saves_everything(
        self, scripted: Callable[..., list[str]]
    ) -> None:
        handler = signal.signal(signal.SIGTERM, lambda *_: pytest.fail("the signal was not handled"))
        try:
            overrides = scripted(only=0, at=12, event=lambda: signal.raise_signal(signal.SIGTERM))
            assert run(*overrides, "total_frames=320") == 143
            assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, None)
        finally:
            signal.signal(signal.SIGTERM, handler)
        figures = summary()
        assert (figures["exit"], figures["frames"]) == ("SIGTERM", 64)
        assert torch.load("run/checkpoints/last.ckpt", weights_only=True)["torchppo"]["frames"] == 64

    def test_handlers_are_restored_after_the_training(self, scripted: Callable[..., list[str]]) -> None:
        def handler(number: int, frame: object) -> None: ...

        before = signal.signal(signal.SIGTERM, handler)
        try:
            assert run(*scripted()) == 0
            assert signal.getsignal(signal.SIGTERM) is handler
        finally:
            signal.signal(signal.SIGTERM, before)

    def test_sigint_in_an_evaluation_ends_evaluation_and_training(
        self, scripted: Callable[..., list[str]], capfd: pytest.CaptureFixture[str]
    ) -> None:
        def interrupt() -> None:
            if Path("run/metrics.csv").exists():  # after the first rollout
                signal.raise_signal(signal.SIGINT)

        overrides = scripted(only=4, at=5, event=interrupt, length=9)
        assert run(*overrides, "total_frames=320", "eval.every_frames=64", "eval.episodes=1") == 130
        printed = capfd.readouterr()
        assert "again" in printed.err
        assert printed.out.endswith("\nto continue: torchppo resume run\n")
        figures = summary()
        assert (figures["exit"], figures["frames"]) == ("SIGINT", 64)
        assert (figures["eval_episodes"], figures["eval_return_mean"]) == (0, None)
        assert {path.name for path in Path("run/checkpoints").iterdir()} == {"last.ckpt", "previous.ckpt"}

    def test_sigint_in_a_rollout_skips_the_evaluation(
        self, scripted: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        overrides = scripted(only=0, at=12, event=lambda: signal.raise_signal(signal.SIGINT))
        monkeypatch.setattr(train_module, "evaluate", lambda *_, **__: pytest.fail("an evaluation"))
        assert run(*overrides, "total_frames=320", "eval.every_frames=64") == 130
        figures = summary()
        assert (figures["frames"], figures["eval_episodes"]) == (64, 0)

    def test_sigint_before_the_first_rollout_leaves_the_run_directory_usable(
        self, scripted: Callable[..., list[str]]
    ) -> None:
        overrides = scripted()

        def interrupt(*_: Any) -> None:
            signal.default_int_handler(signal.SIGINT, None)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(PPO, "configure_optimizers", interrupt)
            assert run(*overrides) == 130
        assert run(*overrides) == 0

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
    def test_to_the_process_group_end_a_training_with_workers(self, number: signal.Signals, tmp_path: Path) -> None:
        words = [*TINY, "total_frames=100_000_000", "logger=csv", "run_dir=run", "env.num_workers=2"]
        process = subprocess.Popen(
            [sys.executable, "-m", "torchppo", "train", *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        deadline = time.monotonic() + 120
        while not (tmp_path / "run" / "metrics.csv").exists():
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(process.pid, number)
        out, err = process.communicate(timeout=120)
        assert process.returncode == 128 + number, err
        assert "Traceback" not in err
        assert signal.Signals(number).name in out
        figures = summary(tmp_path / "run")
        assert figures["exit"] == signal.Signals(number).name
        checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
        assert checkpoint["torchppo"]["frames"] == figures["frames"] > 0

    def test_during_a_compilation_that_does_not_end_in_time_tells_how_to_continue(self, tmp_path: Path) -> None:
        words = [*TINY, "compile=true", "logger=csv", "run_dir=run"]
        process = subprocess.Popen(
            [sys.executable, "-c", IMPATIENT, "train", *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        assert any(line == "compiling\n" for line in process.stdout)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=120)
        assert (process.returncode, out) == (130, "to continue: torchppo resume run\n"), err
        assert "resource_tracker" not in err
        assert summary(tmp_path / "run")["exit"] == "SIGINT"
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()


IMPATIENT = """
import sys
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.stopping import stop_on_signal

stop_on_signal.ROLLOUT_SECONDS = 0.5
sys.exit(main())
"""


@pytest.fixture(autouse=True)
def restore_handlers() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)
