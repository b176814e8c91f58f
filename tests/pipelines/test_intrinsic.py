"""Trainings with intrinsic rewards: both streams of advantages, exact restarts, and graphs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor

from torchppo.modules.intrinsic.e3b import E3B
from torchppo.modules.intrinsic.streams import write_rewards
from torchppo.modules.intrinsic.visits import EpisodeVisits
from torchppo.modules.normalizers import no_reduce
from torchppo.pipelines.build import build_trainer, build_training
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.cli.main import main

SMALL = (
    *("env.num_envs=2", "collector.frames_per_env=16", "update.epochs=2", "update.minibatch_size=16", "logger=[]"),
    *("trainer.accelerator=cpu", "policy.body.num_cells=[8]", "optimizer.lr=0.003"),
)


@pytest.fixture(autouse=True)
def _run_in_tmp_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def verify(*words: str) -> int:
    return main(["verify-resume", *SMALL, "total_frames=64", "--rollouts", "1", *words])


@pytest.mark.parametrize(
    "words",
    [
        ("intrinsic=rnd", "env=pendulum", "compile=trace"),
        ("intrinsic=noveld", "compile=false"),
        ("intrinsic=e3b", "policy=gru", "policy.body.num_cells=[8]", "compile=false"),
    ],
    ids=lambda words: words[0],
)
def test_resumed_training_equals_an_uninterrupted_one(words: tuple[str, ...]) -> None:
    assert verify(*words) == 0


@pytest.mark.parametrize(("intrinsic", "owner"), [("noveld", EpisodeVisits), ("e3b", E3B)])
def test_resumed_training_differs_if_the_state_of_the_episodes_is_lost(
    intrinsic: str, owner: type[torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "set_extra_state", lambda *_: None)
    assert verify(f"intrinsic={intrinsic}", "compile=false") == 1


def weights(mode: str, *words: str) -> Tensor:
    """Train for two rollouts and return all weights."""
    torch.manual_seed(0)
    cfg = compose([*SMALL, "total_frames=64", f"compile={mode}", "run_dir=run", *words])
    training = build_training(cfg, rank=0)
    build_trainer(cfg, []).fit(training.ppo, train_dataloaders=training.collector)
    training.close()
    return torch.cat([param.detach().flatten() for param in training.ppo.parameters()])


@pytest.mark.parametrize("intrinsic", ["rnd", "e3b", "icm"])  # NovelD has the losses of RND
def test_traced_training_equals_eager_training(intrinsic: str) -> None:
    eager, traced = (weights(mode, f"intrinsic={intrinsic}") for mode in ("false", "trace"))
    torch.testing.assert_close(traced, eager, rtol=0, atol=1e-6)


def numpy_advantages(
    rollout: Any, reward: Any, critic: Any, key: str, discounts: tuple[float, float], *, is_episodic: bool
) -> Any:
    """Compute generalized advantages of a stream in a loop."""
    gamma, lmbda = discounts
    with torch.no_grad():
        values, next_values = (
            critic(TensorDict({"observation": data["observation"]}, data.shape))[key][..., 0].double().numpy()
            for data in (rollout, rollout["next"])
        )
    done, terminated = (rollout["next", name][..., 0].numpy() & is_episodic for name in ("done", "terminated"))
    advantage = np.zeros_like(values)
    num_envs, num_steps = values.shape
    for env in range(num_envs):
        trace = 0.0
        for step in reversed(range(num_steps)):
            continues = step + 1 < num_steps and not is_episodic  # the next episode continues the stream
            following = values[env, step + 1] if continues else next_values[env, step]
            delta = reward[env, step, 0] + gamma * following * (not terminated[env, step]) - values[env, step]
            trace = delta + gamma * lmbda * trace * (not done[env, step])
            advantage[env, step] = trace
    return advantage[..., None]


@pytest.mark.parametrize(("intrinsic", "is_episodic"), [("rnd", False), ("e3b", True)])
def test_advantage_is_the_weighted_sum_of_both_streams(intrinsic: str, is_episodic: bool) -> None:
    torch.manual_seed(0)
    words = [f"intrinsic.{intrinsic}.{option}" for option in ("weight=0.3", "gamma=0.9", "lmbda=0.7")]
    own = ["estimator.gamma=0.98", "estimator.lmbda=0.8", "ppo.normalize_advantage=null", "collector.frames_per_env=64"]
    training = build_training(compose([*SMALL, *words, *own, f"intrinsic={intrinsic}", "run_dir=run"]), rank=0)
    ppo, rollout = training.ppo, next(iter(training.collector))
    training.close()
    model = ppo.reward_models[intrinsic]
    write_rewards(rollout, [model], no_reduce)
    ppo.make_batch(rollout).estimate()
    rewards = (rollout["next", key].double().numpy() for key in ("reward", f"reward_{intrinsic}"))
    assert rollout["next", "terminated"].any()
    of_env = numpy_advantages(rollout, next(rewards), ppo.critic, "state_value", (0.98, 0.8), is_episodic=True)
    key = f"state_value_{intrinsic}"
    of_bonus = numpy_advantages(rollout, next(rewards), model.critic, key, (0.9, 0.7), is_episodic=is_episodic)
    np.testing.assert_allclose(rollout["advantage"].numpy(), of_env + 0.3 * of_bonus, rtol=1e-4, atol=1e-5)
