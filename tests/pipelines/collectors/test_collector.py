"""Rollouts of every kind of collector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
import torchrl.collectors
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from torchrl.envs import Compose, ExplorationType, GymEnv, RewardSum, StepCounter, TransformedEnv, set_exploration_type

from torchppo.envs import ALL_ENVS, StepArrays, VectorEnv, batched, make_env, make_gymnasium_env
from torchppo.envs.vector.serial import SerialVectorEnv
from torchppo.errors import ConfigurationError, EnvironmentFailure, NumericalError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.extractor import memory_keys
from torchppo.modules.features.recurrent import GRU, LSTM, Memory
from torchppo.modules.features.transformer import Transformer
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.collectors.rollout_buffer import require_finite
from torchppo.pipelines.collectors.rollout_loader import RolloutLoader
from torchppo.pipelines.collectors.skipped_steps import SkippedStep, discard_failed
from torchppo.pipelines.collectors.vector import VectorRollouts
from torchppo.pipelines.components.torchrl_collectors import state_primers, with_recurrent_states
from torchppo.pipelines.step_factory import Compile


def fail(*_: Any) -> Any:
    raise ValueError("broken")


class NotFinite(gymnasium.Env[np.ndarray, int]):
    """Returns `value` as the reward or the observation of the fifth step."""

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


class NestedSpaces(gymnasium.Env[Any, Any]):
    """Random nested observations in episodes of seven steps; the reward is a part of the action."""

    observation_space = spaces.Dict(vector=spaces.Box(-1, 1, (3,)), number=spaces.Tuple([spaces.Discrete(4, start=1)]))
    action_space = spaces.Dict(go=spaces.Discrete(3), turn=spaces.Box(-1, 1, (2,)))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> Any:
        return {"vector": self.np_random.random(3).astype(np.float32), "number": (self.np_random.integers(1, 5),)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observe(), float(action["go"]), False, self.steps == 7, {}


gymnasium.register("NotFinite-v0", NotFinite)
gymnasium.register("NestedSpaces-v0", NestedSpaces)

MEMORIES: dict[str, Callable[[int], Memory]] = {
    "lstm": partial(LSTM, width=6),
    "gru": partial(GRU, width=6),
    "transformer": partial(Transformer, width=8, num_heads=2, context_length=5),
}


class Halves(SerialVectorEnv):
    """Can be double-buffered, like Atari games."""

    def double_buffer_groups(self) -> list[slice]:
        middle = self.num_envs // 2
        return [slice(0, middle), slice(middle, self.num_envs)]


def make_halves(num_envs: int) -> VectorEnv:
    return VectorEnv(Halves([partial(make_gymnasium_env, "CartPole-v1")] * num_envs))


def make_collector(
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


def torchrl_env(env_id: str, num_envs: int) -> TransformedEnv:
    """The same environment with a transform, which is stepped like any TorchRL environment."""
    return TransformedEnv(make_env(env_id, num_envs), Compose())


@pytest.fixture
def rollouts() -> list[TensorDictBase]:
    return list(make_collector(make_env("CartPole-v1", 3)))


class TestContract:
    def test_collector_has_a_length_and_yields_that_many_rollouts(self) -> None:
        collector = make_collector(make_env("CartPole-v1", 3), frames_per_env=8, num_rollouts=5)
        assert len(collector) == 5
        assert [tuple(rollout.shape) for rollout in collector] == [(3, 8)] * 5

    def test_collector_does_not_exceed_total_frames(self) -> None:
        env = make_env("CartPole-v1", 3)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        assert len(Collector(env, actor, frames_per_env=8, total_frames=100)) == 4

    def test_next_observation_is_the_following_one_unless_the_episode_ended(
        self, rollouts: list[TensorDictBase]
    ) -> None:
        for rollout in rollouts:
            done = rollout["next", "done"][:, :-1, 0]
            following, next_obs = rollout["observation"][:, 1:], rollout["next", "observation"][:, :-1]
            assert done.any()
            assert torch.equal(following[~done], next_obs[~done])
            assert (next_obs[done][:, 2].abs() > 0.2).all(), "the pole has fallen in the final observation"
            assert (following[done].abs() <= 0.05).all(), "and is upright in the next episode"

    def test_episodes_continue_in_the_next_rollout(self, rollouts: list[TensorDictBase]) -> None:
        first, second = rollouts
        running = ~first["next", "done"][:, -1, 0]
        assert torch.equal(second["observation"][:, 0][running], first["next", "observation"][:, -1][running])
        assert torch.equal(second["is_init"][:, 0], first["next", "done"][:, -1])

    def test_is_init_marks_the_first_step_of_every_episode(self, rollouts: list[TensorDictBase]) -> None:
        first = rollouts[0]
        assert first["is_init"][:, 0].all()
        assert torch.equal(first["is_init"][:, 1:], first["next", "done"][:, :-1])

    def test_episode_reward_and_step_count_are_sums_over_the_episode(self, rollouts: list[TensorDictBase]) -> None:
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

    def test_policy_acts_with_its_newest_weights(self) -> None:
        env = make_env("CartPole-v1", 2)
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
    def test_vector_and_torchrl_stepping_give_the_same_data(self, env_id: str) -> None:
        ours = list(make_collector(make_env(env_id, 2), frames_per_env=220))
        theirs = list(make_collector(torchrl_env(env_id, 2), frames_per_env=220))
        for mine, other in zip(ours, theirs, strict=True):
            for key in mine.keys(include_nested=True, leaves_only=True):
                torch.testing.assert_close(mine[key], other[key].to(mine[key].dtype), rtol=0, atol=0)

    def test_torchrl_transforms_write_the_same_episode_statistics(self) -> None:
        env = TransformedEnv(
            make_env("CartPole-v1", 2),
            Compose(RewardSum(in_keys=["reward"], out_keys=["sum"]), StepCounter(step_count_key="count")),
        )
        rollout = next(iter(make_collector(env)))
        assert torch.equal(rollout["next", "sum"], rollout["next", "episode_reward"])
        assert torch.equal(rollout["next", "count"], rollout["next", "step_count"])


class TestWorkers:
    @pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
    def test_rollouts_of_workers_are_bitwise_equal_to_serial_ones(self, env_id: str) -> None:
        serial = list(make_collector(make_env(env_id, 4), frames_per_env=220))
        env = make_env(env_id, 4, num_workers=2)
        for mine, other in zip(make_collector(env, frames_per_env=220), serial, strict=True):
            for key in other.keys(include_nested=True, leaves_only=True):
                assert torch.equal(mine[key], other[key]), key
        env.close()

    def test_double_buffered_rollouts_are_consistent(self) -> None:
        pytest.importorskip("ale_py")
        env = make_env("ALE/Pong-v5", 4, max_num_frames_per_episode=40)
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

    @pytest.mark.parametrize("make", [make_env, torchrl_env])
    def test_seconds_of_environment_and_policy_are_less_than_the_total(self, make: Callable[[str, int], Any]) -> None:
        env = make("CartPole-v1", 2)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        collector = Collector(env, actor, frames_per_env=64, total_frames=512, compile="trace")
        assert len(list(collector)) == 4
        total, *parts = (collector.seconds[part] for part in ("collect", "policy", "environment"))
        assert min(parts) > 0
        assert sum(parts) < total
        env.close()

    def test_double_buffering_of_unsupported_environments_is_refused(self) -> None:
        env, workers = make_env("CartPole-v1", 2), make_env("CartPole-v1", 2, num_workers=2)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        for each in (env, workers, torchrl_env("CartPole-v1", 2)):
            with pytest.raises(ConfigurationError, match=r"collector\.double_buffer=true"):
                Collector(each, actor, frames_per_env=8, total_frames=16, double_buffer=True)
        workers.close()

    def test_double_buffering_of_unequal_halves_is_refused(self) -> None:
        env = make_halves(5)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        with pytest.raises(ConfigurationError, match=r"double_buffer=true.* 2 and 3 .*env.num_envs"):
            Collector(env, actor, frames_per_env=8, total_frames=40, double_buffer=True)


@pytest.mark.parametrize("name", MEMORIES)
class TestRecurrentPolicy:
    @pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
    def test_vector_and_torchrl_stepping_give_the_same_data(self, name: str, shared: bool) -> None:
        policy = {"memory": MEMORIES[name], "shared": shared}
        ours = list(make_collector(make_env("CartPole-v1", 2), policy=policy))
        theirs = list(make_collector(torchrl_env("CartPole-v1", 2), policy=policy))
        for mine, other in zip(ours, theirs, strict=True):
            assert mine["next", "done"].any()
            for key in mine.keys(include_nested=True, leaves_only=True):
                torch.testing.assert_close(mine[key], other[key].to(mine[key].dtype), rtol=0, atol=1e-6, msg=str(key))

    def test_rollouts_of_workers_are_bitwise_equal_in_nested_spaces(self, name: str) -> None:
        policy = {"memory": MEMORIES[name]}
        serial = list(make_collector(make_env("NestedSpaces-v0", 4), policy=policy))
        env = make_env("NestedSpaces-v0", 4, num_workers=2)
        for mine, other in zip(make_collector(env, policy=policy), serial, strict=True):
            assert ("action", "turn") in other.keys(include_nested=True)
            for key in other.keys(include_nested=True, leaves_only=True):
                assert torch.equal(mine[key], other[key]), key
        env.close()

    @pytest.mark.parametrize("kind", ["double-buffered", "torchrl"])
    def test_whole_sequence_gives_the_probabilities_of_single_steps(self, name: str, kind: str) -> None:
        double = kind == "double-buffered"
        env = make_halves(4) if double else make_env("CartPole-v1", 4)
        env.set_seed(0)
        torch.manual_seed(0)
        actor, _ = make_actor_critic(
            env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8]), memory=MEMORIES[name]
        )
        frames: dict[str, int] = {"frames_per_batch": 160, "total_frames": 320}
        tracked = with_recurrent_states(env, state_primers(actor))
        for rollout in (
            Collector(env, actor, double_buffer=True, **frames)
            if double
            else RolloutLoader(torchrl.collectors.Collector(tracked, actor, trust_policy=True, **frames))
        ):
            assert rollout["next", "done"].any()
            states = {key: rollout[key][:, 0] for key in memory_keys(actor)}
            sequence = TensorDict({key: rollout[key] for key in ("observation", "is_init")} | states, [4])
            again = actor.get_dist(sequence).log_prob(rollout["action"])
            torch.testing.assert_close(again, rollout["action_log_prob"], rtol=1e-5, atol=1e-5)
        env.close()


KINDS: list[tuple[dict[str, Any], list[Any], dict[str, Any]]] = [
    ({}, [], {}),
    ({"num_workers": 2}, [], {}),
    ({"num_workers": 2}, [Compose()], {}),
]


@pytest.mark.parametrize(("workers", "transforms", "options"), KINDS)
def test_environments_are_reset_after_an_interrupted_rollout(
    workers: dict[str, Any], transforms: list[Any], options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C in a notebook does this, and the next cell trains again."""
    vector_env = make_env("NestedSpaces-v0", 2, **workers)
    env = TransformedEnv(vector_env, *transforms) if transforms else vector_env
    collector = make_collector(env, frames_per_env=10, num_rollouts=3, **options)
    assert len([*collector]) == 3
    receive, calls = vector_env.vector.receive, 0

    def interrupted(env_slice: slice = ALL_ENVS) -> StepArrays:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return receive(env_slice)

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


