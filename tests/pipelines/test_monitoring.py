"""Metrics, hyperparameters and evaluations reach loggers and callbacks, over frames and during the training."""

from __future__ import annotations

import re
from collections.abc import Callable
from csv import DictReader
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from tensordict import TensorDict

from torchppo.envs import VectorEnv, make_env
from torchppo.errors import ConfigurationError
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.episodes import evaluate
from torchppo.pipelines.evaluate import EvaluationEpisodes
from torchppo.pipelines.monitoring import MonitoredModule, flattened
from torchppo.pipelines.ppo import PPO

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]
FRAMES = 32
"""Frames of one rollout of the training that `make` returns."""

CALLBACKS = "lightning.pytorch.callbacks"
TINY = (
    *("experiment=cartpole", "collector.frames_per_env=32", "update.epochs=1", "eval.episodes=2", "eval.video=false"),
    *("compile=false", "trainer.accelerator=cpu", "run_dir=run"),
)
"""Rollouts of 256 frames."""


def test_a_rollout_on_the_device_is_not_copied() -> None:
    module, rollout = MonitoredModule(), TensorDict({"next": {"reward": torch.ones(2, 3)}}, [2, 3])
    assert module.transfer_batch_to_device(rollout, torch.device("cpu"), 0) is rollout
    moved = module.transfer_batch_to_device(rollout, torch.device("meta"), 0)
    assert moved["next", "reward"].device.type == "meta"


def make_trainer(**options: Any) -> Trainer:
    defaults = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(max_epochs=-1, accelerator="cpu", **{**defaults, "enable_model_summary": False, **options})


def make_episodes(ppo: PPO) -> EvaluationEpisodes:
    env: VectorEnv = make_env("CartPole-v1", 2, max_episode_steps=15)
    return EvaluationEpisodes(env, ppo.actor, 4, seed=7)


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(DictReader(file))


def steps_of(name: str, folder: Path) -> list[int]:
    return [int(row["step"]) for row in rows(folder) if row.get(name)]


def stopper(monitor: str, **options: Any) -> EarlyStopping:
    """Return a callback that stops at the second value, whatever the values are."""
    return EarlyStopping(monitor, min_delta=1e9, patience=1, **options)


