"""Heads: what every action space is acted on with, and what a person is told where there is nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch import distributions as D  # noqa: N812
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, OneHot, TensorSpec, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.heads.action_heads import ContinuousHead, Head, make_head
from torchppo.modules.heads.continuous import beta, gaussian, gsde, tanh_gaussian
from torchppo.modules.heads.networks import ResampleNoise, ScaleToBounds, StateDependentExploration, TanhToUnitInterval

CONF = Path(__file__).parents[3] / "conf" / "head"
NUM_ENVS, WIDTH = 6, 5
LOW, HIGH = torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.7])
BOX = Bounded(LOW, HIGH, (2,), dtype=torch.float32)
UNBOUNDED = Unbounded((2,), dtype=torch.float32)


def batched(spec: TensorSpec) -> TensorSpec:
    return spec.expand(NUM_ENVS, *spec.shape)


def nested() -> Composite:
    """A Dict action with one leaf of every kind, one of them deeper."""
    return Composite(
        move=Categorical(4, dtype=torch.int64),
        arm=Composite(reach=Bounded(LOW, HIGH, (2,), dtype=torch.float32), grip=Binary(3, dtype=torch.int8), shape=()),
        gears=MultiCategorical(torch.tensor([2, 3]), dtype=torch.int64),
        shape=(),
    )


gaussian_of_state = partial(gaussian, state_dependent=True)
tanh_gaussian_of_state = partial(tanh_gaussian, state_dependent=True)

SPACES: dict[str, tuple[TensorSpec, ContinuousHead, dict[str, int]]] = {
    "discrete": (Categorical(4, dtype=torch.int64), gaussian, {"logits": 4}),
    "one-hot": (OneHot(4, dtype=torch.int64), gaussian, {"logits": 4}),
    "multi-discrete": (MultiCategorical(torch.tensor([2, 5]), dtype=torch.int64), gaussian, {"logits": 7}),
    "multi-binary": (Binary(3, dtype=torch.int8), gaussian, {"logits": 3}),
    "box": (BOX, gaussian, {"loc": 2, "scale": 2}),
    "unbounded box": (UNBOUNDED, gaussian, {"loc": 2, "scale": 2}),
    "box, scale of the state": (BOX, gaussian_of_state, {"loc": 2, "scale": 2}),
    "box, tanh": (BOX, tanh_gaussian, {"loc": 2, "scale": 2}),
    "box, tanh, scale of the state": (BOX, tanh_gaussian_of_state, {"loc": 2, "scale": 2}),
    "box, beta": (BOX, beta, {"alpha": 2, "beta": 2}),
    "box, gsde": (BOX, gsde, {"loc": 2, "scale": 2, "perturbation": 2}),
    "composite": (
        nested(),
        tanh_gaussian,
        {"move/logits": 4, "arm/reach/loc": 2, "arm/reach/scale": 2, "arm/grip/logits": 3, "gears/logits": 5},
    ),
    "composite, beta": (
        nested(),
        beta,
        {"move/logits": 4, "arm/reach/alpha": 2, "arm/reach/beta": 2, "arm/grip/logits": 3, "gears/logits": 5},
    ),
    "composite of choices": (
        Composite({"0": Categorical(4, dtype=torch.int64), "1": Binary(3, dtype=torch.int8)}, shape=()),
        gaussian,
        {"0/logits": 4, "1/logits": 3},
    ),
}
every_space = pytest.mark.parametrize("name", SPACES)


def head_of(name: str) -> Head:
    spec, continuous, _ = SPACES[name]
    torch.manual_seed(0)
    return make_head(batched(spec), 1, WIDTH, continuous)


def features(*batch: int) -> Tensor:
    return torch.randn(*batch, WIDTH, generator=torch.Generator().manual_seed(1))


def distribution_of(head: Head, given: Tensor, **inputs: Tensor) -> Any:
    return head.distribution_class(**dict(zip(head.param_keys, head.network(given, **inputs), strict=True)))


def actions_of(head: Head, sample: Tensor) -> dict[Any, Tensor]:
    actions = sample if head.to_action is None else head.to_action(sample)
    return dict(zip(head.action_keys, actions if isinstance(actions, tuple) else (actions,), strict=True))


def linears(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


@every_space
class TestEveryActionSpace:
    @pytest.mark.parametrize("batch", [(NUM_ENVS,), (2, 3), ()])
    def test_has_parameters_of_its_sizes_for_any_batch(self, name: str, batch: tuple[int, ...]) -> None:
        head = head_of(name)
        parameters = head.network(features(*batch))
        assert head.param_keys == list(SPACES[name][2])
        assert [list(one.shape) for one in parameters] == [[*batch, size] for size in SPACES[name][2].values()]

    def test_has_samples_whose_actions_lie_in_the_space(self, name: str) -> None:
        head, spec = head_of(name), batched(SPACES[name][0])
        distribution = distribution_of(head, 100 * features(NUM_ENVS))
        for sample in (distribution.sample(), distribution.deterministic_sample):
            for key, action in actions_of(head, sample).items():
                leaf = spec if key == "action" else spec[key[1:]]
                assert action.shape == leaf.shape
                assert action.dtype == leaf.dtype
                assert head.to_action is None or leaf.is_in(action)
            for term in (distribution.log_prob(sample), distribution.entropy()):
                assert term.shape == (NUM_ENVS,)
                assert torch.isfinite(term).all()

    def test_begins_with_an_orthogonal_layer_of_gain_a_hundredth(self, name: str) -> None:
        layers = linears(head_of(name).network)
        assert layers
        for layer in layers:
            weight = layer.weight.detach().double().numpy()
            gram = weight @ weight.T if weight.shape[0] <= WIDTH else weight.T @ weight
            np.testing.assert_allclose(gram, 1e-4 * np.eye(len(gram)), atol=1e-9)

    def test_computes_in_full_precision_under_autocast(self, name: str) -> None:
        network = head_of(name).network
        expected = network(features(NUM_ENVS).bfloat16().float())
        with torch.autocast("cpu", torch.bfloat16):
            actual = network(features(NUM_ENVS).bfloat16())
        assert all(torch.equal(*pair) for pair in zip(actual, expected, strict=True))

    def test_is_one_graph_with_what_learning_reads_of_it(self, name: str) -> None:
        head = head_of(name)

        def act_and_learn(given: Tensor) -> tuple[Tensor, ...]:
            old, new = distribution_of(head, given), distribution_of(head, given + 1)
            sample = old.sample()
            terms = new.log_prob(sample), new.entropy(), D.kl_divergence(old, new)
            return (*actions_of(head, sample).values(), *terms)

        torch.compiler.reset()  # graphs are counted per code object, and this one is every space's
        results = []
        for function in (act_and_learn, torch.compile(act_and_learn, fullgraph=True, backend="aot_eager")):
            torch.manual_seed(1)
            results.append(function(features(NUM_ENVS)))
        torch.testing.assert_close(results[1], results[0])

    def test_refuses_a_mask_of_what_are_no_choices_or_of_another_size(self, name: str) -> None:
        with pytest.raises(ConfigurationError, match="action_mask"):
            head_of(name).network(features(NUM_ENVS), torch.ones(NUM_ENVS, 9, dtype=torch.bool))

    def test_every_parameter_of_the_network_is_learned(self, name: str) -> None:
        head = head_of(name)
        distribution = distribution_of(head, features(NUM_ENVS))
        (distribution.log_prob(distribution.sample().detach()).sum() + distribution.entropy().sum()).backward()
        for parameter in head.network.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()


class TestAMask:
    @settings(max_examples=30)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([torch.bool, torch.int8]))
    def test_is_kept_to_by_choices(self, seed: int, dtype: torch.dtype) -> None:
        generator = np.random.default_rng(seed)
        mask = generator.integers(0, 2, (NUM_ENVS, 7))
        mask[np.arange(NUM_ENVS), generator.integers(0, 2, NUM_ENVS)] = 1
        mask[np.arange(NUM_ENVS), 2 + generator.integers(0, 5, NUM_ENVS)] = 1
        torch.manual_seed(seed % 1000)
        distribution = distribution_of(
            head_of("multi-discrete"), features(NUM_ENVS), mask=torch.from_numpy(mask).to(dtype)
        )
        for sample in distribution.sample(torch.Size([50])).numpy() + np.array([0, 2]):
            assert np.take_along_axis(mask, sample, -1).all()

    def test_may_be_the_second_argument(self) -> None:
        head = head_of("discrete")
        mask = torch.tensor([0, 1, 0, 1]).expand(NUM_ENVS, 4)
        (logits,), (again,) = head.network(features(NUM_ENVS), mask), head.network(features(NUM_ENVS), mask=mask)
        assert torch.equal(logits, again)
        assert (D.Categorical(logits=logits).probs[:, ::2] == 0).all()


class TestBounds:
    @pytest.mark.parametrize("name", ["box, tanh", "box, beta"])
    def test_are_reached_at_the_ends_and_halved_in_the_middle(self, name: str) -> None:
        head = head_of(name)
        assert head.to_action is not None
        ends = torch.tensor([[-50.0], [0.0], [50.0]]) if name == "box, tanh" else torch.tensor([[0.0], [0.5], [1.0]])
        action = head.to_action(ends.expand(3, 2))
        torch.testing.assert_close(action, torch.stack([LOW, (LOW + HIGH) / 2, HIGH]))
        assert ((action >= LOW) & (action <= HIGH)).all()

    @settings(max_examples=40)
    @given(st.floats(-1e3, 1e3, width=32), st.floats(2**-10, 1e3, width=32), st.floats(-50, 50, width=32))
    def test_are_never_left_by_rounding(self, low: float, distance: float, value: float) -> None:
        bounds = torch.tensor([low]), torch.tensor([low]) + distance
        action = nn.Sequential(TanhToUnitInterval(), ScaleToBounds(*bounds))(torch.tensor([value]))
        assert bounds[0] <= action <= bounds[1]

    def test_go_with_the_network_and_are_not_saved(self) -> None:
        head = head_of("composite")
        assert not [key for key in head.network.state_dict() if "low" in key]
        head.network.to(torch.float64)
        assert {name.split(".")[-1] for name, _ in head.network.named_buffers()} == {"low", "high"}
        assert all(buffer.dtype == torch.float64 for buffer in head.network.buffers())

    def test_give_the_action_their_own_type(self) -> None:
        spec = batched(Bounded(-1.0, 1.0, (2,), dtype=torch.float64))
        head = make_head(spec, 1, WIDTH, tanh_gaussian)
        assert head.to_action is not None
        assert head.to_action(torch.zeros(NUM_ENVS, 2)).dtype == torch.float64

    @pytest.mark.parametrize("continuous", [tanh_gaussian, beta])
    @pytest.mark.parametrize("spec", [UNBOUNDED, Bounded(-1.0, float("inf"), (2,), dtype=torch.float32)])
    def test_that_are_not_finite_are_refused_with_the_path_of_the_action(
        self, continuous: ContinuousHead, spec: TensorSpec
    ) -> None:
        with pytest.raises(
            ConfigurationError, match=r"^action\.arm\.reach: head=\w+ needs finite bounds.*head=gaussian"
        ):
            make_head(batched(Composite(arm=Composite(reach=spec, shape=()), shape=())), 1, WIDTH, continuous)
        with pytest.raises(
            ConfigurationError, match=r"^action: head=\w+ needs finite bounds.*shape=torch.Size\(\[6, 2"
        ):
            make_head(batched(spec), 1, WIDTH, continuous)


class TestScales:
    @pytest.mark.parametrize("continuous", [gaussian, gaussian_of_state, tanh_gaussian, tanh_gaussian_of_state])
    def test_begin_at_the_exponential_of_log_std(self, continuous: Callable[..., Head]) -> None:
        network = make_head(batched(BOX), 1, WIDTH, partial(continuous, log_std=-1.2)).network
        _, scale = network(torch.zeros(NUM_ENVS, WIDTH))
        np.testing.assert_allclose(scale.detach().numpy(), np.exp(-1.2), rtol=1e-6)

    def test_follow_the_state_only_if_asked(self) -> None:
        for continuous, is_same in ((gaussian, True), (gaussian_of_state, False)):
            _, scale = make_head(batched(BOX), 1, WIDTH, continuous).network(features(NUM_ENVS))
            assert torch.equal(scale, scale[:1].expand_as(scale)) == is_same

    def test_of_a_state_stay_within_their_clamp(self) -> None:
        network = make_head(batched(BOX), 1, WIDTH, gaussian_of_state).network
        _, scale = network(1e6 * features(100))
        np.testing.assert_allclose([scale.min().item(), scale.max().item()], [np.exp(-20), np.exp(2)], rtol=1e-5)

    def test_of_a_beta_distribution_leave_one_peak(self) -> None:
        for parameter in make_head(batched(BOX), 1, WIDTH, beta).network(1e5 * features(NUM_ENVS)):
            assert (parameter >= 1).all()


class TestComposites:
    def test_have_keys_in_the_order_of_the_spec(self) -> None:
        head = head_of("composite")
        expected = [("action", "move"), ("action", "arm", "reach"), ("action", "arm", "grip"), ("action", "gears")]
        assert head.action_keys == expected
        assert head.sample_key == "action_sample"

    def test_have_the_sum_of_their_leaves_log_probs(self) -> None:
        head = head_of("composite, beta")
        parameters = dict(zip(head.param_keys, head.network(features(NUM_ENVS)), strict=True))
        distribution = head.distribution_class(**parameters)
        torch.manual_seed(0)
        sample = distribution.sample()
        actions = actions_of(head, sample)
        fraction = (actions["action", "arm", "reach"] - LOW) / (HIGH - LOW)
        gears = parameters["gears/logits"].split([2, 3], -1)
        expected = D.Categorical(logits=parameters["move/logits"]).log_prob(actions["action", "move"])
        expected = expected + D.Beta(parameters["arm/reach/alpha"], parameters["arm/reach/beta"]).log_prob(
            fraction
        ).sum(-1)
        expected = expected + D.Bernoulli(logits=parameters["arm/grip/logits"]).log_prob(
            actions["action", "arm", "grip"].float()
        ).sum(-1)
        for block, choice in zip(gears, actions["action", "gears"].T, strict=True):
            expected = expected + D.Categorical(logits=block).log_prob(choice)
        torch.testing.assert_close(distribution.log_prob(sample), expected, rtol=1e-4, atol=1e-4)

    def test_of_choices_alone_are_sampled_as_integers(self) -> None:
        assert distribution_of(head_of("composite of choices"), features(NUM_ENVS)).sample().dtype == torch.int64

    def test_with_carried_noise_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"head=gsde .* move, arm\.reach.* head=gaussian"):
            make_head(batched(nested()), 1, WIDTH, gsde)

    def test_without_a_leaf_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match="no leaf"):
            make_head(Composite(shape=(NUM_ENVS,)), 1, WIDTH, gaussian)


@pytest.mark.parametrize(
    "spec",
    [
        Bounded(-1.0, 1.0, (2, 3), dtype=torch.float32),
        Bounded(0, 5, (2,), dtype=torch.int64),
        Unbounded((), dtype=torch.float32),
        Binary(0, (), dtype=torch.int8),
        Categorical(3, (2,), dtype=torch.int64),
    ],
    ids=["matrix", "integers", "scalar", "scalar bit", "several of one kind"],
)
def test_a_leaf_without_a_head_is_refused_with_its_path_and_what_is_supported(spec: TensorSpec) -> None:
    with pytest.raises(ConfigurationError, match=r"^action is .*Discrete"):
        make_head(batched(spec), 1, WIDTH, gaussian)
    with pytest.raises(ConfigurationError, match=r"^action\.left is .*Discrete"):
        make_head(batched(Composite(left=spec, shape=())), 1, WIDTH, gaussian)


class TestStateDependentExploration:
    def build(self, num_steps: int = 8) -> tuple[Head, StateDependentExploration]:
        torch.manual_seed(0)
        head = make_head(batched(BOX), 1, WIDTH, partial(gsde, log_std=-0.5, num_steps=num_steps))
        (network,) = (one for one in head.network.modules() if isinstance(one, StateDependentExploration))
        nn.init.normal_(network.log_std)
        return head, network

    def test_says_what_it_carries(self) -> None:
        assert self.build()[0].noise_shape == (WIDTH, 2)
        assert head_of("box").noise_shape == ()

    def test_has_the_scale_of_all_noise_that_it_may_draw(self) -> None:
        head, network = self.build()
        given = features(NUM_ENVS)
        std = np.exp(network.log_std.detach().double().numpy())
        expected = np.sqrt(given.double().numpy() ** 2 @ std**2 + 1e-6)
        loc, scale, _ = head.network(given)
        np.testing.assert_allclose(scale.detach().numpy(), expected, rtol=1e-5)
        noise = ResampleNoise(0.0)(torch.zeros(50_000, WIDTH, 2), torch.ones(50_000, 1, dtype=torch.bool))
        parameters = head.network(given[:1].expand(50_000, WIDTH), noise=noise)
        actual = head.distribution_class(**dict(zip(head.param_keys, parameters, strict=True))).sample()
        np.testing.assert_allclose(actual.std(0).numpy(), expected[0], rtol=0.03)
        np.testing.assert_allclose(actual.mean(0).numpy(), loc[0].detach().numpy(), atol=0.03)

    def test_perturbs_by_its_noise_and_without_by_nothing(self) -> None:
        head, network = self.build()
        given, noise = features(2, 3), torch.randn(2, 3, WIDTH, 2)
        _, _, perturbation = head.network(given, noise=noise)
        std = network.log_std.detach().exp()
        torch.testing.assert_close(perturbation, torch.einsum("...f,...fa,fa->...a", given, noise, std))
        assert not head.network(given)[2].any()

    def test_trains_the_features_by_the_mean_alone(self) -> None:
        head, _ = self.build()
        given = features(NUM_ENVS).requires_grad_()
        _, scale, perturbation = head.network(given, noise=torch.ones(NUM_ENVS, WIDTH, 2))
        scale.sum().backward()
        assert given.grad is None
        assert not perturbation.requires_grad

    def test_draws_noise_anew_where_an_episode_begins_and_nowhere_else(self) -> None:
        torch.manual_seed(0)
        noise, is_init = torch.randn(4, WIDTH, 2), torch.tensor([[True], [False], [True], [False]])
        after = ResampleNoise(0.0)(noise, is_init)
        assert (after == noise).all((-2, -1)).tolist() == [False, True, False, True]

    def test_draws_standard_noise_anew_every_few_steps(self) -> None:
        head, _ = self.build(num_steps=4)
        assert head.resample_noise is not None
        old = torch.full((20_000, WIDTH, 2), 99.0)
        after = head.resample_noise(old, torch.zeros(20_000, 1, dtype=torch.bool))
        is_anew = (after != old).all((-2, -1))
        assert is_anew.float().mean().item() == pytest.approx(0.25, abs=0.02)
        assert torch.equal(after[~is_anew], old[~is_anew])
        np.testing.assert_allclose(after[is_anew].std(0).numpy(), 1.0, rtol=0.06)
        assert not after.requires_grad

    def test_draws_noise_in_one_graph(self) -> None:
        head, _ = self.build()
        assert head.resample_noise is not None
        compiled = torch.compile(head.resample_noise, fullgraph=True, backend="aot_eager")
        inputs = torch.randn(NUM_ENVS, WIDTH, 2), torch.zeros(NUM_ENVS, 1, dtype=torch.bool)
        torch.manual_seed(1)
        expected = head.resample_noise(*inputs)
        torch.manual_seed(1)
        assert torch.equal(compiled(*inputs), expected)

    def test_needs_at_least_one_step(self) -> None:
        with pytest.raises(ConfigurationError, match=r"head\.num_steps=-1"):
            make_head(batched(BOX), 1, WIDTH, partial(gsde, num_steps=-1))


@pytest.mark.parametrize("path", sorted(CONF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_configuration_builds_a_head(path: Path) -> None:
    options: Mapping[str, Any] = OmegaConf.load(path)
    functions = {"gaussian": gaussian, "tanh_gaussian": tanh_gaussian, "beta": beta, "gsde": gsde}
    function = functions[options["_target_"].removeprefix("torchppo.modules.heads.continuous.")]
    keywords = {key: value for key, value in options.items() if not key.startswith("_")}
    head = make_head(batched(BOX), 1, WIDTH, partial(function, **keywords))  # type: ignore[arg-type]
    assert distribution_of(head, features(NUM_ENVS)).sample().shape == (NUM_ENVS, 2)
