"""Whatever the spaces: what an environment gives is in the arrays, and what the policy gives is in its action space."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterator
from copy import deepcopy
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

from torchppo.envs import SerialVectorEnv, SubprocessVectorEnv, VectorEnv, leaf_arrays, make_vector_env
from torchppo.envs.spaces.encoding import encoded, encoder
from torchppo.envs.spaces.specs import observation_spec, step_arrays_for

Path = tuple[str, ...]
CHOICES = (
    lambda: spaces.Discrete(5),
    lambda: spaces.Discrete(3, start=-2),
    lambda: spaces.Discrete(4, start=7, dtype=np.int8),
    lambda: spaces.MultiDiscrete([2, 4]),
    lambda: spaces.MultiDiscrete([3, 3], start=[-1, 5]),
    lambda: spaces.MultiBinary(3),
    lambda: spaces.Box(-1, 2, (2,), np.float32),
    lambda: spaces.Box(-0.1, 0.3, (3,), np.float64),
    lambda: spaces.Box(-np.inf, np.inf, (1,), np.float32),
)
OBSERVATIONS = (
    *CHOICES,
    lambda: spaces.Box(0, 1, (), np.float32),
    lambda: spaces.Box(-np.inf, np.inf, (2, 3), np.float64),
    lambda: spaces.Box(0, 255, (5, 5, 3), np.uint8),
    lambda: spaces.Box(-5, 9, (3,), np.int64),
    lambda: spaces.Box(0, 1, (3,), np.bool_),
    lambda: spaces.Text(60, charset="abCD 7,_"),
)


def nested(makers: tuple[Callable[[], spaces.Space[Any]], ...]) -> st.SearchStrategy[spaces.Space[Any]]:
    """Dict and Tuple spaces, one or two deep."""

    def containers(inner: st.SearchStrategy[spaces.Space[Any]]) -> st.SearchStrategy[spaces.Space[Any]]:
        names = st.sampled_from(["image", "a", "0", "z b"])
        return st.one_of(
            st.dictionaries(names, inner, min_size=1, max_size=3).map(spaces.Dict),
            st.lists(inner, min_size=1, max_size=3).map(spaces.Tuple),
        )

    leaf = st.sampled_from(makers).map(lambda make: make())
    return containers(st.one_of(leaf, containers(leaf)))


def any_of(makers: tuple[Callable[[], spaces.Space[Any]], ...]) -> st.SearchStrategy[spaces.Space[Any]]:
    return st.one_of(nested(makers), st.sampled_from(makers).map(lambda make: make()))


def walk(space: spaces.Space[Any], value: Any, path: Path = ()) -> Iterator[tuple[Path, spaces.Space[Any], Any]]:
    """Path, space and value of every leaf."""
    if isinstance(space, spaces.Dict):
        for key, one in space.spaces.items():
            yield from walk(one, value[key], (*path, key))
    elif isinstance(space, spaces.Tuple):
        for index, one in enumerate(space.spaces):
            yield from walk(one, value[index], (*path, str(index)))
    else:
        yield path, space, value


def as_data(space: spaces.Space[Any], value: Any) -> NDArray[Any]:
    """A leaf's value as it should stand in the arrays."""
    match space:
        case spaces.Text():
            words = [word for word in re.split("[^a-z0-9]+", value.lower()) if word][:32]
            hashes = [zlib.crc32(word.encode("ascii")) % 4095 + 1 for word in words]
            return np.array(hashes + [0] * (32 - len(words)), np.int64)
        case spaces.Discrete() | spaces.MultiDiscrete():
            return np.asarray(value, np.int64) - np.asarray(space.start, np.int64)
        case spaces.Box(dtype=np.float64):
            return value.astype(np.float32)
    return np.asarray(value)


