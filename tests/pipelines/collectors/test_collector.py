"""Rollouts hold what happened, in both ways of collecting them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import Compose, RewardSum, StepCounter, TransformedEnv

from torchppo.envs import ALL_ENVS, StepArrays, VectorEnv, make_vector_env
from torchppo.errors import ConfigurationError, NumericalError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.extractor import memory_keys
from torchppo.modules.features.recurrent import GRU, LSTM, Memory
from torchppo.modules.features.transformer import Transformer
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.collectors.torchrl import CollectedRollouts


class Broken(gymnasium.Env[np.ndarray, int]):
    """Returns `value` as a reward or an observation in its fifth step."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, where: str, value: float, render_mode: str | None = None) -> None:
        self.where, self.value, self.render_mode = where, value, render_mode

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        bad = self.value if self.steps == 5 else 0.0
        observation = np.full(2, bad if self.where == "observation" else 0.0, np.float32)
        return observation, bad if self.where == "reward" else 0.0, False, False, {}


class Mixed(gymnasium.Env[Any, Any]):
    """Noise of two kinds in episodes of seven steps; one part of the action pays."""

    observation_space = spaces.Dict(seen=spaces.Box(-1, 1, (3,)), told=spaces.Tuple([spaces.Discrete(4, start=1)]))
    action_space = spaces.Dict(go=spaces.Discrete(3), turn=spaces.Box(-1, 1, (2,)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> Any:
        return {"seen": self.np_random.random(3).astype(np.float32), "told": (self.np_random.integers(1, 5),)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observe(), float(action["go"]), False, self.steps == 7, {}


gymnasium.register("Broken-v0", Broken)
gymnasium.register("Mixed-v0", Mixed)

MEMORIES: dict[str, Callable[[int], Memory]] = {
    "lstm": partial(LSTM, width=6),
    "gru": partial(GRU, width=6),
    "transformer": partial(Transformer, width=8, num_heads=2, context_length=5),
}


HALVES: list[tuple[str, dict[str, Any]]] = [
    ("CartPole-v1", {"num_workers": 2}),
    ("ALE/Pong-v5", {"max_num_frames_per_episode": 40}),
]


def collector_of(
    env: VectorEnv | TransformedEnv,
    frames_per_env: int = 40,
    num_rollouts: int = 2,
    seed: int = 0,
    policy: dict[str, Any] | None = None,
    **options: Any,
) -> Collector:
    torch.manual_seed(seed)
    env.set_seed(seed)
    actor, _ = make_actor_critic(
        env.observation_spec, env.full_action_spec["action"], body=partial(mlp, num_cells=[8]), **(policy or {})
    )
    total_frames = frames_per_env * env.batch_size.numel() * num_rollouts
    return Collector(env, actor, frames_per_env=frames_per_env, total_frames=total_frames, **options)


def through_torchrl(env_id: str, num_envs: int) -> TransformedEnv:
    """The same environment behind a transform, which takes the path of any TorchRL environment."""
    return TransformedEnv(make_vector_env(env_id, num_envs), Compose())


@pytest.fixture
def rollouts() -> list[TensorDictBase]:
    return list(collector_of(make_vector_env("CartPole-v1", 3)))


class TestContract:
    def test_is_sized_and_counts_frames(self) -> None:
        collector = collector_of(make_vector_env("CartPole-v1", 3), frames_per_env=8, num_rollouts=5)
        assert len(collector) == 5
        assert [tuple(rollout.shape) for rollout in collector] == [(3, 8)] * 5

    def test_stays_within_the_total_of_frames(self) -> None:
        env = make_vector_env("CartPole-v1", 3)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        assert len(Collector(env, actor, frames_per_env=8, total_frames=100)) == 4

    def test_a_next_observation_is_the_following_one_unless_the_episode_ended(
        self, rollouts: list[TensorDictBase]
    ) -> None:
        for rollout in rollouts:
            done = rollout["next", "done"][:, :-1, 0]
            following, after = rollout["observation"][:, 1:], rollout["next", "observation"][:, :-1]
            assert done.any()
            assert torch.equal(following[~done], after[~done])
            assert (after[done][:, 2].abs() > 0.2).all(), "the pole has fallen in the true last observation"
            assert (following[done].abs() <= 0.05).all(), "and stands in the first of the next episode"

    def test_episodes_run_on_from_one_rollout_into_the_next(self, rollouts: list[TensorDictBase]) -> None:
        first, second = rollouts
        running = ~first["next", "done"][:, -1, 0]
        assert torch.equal(second["observation"][:, 0][running], first["next", "observation"][:, -1][running])
        assert torch.equal(second["is_init"][:, 0], first["next", "done"][:, -1])

    def test_is_init_marks_the_first_step_of_every_episode(self, rollouts: list[TensorDictBase]) -> None:
        first = rollouts[0]
        assert first["is_init"][:, 0].all()
        assert torch.equal(first["is_init"][:, 1:], first["next", "done"][:, :-1])

    def test_episode_returns_and_lengths_are_those_of_the_rewards(self, rollouts: list[TensorDictBase]) -> None:
        reward = torch.cat([rollout["next", "reward"] for rollout in rollouts], 1)[..., 0].numpy()
        done = torch.cat([rollout["next", "done"] for rollout in rollouts], 1)[..., 0].numpy()
        returns = torch.cat([rollout["next", "episode_reward"] for rollout in rollouts], 1)[..., 0].numpy()
        lengths = torch.cat([rollout["next", "step_count"] for rollout in rollouts], 1)[..., 0].numpy()
        for env in range(reward.shape[0]):
            start = 0
            for end in np.flatnonzero(done[env]):
                assert returns[env, end] == reward[env, start : end + 1].sum()
                assert lengths[env, end] == end + 1 - start
                start = end + 1

    def test_the_policy_acts_with_its_newest_weights(self) -> None:
        env = make_vector_env("CartPole-v1", 2)
        policy, _ = make_actor_critic(env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8]))
        iterator = iter(Collector(env, policy, frames_per_env=40, total_frames=160))
        next(iterator)
        with torch.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.5)
        rollout = next(iterator)
        again = policy.get_dist(rollout.copy()).log_prob(rollout["action"])
        torch.testing.assert_close(again, rollout["action_log_prob"])

    @pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
    def test_both_ways_of_stepping_give_the_same_data(self, env_id: str) -> None:
        ours = list(collector_of(make_vector_env(env_id, 2), frames_per_env=220))
        theirs = list(collector_of(through_torchrl(env_id, 2), frames_per_env=220))
        for mine, other in zip(ours, theirs, strict=True):
            for key in mine.keys(include_nested=True, leaves_only=True):
                torch.testing.assert_close(mine[key], other[key].to(mine[key].dtype), rtol=0, atol=0)

    def test_torchrl_transforms_write_the_same_episode_figures(self) -> None:
        env = TransformedEnv(
            make_vector_env("CartPole-v1", 2),
            Compose(RewardSum(in_keys=["reward"], out_keys=["sum"]), StepCounter(step_count_key="count")),
        )
        rollout = next(iter(collector_of(env)))
        assert torch.equal(rollout["next", "sum"], rollout["next", "episode_reward"])
        assert torch.equal(rollout["next", "count"], rollout["next", "step_count"])


