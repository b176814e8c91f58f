"""Arrays of steps, and views of their leaves."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch
from gymnasium import spaces

from torchppo.envs import leaf_arrays
from torchppo.envs.spaces.specs import step_arrays_for
from torchppo.envs.vector.subprocess import shared

NESTED = spaces.Dict(
    [
        ("seen", spaces.Dict([("image", spaces.Box(0, 255, (3, 5), np.uint8)), ("bright", spaces.Box(0, 1, ()))])),
        ("heading", spaces.Discrete(4)),
        ("two", spaces.Tuple([spaces.MultiBinary(3), spaces.Text(5)])),
    ]
)


class TestLeaves:
    def test_of_a_plain_array_are_the_array(self) -> None:
        array = np.zeros((3, 2))
        assert leaf_arrays(array) == {"observation": array}
        assert leaf_arrays(array, "action")["action"] is array

    def test_of_a_nested_space_stand_in_its_order_under_the_path_of_their_keys(self) -> None:
        shown = leaf_arrays(step_arrays_for(NESTED, 4).observation)
        assert {key: (array.shape, array.dtype.name) for key, array in shown.items()} == {
            ("observation", "seen", "image"): ((4, 3, 5), "uint8"),
            ("observation", "seen", "bright"): ((4,), "float32"),
            ("observation", "heading"): ((4,), "int64"),
            ("observation", "two", "0"): ((4, 3), "int8"),
            ("observation", "two", "1"): ((4, 32), "int64"),
        }
        assert [key[1] for key in shown] == ["seen", "seen", "heading", "two", "two"]

    def test_are_views_that_pytorch_takes_without_a_copy(self) -> None:
        array = np.zeros((5, 3), step_arrays_for(NESTED, 1).observation.dtype)
        for leaf in leaf_arrays(array).values():
            tensor = torch.from_numpy(leaf)
            tensor[2, 1] = 1
            assert leaf[2, 1].all()
        assert all(leaf[2, 1].all() and leaf.sum() == leaf[2, 1].size for leaf in leaf_arrays(array).values())

    def test_keep_up_with_copies_masks_and_rows_of_the_whole(self) -> None:
        array = step_arrays_for(NESTED, 4).observation
        leaf_arrays(array)["observation", "heading"][:] = [0, 1, 2, 3]
        assert leaf_arrays(array[1:3].copy())["observation", "heading"].tolist() == [1, 2]
        assert leaf_arrays(array[np.array([True, False, False, True])])["observation", "heading"].tolist() == [0, 3]


class TestSharedMemory:
    @pytest.mark.parametrize("dtype", [np.bool_, np.float64, step_arrays_for(NESTED, 1).observation.dtype])
    def test_is_zero_and_seen_by_a_forked_process(self, dtype: np.dtype) -> None:
        array = shared((3,), dtype)
        assert array.shape == (3,)
        assert not array.view(np.uint8).any()
        child = os.fork()
        if child == 0:
            array.view(np.uint8)[-1] = 1
            os._exit(0)
        os.waitpid(child, 0)
        assert array.view(np.uint8).sum() == 1

    def test_may_be_empty(self) -> None:
        assert shared((0, 3), np.float32).shape == (0, 3)
