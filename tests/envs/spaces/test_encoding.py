"""Observations of all spaces are in the arrays, actions are in the action space, and mismatches raise."""

from __future__ import annotations

import copy
import re
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tensordict import TensorDict
from torchrl.envs.utils import check_env_specs

from torchppo.envs import SerialVectorEnv, SubprocessVectorEnv, VectorEnv, leaf_arrays, make_env
from torchppo.envs.spaces.conversion import SpaceConverter
from torchppo.envs.spaces.encoding import action_converter, action_dtype, encode_spaces, encoder, find_mismatch
from torchppo.envs.spaces.specs import observation_spec, step_arrays_for
from torchppo.errors import EnvironmentFailure

Path = tuple[str, ...]
Leaves = tuple[Callable[[], spaces.Space[Any]], ...]
ACTION_LEAVES = (
    lambda: spaces.Discrete(5),
    lambda: spaces.Discrete(3, start=-2),
    lambda: spaces.Discrete(4, start=7, dtype=np.int8),
    lambda: spaces.MultiDiscrete([2, 4]),
    lambda: spaces.MultiDiscrete([3, 3], start=[-1, 5]),
    lambda: spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [-2, 0]]),
    lambda: spaces.MultiBinary(3),
    lambda: spaces.MultiBinary((2, 3)),
    lambda: spaces.Box(-1, 1, (), np.float32),
    lambda: spaces.Box(100, 200, (2, 1), np.float32),
    lambda: spaces.Box(-3, 7, (2,), np.int32),
    lambda: spaces.Box(0, 255, (), np.uint8),
    lambda: spaces.Box(0, 60_000, (1,), np.uint16),
    lambda: spaces.Box(0, 1, (2,), np.bool_),
    lambda: spaces.Box(-1, 2, (2,), np.float32),
    lambda: spaces.Box(-0.1, 0.3, (3,), np.float64),
    lambda: spaces.Box(-np.inf, np.inf, (1,), np.float32),
)
OBSERVATION_LEAVES = (
    *ACTION_LEAVES,
    lambda: spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
    lambda: spaces.Box(0, 255, (5, 5, 3), np.uint8),
    lambda: spaces.Box(-5, 9, (3,), np.int64),
    lambda: spaces.Text(60, charset="abCD 7,_"),
)


def nested_spaces(leaves: Leaves) -> st.SearchStrategy[spaces.Space[Any]]:
    """Dict and Tuple spaces with one or two levels."""

    def containers(subspace: st.SearchStrategy[spaces.Space[Any]]) -> st.SearchStrategy[spaces.Space[Any]]:
        names = st.sampled_from(["image", "a", "0", "z b"])
        return st.one_of(
            st.dictionaries(names, subspace, min_size=1, max_size=3).map(spaces.Dict),
            st.lists(subspace, min_size=1, max_size=3).map(spaces.Tuple),
        )

    leaf = st.sampled_from(leaves).map(lambda make_space: make_space())
    return containers(st.one_of(leaf, containers(leaf)))


def all_spaces(leaves: Leaves) -> st.SearchStrategy[spaces.Space[Any]]:
    return st.one_of(nested_spaces(leaves), st.sampled_from(leaves).map(lambda make_space: make_space()))