class TestWorkers:
    @pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
    def test_rollouts_are_those_of_one_process_bit_for_bit(self, env_id: str) -> None:
        serial = list(collector_of(make_vector_env(env_id, 4), frames_per_env=220))
        env = make_vector_env(env_id, 4, num_workers=2)
        for mine, other in zip(collector_of(env, frames_per_env=220), serial, strict=True):
            for key in other.keys(include_nested=True, leaves_only=True):
                assert torch.equal(mine[key], other[key]), key
        env.close()

    @pytest.mark.parametrize(("name", "options"), HALVES, ids=["workers", "threads of a game"])
    def test_double_buffered_halves_are_what_two_smaller_batches_would_be(
        self, name: str, options: dict[str, Any]
    ) -> None:
        if name.startswith("ALE/"):
            pytest.importorskip("ale_py")
        env = make_vector_env(name, 4, **options)
        env.set_seed(0)
        body = partial(mlp, num_cells=[8])
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=body)
        collector = Collector(env, actor, frames_per_env=60, total_frames=480, double_buffer=True)
        for rollout in collector:
            assert tuple(rollout.shape) == (4, 60)
            assert rollout["next", "done"].any()
            done, following = rollout["next", "done"][:, :-1, 0], rollout["observation"][:, 1:]
            assert torch.equal(following[~done], rollout["next", "observation"][:, :-1][~done])
            assert torch.equal(rollout["is_init"][:, 1:, 0], done)
            again = actor.get_dist(rollout.copy()).log_prob(rollout["action"])
            torch.testing.assert_close(again, rollout["action_log_prob"])
        assert set(collector.seconds) == {"collect", "policy", "waiting"}
        env.close()

    @pytest.mark.parametrize("make", [make_vector_env, through_torchrl])
    def test_the_times_of_environment_and_policy_are_parts_of_the_whole(self, make: Callable[[str, int], Any]) -> None:
        env = make("CartPole-v1", 2)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        collector = Collector(env, actor, frames_per_env=64, total_frames=512, compile="trace")
        assert len(list(collector)) == 4
        whole, *parts = (collector.seconds[part] for part in ("collect", "policy", "environment"))
        assert min(parts) > 0
        assert sum(parts) < whole
        env.close()

    def test_double_buffering_needs_what_steps_apart(self) -> None:
        env = make_vector_env("CartPole-v1", 2)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        for each in (env, through_torchrl("CartPole-v1", 2)):
            with pytest.raises(ConfigurationError, match=r"collector.double_buffer=true needs"):
                Collector(each, actor, frames_per_env=8, total_frames=16, double_buffer=True)

    def test_double_buffering_needs_equal_halves(self) -> None:
        env = make_vector_env("CartPole-v1", 6, num_workers=3)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        with pytest.raises(ConfigurationError, match=r"equal halves, not 2 and 4 .*env.num_envs.*env.num_workers"):
            Collector(env, actor, frames_per_env=8, total_frames=48, double_buffer=True)
        env.close()


