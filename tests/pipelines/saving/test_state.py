"""A training that continues from a checkpoint equals one that was not interrupted, bit by bit, or is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer, seed_everything
from torch import nn

from torchppo import make_env
from torchppo.envs.resume.plain_data import are_equal
from torchppo.errors import CheckpointError
from torchppo.pipelines.build import Training, build_trainer, build_training
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.episodes import EvaluateAndSave, Evaluation
from torchppo.pipelines.resume.verify import different
from torchppo.pipelines.saving.plain_checkpoints import ENTRIES
from torchppo.pipelines.saving.state import environment_of, raise_on_misfit, start_training, versions
from torchppo.pipelines.step_factory import warn_once

SMALL = ("logger=[]", "trainer.accelerator=cpu", "run_dir=unused", "update.epochs=1", "seed=5")
CARTPOLE = ("experiment=cartpole", "env.num_envs=2", "collector.frames_per_env=32", "update.minibatch_size=32")
SETUPS = {
    "cartpole": (*CARTPOLE, "compile=false", "total_frames=256"),
    "traced": (*CARTPOLE, "compile=trace", "total_frames=256", "env.num_workers=2"),
    "hopper": (
        *("experiment=hopper", "collector.frames_per_env=64", "update.minibatch_size=32", "compile=false"),
        *("total_frames=256", "policy.body.num_cells=[8]", "controller@controller.lr=kl_adaptive"),
    ),
    "gru": (
        *("experiment=cartpole_positions", "env.num_envs=2", "collector.frames_per_env=32", "total_frames=256"),
        *("update.minibatch_size=32", "update.sequence_length=8", "compile=false"),
    ),
    "pong": (
        *("experiment=pong", "env.num_envs=2", "collector.frames_per_env=8", "total_frames=64", "compile=false"),
        *("update.minibatch_size=16", "policy.body.num_features=8"),
    ),
}
"""Four rollouts each."""


class Metrics(Callback):
    """Records the metrics of every rollout, and saves a checkpoint after the second one."""

    def __init__(self, path: Path | None) -> None:
        self.rows: dict[int, dict[str, float]] = {}
        self.path = path

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.rows[pl_module.frames] = {name: value for name, value in metrics.items() if not name.startswith("time/")}
        if self.path is not None and pl_module.num_rollouts == 2:
            trainer.save_checkpoint(self.path)


def fit(words: tuple[str, ...], path: Path, *, resume: bool) -> tuple[Training, dict[int, dict[str, float]]]:
    """Train from the start and save `path` after two rollouts, or continue from it."""
    cfg = compose([*SMALL, *words])
    seed_everything(99 if resume else 5, verbose=False)
    metrics = Metrics(None if resume else path)
    trainer = build_trainer(cfg, [metrics])
    training = build_training(cfg, 0)
    trainer.fit(training.ppo, train_dataloaders=training.collector, ckpt_path=path if resume else None)
    training.close()
    return training, metrics.rows


def parts(training: Training) -> dict[str, Any]:
    state = copy.deepcopy(training.ppo.optimizer.state_dict())
    optimizer = {f"{index}/{name}": np.asarray(one) for index, s in state["state"].items() for name, one in s.items()}
    weights = {name: np.asarray(one) for name, one in training.ppo.state_dict().items() if one is not None}
    return {"optimizer": optimizer, "groups": state["param_groups"], "weights": weights}


@pytest.mark.parametrize("setup", SETUPS)
def test_a_training_in_two_parts_equals_one_without_interruption(setup: str, tmp_path: Path) -> None:
    path = tmp_path / "middle.ckpt"
    whole, expected = fit(SETUPS[setup], path, resume=False)
    continued, found = fit(SETUPS[setup], path, resume=True)
    assert list(found) == list(expected)[2:]
    assert {frames: expected[frames] for frames in found} == found
    assert are_equal(parts(continued), parts(whole))
    assert continued.ppo.episodes.state_dict() == whole.ppo.episodes.state_dict()
    assert torch.load(path, weights_only=True)["torchppo"]["resume_class"] in ("snapshot", "replay")


LOSSES: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
    "random numbers": lambda own, _: own["ranks"][0]["random"].update(torch=torch.get_rng_state()),
    "observations": lambda _, rollouts: rollouts["arrays"][0][2].zero_(),
    "is_init": lambda _, rollouts: rollouts["arrays"][1][2].fill_(1),
    "episode lengths": lambda _, rollouts: rollouts["arrays"][3][2].zero_(),
    "environments": lambda _, rollouts: rollouts["envs"].reverse(),
    "recurrent states": lambda _, rollouts: [state.zero_() for state in rollouts["recurrent_states"].values()],
    "episode statistics": lambda own, _: own.update(episodes=[]),
}


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training, dict[int, dict[str, float]]]:
    path = tmp_path_factory.mktemp("interrupted") / "middle.ckpt"
    return path, *fit(SETUPS["gru"], path, resume=False)


def test_all_entries_of_the_state_are_required(interrupted: tuple[Path, Any, Any]) -> None:
    assert {*torch.load(interrupted[0], weights_only=True)["torchppo"]} == {*ENTRIES}


@pytest.mark.parametrize("item", [*LOSSES, "returns of the reward normalizer"])
def test_each_item_of_the_state_is_needed(
    item: str, interrupted: tuple[Path, Training, dict[int, dict[str, float]]], tmp_path: Path
) -> None:
    path, whole, expected = interrupted
    checkpoint = torch.load(path, weights_only=True)
    loader = checkpoint["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]
    if item in LOSSES:
        LOSSES[item](checkpoint["torchppo"], loader["rollouts"])
    else:
        checkpoint["state_dict"]["reward_normalizer._extra_state"].zero_()
    torch.save(checkpoint, tmp_path / "damaged.ckpt")
    continued, found = fit(SETUPS["gru"], tmp_path / "damaged.ckpt", resume=True)
    same_metrics = {frames: expected[frames] for frames in found} == found
    assert not (same_metrics and are_equal(parts(continued), parts(whole)))


def test_new_episodes_start_with_another_number_of_environments(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    warn_once.cache_clear()  # another test may have caused the warning
    path = tmp_path / "middle.ckpt"
    fit(SETUPS["cartpole"], path, resume=False)
    other = (*SETUPS["cartpole"], "env.num_envs=4", "collector.frames_per_env=16")
    training, _ = fit(other, path, resume=True)
    assert "new episodes start" in caplog.text
    assert training.ppo.frames == 256


def test_new_episodes_start_with_another_number_of_ranks(caplog: pytest.LogCaptureFixture) -> None:
    warn_once.cache_clear()
    loaded: list[dict[str, Any]] = []
    collector = SimpleNamespace(
        state_dict=lambda: {"frames": 64, "rollouts": {"envs": []}}, load_state_dict=loaded.append
    )
    ppo = SimpleNamespace(
        trainer=SimpleNamespace(
            train_dataloader=collector,
            fit_loop=SimpleNamespace(_combined_loader_states_to_load=[]),
            callback_metrics={},
        ),
        _resumed={"ranks": [{}, {}], "total_frames": 1, "metrics": {}},
        total_frames=2,
    )
    start_training(ppo)
    assert loaded == [{"frames": 64, "rollouts": {}}]
    assert "2 ranks saved the checkpoint and 1 continue" in caplog.text


def test_a_run_that_stop_at_has_ended_continues_only_to_more_frames(tmp_path: Path) -> None:
    callback = EvaluateAndSave(None, tmp_path, None, 10.0)
    fit_loop = SimpleNamespace(_combined_loader_states_to_load=[])
    trainer: Any = SimpleNamespace(should_stop=False, fit_loop=fit_loop)
    resumed = {"ranks": [{}, {}], "total_frames": 128}
    for callback.best, total_frames, should_stop in ((9.0, 128, False), (12.0, 256, False), (12.0, 128, True)):
        callback.on_train_start(trainer, SimpleNamespace(frames=64, _resumed=resumed, total_frames=total_frames))
        assert trainer.should_stop == should_stop


class Interrupted:
    """An evaluation that a signal interrupts. The next one records the episodes in the last checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trainer: Any = None
        self.episodes: list[dict[str, Any]] = []

    def read(self) -> dict[str, Any]:
        state = torch.load(self.path, weights_only=True)["loops"]["fit_loop"]["state_dict"]
        rollouts: dict[str, Any] = state["combined_loader"][0]["rollouts"]
        return rollouts

    def __call__(self, actor: Any) -> Evaluation | None:
        if self.trainer is not None:
            self.trainer.should_stop = True
            return None
        self.episodes.append(self.read())
        return Evaluation([1.0], [1])