def leaves_of(space: spaces.Space[Any], value: Any, path: Path = ()) -> Iterator[tuple[Path, spaces.Space[Any], Any]]:
    """Yield the path, space and value of every leaf."""
    if isinstance(space, spaces.Dict):
        for key, subspace in space.spaces.items():
            yield from leaves_of(subspace, value[key], (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, subspace in enumerate(space.spaces):
            yield from leaves_of(subspace, value[index], (*path, str(index)))
    else:
        yield path, space, value


def expected_array(space: spaces.Space[Any], value: Any) -> NDArray[Any]:
    """The array that the value of a leaf is encoded to."""
    match space:
        case spaces.Text():
            words = [word for word in re.split("[^a-z0-9]+", value.lower()) if word][:32]
            hashes = [zlib.crc32(word.encode("ascii")) % 4095 + 1 for word in words]
            return np.array(hashes + [0] * (32 - len(words)), np.int64)
        case spaces.Discrete() | spaces.MultiDiscrete():
            return np.asarray(value, np.int64) - np.asarray(space.start, np.int64)
        case spaces.Box(dtype=np.float64):
            return value.astype(np.float32)
        case spaces.Box(dtype=np.uint16):
            return value.astype(np.int32)
    return np.asarray(value)


class SamplingEnv(gymnasium.Env[Any, Any]):
    """Samples observations; the reward sums all actions so far, each of which must be in the action space."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], length: int = 3) -> None:
        self.observation_space, self.action_space = copy.deepcopy(observation_space), copy.deepcopy(action_space)
        self.length = length
        self.actions: list[Any] = []  # not copied, to detect actions that change later

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.num_steps = 0
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        self.actions.append(action)
        self.num_steps += 1
        reward = sum(float(spaces.flatten(self.action_space, past).sum()) for past in self.actions)
        return self.observation_space.sample(), reward, self.num_steps == self.length, False, {}


class TestEncoder:
    @given(all_spaces(OBSERVATION_LEAVES), st.integers(0, 1000))
    @settings(max_examples=50)
    def test_the_leaves_have_the_encoded_observation(self, space: spaces.Space[Any], seed: int) -> None:
        space.seed(seed)
        arrays, observation = step_arrays_for(space, 3), space.sample()
        arrays.observation[1] = encoder(space)(observation)
        leaves = leaf_arrays(arrays.observation)
        expected_leaves = list(leaves_of(space, observation))
        assert len(leaves) == len(expected_leaves)
        for path, leaf, value in expected_leaves:
            array = leaves[("observation", *path) if path else "observation"]
            expected = expected_array(leaf, value)
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array[1], expected)
            np.testing.assert_array_equal(torch.from_numpy(array).numpy(), array)
            assert not array[[0, 2]].any()

    @given(all_spaces(OBSERVATION_LEAVES), st.integers(0, 1000))
    @settings(max_examples=50)
    def test_encoded_observations_are_in_their_spec(self, space: spaces.Space[Any], seed: int) -> None:
        space.seed(seed)
        arrays = step_arrays_for(space, 2)
        for index in range(2):
            arrays.observation[index] = encoder(space)(space.sample())
        data = TensorDict({key: torch.from_numpy(array) for key, array in leaf_arrays(arrays.observation).items()}, [2])
        spec = observation_spec(space)
        assert spec.expand(2, *spec.shape).is_in(data["observation"])


class TestEnvironments:
    @given(all_spaces(OBSERVATION_LEAVES), all_spaces(ACTION_LEAVES))
    @settings(max_examples=20)
    def test_check_env_specs_passes(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        check_env_specs(VectorEnv(SerialVectorEnv([partial(SamplingEnv, observation_space, action_space)] * 2)), seed=0)

    @given(all_spaces(OBSERVATION_LEAVES), all_spaces(ACTION_LEAVES))
    @settings(max_examples=20)
    def test_workers_return_the_same_data_bit_for_bit(
        self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
    ) -> None:
        env_fns = [partial(SamplingEnv, observation_space, action_space, length) for length in (2, 3, 5)]
        expected, actual = rollout(SerialVectorEnv(env_fns)), rollout(SubprocessVectorEnv(env_fns, 2))
        assert [array.tobytes() for array in actual] == [array.tobytes() for array in expected]

    @given(all_spaces(ACTION_LEAVES), st.integers(0, 1000))
    @settings(max_examples=50)
    def test_environments_receive_elements_of_their_action_space(self, space: spaces.Space[Any], seed: int) -> None:
        env = VectorEnv(SerialVectorEnv([partial(SamplingEnv, spaces.Discrete(2), space)] * 2))
        env.reset_arrays()
        torch.manual_seed(seed)
        sent = env.full_action_spec.rand()
        env.send(as_arrays(sent))  # `SamplingEnv.step` checks that they are in its space
        for index, sampling in enumerate(env.vector.envs):
            for path, leaf, value in leaves_of(space, sampling.unwrapped.actions[0]):
                action = sent[("action", *path)][index].numpy()
                if isinstance(leaf, spaces.Box) and leaf.dtype != np.bool_:
                    np.testing.assert_array_equal(value, np.clip(action, leaf.low, leaf.high))
                else:
                    np.testing.assert_array_equal(expected_array(leaf, value), action)

    def test_an_environment_with_plain_spaces_is_not_wrapped(self) -> None:
        for space in (spaces.Box(-1, 1, (2,)), spaces.Box(0, 255, (4, 4), np.uint8), spaces.Discrete(3)):
            env = SamplingEnv(space, spaces.Discrete(2))
            assert encode_spaces(env) is env

    def test_parts_without_elements_are_not_in_the_data_but_in_the_actions(self) -> None:
        empty, part = spaces.Box(-1, 1, (0,)), spaces.Box(-1, 1, (2,))
        observation = spaces.Dict(a=part, b=empty, c=spaces.Tuple([empty]))
        env = VectorEnv(SerialVectorEnv([partial(SamplingEnv, observation, spaces.Dict(x=empty, y=part))] * 2))
        data = env.rollout(2)
        assert set(data["observation"].keys()) == {"a"}
        assert set(data["action"].keys()) == {"y"}
        assert env.vector.envs[0].unwrapped.actions[0]["x"].shape == (0,)
        converter = SpaceConverter(observation, spaces.Tuple([part, empty]))
        arrays, _ = converter.observations(observation.sample())
        assert [*arrays] == [("observation", "a")]
        action = converter.actions({("action", "0"): np.zeros((1, 2), np.float32)}, is_single=True)
        assert spaces.Tuple([part, empty]).contains(action)
        batch = converter.actions({("action", "0"): np.zeros((3, 2), np.float32)}, is_single=False)
        assert [one.shape for one in batch] == [(3, 2), (3, 0)]


class TestBoxActions:
    @pytest.mark.parametrize(
        ("low", "high", "sent", "received"),
        [
            (0, np.inf, -0.5, 0.0),
            (-np.inf, 5, 7.0, 5.0),
            (100, np.inf, 1.5, 101.5),  # counted from the bound, because 0 is beyond it
            (-np.inf, -100, -1.5, -101.5),
            (-np.inf, np.inf, 7.0, 7.0),
        ],
    )
    def test_an_infinite_bound_does_not_clip(self, low: float, high: float, sent: float, received: float) -> None:
        convert = action_converter(spaces.Box(low, high, (1,)))
        assert convert(np.array([[sent]], np.float32)).tolist() == [[received]]

    def test_far_entries_beside_infinite_ones_are_scaled_to_their_range(self) -> None:
        space = spaces.Box(np.array([100, -1, 0], np.float32), np.array([200, 1, np.inf], np.float32))
        actions = action_converter(space)(np.array([[0.0, 0.0, 0.0], [1.0, 0.5, 3.0]], np.float32))
        assert actions.tolist() == [[150.0, 0.0, 0.0], [200.0, 0.5, 3.0]]

    def test_floats_are_rounded_to_integers_within_the_bounds(self) -> None:
        convert = action_converter(spaces.Box(0, 10, (3,), np.int16))
        actions = convert(np.array([[1.6, -3.0, 99.0]], np.float32))
        assert actions.dtype == np.int16
        assert actions.tolist() == [[2, 0, 10]]


def as_arrays(actions: TensorDict) -> Any:
    """Convert actions to the argument of `VectorEnv.send`."""
    arrays = {key: tensor.numpy() for key, tensor in actions.items(include_nested=True, leaves_only=True)}
    return arrays.get("action", arrays)


def rollout(vector: SerialVectorEnv | SubprocessVectorEnv, steps: int = 6) -> list[NDArray[Any]]:
    """Everything that a seeded run with random actions leaves behind."""
    env = VectorEnv(vector)
    env.set_seed(3)
    torch.manual_seed(0)
    data = [array.copy() for array in leaf_arrays(env.reset_arrays()).values()]
    for _ in range(steps):
        env.send(as_arrays(env.full_action_spec.rand()))
        observation, reward, terminated, *_ = env.receive()
        data += [array.copy() for array in (*leaf_arrays(observation).values(), reward, terminated)]
        if terminated.any():
            data += [array.copy() for array in leaf_arrays(env.reset_arrays(terminated)).values()]
    env.close()
    return data


ARM_SPACE = spaces.Dict(
    {
        "move": spaces.Box(-1, 1, (2,), np.float32),
        "hand": spaces.Tuple([spaces.Discrete(3, start=5), spaces.MultiDiscrete([2, 4], start=[-1, 0])]),
        "lights": spaces.MultiBinary(2),
    }
)
ARM_ACTIONS = {
    ("action", "move"): np.array([[0.5, -7.0], [3.0, 0.0]], np.float32),
    ("action", "hand", "0"): np.array([0, 2]),
    ("action", "hand", "1"): np.array([[0, 3], [1, 0]]),
    ("action", "lights"): np.array([[0, 1], [1, 1]], np.int8),
}


class TestNestedActions:
    @pytest.fixture
    def env(self) -> VectorEnv:
        env = VectorEnv(SerialVectorEnv([partial(SamplingEnv, spaces.Discrete(2), ARM_SPACE)] * 4))
        env.reset_arrays()
        return env

    def test_there_is_one_action_key_per_leaf(self, env: VectorEnv) -> None:
        assert set(env.action_keys) == set(ARM_ACTIONS)
        assert env.full_action_spec["action", "move"].shape == (4, 2)
        assert env.full_action_spec["action", "hand", "0"].shape == (4,)

    def test_every_leaf_is_clipped_or_shifted_and_cast(self, env: VectorEnv) -> None:
        env.send(ARM_ACTIONS, slice(2, 4))
        first, second = (sampling.unwrapped.actions for sampling in env.vector.envs[2:])
        assert first[0]["move"].tolist() == [0.5, -1.0]
        assert second[0]["move"].tolist() == [1.0, 0.0]
        assert isinstance(first[0]["hand"], tuple)
        assert first[0]["hand"][0] == 5
        assert second[0]["hand"][0] == 7
        assert first[0]["hand"][1].tolist() == [-1, 3]
        assert second[0]["lights"].tolist() == [1, 1]
        assert not any(sampling.unwrapped.actions for sampling in env.vector.envs[:2])


class TestActionConverter:
    @pytest.mark.parametrize(
        ("space", "policy_action", "expected"),
        [
            (spaces.Discrete(3), np.array([2, 0]), [2, 0]),
            (spaces.Discrete(3, start=5), np.array([2, 0]), [7, 5]),
            (spaces.MultiDiscrete([2, 3], start=[1, -1]), np.array([[1, 2], [0, 0]]), [[2, 1], [1, -1]]),
            (spaces.MultiBinary(2), np.array([[1, 0]]), [[1, 0]]),
            (spaces.Box(-1, 1, (2,)), np.array([[-3.0, 0.5], [0.25, 9.0]], np.float32), [[-1.0, 0.5], [0.25, 1.0]]),
        ],
        ids=str,
    )
    def test_actions_are_shifted_clipped_and_cast(
        self, space: spaces.Space[Any], policy_action: NDArray[Any], expected: list[Any]
    ) -> None:
        before = policy_action.copy()
        action = action_converter(space)(policy_action)
        assert action.tolist() == expected
        assert action.dtype == space.dtype
        action[...] = 0
        assert np.array_equal(policy_action, before), "the environment may modify its action"

    def test_nested_actions_are_one_structured_array(self) -> None:
        hand = spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiBinary(2)])
        space = spaces.Dict(move=spaces.Box(-1, 1, (2,)), hand=hand)
        move, grip, lamps = np.array([[2.0, 0.0]], np.float32), np.array([1]), np.array([[1, 0]])
        action = action_converter(space)(
            {("action", "move"): move, ("action", "hand", "0"): grip, ("action", "hand", "1"): lamps}
        )
        assert action.dtype == action_dtype(space)
        assert action.shape == (1,)
        assert action["move"].tolist() == [[1.0, 0.0]]
        assert action["hand"]["0"].tolist() == [2]
        assert action["hand"]["1"].tolist() == [[1, 0]]

    def test_the_dtype_of_an_action_has_its_shape(self) -> None:
        dtype = action_dtype(spaces.Box(-1, 1, (2, 3)))
        assert (dtype.base, dtype.shape) == (np.dtype(np.float32), (2, 3))


IMAGE, VECTOR = spaces.Box(0, 255, (2, 3, 3), np.uint8), spaces.Box(-1, 1, (4,))


class ScriptedEnv(gymnasium.Env[Any, Any]):
    """Returns the given observations one after the other."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any], *observations: Any) -> None:
        self.observation_space, self.observations = space, [*observations]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observations.pop(0), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.observations.pop(0), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("space", "value", "mismatch"),
    [
        (VECTOR, np.zeros(1), r"observation has shape \(1,\); expected \(4,\)"),
        (VECTOR, 0.5, r"shape \(\); expected \(4,\)"),
        (IMAGE, np.zeros((3, 3), np.uint8), r"shape \(3, 3\); expected \(2, 3, 3\)"),
        (IMAGE, np.full((2, 3, 3), 0.5), "observation has dtype float64; expected uint8"),
        (IMAGE, np.full((2, 3, 3), 256), "value 256, which is not in Box"),
        (IMAGE, np.full((2, 3, 3), -1), "value -1, which is not in Box"),
        (spaces.Discrete(4), 17, r"value 17, which is not in Discrete\(4\)"),
        (spaces.Discrete(4, start=2), 1, "value 1, which is not in Discrete"),
        (spaces.Discrete(4), 1.5, "dtype float64; expected int64"),
        (spaces.MultiDiscrete([2, 3]), np.array([1, 3]), "value 3, which is not in MultiDiscrete"),
        (spaces.MultiBinary(2), np.array([0, 2]), "value 2, which is not in MultiBinary"),
        (spaces.Text(9), 3, "observation has type int; expected str"),
        (spaces.Dict(a=VECTOR, b=IMAGE), {"a": np.zeros(4)}, "observation has no entry 'b'"),
        (spaces.Dict(a=spaces.Dict(b=VECTOR)), {"a": {"b": np.zeros(3)}}, r"observation/a/b has shape \(3,\)"),
        (spaces.Tuple([VECTOR, VECTOR]), (np.zeros(4),), "observation has no entry 1"),
        (spaces.Dict(a=VECTOR), np.zeros(4), "observation has no entry 'a'"),
    ],
)
class TestMismatch:
    def test_the_observation_of_a_reset_raises(self, space: spaces.Space[Any], value: Any, mismatch: str) -> None:
        with pytest.raises(EnvironmentFailure, match=rf"{mismatch}.*; fix the environment"):
            SerialVectorEnv([lambda: ScriptedEnv(space, value)]).reset()

    def test_the_observation_of_the_first_step_raises(
        self, space: spaces.Space[Any], value: Any, mismatch: str
    ) -> None:
        vector = SerialVectorEnv([lambda: ScriptedEnv(space, space.sample(), value)])
        vector.reset()
        with pytest.raises(EnvironmentFailure, match=mismatch):
            vector.step(np.zeros(1, np.int64))


@pytest.mark.parametrize(
    ("space", "value"),
    [
        (VECTOR, [0.0, 1.0, 2.0, 1e9]),
        (VECTOR, np.zeros(4, np.int64)),
        (IMAGE, np.full((2, 3, 3), 255, np.int64)),
        (spaces.Box(0, 1, (2,), np.bool_), np.array([True, False])),
        (spaces.Discrete(4, start=2), np.int8(5)),
        (spaces.MultiBinary(2), [True, False]),
        (spaces.MultiDiscrete([2, 3], start=[5, 5]), (6, 7)),
        (spaces.Tuple([VECTOR, spaces.Discrete(2)]), (np.zeros(4), 1)),
        (spaces.Dict(a=VECTOR), {"a": np.zeros(4), "more": 1}),
    ],
)
def test_a_value_that_an_array_can_store_is_no_mismatch(space: spaces.Space[Any], value: Any) -> None:
    assert find_mismatch(space, value) == ""


def test_later_observations_are_checked_too() -> None:
    env = ScriptedEnv(VECTOR, *(np.zeros(4) for _ in range(4)), np.zeros(1))
    vector = SerialVectorEnv([lambda: env])
    vector.reset()
    for _ in range(3):
        vector.step(np.zeros(1, np.int64))
    with pytest.raises(EnvironmentFailure, match=r"shape \(1,\).*environment 0 at step 4 \(seed None, action 0\)"):
        vector.step(np.zeros(1, np.int64))


def test_an_environment_may_step_a_copy_of_itself_in_reset() -> None:
    class CopyingEnv(ScriptedEnv):
        def reset(self, **kwargs: Any) -> Any:
            result = super().reset(**kwargs)
            self.num_steps = 0
            copy.deepcopy(self).step(0)
            return result

        def step(self, action: Any) -> Any:
            self.num_steps += 1
            return super().step(action)

    vector = SerialVectorEnv([lambda: CopyingEnv(VECTOR, *(np.zeros(4) for _ in range(4)))])
    for _ in range(3):
        vector.reset()
        assert vector.envs[0].unwrapped.num_steps == 0  # type: ignore[attr-defined]


def test_methods_replaced_on_the_instance_are_restored() -> None:
    env = ScriptedEnv(VECTOR, np.zeros(4), np.zeros(4))
    steps: list[Any] = []
    original = env.step

    def recorded_step(action: Any) -> Any:
        steps.append(action)
        return original(action)

    env.step = recorded_step  # type: ignore[method-assign]
    vector = SerialVectorEnv([lambda: env])
    vector.reset()
    vector.step(np.zeros(1, np.int64))
    assert env.step is recorded_step
    assert len(steps) == 1


def test_minigrid_observations_have_images_directions_and_missions() -> None:
    pytest.importorskip("minigrid")
    env = make_env("minigrid:MiniGrid-MemoryS9-v0", 2)
    check_env_specs(env, seed=0)
    observation = env.reset()["observation"]
    assert observation["image"].shape == (2, 7, 7, 3)
    assert observation["image"].dtype == torch.uint8
    assert observation["direction"].shape == (2,)
    assert observation["mission"].shape == (2, 32)
    assert torch.equal(observation["mission"][0], observation["mission"][1])
    assert (observation["mission"][0] > 0).sum() == 11  # go to the matching object at the end of the hallway
