"""Tests of the encoders of observation entries."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, OneHot, TensorSpec, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.features.encoders import MAX_ONE_HOT, NUM_CODES, ConcatEncoders, make_encoder
from torchppo.modules.features.image_bodies import ImageNetwork

NUM_ENVS = 6
LEADING = [(), (3,), (2, 3), (2, 1, 3)]


def bytes_of(*shape: int) -> TensorSpec:
    return Bounded(0, 255, shape, dtype=torch.uint8)


SPECS: dict[str, tuple[TensorSpec, int]] = {  # spec of one environment, number of features
    "number": (Unbounded((), dtype=torch.float32), 1),
    "vector": (Bounded(-1, 1, (5,), dtype=torch.float32), 5),
    "float image": (Unbounded((3, 4, 5), dtype=torch.float32), 60),
    "image": (bytes_of(4, 40, 36), 512),
    "image, channels last": (bytes_of(40, 36, 3), 512),
    "small image": (bytes_of(7, 7, 3), 128),
    "small image, channels first": (bytes_of(2, 9, 5), 128),
    "one pixel": (bytes_of(1, 1, 1), 128),
    "memory": (bytes_of(128), 128),
    "grayscale image": (bytes_of(8, 9), 72),
    "integer": (Bounded(0, 9, (), dtype=torch.int64), 1),
    "unbounded integers": (Unbounded((2, 2), dtype=torch.int32), 4),
    "category": (Categorical(7, dtype=torch.int64), 7),
    "many categories": (Categorical(MAX_ONE_HOT + 1, dtype=torch.int64), 64),
    "categories": (MultiCategorical(torch.tensor([2, 5, 3]), dtype=torch.int64), 10),
    "words": (Categorical(50, (8,), dtype=torch.int64), 64),
    "flags": (Binary(4, dtype=torch.int8), 4),
    "table of flags": (Binary(shape=(2, 3), dtype=torch.bool), 6),
    "one-hot": (OneHot(5), 5),
}
every_spec = pytest.mark.parametrize("name", SPECS)


def encoder_of(spec: TensorSpec) -> nn.Module:
    torch.manual_seed(0)
    return make_encoder(spec.expand(NUM_ENVS, *spec.shape), 1, "observation")


def entries_of(spec: TensorSpec, leading: tuple[int, ...]) -> Tensor:
    torch.manual_seed(1)
    return spec.expand(*leading, *spec.shape).rand()


@every_spec
class TestEverySpec:
    @pytest.mark.parametrize("leading", LEADING)
    def test_returns_finite_floats_for_any_batch(self, name: str, leading: tuple[int, ...]) -> None:
        spec, num_features = SPECS[name]
        features = encoder_of(spec)(entries_of(spec, leading))
        assert features.shape == (*leading, num_features)
        assert features.dtype == torch.float32
        assert torch.isfinite(features).all()

    def test_features_do_not_depend_on_the_rest_of_the_batch(self, name: str) -> None:
        spec, _ = SPECS[name]
        encoder, entries = encoder_of(spec), entries_of(spec, (2, 3))
        features = encoder(entries)
        for index in np.ndindex(2, 3):
            torch.testing.assert_close(features[index], encoder(entries[index]), rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("leading", LEADING)
    def test_spec_can_have_any_number_of_batch_dimensions(self, name: str, leading: tuple[int, ...]) -> None:
        spec, num_features = SPECS[name]
        encoder = make_encoder(spec.expand(*leading, *spec.shape), len(leading), "observation")
        assert encoder(entries_of(spec, ())).shape == (num_features,)

    def test_compiles_to_one_graph(self, name: str) -> None:
        spec, _ = SPECS[name]
        encoder, entries = encoder_of(spec), entries_of(spec, (2, 3))
        torch.compiler.reset()  # otherwise every kind of module counts towards the recompile limit
        graph = torch.compile(encoder, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(graph(entries), encoder(entries), rtol=1e-4, atol=1e-5)


class TestCategorical:
    @settings(max_examples=30)
    @given(data=st.data(), nvec=st.lists(st.integers(1, 9), min_size=1, max_size=5))
    def test_multi_categorical_is_one_hot_per_variable(self, data: st.DataObject, nvec: list[int]) -> None:
        rows = data.draw(st.lists(st.tuples(*(st.integers(0, n - 1) for n in nvec)), min_size=1, max_size=4))
        spec = MultiCategorical(torch.tensor(nvec), dtype=torch.int64, remove_singleton=False)
        features = encoder_of(spec)(torch.tensor(rows))
        expected = [np.concatenate([np.eye(n)[choice] for n, choice in zip(nvec, row, strict=True)]) for row in rows]
        np.testing.assert_array_equal(features.numpy(), expected)

    @settings(max_examples=30)
    @given(data=st.data(), n=st.integers(1, MAX_ONE_HOT))
    def test_categorical_is_one_hot(self, data: st.DataObject, n: int) -> None:
        choices = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=4))
        features = encoder_of(Categorical(n, dtype=torch.int64))(torch.tensor(choices))
        np.testing.assert_array_equal(features.numpy(), np.eye(n)[choices])

    def test_binary_is_zeros_and_ones(self) -> None:
        features = encoder_of(Binary(3, dtype=torch.int8))(torch.tensor([[0, 1, 1]], dtype=torch.int8))
        assert features.tolist() == [[0.0, 1.0, 1.0]]


class TestBoxes:
    def test_floats_are_unchanged(self) -> None:
        spec = Bounded(-5, 200, (2, 3), dtype=torch.float32)
        entries = entries_of(spec, (4,))
        assert torch.equal(encoder_of(spec)(entries), entries.flatten(1))

    @pytest.mark.parametrize(
        ("low", "high", "dtype", "entries", "expected"),
        [
            (0, 255, torch.uint8, [0, 51, 255], [0.0, 0.2, 1.0]),
            (-100, 300, torch.int16, [-100, 0, 300], [0.0, 0.25, 1.0]),
            (-8, 8, torch.int64, [-8, 3, 8], [-8.0, 3.0, 8.0]),  # narrow
            (0, 2**20, torch.int32, [0, 3, 2**20], [0.0, 3.0, 2.0**20]),  # too wide
            (
                1_700_000_000,
                1_700_000_100,
                torch.int32,
                [1_700_000_000, 1_700_000_001, 1_700_000_100],
                [0.0, 0.01, 1.0],
            ),
            (-(2**63), 2**63 - 1, torch.int64, [-7, 0, 7], [-7.0, 0.0, 7.0]),  # limits of the dtype
        ],
    )
    def test_integers_with_wide_finite_ranges_are_scaled(
        self, low: int, high: int, dtype: torch.dtype, entries: list[int], expected: list[float]
    ) -> None:
        spec = Bounded(torch.tensor([low] * 3, dtype=dtype), torch.tensor([high] * 3, dtype=dtype), (3,), dtype=dtype)
        np.testing.assert_allclose(encoder_of(spec)(torch.tensor(entries, dtype=dtype)).numpy(), expected, rtol=1e-6)

    def test_every_element_has_its_own_bounds(self) -> None:
        bounds = torch.tensor([0, 100]), torch.tensor([200, 101])
        features = encoder_of(Bounded(*bounds, (2,), dtype=torch.int64))(torch.tensor([50, 101]))
        assert features.tolist() == [0.25, 101.0]


class TestImages:
    @pytest.mark.parametrize(
        ("spec", "scale"),
        [
            (bytes_of(4, 36, 40), 1),
            (bytes_of(36, 40, 3), 1),
            (bytes_of(36, 36), 1),
            (bytes_of(2, 36, 36, 3), 1),
            (Bounded(0, 1, (3, 36, 40), dtype=torch.uint8), 1),  # a map of bits
            (Bounded(0, 1, (36, 40, 3), dtype=torch.float32), 1),
            (Bounded(-1, 1, (36, 40, 3), dtype=torch.float32), 1),
            (Bounded(0, 255, (36, 40, 3), dtype=torch.float32), 255),
            (Bounded(0, 255, (36, 40, 3), dtype=torch.int64), 255),
            (Unbounded((3, 36, 40), dtype=torch.float32), 1),
        ],
        ids=str,
    )
    def test_images_of_36_pixels_use_the_nature_cnn(self, spec: TensorSpec, scale: float) -> None:
        encoder, images = encoder_of(spec), entries_of(spec, (2,))
        (network,) = [module for module in encoder.modules() if isinstance(module, ImageNetwork)]
        is_bytes = spec.dtype == torch.uint8 and int(spec.space.high.max()) == 255
        torch.testing.assert_close(encoder(images), network(images if is_bytes else images.float() / scale))

    @pytest.mark.parametrize(
        ("spec", "num_features"),
        [
            (Unbounded((50, 40), dtype=torch.float32), 2000),  # a table, not a grayscale image
            (Unbounded((36, 36, 20), dtype=torch.float32), 36 * 36 * 20),
            (Bounded(0, 1, (10, 10, 4), dtype=torch.int8), 400),
        ],
        ids=str,
    )
    def test_other_boxes_are_flattened(self, spec: TensorSpec, num_features: int) -> None:
        assert encoder_of(spec)(entries_of(spec, (2,))).shape == (2, num_features)

    def test_feature_planes_are_channels(self) -> None:
        for shape, num_planes in (((8, 8, 19), 19), ((19, 8, 8), 19), ((4, 7, 7, 3), 12)):
            (first, *_) = [layer for layer in encoder_of(bytes_of(*shape)).modules() if isinstance(layer, nn.Conv2d)]
            assert first.in_channels == num_planes * (NUM_CODES + 1)

    def test_features_do_not_depend_on_the_position_of_the_channels(self) -> None:
        images = entries_of(bytes_of(7, 9, 3), (2,))
        first, last = encoder_of(bytes_of(3, 7, 9)), encoder_of(bytes_of(7, 9, 3))
        torch.testing.assert_close(first(images.permute(0, 3, 1, 2)), last(images))

    def test_small_images_are_one_hot_codes_and_scaled_values(self) -> None:
        encoder = encoder_of(bytes_of(1, 2, 3))
        seen: list[Tensor] = []
        (first, *_) = [layer for layer in encoder.modules() if isinstance(layer, nn.Conv2d)]
        first.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        pixels = np.array([[0, 1, 10], [15, 16, 255]])
        encoder(torch.from_numpy(pixels[None]).to(torch.uint8))
        planes = seen[0][0].numpy()
        np.testing.assert_allclose(planes[0], pixels / 255, rtol=1e-6)
        np.testing.assert_array_equal(planes[1:], np.eye(16)[np.minimum(pixels, 15)].transpose(2, 0, 1))

    def test_small_image_cnn_starts_orthogonal_with_gain_sqrt_2(self) -> None:
        for layer in encoder_of(bytes_of(7, 7, 3)).modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                assert layer.bias is not None
                assert not layer.bias.any()
                matrix = layer.weight.detach().double().flatten(1).numpy()
                gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
                np.testing.assert_allclose(gram, 2 * np.eye(len(gram)), atol=1e-5)

    def test_small_images_can_have_any_size(self) -> None:
        for height in (1, 2, 5, 8, 35):
            assert encoder_of(bytes_of(height, 6, 1))(entries_of(bytes_of(height, 6, 1), (2,))).shape == (2, 128)


class TestTokenEncoder:
    SPEC = Categorical(50, (8,), dtype=torch.int64)

    @settings(max_examples=30)
    @given(words=st.lists(st.integers(1, 49), max_size=7))
    def test_padding_has_no_effect(self, words: list[int]) -> None:
        encoder = encoder_of(self.SPEC)
        tokens = torch.tensor(words + [0] * (8 - len(words)))
        before = encoder(tokens)
        with torch.no_grad():
            encoder.token.weight[0] = 100.0
            encoder.position[len(words) :] = 100.0
        assert torch.equal(encoder(tokens), before)

    @settings(max_examples=30)
    @given(words=st.lists(st.integers(1, 49), min_size=1, max_size=8))
    def test_features_are_the_mean_over_the_tokens(self, words: list[int]) -> None:
        encoder = encoder_of(self.SPEC)
        first, second = (layer.weight.detach().numpy() for layer in encoder.network[::2])
        embedded = encoder.token.weight.detach().numpy()[words] + encoder.position.detach().numpy()[: len(words)]
        expected = np.maximum(np.maximum(embedded @ first.T, 0) @ second.T, 0).mean(0)
        features = encoder(torch.tensor(words + [0] * (8 - len(words))))
        np.testing.assert_allclose(features.detach().numpy(), expected, rtol=1e-4, atol=1e-5)

    def test_empty_text_is_zero(self) -> None:
        assert not encoder_of(self.SPEC)(torch.zeros(2, 8, dtype=torch.int64)).any()

    def test_token_order_matters(self) -> None:
        encoder = encoder_of(self.SPEC)
        one, other = encoder(torch.tensor([[3, 7, 0, 0, 0, 0, 0, 0], [7, 3, 0, 0, 0, 0, 0, 0]]))
        assert (one - other).abs().max() > 1e-3


class TestConcatEncoders:
    def test_concatenates_features_in_the_order_of_the_entries(self) -> None:
        specs = [SPECS[name][0] for name in ("vector", "small image", "category")]
        parts = [encoder_of(spec) for spec in specs]
        encoders = ConcatEncoders(parts)
        for leading in LEADING:
            entries = [entries_of(spec, leading) for spec in specs]
            features = encoders(*entries)
            assert features.shape == (*leading, 5 + 128 + 7)
            expected = torch.cat([part(entry) for part, entry in zip(parts, entries, strict=True)], -1)
            assert torch.equal(features, expected)

    def test_gradients_reach_every_encoder(self) -> None:
        encoders = ConcatEncoders(encoder_of(SPECS[name][0]) for name in ("words", "vector"))
        encoders(entries_of(SPECS["words"][0], (3,)), entries_of(SPECS["vector"][0], (3,))).sum().backward()
        assert len(list(encoders.parameters())) == 6
        assert all(parameter.grad is not None and parameter.grad.any() for parameter in encoders.parameters())

    def test_rejects_a_missing_entry(self) -> None:
        with pytest.raises(ValueError, match="zip"):
            ConcatEncoders([nn.Identity(), nn.Identity()])(torch.zeros(1))


@pytest.mark.parametrize(
    ("spec", "name"),
    [
        (Categorical(5, (2, 3), dtype=torch.int64), "Categorical"),
        (Composite(a=Unbounded((3,))), "Composite"),
    ],
)
def test_rejects_a_spec_without_encoder(spec: Any, name: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        make_encoder(spec, 0, "observation/map")
    message = str(caught.value)
    assert message.startswith(f"observation/map has no encoder for {name}")
    assert "MultiCategorical" in message
    assert "\n" not in message


def test_embedding_distinguishes_many_categories() -> None:
    encoder = encoder_of(Categorical(5000, dtype=torch.int64))
    one, other = encoder(torch.tensor([3, 4999]))
    assert math.dist(one.tolist(), other.tolist()) > 1
