"""A policy over any spaces: it acts inside of them, and learning sees the probabilities it acted with."""

from __future__ import annotations

from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Categorical, Composite, Unbounded
from torchrl.envs import EnvBase, ExplorationType, Transform, TransformedEnv, set_exploration_type

from torchppo.envs import VectorEnv, make_vector_env
from torchppo.envs.vector.serial import SerialVectorEnv
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import GRU
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.pipelines.collectors.collector import VectorRollouts
from torchppo.pipelines.collectors.policy_step import PolicyStep
from torchppo.pipelines.collectors.torchrl import TensorDictStep, TorchRLRollouts
from torchppo.pipelines.step_factory import Compile

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


class Anything(gymnasium.Env[Any, Any]):
    """Random observations, and episodes of four steps; an action outside of the space is an error."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.observation_space.seed(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._num_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._num_steps += 1
        return self.observation_space.sample(), 1.0, self._num_steps == 4, False, {}


@given(observation=OBSERVATIONS, action=ACTIONS, remembers=st.booleans(), graph=st.sampled_from([False, "trace"]))
@settings(max_examples=25)
def test_acts_inside_any_space_and_learns_with_the_probabilities_it_acted_with(
    observation: spaces.Space[Any], action: spaces.Space[Any], remembers: bool, graph: Compile
) -> None:
    env = VectorEnv(SerialVectorEnv([lambda: Anything(observation, action)] * 2))
    actor, critic = make_actor_critic(
        env.observation_spec,
        env.full_action_spec["action"],
        body=mlp,
        memory=(lambda n: GRU(n, width=4)) if remembers else None,
    )
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        rollout = VectorRollouts(env, PolicyStep(actor, compile=graph), 6, double_buffer=False)()
        memories = {key: rollout[key][:, 0] for key in ("actor_memory", "critic_memory") if remembers}
        data = TensorDict(dict(rollout.exclude("next").items()) | memories, [2])
        data["advantage"] = data["value_target"] = data["state_value"] = torch.zeros(2, 6, 1)
        losses = ClipPPOLoss(actor, critic)(data if remembers else data.auto_batch_size_(2))
        again = actor.get_dist(data.copy()).log_prob(data[actor.dist_sample_keys[0]])
    torch.testing.assert_close(again, rollout["action_log_prob"], rtol=1e-5, atol=1e-5)
    assert losses["kl_approx"].item() == pytest.approx(0, abs=1e-5)


def by_arrays(env: VectorEnv, actor: Any) -> Any:
    return VectorRollouts(env, PolicyStep(actor, compile=False), 9, double_buffer=False)


def by_arrays_and_a_graph(env: VectorEnv, actor: Any) -> Any:
    return VectorRollouts(env, PolicyStep(actor, compile="trace"), 9, double_buffer=False)


def by_tensordicts(env: VectorEnv, actor: Any) -> Any:
    return TorchRLRollouts(env, actor, 9)


def by_tensordicts_and_a_graph(env: VectorEnv, actor: Any) -> Any:
    return TorchRLRollouts(env, actor, 9, compile="trace")


def two_rollouts(collect: Any, *, remembers: bool) -> list[TensorDictBase]:
    torch.manual_seed(0)
    space = spaces.Dict(a=spaces.Box(-1, 1, (2,)), b=spaces.Discrete(3))
    env = VectorEnv(SerialVectorEnv([lambda: Anything(space, spaces.Discrete(3))] * 2))
    memory = (lambda n: GRU(n, width=4)) if remembers else None
    actor = make_actor_critic(env.observation_spec, env.action_spec, body=mlp, memory=memory).actor
    rollout = collect(env, actor)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        return [rollout(), rollout()]


@pytest.mark.parametrize("remembers", [False, True])
def test_arrays_and_tensordicts_give_the_same_rollouts(remembers: bool) -> None:
    pairs = zip(*(two_rollouts(how, remembers=remembers) for how in (by_arrays, by_tensordicts)), strict=True)
    for ours, theirs in pairs:
        for key in ours.keys(include_nested=True, leaves_only=True):
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-6, atol=1e-6, msg=str(key))


@pytest.mark.parametrize("remembers", [False, True])
@pytest.mark.parametrize(
    "ways", [(by_arrays, by_arrays_and_a_graph), (by_tensordicts, by_tensordicts_and_a_graph)], ids=["arrays", "dicts"]
)
def test_a_traced_policy_gives_the_same_rollouts_bit_for_bit(ways: tuple[Any, Any], remembers: bool) -> None:
    pairs = zip(*(two_rollouts(how, remembers=remembers) for how in ways), strict=True)
    for ours, theirs in pairs:
        assert (ours == theirs).all()


@pytest.mark.parametrize("graph", [False, "trace"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_rollout_of_tensordicts_is_acted_with_the_weights_of_its_start(
    graph: Compile, precision: torch.dtype
) -> None:
    space = spaces.Box(-1, 1, (2,), np.float32)
    env = VectorEnv(SerialVectorEnv([lambda: Anything(space, spaces.Discrete(3))] * 2))
    actor = make_actor_critic(env.observation_spec, env.action_spec, body=mlp).actor
    rollouts = TorchRLRollouts(env, actor, 3, compile=graph)
    for _ in range(2):
        with (
            torch.no_grad(),
            torch.autocast("cpu", precision, enabled=precision is torch.bfloat16),
            set_exploration_type(ExplorationType.RANDOM),
        ):
            rollout = rollouts()
            expected = actor.get_dist(rollout.copy()).log_prob(rollout["action"])
        torch.testing.assert_close(rollout["action_log_prob"], expected, rtol=0, atol=1e-5)
        with torch.no_grad():
            for param in actor.parameters():
                param.mul_(3.0).add_(0.1)


class Turning(EnvBase):
    """Observations whose place in memory changes: expanded at a reset, transposed at a step."""

    def __init__(self) -> None:
        super().__init__(batch_size=[4])
        self.observation_spec = Composite(observation=Unbounded((4, 3)), shape=[4])
        self.action_spec = Categorical(3, (4,))
        self.reward_spec = Unbounded((4, 1))

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        return TensorDict({"observation": torch.rand(1, 3).expand(4, 3)}, [4])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        ended = torch.rand(4, 1) < 0.3
        return TensorDict(
            {"observation": torch.rand(3, 4).T, "reward": torch.ones(4, 1), "done": ended, "terminated": ended}, [4]
        )

    def _set_seed(self, seed: int | None) -> None:
        torch.manual_seed(seed or 0)


def every_other(tensordict: TensorDictBase) -> TensorDictBase:
    """What a transform may do: a view of every second number."""
    tensordict["observation"] = tensordict["observation"][..., ::2]
    return tensordict


class EveryOther(Transform):
    """The first and third number of an observation."""

    def _call(self, next_tensordict: TensorDictBase) -> TensorDictBase:
        return every_other(next_tensordict)

    def _reset(self, tensordict: TensorDictBase, tensordict_reset: TensorDictBase) -> TensorDictBase:
        return every_other(tensordict_reset)

    def transform_observation_spec(self, observation_spec: Composite) -> Composite:
        observation_spec["observation"] = Unbounded((4, 2))
        return observation_spec


@pytest.mark.parametrize("graph", ["trace", True])
@pytest.mark.parametrize("turns", [True, False], ids=["environment", "transform"])
def test_a_graph_acts_the_same_wherever_observations_lie_in_memory(turns: bool, graph: Compile) -> None:
    env: Any = Turning() if turns else TransformedEnv(make_vector_env("CartPole-v1", 4), EveryOther())
    env.set_seed(0)
    torch.manual_seed(0)
    actor = make_actor_critic(env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8])).actor
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        rollout = TorchRLRollouts(env, actor, 40, compile=graph)()
        assert rollout["next", "done"].any()
        expected = actor.get_dist(rollout.copy()).log_prob(rollout["action"])
    torch.testing.assert_close(rollout["action_log_prob"], expected, rtol=0, atol=1e-5)


def stepped(module: Any, in_keys: list[str], out_keys: list[str], graph: Compile) -> TensorDictBase:
    act = TensorDictStep(TensorDictModule(module, in_keys, out_keys), compile=graph, home=None)
    data = TensorDict({"observation": {"a": torch.arange(3.0), "b": torch.ones(3)}, "x": torch.arange(3.0)}, [3])
    act(data.clone())  # a graph's first call is another than its later ones
    return act(data)


@pytest.mark.parametrize(
    ("module", "in_keys", "out_keys"),
    [
        (lambda parts: parts["a"] + parts["b"], ["observation"], ["action"]),
        (lambda x: (x + 1, x - 1), ["x"], ["action", "_"]),
        (nn.Identity(), ["x"], ["action"]),
    ],
    ids=["reads a whole", "leaves something out", "writes what it reads"],
)
def test_a_graph_takes_any_keys(module: Any, in_keys: list[str], out_keys: list[str]) -> None:
    eager, traced = (stepped(module, in_keys, out_keys, graph) for graph in (False, "trace"))
    assert set(traced.keys()) == set(eager.keys())
    assert torch.equal(traced["action"], eager["action"])