BOXES = st.lists(st.integers(1, 3), max_size=3).map(lambda shape: spaces.Box(-3, 3, shape, np.float32))
DISCRETE = st.builds(lambda n, start: spaces.Discrete(n, start=start), st.integers(2, 5), st.integers(-2, 2))
CHOICES = st.lists(st.integers(2, 4), min_size=1, max_size=3).map(spaces.MultiDiscrete)
BITS = st.integers(1, 4).map(spaces.MultiBinary)
TEXTS = st.just(spaces.Text(12, charset="ab "))
VECTORS = st.integers(1, 3).map(lambda n: spaces.Box(-2, 0.5, (n,), np.float32))


def nested(leaf: st.SearchStrategy[Any], depth: int) -> st.SearchStrategy[Any]:
    if depth == 0:
        return leaf
    inner = st.one_of(leaf, nested(leaf, depth - 1))
    dicts = st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=2).map(spaces.Dict)
    return st.one_of(leaf, dicts, st.lists(inner, min_size=1, max_size=2).map(spaces.Tuple))


OBSERVATIONS = nested(st.one_of(BOXES, DISCRETE, CHOICES, BITS, TEXTS), 2)
ACTIONS = nested(st.one_of(DISCRETE, CHOICES, BITS, VECTORS), 2)


