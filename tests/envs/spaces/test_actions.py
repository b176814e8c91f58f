"""Actions arrive as the environments take them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from numpy.typing import NDArray

from torchppo.envs.spaces.encoding import action_dtype, conversion


@pytest.mark.parametrize(
    ("space", "given", "taken"),
    [
        (spaces.Discrete(3), np.array([2, 0]), [2, 0]),
        (spaces.Discrete(3, start=5), np.array([2, 0]), [7, 5]),
        (spaces.MultiDiscrete([2, 3], start=[1, -1]), np.array([[1, 2], [0, 0]]), [[2, 1], [1, -1]]),
        (spaces.MultiBinary(2), np.array([[1, 0]]), [[1, 0]]),
        (spaces.Box(-1, 1, (2,)), np.array([[-3.0, 0.5], [0.25, 9.0]], np.float32), [[-1.0, 0.5], [0.25, 1.0]]),
    ],
    ids=str,
)
def test_are_counted_clipped_and_cast_as_the_space_says(
    space: spaces.Space[Any], given: NDArray[Any], taken: list[Any]
) -> None:
    before = given.copy()
    action = conversion(space)(given)
    assert action.tolist() == taken
    assert action.dtype == space.dtype
    action[...] = 0
    assert np.array_equal(given, before), "an environment may change its action"


def test_of_nested_spaces_are_one_array_with_a_field_for_every_leaf() -> None:
    inner = spaces.Tuple([spaces.Discrete(3, start=1), spaces.MultiBinary(2)])
    space = spaces.Dict(move=spaces.Box(-1, 1, (2,)), hand=inner)
    move, grip, lamps = np.array([[2.0, 0.0]], np.float32), np.array([1]), np.array([[1, 0]])
    action = conversion(space)(
        {("action", "move"): move, ("action", "hand", "0"): grip, ("action", "hand", "1"): lamps}
    )
    assert action.dtype == action_dtype(space)
    assert action.shape == (1,)
    assert action["move"].tolist() == [[1.0, 0.0]]
    assert action["hand"]["0"].tolist() == [2]
    assert action["hand"]["1"].tolist() == [[1, 0]]


def test_the_type_of_an_action_has_its_shape() -> None:
    dtype = action_dtype(spaces.Box(-1, 1, (2, 3)))
    assert (dtype.base, dtype.shape) == (np.dtype(np.float32), (2, 3))