@pytest.mark.parametrize("name", MEMORIES)
class TestMemory:
    @pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
    def test_is_the_same_in_both_ways_of_stepping(self, name: str, shared: bool) -> None:
        policy = {"memory": MEMORIES[name], "shared": shared}
        ours = list(collector_of(make_vector_env("CartPole-v1", 2), policy=policy))
        theirs = list(collector_of(through_torchrl("CartPole-v1", 2), policy=policy))
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["next", "done"].any()
            for key in mine.keys(include_nested=True, leaves_only=True):
                torch.testing.assert_close(mine[key], other[key].to(mine[key].dtype), rtol=0, atol=1e-6, msg=str(key))

    def test_is_the_same_in_workers_bit_for_bit_also_in_nested_spaces(self, name: str) -> None:
        policy = {"memory": MEMORIES[name]}
        serial = list(collector_of(make_vector_env("Mixed-v0", 4), policy=policy))
        env = make_vector_env("Mixed-v0", 4, num_workers=2)
        for mine, other in zip(collector_of(env, policy=policy), serial, strict=True):
            assert ("action", "turn") in other.keys(include_nested=True)
            for key in other.keys(include_nested=True, leaves_only=True):
                assert torch.equal(mine[key], other[key]), key
        env.close()

    @pytest.mark.parametrize("how", ["double-buffered", "by TorchRL's collector"])
    def test_reaches_from_its_first_step_to_the_end_of_the_rollout(self, name: str, how: str) -> None:
        """Going through the whole rollout at once gives the probabilities that every step was taken with."""
        double = how == "double-buffered"
        env = make_vector_env("CartPole-v1", 4, num_workers=2 if double else 0)
        options: dict[str, Any] = {"double_buffer": True} if double else {"rollouts": CollectedRollouts}
        torch.manual_seed(0)
        actor, _ = make_actor_critic(
            env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8]), memory=MEMORIES[name]
        )
        for rollout in Collector(env, actor, frames_per_env=40, total_frames=320, **options):
            assert rollout["next", "done"].any()
            memory = {key: rollout[key][:, 0] for key in memory_keys(actor)}
            whole = TensorDict({key: rollout[key] for key in ("observation", "is_init")} | memory, [4])
            again = actor.get_dist(whole).log_prob(rollout["action"])
            torch.testing.assert_close(again, rollout["action_log_prob"], rtol=1e-5, atol=1e-5)
        env.close()


