"""Tests of the convolutional bodies."""

from __future__ import annotations

import math
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from torchppo.errors import ConfigurationError
from torchppo.modules.features.image_bodies import FlattenImage, ResidualBlock, impala_resnet, nature_cnn


def layers_of(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]


def assert_orthogonal(layer: nn.Linear | nn.Conv2d, gain: float) -> None:
    """The shorter side of the weight, as a matrix, has orthogonal vectors of length `gain`."""
    matrix = layer.weight.detach().double().flatten(1).numpy()
    gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
    np.testing.assert_allclose(gram, gain**2 * np.eye(len(gram)), atol=1e-5)


class TestEveryImageBody:
    @pytest.mark.parametrize("make", [nature_cnn, impala_resnet])
    @pytest.mark.parametrize("shape", [(4, 84, 84), (37, 40, 3), (36, 36), (2, 37, 40, 3)])
    @pytest.mark.parametrize("batch", [(), (2,), (2, 3)])
    def test_maps_byte_images_in_any_batch_to_features(
        self, make: Callable[..., nn.Module], shape: tuple[int, ...], batch: tuple[int, ...]
    ) -> None:
        body = make(torch.Size(shape), num_features=16)
        features = body(torch.randint(256, (*batch, *shape), dtype=torch.uint8))
        assert features.shape == (*batch, 16)
        assert features.dtype == torch.float32

    @pytest.mark.parametrize("make", [nature_cnn, impala_resnet])
    @pytest.mark.parametrize("num_features", [0, -1])
    def test_rejects_less_than_one_feature(self, make: Callable[..., nn.Module], num_features: int) -> None:
        with pytest.raises(ConfigurationError, match=rf"num_features={num_features} must be at least 1"):
            make(torch.Size([4, 84, 84]), num_features=num_features)

    @pytest.mark.parametrize(("make", "policy"), [(nature_cnn, "cnn"), (impala_resnet, "resnet")])
    @pytest.mark.parametrize("shape", [(17,), (84, 35), (1, 35, 84), (2, 4, 30, 84), (2, 2, 4, 84, 84)])
    def test_rejects_observations_that_are_not_images(
        self, make: Callable[..., nn.Module], policy: str, shape: tuple[int, ...]
    ) -> None:
        with pytest.raises(ConfigurationError, match=rf"policy={policy} .*{re.escape(str(list(shape)))}.*policy=mlp"):
            make(torch.Size(shape))


