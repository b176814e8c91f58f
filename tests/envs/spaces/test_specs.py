"""Gymnasium spaces and their TorchRL specs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded

from torchppo.envs.spaces.specs import action_spec, observation_spec
from torchppo.envs.spaces.text import MAX_WORDS, VOCABULARY
from torchppo.errors import EnvironmentFailure

GRAPH = spaces.Graph(spaces.Box(0, 1, (2,)), None)


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
            spaces.Sequence(spaces.Discrete(2)),
            spaces.Dict({}),
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
            (spaces.Box(-1, 1, (3,), np.float16), Bounded, torch.float32),
            (spaces.Box(0, 255, (4, 84, 84), np.uint8), Bounded, torch.uint8),
            (spaces.Box(0, 9, (3,), np.int64), Bounded, torch.int64),
        ],
        ids=str,
    )
    def test_a_box_becomes_a_spec_of_its_shape_and_all_floats_become_float32(
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
        ("space", "kind", "shape", "dtype"),
        [
            (spaces.Box(-1, 1, ()), Bounded, (), torch.float32),
            (spaces.Box(-np.inf, np.inf, ()), Unbounded, (), torch.float32),
            (spaces.Discrete(16, start=3), Categorical, (), torch.int64),
            (spaces.MultiDiscrete([2, 5]), MultiCategorical, (2,), torch.int64),
            (spaces.MultiBinary(3), Binary, (3,), torch.int8),
            (spaces.Text(9), Categorical, (MAX_WORDS,), torch.int64),
        ],
        ids=str,
    )
    def test_numbers_choices_bits_and_texts_have_specs_too(
        self, space: spaces.Space[Any], kind: type[TensorSpec], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        spec = observation_spec(space)
        assert isinstance(spec, kind)
        assert spec.shape == shape
        assert spec.dtype == dtype

    def test_texts_are_those_of_an_environments_own_space_too(self) -> None:
        space: spaces.Space[str] = spaces.Space(dtype=str)
        assert observation_spec(space).space.n == VOCABULARY

    @pytest.mark.parametrize(
        ("space", "path"),
        [
            (spaces.Sequence(spaces.Discrete(2)), "observation"),
            (spaces.Dict({}), "observation"),
            (spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])), "observation"),
            (spaces.Dict({"image": spaces.MultiBinary([2, 3])}), "observation/image"),
            (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Tuple([GRAPH])}), "observation/b/0"),
            (spaces.Tuple([spaces.Discrete(2), spaces.OneOf([spaces.Discrete(2)])]), "observation/1"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_an_unsupported_space_is_named_with_its_path_and_the_way_out(
        self, space: spaces.Space[Any], path: str
    ) -> None:
        with pytest.raises(EnvironmentFailure) as caught:
            observation_spec(space)
        message = str(caught.value)
        assert f" of {path} is not supported" in message
        assert all(word in message for word in ("Box", "Discrete", "Text", "Dict", "TransformObservation"))
        assert "\n" not in message


@pytest.mark.parametrize("key", ["shape", "device", ""])
def test_a_name_that_no_entry_can_have_is_told(key: str) -> None:
    space = spaces.Dict({"a": spaces.Dict({key: spaces.Discrete(2)})})
    for spec, path in ((observation_spec, "observation/a"), (action_spec, "action/a")):
        with pytest.raises(EnvironmentFailure, match=rf"^{path} has an entry called '{key}'; call it neither that"):
            spec(space)


def test_an_empty_box_is_no_observation() -> None:
    with pytest.raises(EnvironmentFailure, match="Box that is not empty"):
        observation_spec(spaces.Box(-1, 1, (0,)))


class TestNestedSpaces:
    SPACE = spaces.Dict(
        {
            "arm": spaces.Tuple([spaces.Discrete(3, start=1), spaces.Box(-np.inf, np.inf, (2,))]),
            "legs": spaces.Dict({"left": spaces.MultiBinary(2)}),
        }
    )
    KEYS: tuple[tuple[str, ...], ...] = (("arm", "0"), ("arm", "1"), ("legs", "left"))

    @pytest.mark.parametrize("make", [action_spec, observation_spec])
    def test_become_composites_of_the_specs_of_their_entries(
        self, make: Callable[[spaces.Space[Any]], TensorSpec]
    ) -> None:
        spec = make(self.SPACE)
        assert isinstance(spec, Composite)
        assert tuple(spec.keys(include_nested=True, leaves_only=True)) == self.KEYS
        assert [type(spec[key]) for key in self.KEYS[::2]] == [Categorical, Binary]
        assert isinstance(spec["arm", "1"], Unbounded)

    def test_expand_to_a_batch(self) -> None:
        spec = observation_spec(self.SPACE).expand(5)
        assert [spec[key].shape for key in self.KEYS] == [(5,), (5, 2), (5, 2)]
        assert spec.is_in(spec.rand())

    def test_of_actions_are_refused_with_the_path_of_the_leaf_that_has_no_head(self) -> None:
        space = spaces.Dict({"arm": spaces.Tuple([spaces.Discrete(2), spaces.Text(5)])})
        with pytest.raises(EnvironmentFailure, match=r"action space Text\(.*\) of action/arm/1 is not supported"):
            action_spec(space)
