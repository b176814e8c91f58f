"""Bodies: shapes, initialisation, and what they refuse."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from torchppo.errors import ConfigurationError
from torchppo.modules.features.bodies import ACTIVATIONS, mlp, orthogonal_
from torchppo.modules.features.image_bodies import FlattenImage, ResidualBlock, impala_resnet, nature_cnn

Array = NDArray[np.float64]


def weighted(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def assert_orthogonal(layer: nn.Linear | nn.Conv2d, gain: float) -> None:
    """The shorter side of the weight, as a matrix, has orthogonal vectors of length `gain`."""
    matrix = layer.weight.detach().double().flatten(1).numpy()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5)


class TestShapes:
    @pytest.mark.parametrize("shape", [(3,), (2, 3), (4, 2, 3)])
    @pytest.mark.parametrize("batch", [(), (5,), (5, 7)])
    def test_an_mlp_flattens_an_observation_and_keeps_the_batch(
        self, shape: tuple[int, ...], batch: tuple[int, ...]
    ) -> None:
        body = mlp(torch.Size(shape), num_cells=(8, 6))
        assert body(torch.randn(*batch, *shape)).shape == (*batch, 6)

    def test_an_mlp_has_a_layer_for_every_width(self) -> None:
        layers = weighted(mlp(torch.Size([3]), num_cells=[8, 7, 6]))
        assert [tuple(layer.weight.shape) for layer in layers] == [(8, 3), (7, 8), (6, 7)]

    def test_an_mlp_of_one_layer_is_allowed(self) -> None:
        assert mlp(torch.Size([3]), num_cells=(5,))(torch.randn(2, 3)).shape == (2, 5)

    @pytest.mark.parametrize("shape", [(4, 84, 84), (3, 36, 40), (1, 64, 64)])
    @pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
    def test_the_nature_cnn_takes_byte_images_in_any_batch(
        self, shape: tuple[int, int, int], batch: tuple[int, ...]
    ) -> None:
        body = nature_cnn(torch.Size(shape), num_features=16)
        features = body(torch.randint(256, (*batch, *shape), dtype=torch.uint8))
        assert features.shape == (*batch, 16)
        assert features.dtype == torch.float32

    def test_the_features_of_an_image_do_not_depend_on_its_batch(self) -> None:
        body = nature_cnn(torch.Size([2, 36, 40]), num_features=16)
        images = torch.randint(256, (3, 2, 2, 36, 40), dtype=torch.uint8)
        features = body(images)
        for index in np.ndindex(3, 2):
            torch.testing.assert_close(features[index], body(images[index]), rtol=1e-4, atol=1e-5)

    def test_a_picture_of_floats_is_read_as_it_is(self) -> None:
        body = nature_cnn(torch.Size([2, 36, 40]), num_features=16)
        image = torch.randint(256, (3, 2, 36, 40), dtype=torch.uint8)
        torch.testing.assert_close(body(image / 255), body(image))

    def test_an_mlp_reads_bytes_as_numbers_from_0_to_1(self) -> None:
        body, image = mlp(torch.Size([2, 3])), torch.randint(256, (5, 2, 3), dtype=torch.uint8)
        torch.testing.assert_close(body(image), body(image / 255))

    def test_the_nature_cnn_strides_by_four_two_and_one(self) -> None:
        body = nature_cnn(torch.Size([1, 44, 52]), num_features=8)
        image = torch.randint(256, (5, 1, 44, 52), dtype=torch.uint8)
        *convolutions, last = weighted(body)
        features = image / 255
        for layer, stride in zip(convolutions, (4, 2, 1), strict=True):
            features = nn.functional.conv2d(features, layer.weight, stride=stride).relu()
        flat = features.permute(0, 2, 3, 1).flatten(1)
        torch.testing.assert_close(body(image), (flat @ last.weight.T).relu(), rtol=1e-4, atol=1e-5)

    def test_the_nature_cnn_has_the_published_layers(self) -> None:
        shapes = [tuple(layer.weight.shape) for layer in weighted(nature_cnn(torch.Size([4, 84, 84]), num_features=8))]
        assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (8, 3136)]
        assert nature_cnn(torch.Size([1, 36, 36]))(torch.zeros(1, 36, 36)).shape == (512,)

    def test_the_nature_cnn_sees_bytes_as_numbers_from_zero_to_one(self) -> None:
        body = nature_cnn(torch.Size([1, 36, 36]), num_features=4)
        seen: list[torch.Tensor] = []
        weighted(body)[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        body(torch.full((1, 1, 36, 36), 51, dtype=torch.uint8))
        np.testing.assert_allclose(seen[0].numpy(), np.full((1, 1, 36, 36), 0.2), rtol=1e-6)


class TestFlat:
    def test_gives_an_image_that_lies_channels_last_without_a_copy(self) -> None:
        image = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
        flat = FlattenImage()(image)
        assert flat.shape == (2, 60)
        assert flat.data_ptr() == image.data_ptr()
        assert flat[1, :3].tolist() == image[1, :, 0, 0].tolist()


class TestInitialisation:
    @pytest.mark.parametrize("shape", [(3,), (100,)])
    def test_every_layer_of_an_mlp_is_orthogonal_with_gain_sqrt_two(self, shape: tuple[int, ...]) -> None:
        for layer in weighted(mlp(torch.Size(shape))):
            assert_orthogonal(layer, math.sqrt(2))

    def test_every_layer_of_the_nature_cnn_is_orthogonal_with_gain_sqrt_two(self) -> None:
        for layer in weighted(nature_cnn(torch.Size([4, 84, 84]), num_features=32)):
            assert_orthogonal(layer, math.sqrt(2))

    @pytest.mark.parametrize(("make", "shape"), [(mlp, (3,)), (nature_cnn, (4, 36, 36))], ids=["mlp", "cnn"])
    def test_every_bias_is_zero(self, make: Callable[[torch.Size], nn.Module], shape: tuple[int, ...]) -> None:
        for layer in weighted(make(torch.Size(shape))):
            assert layer.bias is not None
            assert not layer.bias.any()

    def test_the_gain_is_the_one_asked_for_and_a_layer_may_lack_a_bias(self) -> None:
        layer = nn.Linear(5, 3, bias=False)
        assert orthogonal_(layer, gain=0.01) is layer
        assert_orthogonal(layer, 0.01)


IN_NUMPY: dict[str, Callable[[Array], Array]] = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
    "gelu": lambda x: x * np.vectorize(lambda v: 0.5 * (1 + math.erf(v / math.sqrt(2))))(x),
    "silu": lambda x: x / (1 + np.exp(-x)),
}


class TestActivation:
    def test_every_activation_is_tested_here(self) -> None:
        assert set(ACTIVATIONS) == set(IN_NUMPY)

    @pytest.mark.parametrize("name", IN_NUMPY)
    def test_an_mlp_applies_the_activation_after_every_layer(self, name: str) -> None:
        body = mlp(torch.Size([3]), num_cells=(4, 5), activation=name).double()
        x = np.random.default_rng(0).normal(size=(6, 3))
        expected = x
        for layer in weighted(body):
            expected = IN_NUMPY[name](expected @ layer.weight.detach().numpy().T)
        np.testing.assert_allclose(body(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-9, atol=1e-12)

    def test_layer_norm_stands_before_every_activation(self) -> None:
        body = mlp(torch.Size([3]), num_cells=(16, 32), layer_norm=True).double()
        x = np.random.default_rng(0).normal(size=(6, 3))
        for layer in weighted(body):
            x = x @ layer.weight.detach().numpy().T
            x = np.tanh((x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5))
        y = body(torch.from_numpy(np.random.default_rng(0).normal(size=(6, 3))))
        np.testing.assert_allclose(y.detach().numpy(), x, rtol=1e-9, atol=1e-12)


class TestRefusals:
    def test_an_unknown_activation_is_named_with_the_known_ones(self) -> None:
        with pytest.raises(ConfigurationError, match=r"activation='swish'.*tanh, relu, elu, gelu, silu"):
            mlp(torch.Size([3]), activation="swish")

    @pytest.mark.parametrize("num_cells", [[], [0], [64, -3], ["a"], [2.5]])
    def test_an_mlp_asks_for_widths(self, num_cells: Any) -> None:
        with pytest.raises(ConfigurationError, match=rf"num_cells={re.escape(repr(num_cells))} .*at least one"):
            mlp(torch.Size([3]), num_cells=num_cells)

    @pytest.mark.parametrize("make", [nature_cnn, impala_resnet])
    @pytest.mark.parametrize("num_features", [0, -1])
    def test_networks_of_images_ask_for_a_feature(self, make: Callable[..., nn.Module], num_features: int) -> None:
        with pytest.raises(ConfigurationError, match=rf"num_features={num_features} must be at least 1"):
            make(torch.Size([4, 84, 84]), num_features=num_features)

    @pytest.mark.parametrize("shape", [(17,), (84, 84), (84, 84, 3), (1, 35, 84), (2, 4, 84, 84)])
    def test_the_nature_cnn_refuses_what_is_no_image_and_names_the_way_out(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ConfigurationError) as caught:
            nature_cnn(torch.Size(shape))
        assert str(list(shape)) in str(caught.value)
        assert "policy=mlp" in str(caught.value)
        assert "\n" not in str(caught.value)


class TestImpalaResnet:
    @pytest.mark.parametrize("shape", [(4, 84, 84), (3, 37, 40)])
    @pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
    def test_it_takes_byte_images_in_any_batch(self, shape: tuple[int, int, int], batch: tuple[int, ...]) -> None:
        body = impala_resnet(torch.Size(shape), channels=(4, 6), num_features=16)
        features = body(torch.randint(256, (*batch, *shape), dtype=torch.uint8))
        assert features.shape == (*batch, 16)
        assert features.dtype == torch.float32

    def test_it_has_the_published_layers(self) -> None:
        shapes = [tuple(layer.weight.shape) for layer in weighted(impala_resnet(torch.Size([4, 84, 84])))]
        stages = [
            [(width, inputs, 3, 3)] + 4 * [(width, width, 3, 3)] for inputs, width in ((4, 16), (16, 32), (32, 32))
        ]
        assert shapes == [*stages[0], *stages[1], *stages[2], (256, 32 * 11 * 11)]

    def test_every_stage_halves_the_image_and_adds_two_residues(self) -> None:
        body = impala_resnet(torch.Size([2, 37, 40]), channels=(3, 5), num_features=8)
        image = torch.randint(256, (4, 2, 37, 40), dtype=torch.uint8)
        *convolutions, last = [nn.init.normal_(layer.weight, std=0.2) for layer in weighted(body)]
        features = image / 255
        for first, *residual in (convolutions[:5], convolutions[5:]):
            features = nn.functional.max_pool2d(nn.functional.conv2d(features, first, padding=1), 3, 2, padding=1)
            for one, other in (residual[:2], residual[2:]):
                change = nn.functional.conv2d(features.relu(), one, padding=1).relu()
                features = features + nn.functional.conv2d(change, other, padding=1)
        expected = (features.relu().permute(0, 2, 3, 1).flatten(1) @ last.T).relu()
        torch.testing.assert_close(body(image), expected, rtol=1e-4, atol=1e-4)

    def test_it_starts_orthogonal_with_gain_sqrt_two_and_no_bias_and_its_blocks_as_the_identity(self) -> None:
        body = impala_resnet(torch.Size([4, 36, 36]), num_features=32)
        ends = [module.network[-1] for module in body.modules() if isinstance(module, ResidualBlock)]
        assert len(ends) == 6
        for layer in weighted(body):
            assert layer.bias is not None
            assert not layer.bias.any()
            if layer in ends:
                assert not layer.weight.any()
            else:
                assert_orthogonal(layer, math.sqrt(2))

    @pytest.mark.parametrize("shape", [(17,), (84, 84, 3), (1, 35, 84)])
    def test_it_refuses_what_is_no_image_and_names_the_way_out(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ConfigurationError, match=r"policy=resnet needs images .*policy=mlp") as caught:
            impala_resnet(torch.Size(shape))
        assert str(list(shape)) in str(caught.value)

    @pytest.mark.parametrize("channels", [[], [0], [16, -1]])
    def test_it_asks_for_a_width_of_every_stage(self, channels: list[int]) -> None:
        with pytest.raises(ConfigurationError, match=rf"channels={re.escape(repr(channels))}.*at least one"):
            impala_resnet(torch.Size([4, 84, 84]), channels=channels)