class TestTorchRLsCollector:
    def test_gives_rollouts_of_the_same_contract(self) -> None:
        env = make_vector_env("CartPole-v1", 3)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8]))
        options = {"frames_per_env": 40, "total_frames": 240}
        theirs = list(Collector(env, actor, rollouts=CollectedRollouts, **options))
        mine = next(iter(Collector(make_vector_env("CartPole-v1", 3), actor, **options)))
        assert [tuple(rollout.shape) for rollout in theirs] == [(3, 40)] * 2
        for rollout in theirs:
            for key in mine.keys(include_nested=True, leaves_only=True):
                assert rollout[key].shape == mine[key].shape, key
            done, following = rollout["next", "done"][:, :-1, 0], rollout["observation"][:, 1:]
            assert done.any()
            assert torch.equal(following[~done], rollout["next", "observation"][:, :-1][~done])
            again = actor.get_dist(rollout.copy()).log_prob(rollout["action"])
            torch.testing.assert_close(again, rollout["action_log_prob"])


WAYS: list[tuple[dict[str, Any], list[Any], dict[str, Any]]] = [
    ({}, [], {}),
    ({"num_workers": 2}, [], {}),
    ({"num_workers": 2}, [], {"double_buffer": True}),
    ({"num_workers": 2}, [Compose()], {}),
    ({"num_workers": 2}, [], {"rollouts": CollectedRollouts}),
]


@pytest.mark.parametrize(("workers", "transforms", "options"), WAYS)
def test_after_a_rollout_that_is_broken_off_episodes_begin_anew(
    workers: dict[str, Any], transforms: list[Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does it in a notebook, where the next cell trains again."""
    vector_env = make_vector_env("Mixed-v0", 2, **workers)
    env = TransformedEnv(vector_env, *transforms) if transforms else vector_env
    collector = collector_of(env, frames_per_env=10, num_rollouts=3, **options)
    assert len([*collector]) == 3
    receive, calls = vector_env.vector.receive, 0

    def interrupted(rows: slice = ALL_ENVS) -> StepArrays:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return receive(rows)

    with monkeypatch.context() as patch:
        patch.setattr(vector_env.vector, "receive", interrupted)
        with pytest.raises(KeyboardInterrupt):
            list(collector)
    rollouts = list(collector)
    first = rollouts[0][:, 0]
    assert first["is_init"].all()
    assert (first["next", "step_count"] == 1).all()
    assert torch.equal(first["next", "episode_reward"], first["next", "reward"])
    for rollout in rollouts:
        assert torch.equal(rollout["next", "reward"][..., 0], rollout["action", "go"].float())
    env.close()


class TestErrors:
    @pytest.mark.parametrize("where", ["reward", "observation"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_a_number_that_is_not_finite_is_named_with_its_place(self, where: str, value: float) -> None:
        collector = collector_of(make_vector_env("Broken-v0", 2, where=where, value=value), frames_per_env=8)
        with pytest.raises(NumericalError, match=rf"{where} of environment 0 is {value} at step 4"):
            next(iter(collector))

    @pytest.mark.parametrize(("frames_per_env", "total_frames"), [(0, 10), (8, 0)])
    def test_counts_must_be_positive(self, frames_per_env: int, total_frames: int) -> None:
        env = make_vector_env("CartPole-v1", 1)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        with pytest.raises(ConfigurationError, match="must be at least 1"):
            Collector(env, actor, frames_per_env=frames_per_env, total_frames=total_frames)
