"""Tests of the heads of continuous actions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.heads.action_heads import ContinuousHead, Head, make_head
from torchppo.modules.heads.continuous import beta, categorical, gaussian, gsde, tanh_gaussian
from torchppo.modules.heads.networks import ResampleNoise, StateDependentExploration

CONF = Path(__file__).parents[3] / "conf" / "head"
NUM_ENVS, WIDTH = 6, 5
LOW, HIGH = torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.7])
BOX = Bounded(LOW, HIGH, (2,), dtype=torch.float32)
NEAR_BOX = Bounded(-2.0, 2.0, (2,), dtype=torch.float32)
UNBOUNDED = Unbounded((2,), dtype=torch.float32)

gaussian_of_state = partial(gaussian, state_dependent=True)
tanh_gaussian_of_state = partial(tanh_gaussian, state_dependent=True)


def batched(spec: TensorSpec) -> TensorSpec:
    return spec.expand(NUM_ENVS, *spec.shape)


def features(*batch: int) -> Tensor:
    return torch.randn(*batch, WIDTH, generator=torch.Generator().manual_seed(1))


class TestBounds:
    @pytest.mark.parametrize(
        ("continuous", "samples"),
        [(tanh_gaussian, [-50.0, 0.0, 50.0]), (beta, [0.0, 0.5, 1.0]), (categorical, [0, 5, 10])],
    )
    def test_ends_and_middle_map_to_bounds_and_center(self, continuous: ContinuousHead, samples: list[float]) -> None:
        head = continuous(WIDTH, batched(BOX))
        assert head.to_action is not None
        action = head.to_action(torch.tensor(samples).unsqueeze(-1).expand(3, 2))
        torch.testing.assert_close(action, torch.stack([LOW, (LOW + HIGH) / 2, HIGH]))
        assert ((action >= LOW) & (action <= HIGH)).all()

    def test_action_has_the_dtype_of_the_bounds(self) -> None:
        spec = batched(Bounded(-1.0, 1.0, (2,), dtype=torch.float64))
        head = make_head(spec, 1, WIDTH, tanh_gaussian)
        assert head.to_action is not None
        assert head.to_action(torch.zeros(NUM_ENVS, 2)).dtype == torch.float64

    @pytest.mark.parametrize("continuous", [tanh_gaussian, beta, categorical])
    @pytest.mark.parametrize("spec", [UNBOUNDED, Bounded(-1.0, float("inf"), (2,), dtype=torch.float32)])
    def test_rejects_infinite_bounds(self, continuous: ContinuousHead, spec: TensorSpec) -> None:
        with pytest.raises(
            ConfigurationError, match=r"^action\.arm\.reach: head=\w+ needs finite bounds.*head=gaussian"
        ):
            make_head(batched(Composite(arm=Composite(reach=spec, shape=()), shape=())), 1, WIDTH, continuous)
        with pytest.raises(
            ConfigurationError, match=r"^action: head=\w+ needs finite bounds.*shape=torch.Size\(\[6, 2"
        ):
            make_head(batched(spec), 1, WIDTH, continuous)


class TestScale:
    @pytest.mark.parametrize("log_std", [-1.2, -1])
    @pytest.mark.parametrize("continuous", [gaussian, gaussian_of_state, tanh_gaussian, tanh_gaussian_of_state])
    def test_starts_at_exp_log_std(self, continuous: Callable[..., Head], log_std: float) -> None:
        network = make_head(batched(NEAR_BOX), 1, WIDTH, partial(continuous, log_std=log_std)).network
        _, scale = network(torch.zeros(NUM_ENVS, WIDTH))
        np.testing.assert_allclose(scale.detach().numpy(), np.exp(log_std), rtol=1e-6)

    def test_of_gsde_may_start_at_an_integer(self) -> None:
        assert make_head(batched(NEAR_BOX), 1, WIDTH, partial(gsde, log_std=-2)).network.training

    def test_depends_on_the_features_only_if_state_dependent(self) -> None:
        for continuous, is_same in ((gaussian, True), (gaussian_of_state, False)):
            _, scale = make_head(batched(NEAR_BOX), 1, WIDTH, continuous).network(features(NUM_ENVS))
            assert torch.equal(scale, scale[:1].expand_as(scale)) == is_same

    def test_state_dependent_scale_is_clamped(self) -> None:
        network = make_head(batched(NEAR_BOX), 1, WIDTH, gaussian_of_state).network
        _, scale = network(1e6 * features(100))
        np.testing.assert_allclose([scale.min().item(), scale.max().item()], [np.exp(-20), np.exp(2)], rtol=1e-5)

    @pytest.mark.parametrize("continuous", [gaussian, gaussian_of_state, tanh_gaussian])
    def test_is_limited_and_the_gradient_passes_the_limits(self, continuous: Callable[..., Head]) -> None:
        limited = partial(continuous, min_std=0.5, max_std=1.5)
        network = make_head(batched(NEAR_BOX), 1, WIDTH, limited).network
        name = "linear.bias" if continuous is gaussian_of_state else "log_std"
        (parameter,) = [one for path, one in network.named_parameters() if path.endswith(name)]
        for value, expected in ((-3.0, 0.5), (0.0, 1.0), (3.0, 1.5)):
            with torch.no_grad():
                parameter[-2:] = value if name == "log_std" else min(value, 1.9)  # the network's own limit is 2
            network.zero_grad()
            _, scale = network(torch.zeros(NUM_ENVS, WIDTH))
            np.testing.assert_allclose(scale.detach().numpy(), expected, rtol=1e-6)
            scale.sum().backward()
            assert parameter.grad is not None
            np.testing.assert_allclose(parameter.grad[-2:].numpy(), NUM_ENVS * expected, rtol=1e-5)

    @pytest.mark.parametrize("continuous", [gaussian, tanh_gaussian])
    def test_a_fixed_scale_is_a_buffer(self, continuous: Callable[..., Head]) -> None:
        network = make_head(batched(NEAR_BOX), 1, WIDTH, partial(continuous, log_std=-1, fixed_std=True)).network
        assert any(name.endswith("log_std") for name, _ in network.named_buffers())
        assert not any("log_std" in name for name, _ in network.named_parameters())
        _, scale = network(features(NUM_ENVS))
        np.testing.assert_allclose(scale.detach().numpy(), np.exp(-1), rtol=1e-6)

    @pytest.mark.parametrize(
        ("options", "key"),
        [
            ({"min_std": 2.0}, "min_std=2"),
            ({"max_std": 0.5}, "max_std=0.5"),
            ({"log_std": 1.0, "max_std": 2.0}, "log_std=1"),
            ({"min_std": -1.0}, "min_std=-1"),
            ({"fixed_std": True, "state_dependent": True}, "fixed_std=true"),
        ],
    )
    def test_limits_that_exclude_the_initial_scale_are_rejected(self, options: dict[str, Any], key: str) -> None:
        for continuous in (gaussian, tanh_gaussian):
            with pytest.raises(ConfigurationError, match=re.escape(key)):
                make_head(batched(NEAR_BOX), 1, WIDTH, partial(continuous, **options))

    def test_beta_parameters_are_at_least_1(self) -> None:
        for parameter in make_head(batched(NEAR_BOX), 1, WIDTH, beta).network(1e5 * features(NUM_ENVS)):
            assert (parameter >= 1).all()


class TestScaleToRange:
    @pytest.mark.parametrize(
        ("low", "high"),
        [(100, 200), (0, 1000), (-1, 5), (-0.01, 0.01), (0, 1), (-200, -100), (-10, 10), (1, 1e6), (-0.2, 0.2)],
    )
    @pytest.mark.parametrize("continuous", [gaussian, gaussian_of_state])
    def test_bounds_far_from_1_are_two_deviations_from_the_initial_mean(
        self, continuous: ContinuousHead, low: float, high: float
    ) -> None:
        spec = batched(Bounded(float(low), float(high), (2,), dtype=torch.float32))
        loc, scale = make_head(spec, 1, WIDTH, continuous).network(torch.zeros(NUM_ENVS, WIDTH))
        np.testing.assert_allclose(loc.detach().numpy(), (low + high) / 2, rtol=1e-5, atol=1e-9)
        np.testing.assert_allclose(scale.detach().numpy(), (high - low) / 4, rtol=1e-5)

    @pytest.mark.parametrize(
        ("low", "high"),
        [(-1, 1), (-0.4, 0.4), (-2, 2), (-3, 3), (-1, 1.5), (-float("inf"), 5), (-(2.0**31), 2.0**31), (3, 3)],
    )
    @pytest.mark.parametrize("continuous", [gaussian, gaussian_of_state, gsde])
    def test_bounds_near_1_infinite_ones_and_limits_of_a_dtype_change_nothing(
        self, continuous: ContinuousHead, low: float, high: float
    ) -> None:
        networks = []
        for spec in (Bounded(float(low), float(high), (2,), dtype=torch.float32), UNBOUNDED):
            torch.manual_seed(0)
            networks.append(make_head(batched(spec), 1, WIDTH, continuous).network)
        bounded, unbounded = (network(features(NUM_ENVS)) for network in networks)
        assert [type(module) for module in networks[0].modules()] == [type(module) for module in networks[1].modules()]
        assert all(torch.equal(one, other) for one, other in zip(bounded, unbounded, strict=True))

    def test_every_entry_has_its_own_range(self) -> None:
        _, scale = make_head(batched(BOX), 1, WIDTH, gaussian).network(torch.zeros(NUM_ENVS, WIDTH))
        np.testing.assert_allclose(scale[0].detach().numpy(), [1.0, 0.15], rtol=1e-5)

    def test_gsde_perturbations_are_scaled_like_their_deviation(self) -> None:
        torch.manual_seed(0)
        head = make_head(batched(Bounded(100.0, 300.0, (2,), dtype=torch.float32)), 1, WIDTH, gsde)
        inputs = features(1).expand(20_000, WIDTH)
        loc, scale, perturbation = head.network(inputs, noise=torch.randn(20_000, WIDTH, 2))
        np.testing.assert_allclose(loc.detach().numpy(), 200, atol=10)
        np.testing.assert_allclose(perturbation.std(0).numpy(), scale[0].detach().numpy(), rtol=0.03)
        assert (scale > 1).all()


class TestGSDE:
    def build(self, num_steps: int = 8) -> tuple[Head, StateDependentExploration]:
        torch.manual_seed(0)
        head = make_head(batched(NEAR_BOX), 1, WIDTH, partial(gsde, log_std=-0.5, num_steps=num_steps))
        (network,) = (m for m in head.network.modules() if isinstance(m, StateDependentExploration))
        nn.init.normal_(network.log_std)
        return head, network

    def test_has_a_noise_shape(self) -> None:
        assert self.build()[0].noise_shape == (WIDTH, 2)
        assert gaussian(WIDTH, BOX).noise_shape == ()

    def test_scale_is_that_of_samples_over_all_noise(self) -> None:
        head, network = self.build()
        inputs = features(NUM_ENVS)
        std = np.exp(network.log_std.detach().double().numpy())
        expected = np.sqrt(inputs.double().numpy() ** 2 @ std**2 + 1e-6)
        loc, scale, _ = head.network(inputs)
        np.testing.assert_allclose(scale.detach().numpy(), expected, rtol=1e-5)
        noise = ResampleNoise(0.0)(torch.zeros(50_000, WIDTH, 2), torch.ones(50_000, 1, dtype=torch.bool))
        parameters = head.network(inputs[:1].expand(50_000, WIDTH), noise=noise)
        actual = head.distribution_class(**dict(zip(head.param_keys, parameters, strict=True))).sample()
        np.testing.assert_allclose(actual.std(0).numpy(), expected[0], rtol=0.03)
        np.testing.assert_allclose(actual.mean(0).numpy(), loc[0].detach().numpy(), atol=0.03)

    def test_perturbation_is_linear_in_the_noise_and_zero_without(self) -> None:
        head, network = self.build()
        inputs, noise = features(2, 3), torch.randn(2, 3, WIDTH, 2)
        _, _, perturbation = head.network(inputs, noise=noise)
        std = network.log_std.detach().exp()
        torch.testing.assert_close(perturbation, torch.einsum("...f,...fa,fa->...a", inputs, noise, std))
        assert not head.network(inputs)[2].any()

    def test_noise_passes_no_gradient_to_the_features(self) -> None:
        head, _ = self.build()
        inputs = features(NUM_ENVS).requires_grad_()
        _, scale, perturbation = head.network(inputs, noise=torch.ones(NUM_ENVS, WIDTH, 2))
        scale.sum().backward()
        assert inputs.grad is None
        assert not perturbation.requires_grad

    def test_resamples_noise_every_num_steps_on_average(self) -> None:
        head, _ = self.build(num_steps=4)
        assert head.resample_noise is not None
        old = torch.full((20_000, WIDTH, 2), 99.0)
        after = head.resample_noise(old, torch.zeros(20_000, 1, dtype=torch.bool))
        is_new = (after != old).all((-2, -1))
        assert is_new.float().mean().item() == pytest.approx(0.25, abs=0.02)
        assert torch.equal(after[~is_new], old[~is_new])
        np.testing.assert_allclose(after[is_new].std(0).numpy(), 1.0, rtol=0.06)
        assert not after.requires_grad

    def test_resampling_compiles_to_one_graph(self) -> None:
        head, _ = self.build()
        assert head.resample_noise is not None
        compiled = torch.compile(head.resample_noise, fullgraph=True, backend="aot_eager")
        inputs = torch.randn(NUM_ENVS, WIDTH, 2), torch.zeros(NUM_ENVS, 1, dtype=torch.bool)
        torch.manual_seed(1)
        expected = head.resample_noise(*inputs)
        torch.manual_seed(1)
        assert torch.equal(compiled(*inputs), expected)

    def test_rejects_num_steps_below_1(self) -> None:
        with pytest.raises(ConfigurationError, match=r"head\.num_steps=-1"):
            make_head(batched(NEAR_BOX), 1, WIDTH, partial(gsde, num_steps=-1))


class TestCategorical:
    def test_bins_of_all_dimensions_are_independent_and_their_probabilities_are_softmax(self) -> None:
        head = categorical(WIDTH, batched(BOX), num_bins=3)
        logits = torch.tensor([[0.0, 1.0, 2.0, -1.0, 0.0, 3.0]])
        distribution = head.distribution_class(logits=logits)
        weights = np.exp(logits.numpy()).reshape(2, 3)
        expected = np.log(weights[0, 2] / weights[0].sum() * weights[1, 0] / weights[1].sum())
        assert distribution.log_prob(torch.tensor([[2, 0]])).item() == pytest.approx(expected, rel=1e-6)
        assert head.to_action is not None
        torch.testing.assert_close(head.to_action(torch.tensor([[2, 0]])), torch.tensor([[2.0, 0.1]]))
        torch.testing.assert_close(head.to_action(torch.tensor([[1, 1]])), torch.tensor([[0.0, 0.4]]))

    def test_rejects_a_single_bin(self) -> None:
        with pytest.raises(ConfigurationError, match=r"head\.num_bins=1 must be at least 2"):
            categorical(WIDTH, batched(BOX), num_bins=1)


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_builds_a_head(path: Path) -> None:
    options: Mapping[str, Any] = OmegaConf.load(path)
    functions = {
        **{"gaussian": gaussian, "tanh_gaussian": tanh_gaussian, "beta": beta, "gsde": gsde},
        "categorical": categorical,
    }
    function = functions[options["_target_"].removeprefix("torchppo.modules.heads.continuous.")]
    keywords = {key: value for key, value in options.items() if not key.startswith("_")}
    head = make_head(batched(NEAR_BOX), 1, WIDTH, partial(function, **keywords))  # type: ignore[arg-type]
    parameters = dict(zip(head.param_keys, head.network(features(NUM_ENVS)), strict=True))
    assert head.distribution_class(**parameters).sample().shape == (NUM_ENVS, 2)
