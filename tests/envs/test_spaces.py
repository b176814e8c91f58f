"""Gymnasium spaces and their TorchRL specs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.data import Binary, Bounded, Categorical, MultiCategorical, TensorSpec, Unbounded

from torchppo.envs.spaces import action_spec, observation_spec
from torchppo.errors import EnvironmentFailure


def counted_from_zero(space: spaces.Space[Any], value: Any) -> torch.Tensor:
    """An element of a space as the policy writes it."""
    start = space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else 0
    return torch.as_tensor(np.asarray(value - start if np.any(start) else value))


class TestActions:
    SPACES = (
        (spaces.Discrete(5), Categorical, (), torch.int64),
        (spaces.Discrete(5, start=-2), Categorical, (), torch.int64),
        (spaces.MultiDiscrete([2, 5, 3]), MultiCategorical, (3,), torch.int64),
        (spaces.MultiDiscrete([4, 4]), MultiCategorical, (2,), torch.int64),
        (spaces.MultiDiscrete([2, 3], start=[5, -1]), MultiCategorical, (2,), torch.int64),
        (spaces.MultiBinary(3), Binary, (3,), torch.int8),
        (spaces.Box(-2, 3, (2,)), Bounded, (2,), torch.float32),
        (spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32)), Bounded, (2,), torch.float32),
        (spaces.Box(-np.inf, np.inf, (2,)), Unbounded, (2,), torch.float32),
        (spaces.Box(0, np.inf, (2,)), Unbounded, (2,), torch.float32),
        (spaces.Box(-1, 1, (2,), np.float64), Bounded, (2,), torch.float32),  # policies write float32
    )

    @pytest.mark.parametrize(("space", "kind", "shape", "dtype"), SPACES, ids=lambda value: str(value)[:40])
    def test_a_spec_has_the_kind_shape_and_type_of_its_space(
        self, space: spaces.Space[Any], kind: type[TensorSpec], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        spec = action_spec(space)
        assert isinstance(spec, kind)
        assert spec.shape == shape
        assert spec.dtype == dtype

    @pytest.mark.parametrize("space", [row[0] for row in SPACES], ids=str)
    def test_a_spec_has_the_elements_of_its_space(self, space: spaces.Space[Any]) -> None:
        space.seed(0)
        spec = action_spec(space)
        for _ in range(50):
            assert spec.is_in(counted_from_zero(space, space.sample()).to(spec.dtype))

    @pytest.mark.parametrize("space", [row[0] for row in SPACES if row[1] is not Unbounded], ids=str)
    def test_a_space_has_the_elements_of_its_spec(self, space: spaces.Space[Any]) -> None:
        torch.manual_seed(0)
        start = getattr(space, "start", 0)
        for value in action_spec(space).rand((50,)).numpy():
            assert space.contains((value + start if np.any(start) else value).astype(space.dtype))

    def test_bounds_are_those_of_the_space_and_not_a_hull(self) -> None:
        spec = action_spec(spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32)))
        assert spec.space.low.tolist() == [-1.0, 0.0]
        assert spec.space.high.tolist() == [1.0, 5.0]

    @pytest.mark.parametrize(
        "space",
        [
            spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])),
            spaces.MultiBinary([2, 3]),
            spaces.Box(-1, 1, ()),
            spaces.Box(-1, 1, (2, 3)),
            spaces.Box(0, 5, (2,), np.int64),
            spaces.Text(5),
            spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
            spaces.Dict({"arm": spaces.Discrete(2)}),
        ],
        ids=str,
    )
    def test_an_unsupported_space_is_named_with_the_supported_ones(self, space: spaces.Space[Any]) -> None:
        with pytest.raises(EnvironmentFailure) as caught:
            action_spec(space)
        message = str(caught.value)
        assert " ".join(str(space).split()) in message
        assert all(name in message for name in ("Discrete", "MultiDiscrete", "MultiBinary", "Box"))
        assert "\n" not in message


class TestObservations:
    @pytest.mark.parametrize(
        ("space", "kind", "dtype"),
        [
            (spaces.Box(-1, 1, (3,)), Bounded, torch.float32),
            (spaces.Box(-np.inf, np.inf, (3,)), Unbounded, torch.float32),
            (spaces.Box(-np.inf, np.inf, (3,), np.float64), Unbounded, torch.float32),
            (spaces.Box(-0.1, 0.7, (3,), np.float64), Bounded, torch.float32),
            (spaces.Box(0, 255, (4, 84, 84), np.uint8), Bounded, torch.uint8),
            (spaces.Box(0, 9, (3,), np.int64), Bounded, torch.int64),
        ],
        ids=str,
    )
    def test_a_box_becomes_a_spec_of_its_shape_and_float64_becomes_float32(
        self, space: spaces.Box, kind: type[TensorSpec], dtype: torch.dtype
    ) -> None:
        spec = observation_spec(space)
        assert isinstance(spec, kind)
        assert spec.shape == space.shape
        assert spec.dtype == dtype

    def test_bounds_of_float64_hold_for_the_float32_that_is_passed_on(self) -> None:
        low, high = np.array([-0.1, 1 / 3, -1e9]), np.array([0.1, 2 / 3, 1e9])
        spec = observation_spec(spaces.Box(low, high, dtype=np.float64))
        for bound in (low, high):
            assert spec.is_in(torch.as_tensor(bound, dtype=torch.float32))

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Discrete(16),
            spaces.MultiBinary(3),
            spaces.Box(-1, 1, ()),
            spaces.Tuple([spaces.Discrete(2), spaces.Discrete(3)]),
            spaces.Dict({"camera": spaces.Box(0, 255, (4, 84, 84), np.uint8)}),
        ],
        ids=str,
    )
    def test_an_unsupported_space_is_named_with_the_way_out(self, space: spaces.Space[Any]) -> None:
        with pytest.raises(EnvironmentFailure) as caught:
            observation_spec(space)
        message = str(caught.value)
        assert " ".join(str(space).split()) in message
        assert "Box" in message
        assert "FlattenObservation" in message
        assert "\n" not in message