def test_a_repeated_evaluation_keeps_the_episodes_of_the_checkpoint(tmp_path: Path) -> None:
    evaluation, cfg = Interrupted(tmp_path / "last.ckpt"), compose([*SMALL, *SETUPS["cartpole"]])
    for checkpoint in (None, evaluation.path):
        trainer = build_trainer(cfg, [EvaluateAndSave(evaluation, tmp_path, 64, None)])
        evaluation.trainer = trainer if checkpoint is None else None
        training = build_training(cfg, 0)
        trainer.fit(training.ppo, train_dataloaders=training.collector, ckpt_path=checkpoint)
        training.close()
        if checkpoint is None:
            saved = evaluation.read()
    assert training.ppo.frames == 256
    assert saved["envs"]
    assert not list(different(evaluation.episodes[0], saved, "episodes"))


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "environment": lambda content: content["torchppo"]["environment"].update(id="Acrobot-v1"),
    "spaces": lambda content: content["torchppo"]["environment"]["spaces"].update(action="Categorical[] torch.int32"),
    "shape": lambda content: content["state_dict"].update(weight=nn.Linear(3, 2).weight.detach()),
    "nothing": lambda content: content["state_dict"].pop("bias"),
}


@pytest.fixture(scope="module")
def collector() -> Any:
    return SimpleNamespace(env=make_env("CartPole-v1", num_envs=2))