class Sampling(gymnasium.Env[Any, Any]):
    """Observations are samples of the space; rewards are sums over all actions, which have to be in theirs."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any], length: int = 3) -> None:
        self.observation_space, self.action_space = deepcopy(observation_space), deepcopy(action_space)
        self.length = length
        self.actions: list[Any] = []  # as they came: none may change later

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
        reward = sum(float(spaces.flatten(self.action_space, one).sum()) for one in self.actions)
        return self.observation_space.sample(), reward, self.num_steps == self.length, False, {}


class TestObservations:
    @given(any_of(OBSERVATIONS), st.integers(0, 1000))
    @settings(max_examples=50)
    def test_that_are_written_are_what_the_leaves_show(self, space: spaces.Space[Any], seed: int) -> None:
        space.seed(seed)
        arrays, value = step_arrays_for(space, 3), space.sample()
        arrays.observation[1] = encoder(space)(value)
        shown = leaf_arrays(arrays.observation)
        written = list(walk(space, value))
        assert len(shown) == len(written)
        for path, leaf, one in written:
            array = shown[("observation", *path) if path else "observation"]
            expected = as_data(leaf, one)
            assert array.dtype == expected.dtype
            np.testing.assert_array_equal(array[1], expected)
            np.testing.assert_array_equal(torch.from_numpy(array).numpy(), array)
            assert not array[[0, 2]].any()

    @given(any_of(OBSERVATIONS), st.integers(0, 1000))
    @settings(max_examples=50)
    def test_are_elements_of_their_spec(self, space: spaces.Space[Any], seed: int) -> None:
        space.seed(seed)
        arrays = step_arrays_for(space, 2)
        for index in range(2):
            arrays.observation[index] = encoder(space)(space.sample())
        data = TensorDict({key: torch.from_numpy(array) for key, array in leaf_arrays(arrays.observation).items()}, [2])
        spec = observation_spec(space)
        assert spec.expand(2, *spec.shape).is_in(data["observation"])


class TestEnvironments:
    @given(any_of(OBSERVATIONS), any_of(CHOICES))
    @settings(max_examples=20)
    def test_keep_the_contract_of_torchrl(self, observed: spaces.Space[Any], acted: spaces.Space[Any]) -> None:
        check_env_specs(VectorEnv(SerialVectorEnv([partial(Sampling, observed, acted)] * 2)), seed=0)

    @given(any_of(OBSERVATIONS), any_of(CHOICES))
    @settings(max_examples=20)
    def test_give_the_same_data_in_workers_bit_for_bit(
        self, observed: spaces.Space[Any], acted: spaces.Space[Any]
    ) -> None:
        makers = [partial(Sampling, observed, acted, length) for length in (2, 3, 5)]
        expected, actual = roll(SerialVectorEnv(makers)), roll(SubprocessVectorEnv(makers, 2))
        assert [array.tobytes() for array in actual] == [array.tobytes() for array in expected]

    @given(any_of(CHOICES), st.integers(0, 1000))
    @settings(max_examples=50)
    def test_receive_the_policys_actions_as_elements_of_their_space(self, space: spaces.Space[Any], seed: int) -> None:
        env = VectorEnv(SerialVectorEnv([partial(Sampling, spaces.Discrete(2), space)] * 2))
        env.reset_arrays()
        torch.manual_seed(seed)
        sent = env.full_action_spec.rand()
        env.send(as_arrays(sent))  # the environment refuses what is not in its space
        for row, one in enumerate(env.vector.envs):
            for path, leaf, value in walk(space, one.unwrapped.actions[0]):
                own = sent[("action", *path)][row].numpy()
                if isinstance(leaf, spaces.Box):
                    np.testing.assert_array_equal(value, np.clip(own, leaf.low, leaf.high))
                else:
                    np.testing.assert_array_equal(as_data(leaf, value), own)

    def test_with_plain_spaces_are_taken_as_they_are(self) -> None:
        for space in (spaces.Box(-1, 1, (2,)), spaces.Box(0, 255, (4, 4), np.uint8), spaces.Discrete(3)):
            env = Sampling(space, spaces.Discrete(2))
            assert encoded(env) is env


def as_arrays(actions: TensorDict) -> Any:
    """What `VectorEnv.send` takes."""
    arrays = {key: tensor.numpy() for key, tensor in actions.items(include_nested=True, leaves_only=True)}
    return arrays.get("action", arrays)


def roll(vector: SerialVectorEnv | SubprocessVectorEnv, steps: int = 6) -> list[NDArray[Any]]:
    """Everything that a seeded run with random actions leaves behind."""
    env = VectorEnv(vector)
    env.set_seed(3)
    torch.manual_seed(0)
    seen = [array.copy() for array in leaf_arrays(env.reset_arrays()).values()]
    for _ in range(steps):
        env.send(as_arrays(env.full_action_spec.rand()))
        observation, reward, terminated, *_ = env.receive()
        seen += [array.copy() for array in (*leaf_arrays(observation).values(), reward, terminated)]
        if terminated.any():
            seen += [array.copy() for array in leaf_arrays(env.reset_arrays(terminated)).values()]
    env.close()
    return seen


ARM = spaces.Dict(
    {
        "move": spaces.Box(-1, 1, (2,), np.float32),
        "hand": spaces.Tuple([spaces.Discrete(3, start=5), spaces.MultiDiscrete([2, 4], start=[-1, 0])]),
        "lights": spaces.MultiBinary(2),
    }
)
SENT = {
    ("action", "move"): np.array([[0.5, -7.0], [3.0, 0.0]], np.float32),
    ("action", "hand", "0"): np.array([0, 2]),
    ("action", "hand", "1"): np.array([[0, 3], [1, 0]]),
    ("action", "lights"): np.array([[0, 1], [1, 1]], np.int8),
}


class TestNestedActions:
    @pytest.fixture
    def env(self) -> VectorEnv:
        env = VectorEnv(SerialVectorEnv([partial(Sampling, spaces.Discrete(2), ARM)] * 4))
        env.reset_arrays()
        return env

    def test_have_a_key_for_every_leaf(self, env: VectorEnv) -> None:
        assert set(env.action_keys) == set(SENT)
        assert env.full_action_spec["action", "move"].shape == (4, 2)
        assert env.full_action_spec["action", "hand", "0"].shape == (4,)

    def test_are_clipped_counted_and_cast_leaf_by_leaf(self, env: VectorEnv) -> None:
        env.send(SENT, slice(2, 4))
        first, second = (one.unwrapped.actions for one in env.vector.envs[2:])
        assert first[0]["move"].tolist() == [0.5, -1.0]
        assert second[0]["move"].tolist() == [1.0, 0.0]
        assert isinstance(first[0]["hand"], tuple)
        assert first[0]["hand"][0] == 5
        assert second[0]["hand"][0] == 7
        assert first[0]["hand"][1].tolist() == [-1, 3]
        assert second[0]["lights"].tolist() == [1, 1]
        assert not any(one.unwrapped.actions for one in env.vector.envs[:2])


def test_minigrid_works_with_its_images_directions_and_missions() -> None:
    pytest.importorskip("minigrid")
    env = make_vector_env("minigrid:MiniGrid-MemoryS9-v0", 2)
    check_env_specs(env, seed=0)
    observation = env.reset()["observation"]
    assert observation["image"].shape == (2, 7, 7, 3)
    assert observation["image"].dtype == torch.uint8
    assert observation["direction"].shape == (2,)
    assert observation["mission"].shape == (2, 32)
    assert torch.equal(observation["mission"][0], observation["mission"][1])
    assert (observation["mission"][0] > 0).sum() == 11  # go to the matching object at the end of the hallway