class TestNatureCNN:
    def test_features_do_not_depend_on_the_rest_of_the_batch(self) -> None:
        body = nature_cnn(torch.Size([2, 36, 40]), num_features=16)
        images = torch.randint(256, (3, 2, 2, 36, 40), dtype=torch.uint8)
        features = body(images)
        for index in np.ndindex(3, 2):
            torch.testing.assert_close(features[index], body(images[index]), rtol=1e-4, atol=1e-5)

    def test_does_not_scale_float_images(self) -> None:
        body = nature_cnn(torch.Size([2, 36, 40]), num_features=16)
        image = torch.randint(256, (3, 2, 36, 40), dtype=torch.uint8)
        torch.testing.assert_close(body(image / 255), body(image))

    def test_has_strides_4_2_and_1(self) -> None:
        body = nature_cnn(torch.Size([1, 44, 52]), num_features=8)
        image = torch.randint(256, (5, 1, 44, 52), dtype=torch.uint8)
        *convolutions, last = layers_of(body)
        features = image / 255
        for layer, stride in zip(convolutions, (4, 2, 1), strict=True):
            features = nn.functional.conv2d(features, layer.weight, stride=stride).relu()
        flat = features.permute(0, 2, 3, 1).flatten(1)
        torch.testing.assert_close(body(image), (flat @ last.weight.T).relu(), rtol=1e-4, atol=1e-5)

    def test_has_the_published_layers(self) -> None:
        shapes = [tuple(layer.weight.shape) for layer in layers_of(nature_cnn(torch.Size([4, 84, 84]), num_features=8))]
        assert shapes == [(32, 4, 8, 8), (64, 32, 4, 4), (64, 64, 3, 3), (8, 3136)]
        assert nature_cnn(torch.Size([1, 36, 36]))(torch.zeros(1, 36, 36)).shape == (512,)

    def test_scales_bytes_to_the_unit_interval(self) -> None:
        body = nature_cnn(torch.Size([1, 36, 36]), num_features=4)
        seen: list[torch.Tensor] = []
        layers_of(body)[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        body(torch.full((1, 1, 36, 36), 51, dtype=torch.uint8))
        np.testing.assert_allclose(seen[0].numpy(), np.full((1, 1, 36, 36), 0.2), rtol=1e-6)

    def test_layers_start_orthogonal_with_gain_sqrt_2_and_zero_bias(self) -> None:
        for layer in layers_of(nature_cnn(torch.Size([4, 84, 84]), num_features=32)):
            assert_orthogonal(layer, math.sqrt(2))
            assert layer.bias is not None
            assert not layer.bias.any()


class TestImpalaResnet:
    def test_has_the_published_layers(self) -> None:
        shapes = [tuple(layer.weight.shape) for layer in layers_of(impala_resnet(torch.Size([4, 84, 84])))]
        stages = [
            [(width, inputs, 3, 3)] + 4 * [(width, width, 3, 3)] for inputs, width in ((4, 16), (16, 32), (32, 32))
        ]
        assert shapes == [*stages[0], *stages[1], *stages[2], (256, 32 * 11 * 11)]

    def test_every_stage_halves_the_image_and_has_two_residual_blocks(self) -> None:
        body = impala_resnet(torch.Size([2, 37, 40]), channels=(3, 5), num_features=8)
        image = torch.randint(256, (4, 2, 37, 40), dtype=torch.uint8)
        *convolutions, last = [nn.init.normal_(layer.weight, std=0.2) for layer in layers_of(body)]
        features = image / 255
        for first, *residual in (convolutions[:5], convolutions[5:]):
            features = nn.functional.max_pool2d(nn.functional.conv2d(features, first, padding=1), 3, 2, padding=1)
            for one, other in (residual[:2], residual[2:]):
                change = nn.functional.conv2d(features.relu(), one, padding=1).relu()
                features = features + nn.functional.conv2d(change, other, padding=1)
        expected = (features.relu().permute(0, 2, 3, 1).flatten(1) @ last.T).relu()
        torch.testing.assert_close(body(image), expected, rtol=1e-4, atol=1e-4)

    def test_layers_start_orthogonal_and_blocks_as_the_identity(self) -> None:
        body = impala_resnet(torch.Size([4, 36, 36]), num_features=32)
        ends = [module.network[-1] for module in body.modules() if isinstance(module, ResidualBlock)]
        assert len(ends) == 6
        for layer in layers_of(body):
            assert layer.bias is not None
            assert not layer.bias.any()
            if layer in ends:
                assert not layer.weight.any()
            else:
                assert_orthogonal(layer, math.sqrt(2))

    @pytest.mark.parametrize("channels", [[], [0], [16, -1]])
    def test_rejects_invalid_channels(self, channels: list[int]) -> None:
        with pytest.raises(ConfigurationError, match=rf"channels={re.escape(repr(channels))}.*at least one"):
            impala_resnet(torch.Size([4, 84, 84]), channels=channels)


def test_flattening_a_channels_last_image_does_not_copy() -> None:
    image = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5).contiguous(memory_format=torch.channels_last)
    flat = FlattenImage()(image)
    assert flat.shape == (2, 60)
    assert flat.data_ptr() == image.data_ptr()
    assert flat[1, :3].tolist() == image[1, :, 0, 0].tolist()


@pytest.mark.parametrize("make", [nature_cnn, impala_resnet])
def test_layer_norm_makes_features_independent_of_the_scale_of_the_weights(make: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    body, image = make(torch.Size([4, 36, 36]), num_features=8, layer_norm=True), torch.rand(2, 4, 36, 36)
    before = body(image)
    with torch.no_grad():
        next(layer for layer in body.modules() if isinstance(layer, nn.Conv2d)).weight.mul_(10)
    torch.testing.assert_close(body(image), before, rtol=1e-2, atol=1e-2)
    norms = [layer for layer in body.modules() if isinstance(layer, nn.GroupNorm | nn.LayerNorm)]
    activations = [layer for layer in body.modules() if isinstance(layer, nn.ReLU)]
    assert len(norms) == len(activations)
