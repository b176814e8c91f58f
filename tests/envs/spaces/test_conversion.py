"""Observations and actions of a user's own loop are converted like those of a vector environment."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array

from torchppo.envs.spaces.conversion import SpaceConverter, batch_elements
from torchppo.errors import ConfigurationError

DISCRETE = spaces.Discrete(3)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box of float32": spaces.Box(-1, 1, (4,)),
    "box of float64": spaces.Box(-1, 1, (4,), np.float64),
    "number": spaces.Box(-1, 1, ()),
    "image": spaces.Box(0, 255, (3, 8, 8), np.uint8),
    "discrete from 5": spaces.Discrete(4, start=5),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(4),
    "text": spaces.Text(8),
    "dict": spaces.Dict(box=spaces.Box(-1, 1, (2,), np.float64), item=spaces.Discrete(4, start=1), text=spaces.Text(5)),
    "tuple": spaces.Tuple([spaces.Discrete(2), spaces.Dict(image=spaces.Box(0, 255, (2, 2), np.uint8))]),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete from 5": spaces.Discrete(4, start=5),
    "multi-discrete": spaces.MultiDiscrete([3, 2]),
    "multi-binary": spaces.MultiBinary(4),
    "box of float64": spaces.Box(-1, 1, (2,), np.float64),
    "dict": spaces.Dict(move=spaces.Box(-1, 1, (2,)), item=spaces.Discrete(3, start=-1)),
    "tuple": spaces.Tuple([spaces.Discrete(3), spaces.Dict(push=spaces.Box(-1, 1, (1,)))]),
}


def samples(space: spaces.Space[Any], number: int = 3) -> list[Any]:
    space.seed(0)
    return [space.sample() for _ in range(number)]


def as_batch(space: spaces.Space[Any], elements: list[Any]) -> Any:
    """Return the batch that Gymnasium's vector environments make."""
    return concatenate(space, elements, create_empty_array(space, len(elements)))


class TestObservations:
    @pytest.mark.parametrize("name", OBSERVATIONS)
    def test_a_batch_has_the_rows_of_its_observations(self, name: str) -> None:
        space = OBSERVATIONS[name]
        converter = SpaceConverter(space, DISCRETE)
        elements = samples(space)
        leaves, is_single = converter.observations(as_batch(space, elements))
        assert not is_single
        for index, element in enumerate(elements):
            singles, is_single = converter.observations(element)
            assert is_single
            assert singles.keys() == leaves.keys()
            for key, leaf in leaves.items():
                np.testing.assert_array_equal(leaf[index : index + 1], singles[key])

    def test_floats_become_float32_and_discrete_values_start_at_zero(self) -> None:
        leaves, _ = SpaceConverter(OBSERVATIONS["dict"], DISCRETE).observations(
            {"box": np.array([0.1, 2.0]), "item": 3, "text": "word"}
        )
        assert leaves["observation", "box"].dtype == np.float32
        assert leaves["observation", "box"].tolist() == [np.array([0.1, 2.0], np.float32).tolist()]
        assert leaves["observation", "item"].tolist() == [2]

    @pytest.mark.parametrize(
        ("name", "observation", "message"),
        [
            ("box of float32", np.zeros(5), r"observation has shape \(5,\); expected \(4,\)"),
            ("box of float32", np.zeros((3, 5)), r"observation has shape \(3, 5\); expected \(4,\)"),
            ("box of float32", None, "observation is None"),
            ("image", np.zeros((8, 8, 3), np.uint8), r"observation has shape \(8, 8, 3\); expected \(3, 8, 8\)"),
            ("discrete from 5", 4, "observation has the value 4, which is not in"),
            ("discrete from 5", np.array([5, 9]), r"observation\[1\] has the value 9, which is not in"),
            ("text", 3, "observation has type int; expected str"),
            ("dict", {"box": np.zeros(2), "item": 1}, "observation has no entry 'text'"),
            ("dict", np.zeros(2), "observation has no entry 'box'"),
            ("dict", {"box": np.zeros((2, 2)), "item": [1], "text": ["a", "b"]}, "observation/box has shape"),
        ],
    )
    def test_one_that_does_not_fit_is_described_in_one_line(self, name: str, observation: Any, message: str) -> None:
        with pytest.raises(ConfigurationError, match=f"{message}.*; pass one observation") as raised:
            SpaceConverter(OBSERVATIONS[name], DISCRETE).observations(observation)
        assert "\n" not in str(raised.value)

    def test_a_single_observation_has_no_elements(self) -> None:
        for space in OBSERVATIONS.values():
            assert batch_elements(space, samples(space)[0]) is None


class TestActions:
    @pytest.mark.parametrize("name", ACTIONS)
    def test_are_elements_of_the_space_or_of_its_batch(self, name: str) -> None:
        space = ACTIONS[name]
        converter = SpaceConverter(spaces.Box(-1, 1, (1,)), space)
        batch = converter.actions(policy_actions(space), is_single=False)
        assert batch_space(space, 2).contains(batch), batch
        single = converter.actions(policy_actions(space), is_single=True)
        assert space.contains(single), single

    def test_are_clipped_and_start_where_the_space_does(self) -> None:
        converter = SpaceConverter(spaces.Box(-1, 1, (1,)), ACTIONS["dict"])
        action = {("action", "move"): np.array([[-3.0, 0.5]], np.float32), ("action", "item"): np.array([2])}
        single = converter.actions(action, is_single=True)
        assert single["move"].tolist() == [-1.0, 0.5]
        assert single["item"] == 1


def policy_actions(space: spaces.Space[Any], key: Any = "action") -> dict[Any, Any]:
    """Return two actions as a policy writes them: discrete values from zero, and values outside of boxes."""
    match space:
        case spaces.Dict() | spaces.Tuple():
            items = space.items() if isinstance(space, spaces.Dict) else enumerate(space)
            parent = key if isinstance(key, tuple) else (key,)
            merged: dict[Any, Any] = {}
            for name, subspace in items:
                merged |= policy_actions(subspace, (*parent, str(name)))
            return merged
        case spaces.Box():
            return {key: np.full((2, *space.shape), 7.0, np.float32)}
        case spaces.Discrete():
            return {key: np.array([0, space.n - 1])}
    return {key: np.ones((2, *space.shape), np.int64)}