@given(observation=OBSERVATIONS, action=ACTIONS, is_recurrent=st.booleans(), mode=st.sampled_from([False, "trace"]))
@settings(max_examples=25)
def test_actions_are_inside_any_space_and_learning_sees_their_probabilities(
    observation: spaces.Space[Any],
    action: spaces.Space[Any],
    is_recurrent: bool,
    mode: Compile,
    random_env: Callable[..., VectorEnv],
) -> None:
    env = random_env(observation, action)
    actor, critic = make_actor_critic(
        env.observation_spec,
        env.full_action_spec["action"],
        body=mlp,
        memory=(lambda n: GRU(n, width=4)) if is_recurrent else None,
    )
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        rollout = VectorRollouts(env, actor, 6, compile=mode)()
        states = {key: rollout[key][:, 0] for key in ("actor_memory", "critic_memory") if is_recurrent}
        data = TensorDict(dict(rollout.exclude("next").items()) | states, [2])
        data["advantage"] = data["value_target"] = data["state_value"] = torch.zeros(2, 6, 1)
        losses = ClipPPOLoss(actor, critic)(data if is_recurrent else data.auto_batch_size_(2))
        again = actor.get_dist(data.copy()).log_prob(data[actor.dist_sample_keys[0]])
    torch.testing.assert_close(again, rollout["action_log_prob"], rtol=1e-5, atol=1e-5)
    assert losses["kl_approx"].item() == pytest.approx(0, abs=1e-5)