def content_of(collector: Any) -> dict[str, Any]:
    own = {"versions": versions(), "environment": environment_of(collector)}
    return {"torchppo": own, "state_dict": nn.Linear(4, 2).state_dict()}


@pytest.mark.parametrize("word", CHANGES)
def test_other_environments_spaces_and_weights_are_refused(word: str, collector: Any) -> None:
    content = content_of(collector)
    raise_on_misfit(nn.Linear(4, 2), collector, content, Path("a.ckpt"))
    CHANGES[word](content)
    with pytest.raises(CheckpointError, match=f"a.ckpt does not fit .*{word}"):
        raise_on_misfit(nn.Linear(4, 2), collector, content, Path("a.ckpt"))


def test_another_version_is_a_warning(caplog: pytest.LogCaptureFixture, collector: Any) -> None:
    warn_once.cache_clear()
    content = content_of(collector)
    content["torchppo"]["versions"]["torch"] = "1.0"
    raise_on_misfit(nn.Linear(4, 2), collector, content, Path("a.ckpt"))
    assert "torch 1.0" in caplog.text


@pytest.mark.parametrize(
    ("env_id", "options"), [("CartPole-v1", {}), ("CartPole-v1", {"num_workers": 1}), ("ALE/Pong-v5", {})]
)
def test_the_environment_is_saved_with_its_id(env_id: str, options: dict[str, Any]) -> None:
    if env_id.startswith("ALE/"):
        pytest.importorskip("ale_py")
    env = make_env(env_id, num_envs=1, **options)
    assert environment_of(SimpleNamespace(env=env))["id"] == env_id
    env.close()