class TestHyperparameters:
    def test_of_a_run_are_its_configuration_in_every_logger(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        assert main(["train", *TINY, "total_frames=256", "logger=[csv,tensorboard]", "optimizer.lr=3e-3"]) == 0
        config = flattened(yaml.safe_load(Path("run/config.yaml").read_text()))
        assert config["optimizer.lr"] == 3e-3
        for file in ("run/hparams.yaml", "run/tensorboard/hparams.yaml"):
            assert yaml.safe_load(Path(file).read_text()) == config
        events = EventAccumulator("run/tensorboard").Reload()
        content = events.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        logged = HParamsPluginData.FromString(content).session_start_info.hparams
        assert set(logged) == {key for key, value in config.items() if value != []}
        assert logged["optimizer.lr"].number_value == 3e-3
        assert logged["env.id"].string_value == "CartPole-v1"

    def test_of_a_python_program_are_read_from_its_objects(self, make: Make, tmp_path: Path) -> None:
        ppo, collector = make(rollouts=1, max_grad_norm=0.7)
        make_trainer(logger=CSVLogger(tmp_path, "", "")).fit(ppo, train_dataloaders=collector)
        logged = yaml.safe_load((tmp_path / "hparams.yaml").read_text())
        expected = {
            **{"total_frames": 32, "max_grad_norm": 0.7, "optimizer.lr": 1e-3, "objective.clip_epsilon": 0.2},
            **{"estimator.gamma": 0.9, "estimator.lmbda": 0.8, "update.epochs": 2, "update.minibatch_size": 8},
            "collector.frames_per_env": 16,
        }
        assert expected.items() <= logged.items()

    def test_are_logged_once_per_training(self, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        calls: list[Any] = []
        monkeypatch.setattr(CSVLogger, "log_hyperparams", lambda _, params: calls.append(params))
        loggers = [CSVLogger(tmp_path, name) for name in "ab"]
        ppo, collector = make(rollouts=3)
        make_trainer(logger=loggers).fit(ppo, train_dataloaders=collector)
        assert len(calls) == len(loggers)

    def test_of_nested_configurations_have_dotted_keys(self) -> None:
        config = {"a": {"b": 1, "c": {}}, "cells": [64, 64], "transforms": [{"_target_": "T"}, {"scale": 0.1}]}
        assert flattened(config) == {
            **{"a.b": 1, "cells": [64, 64], "transforms.0._target_": "T", "transforms.1.scale": 0.1}
        }


class TestEarlyStopping:
    def test_a_metric_without_its_group_is_a_warning(
        self, make: Make, fit: Fit, caplog: pytest.LogCaptureFixture
    ) -> None:
        ppo, collector = make(rollouts=1)
        fit(ppo, collector, callbacks=[EarlyStopping("ep_len_mean", strict=False)])
        assert "rollout/ep_len_mean" in caplog.text

    @pytest.mark.parametrize(
        ("monitor", "options", "frames"),
        [
            ("rollout/ep_rew_mean", [], 512),
            ("train/entropy", [], 512),
            ("eval/mean_reward", ["eval.every_frames=512"], 1024),
        ],
    )
    def test_ends_a_run_in_the_middle(
        self, monitor: str, options: list[str], frames: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        node = f"{{_target_: {CALLBACKS}.EarlyStopping, monitor: {monitor}, min_delta: 1e9, patience: 1}}"
        assert main(["train", *TINY, "total_frames=4096", "logger=csv", *options, f"+trainer.callbacks=[{node}]"]) == 0
        summary = yaml.safe_load(Path("run/summary.json").read_text())
        assert (summary["frames"], summary["exit"], summary["eval_episodes"]) == (frames, "stopped", 2)
        assert steps_of("eval/mean_ep_len", Path("run"))[-1] == frames

    @pytest.mark.parametrize("monitor", ["rollout/ep_rew_mean", "train/approx_kl"])
    def test_with_default_arguments_ends_a_python_training_in_the_middle(
        self, monitor: str, make: Make, fit: Fit
    ) -> None:
        ppo, collector = make(frames_per_env=64, rollouts=9)
        fit(ppo, collector, callbacks=[EarlyStopping(monitor, min_delta=1e9)])
        assert ppo.num_rollouts == 4, "the first value and three without an improvement"

    @pytest.mark.parametrize("monitor", ["rollout/ep_rew_mean", "eval/mean_reward"])
    def test_waits_for_a_metric_without_a_value(self, monitor: str, make: Make, fit: Fit) -> None:
        ppo, collector = make("Pendulum-v1", rollouts=3)
        callback = EarlyStopping(monitor)
        fit(ppo, collector, callbacks=[callback])
        assert (ppo.num_rollouts, callback.wait_count) == (3, 0)

    def test_counts_every_value_once(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(frames_per_env=64, rollouts=3)
        callback = EarlyStopping("rollout/ep_rew_mean", min_delta=1e9, patience=9)
        trainer = make_trainer(callbacks=[callback], val_check_interval=1)
        trainer.fit(ppo, train_dataloaders=collector, val_dataloaders=make_episodes(ppo))
        assert callback.wait_count == 2

    def test_of_another_metric_is_left_to_lightning(self, make: Make, fit: Fit) -> None:
        with pytest.raises(RuntimeError, match="nonsense"):
            fit(*make(rollouts=1), callbacks=[EarlyStopping("nonsense")])


class TestModelCheckpoint:
    def test_saves_after_evaluations_of_a_run(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        best = f"{{_target_: {CALLBACKS}.ModelCheckpoint, monitor: eval/mean_reward, save_top_k: -1, dirpath: saved}}"
        words = ["total_frames=1024", "eval.every_frames=512", "logger=[]", f"+trainer.callbacks=[{best}]"]
        assert main(["train", *TINY, *words]) == 0
        frames = [torch.load(path, weights_only=True)["torchppo"]["frames"] for path in tmp_path.glob("saved/*.ckpt")]
        assert sorted(frames) == [512, 1024]

    @pytest.mark.parametrize("monitor", ["rollout/ep_rew_mean", "eval/mean_reward"])
    def test_waits_for_a_metric_without_a_value(self, monitor: str, make: Make, tmp_path: Path) -> None:
        ppo, collector = make("Pendulum-v1", rollouts=2)
        make_trainer(callbacks=[ModelCheckpoint(tmp_path, monitor=monitor)], enable_checkpointing=True).fit(
            ppo, train_dataloaders=collector
        )
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("options", "steps"),
        [
            ({"every_n_train_steps": 10}, [16, 24, 32, 40]),  # a rollout takes 8 steps
            ({"every_n_train_steps": 20}, [24, 40]),
            ({"every_n_train_steps": 1}, [8, 16, 24, 32, 40]),
            ({"train_time_interval": timedelta(0)}, [8, 16, 24, 32, 40]),
            ({"train_time_interval": timedelta(hours=1)}, []),
        ],
        ids=repr,
    )
    def test_saves_after_the_rollout_in_which_a_save_is_due(
        self, options: dict[str, Any], steps: list[int], make: Make, tmp_path: Path
    ) -> None:
        ppo, collector = make(rollouts=5)
        save = ModelCheckpoint(tmp_path, save_top_k=-1, filename="{step}", save_on_train_epoch_end=False, **options)
        make_trainer(callbacks=[save], enable_checkpointing=True).fit(ppo, train_dataloaders=collector)
        assert sorted(int(path.stem.removeprefix("step=")) for path in tmp_path.glob("*.ckpt")) == steps
        assert save._every_n_train_steps == options.get("every_n_train_steps", 0)


class TestValidation:
    def test_and_test_return_the_evaluation(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(rollouts=1)
        fit(ppo, collector)
        episodes = make_episodes(ppo)
        episodes.env.set_seed(7)
        expected = evaluate(ppo.actor, episodes.env, 4).metrics
        trainer = make_trainer()
        for method in (trainer.validate, trainer.test, trainer.validate):
            (result,) = method(ppo, dataloaders=episodes, verbose=False)  # type: ignore[operator]
            assert result == pytest.approx(expected, rel=1e-6)
        assert set(expected) == {"eval/mean_reward", "eval/std_reward", "eval/mean_ep_len"}

    @pytest.mark.parametrize("compile", [False, "trace"])
    def test_does_not_change_the_training(self, compile: Any, make: Make) -> None:  # noqa: A002
        weights = []
        for options in ({}, {"num_sanity_val_steps": 0}, {"num_sanity_val_steps": 2}):
            ppo, collector = make(rollouts=4, compile=compile)
            loaders = {"val_dataloaders": make_episodes(ppo)} if options else {}
            trainer = make_trainer(val_check_interval=2, **options)
            trainer.fit(ppo, train_dataloaders=collector, **loaders)  # type: ignore[arg-type]
            weights.append(torch.cat([param.detach().reshape(-1) for param in ppo.parameters()]))
        assert torch.equal(weights[0], weights[1])
        assert torch.equal(weights[0], weights[2])

    def test_is_logged_over_frames_and_monitored(self, make: Make, tmp_path: Path) -> None:
        ppo, collector = make(rollouts=9)
        save = ModelCheckpoint(tmp_path, monitor="eval/mean_reward", mode="max", save_top_k=-1)
        trainer = make_trainer(
            logger=CSVLogger(tmp_path, "", ""),
            enable_checkpointing=True,
            callbacks=[stopper("eval/mean_reward", mode="max"), save],
            val_check_interval=2,
        )
        trainer.fit(ppo, train_dataloaders=collector, val_dataloaders=make_episodes(ppo))
        assert ppo.num_rollouts == 4
        assert steps_of("eval/mean_reward", tmp_path) == [2 * FRAMES, 4 * FRAMES]
        assert len([*tmp_path.glob("*.ckpt")]) == 2

    def test_of_rollouts_is_refused(self, make: Make) -> None:
        ppo, collector = make()
        with pytest.raises(ConfigurationError, match="EvaluationEpisodes"):
            make_trainer().validate(ppo, dataloaders=collector, verbose=False)  # type: ignore[arg-type]


class TestLearningRateMonitor:
    def test_logs_over_frames_from_python(self, make: Make, tmp_path: Path) -> None:
        ppo, collector = make(rollouts=3)
        trainer = make_trainer(logger=CSVLogger(tmp_path, "", ""), callbacks=[LearningRateMonitor("step")])
        trainer.fit(ppo, train_dataloaders=collector)
        assert steps_of("lr-Adam", tmp_path) == [0, FRAMES, 2 * FRAMES]

    def test_logs_over_frames_from_the_command_line(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        node = f"{{_target_: {CALLBACKS}.LearningRateMonitor, logging_interval: step}}"
        assert main(["train", *TINY, "total_frames=512", "logger=csv", f"+trainer.callbacks=[{node}]"]) == 0
        assert steps_of("lr-Adam", Path("run")) == [0, 256]


def test_the_documented_callback_saves_checkpoints_by_frames(
    make: Make, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    guide = (Path(__file__).parents[2] / "docs" / "extending.md").read_text()
    (code,) = (block for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL) if "class SaveEvery" in block)
    names: dict[str, Any] = {}
    exec(code, names)
    fit(*make(rollouts=5), callbacks=[names["SaveEvery"](frames=2 * FRAMES)])
    assert sorted(path.name for path in Path("checkpoints").iterdir()) == ["128.ckpt", "64.ckpt"]


def test_an_error_of_a_callback_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "failing_callback.py").write_text(
        "import lightning\n\n\nclass Failing(lightning.Callback):\n"
        "    def on_train_batch_end(self, *_):\n        raise ZeroDivisionError('mine')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ZeroDivisionError, match="mine") as caught:
        main(
            [
                "train",
                *TINY,
                "total_frames=256",
                "logger=[]",
                "+trainer.callbacks=[{_target_: failing_callback.Failing}]",
            ]
        )
    assert "failing_callback.py" in str(caught.traceback[-1].path)