class TestInterfaceOfTorchRL:
    def test_frames_per_batch_is_the_sum_over_the_environments(self) -> None:
        env = make_env("CartPole-v1", 3)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        collector = Collector(env, actor, frames_per_batch=24, total_frames=50)
        assert (collector.frames_per_env, collector.frames_per_batch, len(collector)) == (8, 24, 2)
        assert [tuple(rollout.shape) for rollout in collector] == [(3, 8)] * 2

    @pytest.mark.parametrize(
        ("frames", "message"),
        [
            ({"frames_per_batch": 25}, r"frames_per_batch=25 .*\(3\); use 24 or 27"),
            ({"frames_per_batch": 2}, r"frames_per_batch=2 .*; use 3$"),
            ({"frames_per_batch": 0}, r"frames_per_batch=0"),
            ({"frames_per_batch": 24, "frames_per_env": 8}, r"frames_per_env and .*frames_per_batch are both set"),
            ({}, r"frames_per_env is missing"),
        ],
    )
    def test_length_of_a_rollout_must_be_clear(self, frames: dict[str, int], message: str) -> None:
        env = make_env("CartPole-v1", 3)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        with pytest.raises(ConfigurationError, match=message):
            Collector(env, actor, total_frames=100, **frames)

    @pytest.mark.parametrize("mode", [False, "trace"])
    def test_rollout_uses_weights_that_were_passed_to_update_policy_weights(self, mode: Compile) -> None:
        collector = make_collector(make_env("CartPole-v1", 2), num_rollouts=4, compile=mode)
        other = make_collector(make_env("CartPole-v1", 2), seed=1).policy
        iterator = iter(collector)
        next(iterator)
        collector.update_policy_weights_()
        for weights in (other, TensorDict.from_module(other)):
            with torch.no_grad():
                collector.policy.apply(lambda module: [param.zero_() for param in module.parameters()] and None)
            collector.update_policy_weights_(weights)
            rollout = next(iterator)
            expected = other.get_dist(rollout.copy()).log_prob(rollout["action"])
            torch.testing.assert_close(rollout["action_log_prob"], expected, rtol=0, atol=1e-6)
        with pytest.raises(ConfigurationError, match="several sources"):
            collector.update_policy_weights_(other, weights=TensorDict.from_module(other))

    def test_set_seed_determines_the_first_episodes_and_returns_the_next_seed(self) -> None:
        first = []
        for seed in (3, 3, 4):
            collector = make_collector(make_env("CartPole-v1", 2))
            assert collector.set_seed(seed) != seed
            first.append(next(iter(collector))["observation"][:, 0])
            assert collector.set_seed(seed, static_seed=True) == seed
        assert torch.equal(first[0], first[1])
        assert not torch.equal(first[0], first[2])

    def test_state_of_an_interrupted_iteration_leaves_the_remaining_rollouts(self) -> None:
        collector = make_collector(make_env("CartPole-v1", 2), frames_per_env=8, num_rollouts=5)
        for _, _rollout in zip(range(2), collector, strict=False):
            state = collector.state_dict()
        assert state["frames"] == 32
        resumed = make_collector(make_env("CartPole-v1", 2), frames_per_env=8, num_rollouts=5)
        resumed.load_state_dict(state)
        assert len(list(resumed)) == 3
        assert resumed.state_dict()["frames"] == 80
        assert len(list(resumed)) == 5, "the next iteration starts from 0 frames"

    @pytest.mark.parametrize("close_env", [True, False])
    def test_shutdown_closes_the_environment(self, close_env: bool) -> None:
        env = make_env("CartPole-v1", 2)
        collector = make_collector(env)
        for _ in range(2):
            collector.shutdown(timeout=1.0, close_env=close_env)
        assert env.is_closed == close_env


