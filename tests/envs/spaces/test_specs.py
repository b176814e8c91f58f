"""Gymnasium spaces become TorchRL specs, and specs become arrays."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded

from torchppo.envs import leaf_arrays
from torchppo.envs.spaces.specs import action_spec, observation_spec, step_arrays_for
from torchppo.envs.spaces.text import MAX_WORDS, VOCABULARY_SIZE
from torchppo.errors import EnvironmentFailure

GRAPH = spaces.Graph(spaces.Box(0, 1, (2,)), None)


def as_policy_action(space: spaces.Space[Any], value: Any) -> torch.Tensor:
    """Convert an element of a space to the action of the policy, which starts at zero."""
    start = space.start if isinstance(space, spaces.Discrete | spaces.MultiDiscrete) else 0
    return torch.as_tensor(np.asarray(value - start if np.any(start) else value))


class TestActionSpec:
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
        (spaces.Box(-1, 1, (2,), np.float64), Bounded, (2,), torch.float32),  # the policy writes float32
        (spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])), MultiCategorical, (2, 2), torch.int64),
        (spaces.MultiBinary([2, 3]), Binary, (2, 3), torch.int8),
        (spaces.Box(-1, 1, ()), Bounded, (), torch.float32),
        (spaces.Box(-1, 1, (2, 3)), Bounded, (2, 3), torch.float32),
        (spaces.Box(0, 5, (2,), np.int64), Bounded, (2,), torch.int64),
        (spaces.Box(0, 5, (2,), np.uint16), Bounded, (2,), torch.int32),
        (spaces.Box(0, 1, (2,), np.bool_), Binary, (2,), torch.int8),
    )

    @pytest.mark.parametrize(("space", "spec_class", "shape", "dtype"), SPACES, ids=lambda value: str(value)[:40])
    def test_a_spec_has_the_class_shape_and_dtype_of_its_space(
        self, space: spaces.Space[Any], spec_class: type[TensorSpec], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        spec = action_spec(space)
        assert isinstance(spec, spec_class)
        assert spec.shape == shape
        assert spec.dtype == dtype

    @pytest.mark.parametrize("space", [row[0] for row in SPACES], ids=str)
    def test_elements_of_the_space_are_in_the_spec(self, space: spaces.Space[Any]) -> None:
        space.seed(0)
        spec = action_spec(space)
        for _ in range(50):
            assert spec.is_in(as_policy_action(space, space.sample()).to(spec.dtype))

    @pytest.mark.parametrize("space", [row[0] for row in SPACES if row[1] is not Unbounded], ids=str)
    def test_elements_of_the_spec_are_in_the_space(self, space: spaces.Space[Any]) -> None:
        torch.manual_seed(0)
        start = getattr(space, "start", 0)
        for value in action_spec(space).rand((50,)).numpy():
            element = np.asarray(value + start if np.any(start) else value, space.dtype)
            assert space.contains(element[()] if isinstance(space, spaces.Discrete) else element)

    def test_every_entry_has_its_own_bounds(self) -> None:
        spec = action_spec(spaces.Box(np.array([-1, 0], np.float32), np.array([1, 5], np.float32)))
        assert spec.space.low.tolist() == [-1.0, 0.0]
        assert spec.space.high.tolist() == [1.0, 5.0]

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Box(-1, 1, (0,)),
            spaces.Text(5),
            spaces.Sequence(spaces.Discrete(2)),
            spaces.Dict({}),
        ],
        ids=str,
    )
    def test_the_error_for_an_unsupported_space_lists_the_supported_ones(self, space: spaces.Space[Any]) -> None:
        with pytest.raises(EnvironmentFailure) as caught:
            action_spec(space)
        message = str(caught.value)
        assert " ".join(str(space).split()) in message
        assert all(name in message for name in ("Discrete", "MultiDiscrete", "MultiBinary", "Box"))
        assert "\n" not in message


class TestObservationSpec:
    @pytest.mark.parametrize(
        ("space", "spec_class", "dtype"),
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
    def test_a_box_has_a_spec_of_its_shape_with_float32_for_all_floats(
        self, space: spaces.Box, spec_class: type[TensorSpec], dtype: torch.dtype
    ) -> None:
        spec = observation_spec(space)
        assert isinstance(spec, spec_class)
        assert spec.shape == space.shape
        assert spec.dtype == dtype

    def test_float64_bounds_cast_to_float32_are_in_the_spec(self) -> None:
        low, high = np.array([-0.1, 1 / 3, -1e9]), np.array([0.1, 2 / 3, 1e9])
        spec = observation_spec(spaces.Box(low, high, dtype=np.float64))
        for bound in (low, high):
            assert spec.is_in(torch.as_tensor(bound, dtype=torch.float32))

    @pytest.mark.parametrize(
        ("space", "spec_class", "shape", "dtype"),
        [
            (spaces.Box(-1, 1, ()), Bounded, (), torch.float32),
            (spaces.Box(-np.inf, np.inf, ()), Unbounded, (), torch.float32),
            (spaces.Discrete(16, start=3), Categorical, (), torch.int64),
            (spaces.MultiDiscrete([2, 5]), MultiCategorical, (2,), torch.int64),
            (spaces.MultiBinary(3), Binary, (3,), torch.int8),
            (spaces.MultiBinary([2, 3]), Binary, (2, 3), torch.int8),
            (spaces.MultiDiscrete(np.array([[2, 3], [4, 5]])), MultiCategorical, (2, 2), torch.int64),
            (spaces.Box(0, 9, (2,), np.uint32), Bounded, (2,), torch.int64),
            (spaces.Box(-1e300, 1e300, (2,), np.float64), Unbounded, (2,), torch.float32),  # infinite in float32
            (spaces.Text(9), Categorical, (MAX_WORDS,), torch.int64),
        ],
        ids=str,
    )
    def test_other_spaces_have_a_spec_of_this_class_shape_and_dtype(
        self, space: spaces.Space[Any], spec_class: type[TensorSpec], shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        spec = observation_spec(space)
        assert isinstance(spec, spec_class)
        assert spec.shape == shape
        assert spec.dtype == dtype

    def test_a_custom_space_of_strings_is_a_text(self) -> None:
        space: spaces.Space[str] = spaces.Space(dtype=str)
        assert observation_spec(space).space.n == VOCABULARY_SIZE

    @pytest.mark.parametrize(
        ("space", "path"),
        [
            (spaces.Sequence(spaces.Discrete(2)), "observation"),
            (spaces.Dict({}), "observation"),
            (spaces.Dict({"empty": spaces.Box(-1, 1, (0,))}), "observation"),
            (spaces.Dict({"a": spaces.Discrete(2), "b": spaces.Tuple([GRAPH])}), "observation/b/0"),
            (spaces.Tuple([spaces.Discrete(2), spaces.OneOf([spaces.Discrete(2)])]), "observation/1"),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_the_error_for_an_unsupported_space_has_its_path_and_the_wrapper_to_use(
        self, space: spaces.Space[Any], path: str
    ) -> None:
        with pytest.raises(EnvironmentFailure) as caught:
            observation_spec(space)
        message = str(caught.value)
        assert f" of {path} is not supported" in message
        assert all(word in message for word in ("Box", "Discrete", "Text", "Dict", "TransformObservation"))
        assert "\n" not in message


@pytest.mark.parametrize("key", ["shape", "device", "batch_size", "names", ""])
def test_a_reserved_key_raises(key: str) -> None:
    space = spaces.Dict({"a": spaces.Dict({key: spaces.Discrete(2)})})
    for make_spec, path in ((observation_spec, "observation/a"), (action_spec, "action/a")):
        with pytest.raises(EnvironmentFailure, match=rf"^{path} .*'{key}'"):
            make_spec(space)


def test_an_empty_box_observation_raises() -> None:
    with pytest.raises(EnvironmentFailure, match="non-empty Box"):
        observation_spec(spaces.Box(-1, 1, (0,)))


class TestNestedSpaces:
    SPACE = spaces.Dict(
        {
            "arm": spaces.Tuple([spaces.Discrete(3, start=1), spaces.Box(-np.inf, np.inf, (2,))]),
            "legs": spaces.Dict({"left": spaces.MultiBinary(2)}),
        }
    )
    KEYS: tuple[tuple[str, ...], ...] = (("arm", "0"), ("arm", "1"), ("legs", "left"))

    @pytest.mark.parametrize("make_spec", [action_spec, observation_spec])
    def test_a_nested_space_becomes_a_composite(self, make_spec: Callable[[spaces.Space[Any]], TensorSpec]) -> None:
        spec = make_spec(self.SPACE)
        assert isinstance(spec, Composite)
        assert tuple(spec.keys(include_nested=True, leaves_only=True)) == self.KEYS
        assert [type(spec[key]) for key in self.KEYS[::2]] == [Categorical, Binary]
        assert isinstance(spec["arm", "1"], Unbounded)

    def test_the_spec_expands_to_a_batch(self) -> None:
        spec = observation_spec(self.SPACE).expand(5)
        assert [spec[key].shape for key in self.KEYS] == [(5,), (5, 2), (5, 2)]
        assert spec.is_in(spec.rand())

    def test_an_unsupported_leaf_of_an_action_space_raises_with_its_path(self) -> None:
        space = spaces.Dict({"arm": spaces.Tuple([spaces.Discrete(2), spaces.Text(5)])})
        with pytest.raises(EnvironmentFailure, match=r"action space Text\(.*\) of action/arm/1 is not supported"):
            action_spec(space)


NESTED = spaces.Dict(
    [
        (
            "camera",
            spaces.Dict([("image", spaces.Box(0, 255, (3, 5), np.uint8)), ("brightness", spaces.Box(0, 1, ()))]),
        ),
        ("heading", spaces.Discrete(4)),
        ("pair", spaces.Tuple([spaces.MultiBinary(3), spaces.Text(5)])),
    ]
)


class TestLeafArrays:
    def test_a_plain_array_is_its_only_leaf(self) -> None:
        array = np.zeros((3, 2))
        assert leaf_arrays(array) == {"observation": array}
        assert leaf_arrays(array, "action")["action"] is array

    def test_leaves_have_the_order_of_the_space_and_their_path_as_key(self) -> None:
        leaves = leaf_arrays(step_arrays_for(NESTED, 4).observation)
        assert {key: (array.shape, array.dtype.name) for key, array in leaves.items()} == {
            ("observation", "camera", "image"): ((4, 3, 5), "uint8"),
            ("observation", "camera", "brightness"): ((4,), "float32"),
            ("observation", "heading"): ((4,), "int64"),
            ("observation", "pair", "0"): ((4, 3), "int8"),
            ("observation", "pair", "1"): ((4, 32), "int64"),
        }
        assert [key[1] for key in leaves] == ["camera", "camera", "heading", "pair", "pair"]

    def test_leaves_are_views_that_pytorch_does_not_copy(self) -> None:
        array = np.zeros((5, 3), step_arrays_for(NESTED, 1).observation.dtype)
        for leaf in leaf_arrays(array).values():
            tensor = torch.from_numpy(leaf)
            tensor[2, 1] = 1
            assert leaf[2, 1].all()
        assert all(leaf[2, 1].all() and leaf.sum() == leaf[2, 1].size for leaf in leaf_arrays(array).values())

    def test_leaves_of_copies_and_slices_and_masks_have_their_elements(self) -> None:
        array = step_arrays_for(NESTED, 4).observation
        leaf_arrays(array)["observation", "heading"][:] = [0, 1, 2, 3]
        assert leaf_arrays(array[1:3].copy())["observation", "heading"].tolist() == [1, 2]
        assert leaf_arrays(array[np.array([True, False, False, True])])["observation", "heading"].tolist() == [0, 3]
