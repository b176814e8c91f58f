"""Tests of the action heads."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch import distributions as D  # noqa: N812
from torchrl.data import (
    Binary,
    Bounded,
    Categorical,
    Composite,
    MultiCategorical,
    NonTensor,
    OneHot,
    TensorSpec,
    Unbounded,
)

from torchppo.errors import ConfigurationError
from torchppo.modules.heads.action_heads import ContinuousHead, Head, make_head
from torchppo.modules.heads.continuous import beta, gaussian, gsde, tanh_gaussian
from torchppo.modules.heads.sample_to_action import SampleToAction

NUM_ENVS, WIDTH = 6, 5
LOW, HIGH = torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.7])
BOX = Bounded(LOW, HIGH, (2,), dtype=torch.float32)


def batched(spec: TensorSpec) -> TensorSpec:
    return spec.expand(NUM_ENVS, *spec.shape)


def nested() -> Composite:
    """Return a nested action spec with one leaf of every kind."""
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
    "unbounded box": (Unbounded((2,), dtype=torch.float32), gaussian, {"loc": 2, "scale": 2}),
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


def distribution_of(head: Head, inputs: Tensor, **kwargs: Tensor) -> Any:
    return head.distribution_class(**dict(zip(head.param_keys, head.network(inputs, **kwargs), strict=True)))


def actions_of(head: Head, sample: Tensor) -> dict[Any, Tensor]:
    actions = sample if head.to_action is None else head.to_action(sample)
    return dict(zip(head.action_keys, actions if isinstance(actions, tuple) else (actions,), strict=True))


def linears(network: nn.Module) -> list[nn.Linear]:
    return [module for module in network.modules() if isinstance(module, nn.Linear)]


@every_space
class TestEveryActionSpace:
    @pytest.mark.parametrize("batch", [(NUM_ENVS,), (2, 3), ()])
    def test_writes_its_parameters_for_any_batch(self, name: str, batch: tuple[int, ...]) -> None:
        head = head_of(name)
        parameters = head.network(features(*batch))
        assert head.param_keys == list(SPACES[name][2])
        assert [list(parameter.shape) for parameter in parameters] == [
            [*batch, size] for size in SPACES[name][2].values()
        ]

    def test_actions_lie_in_the_space(self, name: str) -> None:
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

    def test_last_layer_starts_orthogonal_with_gain_001(self, name: str) -> None:
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

    def test_rejects_an_unsupported_mask_or_one_of_another_size(self, name: str) -> None:
        with pytest.raises(ConfigurationError, match="action_mask"):
            head_of(name).network(features(NUM_ENVS), torch.ones(NUM_ENVS, 9, dtype=torch.bool))

    def test_gradients_reach_every_parameter(self, name: str) -> None:
        head = head_of(name)
        distribution = distribution_of(head, features(NUM_ENVS))
        (distribution.log_prob(distribution.sample().detach()).sum() + distribution.entropy().sum()).backward()
        for parameter in head.network.parameters():
            assert parameter.grad is not None
            assert torch.isfinite(parameter.grad).all()


@pytest.mark.parametrize(
    "name", ["one-hot", "unbounded box", "box, scale of the state", "box, gsde", "composite", "composite, beta"]
)
def test_compiles_to_one_graph_with_log_prob_entropy_and_kl(name: str) -> None:
    """The nested spaces contain the other kinds."""
    head = head_of(name)

    def sample_and_evaluate(inputs: Tensor) -> tuple[Tensor, ...]:
        old, new = distribution_of(head, inputs), distribution_of(head, inputs + 1)
        sample = old.sample()
        terms = new.log_prob(sample), new.entropy(), D.kl_divergence(old, new)
        return (*actions_of(head, sample).values(), *terms)

    torch.compiler.reset()  # otherwise every space counts towards the recompile limit
    results = []
    for function in (sample_and_evaluate, torch.compile(sample_and_evaluate, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)
        results.append(function(features(NUM_ENVS)))
    torch.testing.assert_close(results[1], results[0])


class TestMask:
    @settings(max_examples=30)
    @given(st.integers(0, 2**32 - 1), st.sampled_from([torch.bool, torch.int8]))
    def test_forbidden_choices_are_never_sampled(self, seed: int, dtype: torch.dtype) -> None:
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

    def test_can_be_the_second_argument(self) -> None:
        head = head_of("discrete")
        mask = torch.tensor([0, 1, 0, 1]).expand(NUM_ENVS, 4)
        (logits,), (again,) = head.network(features(NUM_ENVS), mask), head.network(features(NUM_ENVS), mask=mask)
        assert torch.equal(logits, again)
        assert (D.Categorical(logits=logits).probs[:, ::2] == 0).all()


class TestCompositeActions:
    def test_keys_are_in_the_order_of_the_spec(self) -> None:
        head = head_of("composite")
        expected = [("action", "move"), ("action", "arm", "reach"), ("action", "arm", "grip"), ("action", "gears")]
        assert head.action_keys == expected
        assert head.sample_key == "action_sample"

    def test_log_prob_is_the_sum_over_the_leaves(self) -> None:
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

    def test_samples_of_discrete_leaves_are_integers(self) -> None:
        assert distribution_of(head_of("composite of choices"), features(NUM_ENVS)).sample().dtype == torch.int64

    def test_rejects_persistent_noise(self) -> None:
        with pytest.raises(ConfigurationError, match=r"head=gsde .* move, arm\.reach.* head=gaussian"):
            make_head(batched(nested()), 1, WIDTH, gsde)

    def test_rejects_a_spec_without_a_leaf(self) -> None:
        with pytest.raises(ConfigurationError, match="no leaf"):
            make_head(Composite(shape=(NUM_ENVS,)), 1, WIDTH, gaussian)

    def test_bounds_move_with_the_network_and_are_not_saved(self) -> None:
        head = head_of("composite")
        assert not [key for key in head.network.state_dict() if "low" in key]
        head.network.to(torch.float64)
        assert {name.split(".")[-1] for name, _ in head.network.named_buffers()} == {"low", "high"}
        assert all(buffer.dtype == torch.float64 for buffer in head.network.buffers())


FLATTENED = {
    "matrix": Bounded(-1.0, 1.0, (2, 3), dtype=torch.float32),
    "scalar": Unbounded((), dtype=torch.float32),
    "far scalar": Bounded(100.0, 200.0, (), dtype=torch.float32),
    "integers": Bounded(-2, 5, (2,), dtype=torch.int64),
    "bytes": Bounded(0, 255, (2, 1), dtype=torch.uint8),
    "unbounded integers": Unbounded((3,), dtype=torch.int32),
    "limits of int64": Bounded(torch.tensor(-(2**63)), torch.tensor(2**63 - 1), (), dtype=torch.int64),
    "table of choices": MultiCategorical(torch.tensor([[2, 3], [4, 5]]), dtype=torch.int64),
    "table of bits": Binary(shape=(2, 3), dtype=torch.int8),
    "several of one kind": Categorical(3, (2,), dtype=torch.int64),
}


@pytest.mark.parametrize("name", FLATTENED)
@pytest.mark.parametrize("is_part", [False, True])
def test_leaves_of_any_rank_and_integers_have_actions_of_the_spec(name: str, is_part: bool) -> None:
    torch.manual_seed(0)
    spec = batched(FLATTENED[name])
    action = Composite(part=spec, shape=(NUM_ENVS,)) if is_part else spec
    head = make_head(action, 1, WIDTH, gaussian)
    parameters = dict(zip(head.param_keys, head.network(torch.randn(NUM_ENVS, WIDTH)), strict=True))
    policy = SampleToAction(head, **parameters)
    for sample, *actions in (policy.sample(), policy.deterministic_sample):
        value = actions[0] if actions else sample
        assert value.shape == spec.shape
        assert value.dtype == spec.dtype
        is_clipped = spec.dtype.is_floating_point  # by the environment
        assert is_clipped or spec.is_in(value)
        assert policy.log_prob(sample, value).shape == (NUM_ENVS,)
    assert policy.entropy().isfinite().all()


def test_integers_with_a_narrow_range_have_one_logit_each_and_others_are_rounded() -> None:
    for high, parameters in ((63, ["logits"]), (64, ["loc", "scale"])):
        assert (
            make_head(batched(Bounded(0, high, (2,), dtype=torch.int64)), 1, WIDTH, gaussian).param_keys == parameters
        )


@pytest.mark.parametrize("spec", [OneHot(3, (2, 3)), NonTensor(())], ids=["one-hot matrix", "other data"])
def test_rejects_a_leaf_without_a_head(spec: TensorSpec) -> None:
    with pytest.raises(ConfigurationError, match=r"^action is .*Categorical"):
        make_head(batched(spec), 1, WIDTH, gaussian)
    with pytest.raises(ConfigurationError, match=r"^action\.left is .*Categorical"):
        make_head(batched(Composite(left=spec, shape=())), 1, WIDTH, gaussian)