class TestErrors:
    @pytest.mark.parametrize("where", ["reward", "observation"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_non_finite_value_is_reported_with_its_place(self, where: str, value: float) -> None:
        collector = make_collector(make_env("NotFinite-v0", 2, where=where, value=value), frames_per_env=8)
        collector.set_seed(0)
        place = r"at step 4 of the rollout \(seed \d+, action [01]\)"
        with pytest.raises(EnvironmentFailure, match=rf"{where} of environment 0 is {value} {place}"):
            next(iter(collector))

    def test_an_action_that_is_not_finite_is_an_error_of_the_policy(self) -> None:
        data = TensorDict({"observation": torch.zeros(2, 3, 1), "action": torch.zeros(2, 3, 1)}, [2, 3])
        data["next", "observation"], data["next", "reward"] = torch.zeros(2, 3, 1), torch.zeros(2, 3, 1)
        data["next", "reward"][1, 2] = data["action"][1, 2] = torch.nan
        with pytest.raises(NumericalError, match=r"policy's action in environment 1 is \[nan\] at step 2"):
            require_finite(data)

    def test_a_value_outside_of_the_space_is_reported_once(self, caplog: pytest.LogCaptureFixture) -> None:
        collector = make_collector(make_env("NotFinite-v0", 2, where="observation", value=7.0), frames_per_env=8)
        for _ in zip(range(2), collector, strict=False):
            pass
        assert caplog.text.count("outside of -1 to 1") == 1
        assert "observation[0] of environment 0 is 7 at step 4" in caplog.text

    def test_an_error_of_a_torchrl_environment_is_an_environment_failure(
        self, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        env = batched(GymEnv("CartPole-v1"))
        collector = make_collector(env, frames_per_env=4)
        monkeypatch.setattr(type(env), "step_and_maybe_reset", fail)
        with pytest.raises(EnvironmentFailure, match="failed: ValueError: broken"):
            next(iter(collector))
        capfd.readouterr()

    @pytest.mark.parametrize("memory", [False, True])
    def test_a_failed_step_is_discarded(self, memory: bool) -> None:
        """Environment 0 fails in steps 2 and 5, the second time in the first step of its episode."""
        data = TensorDict({"observation": torch.arange(12.0).view(2, 6, 1), "is_init": torch.zeros(2, 6, 1)}, [2, 6])
        flags = {name: torch.zeros(2, 6, 1, dtype=torch.bool) for name in ("done", "terminated", "truncated")}
        counts = torch.ones(2, 6, 1, dtype=torch.int64)
        data["next"] = TensorDict({**flags, "observation": data["observation"] + 1, "step_count": counts}, [2, 6])
        for step in (2, 4, 5):
            data["next", "truncated"][0, step] = data["next", "done"][0, step] = True
        steps = [SkippedStep(step, np.array([True, False])) for step in (2, 5)]
        discard_failed(data, steps, is_recurrent=memory)
        assert data["next", "truncated"][0].flatten().tolist() == [False, True, True, False, True, True]
        assert data["next", "step_count"][0].flatten().tolist() == [1, 0, 0, 1, 1, 0]
        assert data["next", "observation"][0, 1] == 2, "the value of the last observation is kept"
        assert data["observation"][0, [2, 5], 0].tolist() == ([2, 5] if memory else [8, 11])
        assert not data["next", "done"][1].any()

    @pytest.mark.parametrize(
        ("frames_per_env", "total_frames", "message"), [(0, 10, "frames_per_env=0"), (8, 0, "total_frames=0")]
    )
    def test_counts_below_one_are_refused(self, frames_per_env: int, total_frames: int, message: str) -> None:
        env = make_env("CartPole-v1", 1)
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp)
        with pytest.raises(ConfigurationError, match=message):
            Collector(env, actor, frames_per_env=frames_per_env, total_frames=total_frames)

    def test_environment_without_episode_statistics_is_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"episode_reward and step_count"):
            Collector(GymEnv("CartPole-v1"), None, frames_per_env=8, total_frames=8)  # type: ignore[arg-type]
