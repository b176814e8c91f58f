"""Tests of TorchRL's collectors as dataloaders for training."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial

import pytest
import torch
from lightning import Trainer
from tensordict import TensorDict
from torchrl.collectors import Collector as TorchRLCollector
from torchrl.envs import Compose, InitTracker, TransformedEnv

from torchppo.envs import make_env
from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.collectors.rollout_loader import RolloutLoader, as_rollout
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.saving.state import environment_of

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


def make_loader(total_frames: int | None = None, *, frames_in_total: int = 240) -> RolloutLoader:
    """Make a loader with `total_frames`, and `frames_in_total` of the collector."""
    env = make_env("CartPole-v1", 3)
    env.set_seed(0)
    actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8]))
    tracked = TransformedEnv(env, Compose(InitTracker()))
    collector = TorchRLCollector(tracked, actor, frames_per_batch=120, total_frames=frames_in_total, trust_policy=True)
    return RolloutLoader(collector, total_frames)


def make_collector() -> Collector:
    env = make_env("CartPole-v1", 3)
    actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8]))
    return Collector(env, actor, frames_per_env=40, total_frames=240)


def test_rollouts_follow_the_contract() -> None:
    loader = make_loader()
    env, actor = loader.collector.env, loader.collector._orig_policy
    theirs = list(loader)
    mine = next(iter(Collector(make_env("CartPole-v1", 3), actor, frames_per_env=40, total_frames=240)))
    assert len(loader) == 2
    assert [tuple(rollout.shape) for rollout in theirs] == [(3, 40)] * 2
    for rollout in theirs:
        for key in mine.keys(include_nested=True, leaves_only=True):
            assert rollout[key].shape == mine[key].shape, key
        done, following = rollout["next", "done"][:, :-1, 0], rollout["observation"][:, 1:]
        assert done.any()
        assert torch.equal(following[~done], rollout["next", "observation"][:, :-1][~done])
        again = actor.get_dist(rollout.copy()).log_prob(rollout["action"])
        torch.testing.assert_close(again, rollout["action_log_prob"])
    assert env.is_closed


def test_every_rollout_sees_new_weights() -> None:
    loader = make_loader()
    actor = loader.collector._orig_policy
    for rollout in loader:
        expected = actor.get_dist(rollout.copy()).log_prob(rollout["action"])
        torch.testing.assert_close(rollout["action_log_prob"], expected)
        with torch.no_grad():
            for param in actor.parameters():
                param.mul_(2.0).add_(0.1)


def test_trainings_that_continue_begin_episodes_with_new_seeds() -> None:
    """The seeds depend on the frames and on the seed of the run, also with our own collector."""
    for make in (make_loader, make_collector):
        first = []
        for seed, frames in ((0, 0), (0, 120), (1, 120), (1, 120)):
            loader = make()
            torch.manual_seed(seed)
            if frames:
                loader.load_state_dict({**loader.state_dict(), "frames": frames})
            first.append(next(iter(loader))["observation"][:, 0].flatten().tolist())
        assert len({*map(tuple, first)}) == 3
        assert first[2] == first[3]


def test_callbacks_and_checkpoints_find_the_environment() -> None:
    loader = make_loader()
    loader.env.set_attr("x_threshold", 0.5)
    assert loader.env.get_attr("x_threshold") == (0.5,) * 3
    assert environment_of(loader)["id"] == "CartPole-v1"


def test_a_policy_that_was_moved_to_another_device_is_refused() -> None:
    loader = make_loader()
    loader.collector.policy.to("meta")
    with pytest.raises(ConfigurationError, match=r"on cpu to a policy on meta; set trainer.accelerator=cpu"):
        next(iter(loader))


def interrupted() -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("end", ["last rollout", "break", "interrupt", "never iterated"])
def test_collector_is_shut_down_at_the_end(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loader = make_loader()
    collector = loader.collector
    if end == "last rollout":
        list(loader)
    elif end == "break":
        for _ in loader:
            break
    elif end == "interrupt":
        monkeypatch.setattr(collector, "rollout", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(loader)
    else:
        del loader
        gc.collect()
    assert collector.closed


def test_second_iteration_is_refused() -> None:
    loader = make_loader()
    list(loader)
    with pytest.raises(ConfigurationError, match=r"shut down; make a new one"):
        list(loader)


def test_collector_that_ends_before_the_training_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"total_frames=240, before .*\(480\)"):
        list(make_loader(total_frames=480))


def test_unlimited_collector_needs_a_number_of_frames() -> None:
    with pytest.raises(ConfigurationError, match=r"total_frames=inf"):
        make_loader(frames_in_total=-1)
    assert len(make_loader(360, frames_in_total=-1)) == 3


@pytest.mark.parametrize("shape", [(6,), (1, 6), (3, 2)])
def test_any_batch_becomes_environments_by_time(shape: tuple[int, ...]) -> None:
    data = TensorDict({"x": torch.arange(6).reshape(shape)}, shape)
    assert torch.equal(as_rollout(data)["x"], torch.arange(6).reshape(-1, shape[-1]))


@pytest.mark.parametrize("data", [None, TensorDict({"collector": {"mask": torch.ones(2, 3)}}, (2, 3))])
def test_data_that_is_not_a_rollout_is_refused(data: TensorDict | None) -> None:
    with pytest.raises(ConfigurationError, match=r"remove its options replay_buffer, split_trajs"):
        as_rollout(data)


def test_a_collector_of_torchrl_trains_from_python(make: Make, fit: Fit) -> None:
    ppo, collector = make(num_envs=2, frames_per_env=16, rollouts=3)
    env = TransformedEnv(collector.env, Compose(InitTracker()))
    theirs = TorchRLCollector(env, ppo.actor, frames_per_batch=32, total_frames=96, trust_policy=True)
    before = [param.detach().clone() for param in ppo.parameters()]
    fit(ppo, RolloutLoader(theirs))
    assert (ppo.frames, theirs.closed) == (96, True)
    assert not any(torch.equal(new, old) for new, old in zip(ppo.parameters(), before, strict=True))
