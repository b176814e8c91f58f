"""Tests of all objectives: losses and gradients against NumPy in float64 and against TorchRL."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from tensordict import TensorDict
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import Tensor, nn
from torch import distributions as D  # noqa: N812
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, OneHot, TensorSpec, Unbounded
from torchrl.envs import ExplorationType, set_exploration_type
from torchrl.modules import IndependentNormal, ProbabilisticActor
from torchrl.objectives import A2CLoss
from torchrl.objectives import ClipPPOLoss as TorchRLClipPPOLoss

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.distributions import action as distributions
from torchppo.modules.distributions.action import kl_estimate, policy_entropy, policy_kl
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.extractor import recurrent_state_shapes
from torchppo.modules.features.recurrent import GRU
from torchppo.modules.heads.action_heads import ContinuousHead
from torchppo.modules.heads.categorical_value import CategoricalValue
from torchppo.modules.heads.continuous import beta, gaussian, gsde, tanh_gaussian
from torchppo.modules.heads.networks import StateIndependentScale
from torchppo.modules.heads.value_heads import HuberValue, PopArtValue, SquaredErrorValue, ValueHead, squared_error
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.objectives.espo import ESPOLoss
from torchppo.modules.objectives.kl_penalty import KLPENPPOLoss
from torchppo.modules.objectives.ppo_loss import LOSS_PREFIX, PPOLoss
from torchppo.modules.objectives.rollback import RollbackPPOLoss
from torchppo.modules.objectives.spo import SPOLoss

Array = NDArray[np.float64]
Parameters = dict[str, Array]

NUM_FRAMES, NUM_FEATURES = 40, 3
CLIP_EPSILON, CLIP_VALUE, ENTROPY_COEFF, CRITIC_COEFF, BETA = 0.25, 0.5, 0.125, 0.75, 2.0
CLIPPED = {"entropy_coeff": ENTROPY_COEFF, "critic_coeff": CRITIC_COEFF, "clip_epsilon": CLIP_EPSILON}
PENALIZED = {"entropy_coeff": ENTROPY_COEFF, "critic_coeff": CRITIC_COEFF, "beta": BETA}
LOSSES = ["loss_objective", "loss_critic", "loss_entropy"]
METRICS = {ClipPPOLoss: {"clip_fraction", "ESS", "max_ratio", "mean_ratio"}, KLPENPPOLoss: {"beta"}}


@dataclass(frozen=True)
class CategoricalPolicy:
    """A multi-categorical policy in NumPy, with logits linear in the observation."""

    nvec: tuple[int, ...]
    keys = ("logits",)

    def distribution(self, logits: Tensor) -> D.Distribution:
        return distributions.MultiCategorical(logits, self.nvec) if len(self.nvec) > 1 else D.Categorical(logits=logits)

    def head(self) -> nn.Module:
        return nn.Linear(NUM_FEATURES, sum(self.nvec))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"actor.weight": (sum(self.nvec), NUM_FEATURES), "actor.bias": (sum(self.nvec),)}

    def params(self, theta: Parameters, x: Array) -> dict[str, Array]:
        return {"logits": x @ theta["actor.weight"].T + theta["actor.bias"]}

    def log_probs(self, params: dict[str, Array]) -> list[Array]:
        blocks = np.split(params["logits"], np.cumsum(self.nvec)[:-1], -1)
        return [block - np.log(np.exp(block).sum(-1, keepdims=True)) for block in blocks]

    def sample(self, params: dict[str, Array], generator: np.random.Generator) -> NDArray[Any]:
        # Gumbel-max trick
        blocks = [block + generator.gumbel(size=block.shape) for block in self.log_probs(params)]
        action = np.stack([block.argmax(-1) for block in blocks], -1)
        return action if len(self.nvec) > 1 else action[:, 0]

    def log_prob(self, params: dict[str, Array], action: NDArray[Any]) -> Array:
        columns = action.reshape(len(action), -1).T
        pairs = zip(self.log_probs(params), columns, strict=True)
        return np.sum([np.take_along_axis(block, column[:, None], -1)[:, 0] for block, column in pairs], 0)

    def entropy(self, params: dict[str, Array]) -> Array:
        return np.sum([-(np.exp(block) * block).sum(-1) for block in self.log_probs(params)], 0)

    def kl(self, old: dict[str, Array], new: dict[str, Array]) -> Array:
        pairs = zip(self.log_probs(old), self.log_probs(new), strict=True)
        return np.sum([(np.exp(p) * (p - q)).sum(-1) for p, q in pairs], 0)


@dataclass(frozen=True)
class GaussianPolicy:
    """A Gaussian policy in NumPy, with means linear in the observation and one scale per action."""

    num_actions: int
    keys = ("loc", "scale")
    distribution = IndependentNormal

    def head(self) -> nn.Module:
        return StateIndependentScale(nn.Linear(NUM_FEATURES, self.num_actions), self.num_actions, log_std=0.0)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        n = self.num_actions
        return {"actor.weight": (n, NUM_FEATURES), "actor.bias": (n,), "actor.log_std": (n,)}

    def params(self, theta: Parameters, x: Array) -> dict[str, Array]:
        loc = x @ theta["actor.weight"].T + theta["actor.bias"]
        return {"loc": loc, "scale": np.broadcast_to(np.exp(theta["actor.log_std"]), loc.shape)}

    def sample(self, params: dict[str, Array], generator: np.random.Generator) -> NDArray[Any]:
        return np.asarray(generator.normal(params["loc"], params["scale"]))

    def log_prob(self, params: dict[str, Array], action: NDArray[Any]) -> Array:
        z = (action - params["loc"]) / params["scale"]
        return np.asarray((-0.5 * z**2 - np.log(params["scale"]) - 0.5 * np.log(2 * np.pi)).sum(-1))

    def entropy(self, params: dict[str, Array]) -> Array:
        return np.asarray((np.log(params["scale"]) + 0.5 * np.log(2 * np.pi * np.e)).sum(-1))

    def kl(self, old: dict[str, Array], new: dict[str, Array]) -> Array:
        square = (old["scale"] ** 2 + (old["loc"] - new["loc"]) ** 2) / (2 * new["scale"] ** 2)
        return np.asarray((np.log(new["scale"] / old["scale"]) + square - 0.5).sum(-1))


FAMILIES: dict[str, CategoricalPolicy | GaussianPolicy] = {
    "discrete": CategoricalPolicy((4,)),
    "multi-discrete": CategoricalPolicy((2, 3)),
    "gaussian": GaussianPolicy(2),
}


class Case(NamedTuple):
    """A rollout of an old policy, and the parameters of a new policy."""

    family: CategoricalPolicy | GaussianPolicy
    theta: Parameters
    rollout: dict[str, NDArray[Any]]

    def networks(self) -> ActorCritic:
        """Return the new policy and its critic as float64 modules."""
        networks = self.networks_with_hidden_layers(nn.Identity(), nn.Identity())
        for name, parameter in parameters_of(networks).items():
            parameter.data = torch.from_numpy(self.theta[short_name(name)].copy())
        return networks

    def networks_with_hidden_layers(self, *hidden: nn.Module) -> ActorCritic:
        """Return float64 modules for the same spaces, with one body for both or one for each."""
        family, keys = self.family, list(self.family.keys)
        extractors = [TensorDictModule(body, ["observation"], [f"features_{i}"]) for i, body in enumerate(hidden)]
        head = TensorDictModule(family.head(), extractors[0].out_keys, keys)
        value = TensorDictModule(nn.Linear(NUM_FEATURES, 1), extractors[-1].out_keys, ["state_value"])
        actor = ProbabilisticActor(
            TensorDictSequential(extractors[0], head),
            keys,
            distribution_class=family.distribution,
            return_log_prob=True,
        )
        return ActorCritic(actor.double(), TensorDictSequential(extractors[-1], value).double())

    def data(self) -> TensorDict:
        return TensorDict({key: torch.from_numpy(np.array(array)) for key, array in self.rollout.items()}, [NUM_FRAMES])


def parameters_of(networks: ActorCritic) -> dict[str, nn.Parameter]:
    """Return all parameters by role and name."""
    return {f"{role}.{name}": p for role, net in networks._asdict().items() for name, p in net.named_parameters()}


def short_name(name: str) -> str:
    """Shorten `actor.module.0.weight` to its name in NumPy, `actor.weight`."""
    role, *_, kind = name.split(".")
    return f"{role}.{kind}"


def shapes_of(family: CategoricalPolicy | GaussianPolicy) -> dict[str, tuple[int, ...]]:
    return {**family.shapes(), "critic.weight": (1, NUM_FEATURES), "critic.bias": (1,)}


def zero_case(family_name: str) -> Case:
    """Return a case with a policy and a critic whose parameters are zero, without a rollout."""
    family = FAMILIES[family_name]
    return Case(family, {name: np.zeros(shape) for name, shape in shapes_of(family).items()}, {})


@pytest.fixture(params=FAMILIES)
def case(request: pytest.FixtureRequest) -> Case:
    """Return a case in which about half of the ratios are outside the clip range."""
    family = FAMILIES[request.param]
    generator = np.random.default_rng(7)
    old = {name: 0.7 * generator.normal(size=shape) for name, shape in shapes_of(family).items()}
    new = {name: value + 0.3 * generator.normal(size=value.shape) for name, value in old.items()}
    x = generator.normal(size=(NUM_FRAMES, NUM_FEATURES))
    params = family.params(old, x)
    action = family.sample(params, generator)
    rollout = {
        "observation": x,
        **params,
        "action": action,
        "action_log_prob": family.log_prob(params, action),
        "state_value": x @ old["critic.weight"].T + old["critic.bias"],
        "advantage": generator.normal(size=(NUM_FRAMES, 1)),
        "value_target": generator.normal(size=(NUM_FRAMES, 1)),
    }
    return Case(family, new, rollout)


def clip_metrics(ratio: np.ndarray[Any, Any]) -> dict[str, float]:
    return {
        "clip_fraction": (np.abs(ratio - 1) > CLIP_EPSILON).mean(),
        "ESS": ratio.sum() ** 2 / (ratio**2).sum() / len(ratio),
        "max_ratio": ratio.max(),
        "mean_ratio": ratio.mean(),
    }


def without_clip_fraction(ratio: np.ndarray[Any, Any]) -> dict[str, float]:
    return {key: value for key, value in clip_metrics(ratio).items() if key != "clip_fraction"}


class Samples(NamedTuple):
    """What an objective reads of every frame, `[batch]` each."""

    ratio: Array
    advantage: Array
    kl: Array
    log_prob: Array


class Reference(NamedTuple):
    """An objective, and its definition in NumPy.

    Attributes:
        make: The class.
        options: Its options, in addition to the coefficients of entropy and critic.
        surrogate: What it maximizes, `[batch]`.
        metrics: Its own metrics, from the ratios.
        limit: The ratio at which samples are truncated, from the ratios.

    """

    make: Callable[..., nn.Module]
    options: dict[str, Any]
    surrogate: Callable[[Samples], Array]
    metrics: Callable[[Array], dict[str, float]] = lambda _: {}
    limit: Callable[[Array], float] = lambda _: math.inf


def clipped(s: Samples, low: float = CLIP_EPSILON, high: float = CLIP_EPSILON) -> Array:
    return np.minimum(s.ratio * s.advantage, np.clip(s.ratio, 1 - low, 1 + high) * s.advantage)


def dual_clipped(s: Samples) -> Array:
    return np.where(s.advantage < 0, np.maximum(clipped(s), 1.5 * s.advantage), clipped(s))


def unclipped(s: Samples) -> Array:
    return s.ratio * s.advantage


def simple(s: Samples) -> Array:
    return s.ratio * s.advantage - np.abs(s.advantage) * (s.ratio - 1) ** 2 / (2 * CLIP_EPSILON)


def rolled_back(s: Samples, alpha: float = 0.3) -> Array:
    function = np.array(
        [
            -alpha * r + (1 + alpha) * (1 + CLIP_EPSILON)
            if r > 1 + CLIP_EPSILON
            else -alpha * r + (1 + alpha) * (1 - CLIP_EPSILON)
            if r < 1 - CLIP_EPSILON
            else r
            for r in s.ratio
        ]
    )
    return np.minimum(s.ratio * s.advantage, function * s.advantage)


def truly(s: Samples, alpha: float = 2.0, delta: float = 0.05) -> Array:
    is_outside = (s.kl >= delta) & (s.ratio * s.advantage > s.advantage)
    return s.ratio * s.advantage - np.where(is_outside, alpha * (s.kl - delta), 0.0)


def penalized(s: Samples) -> Array:
    return s.ratio * s.advantage - BETA * s.kl


def quantile_of_logs(ratio: Array) -> float:
    return float(np.exp(np.quantile(np.log(ratio), 0.7)))


CLIP: dict[str, Any] = {"clip_epsilon": CLIP_EPSILON}
REFERENCES = {
    "clip": Reference(ClipPPOLoss, CLIP, clipped, clip_metrics),
    "asymmetric clip": Reference(
        ClipPPOLoss,
        {"clip_epsilon": (0.1, 0.4)},
        partial(clipped, low=0.1, high=0.4),
        lambda r: clip_metrics(r) | {"clip_fraction": float(((r < 0.9) | (r > 1.4)).mean())},
    ),
    "dual clip": Reference(ClipPPOLoss, CLIP | {"dual_clip": 1.5}, dual_clipped, clip_metrics),
    "truncated clip": Reference(
        ClipPPOLoss, CLIP | {"max_importance_ratio": 1.1}, clipped, clip_metrics, lambda _: 1.1
    ),
    "penalty": Reference(KLPENPPOLoss, {"beta": BETA}, penalized, lambda _: {"beta": BETA}),
    "unclipped": Reference(PPOLoss, {}, unclipped),
    "truncated at a quantile": Reference(PPOLoss, {"importance_quantile": 0.7}, unclipped, limit=quantile_of_logs),
    "truncated at a quantile and a ratio": Reference(
        PPOLoss,
        {"importance_quantile": 0.7, "max_importance_ratio": 0.9},
        unclipped,
        limit=lambda r: min(0.9, quantile_of_logs(r)),
    ),
    "spo": Reference(SPOLoss, {"epsilon": CLIP_EPSILON}, simple, clip_metrics),
    "espo": Reference(
        ESPOLoss,
        {"delta": 0.1},
        unclipped,
        lambda r: without_clip_fraction(r) | {"ratio_deviation": float(np.abs(r - 1).mean())},
    ),
    "rollback": Reference(RollbackPPOLoss, CLIP, rolled_back, clip_metrics),
    "truly": Reference(RollbackPPOLoss, CLIP | {"alpha": 2.0, "max_kl": 0.05}, truly, clip_metrics),
    "a2c": Reference(A2CLoss, {"loss_critic_type": "l2", "functional": False}, lambda s: s.log_prob * s.advantage),
}
every_reference = pytest.mark.parametrize("reference", REFERENCES.values(), ids=REFERENCES)


def make_objective(reference: Reference, networks: ActorCritic, clip_value: float | None = None) -> nn.Module:
    coefficients = {"entropy_coeff": ENTROPY_COEFF, "critic_coeff": CRITIC_COEFF, "clip_value": clip_value}
    return reference.make(*networks, **coefficients, **reference.options)


def numpy_losses(
    case: Case, theta: Parameters, reference: Reference = REFERENCES["clip"], clip_value: float | None = None
) -> dict[str, float]:
    """Compute the outputs of an objective from its definition."""
    family, rollout = case.family, case.rollout
    x, advantage, target = rollout["observation"], rollout["advantage"][:, 0], rollout["value_target"]
    fixed = np.exp(family.log_prob(family.params(case.theta, x), rollout["action"]) - rollout["action_log_prob"])
    advantage = advantage * np.minimum(1, reference.limit(fixed) / fixed)  # this factor has no gradient
    new = family.params(theta, x)
    log_prob, kl = family.log_prob(new, rollout["action"]), family.kl(rollout, new)
    ratio = np.exp(log_prob - rollout["action_log_prob"])
    objective = reference.surrogate(Samples(ratio, advantage, kl, log_prob))
    value = x @ theta["critic.weight"].T + theta["critic.bias"]
    error = (value - target) ** 2
    if clip_value is not None:
        near = rollout["state_value"] + np.clip(value - rollout["state_value"], -clip_value, clip_value)
        error = np.maximum(error, (near - target) ** 2)
    entropy = family.entropy(new).mean()
    return {
        "loss_objective": -objective.mean(),
        "loss_critic": CRITIC_COEFF * error.mean(),
        "loss_entropy": -ENTROPY_COEFF * entropy,
        "kl_approx": kl.mean(),
        "entropy": entropy,
        **reference.metrics(ratio),
    }


def numpy_gradients(case: Case, **options: Any) -> Parameters:
    """Compute central differences of the sum of the losses."""

    def total(name: str, index: tuple[int, ...], change: float) -> float:
        theta = {key: value.copy() for key, value in case.theta.items()}
        theta[name][index] += change
        losses = numpy_losses(case, theta, **options)
        return sum(losses[key] for key in LOSSES)

    step = 1e-6
    return {
        name: np.array(
            [(total(name, index, step) - total(name, index, -step)) / (2 * step) for index in np.ndindex(value.shape)]
        ).reshape(value.shape)
        for name, value in case.theta.items()
    }


def sum_of_losses(output: TensorDict) -> Tensor:
    return sum((output[key] for key in LOSSES), torch.zeros(()))


class TestNumpyReference:
    @every_reference
    def test_losses_and_metrics_equal_numpy(self, case: Case, reference: Reference) -> None:
        output = make_objective(reference, case.networks())(case.data())
        expected = numpy_losses(case, case.theta, reference)
        if reference.make is A2CLoss:  # it does not compare with the policy at collection
            del expected["kl_approx"]
        assert set(output.keys()) == set(expected)
        for key, value in expected.items():
            assert output[key].shape == ()
            assert output[key].item() == pytest.approx(value, rel=1e-6, abs=1e-12), key

    @every_reference
    def test_gradients_equal_finite_differences(self, case: Case, reference: Reference) -> None:
        networks = case.networks()
        sum_of_losses(make_objective(reference, networks)(case.data())).backward()
        expected = numpy_gradients(case, reference=reference)
        for name, parameter in parameters_of(networks).items():
            assert parameter.grad is not None
            np.testing.assert_allclose(parameter.grad.numpy(), expected[short_name(name)], rtol=1e-6, atol=1e-8)

    def test_clipped_values_equal_numpy(self, case: Case) -> None:
        networks = case.networks()
        output = make_objective(REFERENCES["clip"], networks, CLIP_VALUE)(case.data())
        expected = numpy_losses(case, case.theta, clip_value=CLIP_VALUE)
        assert output["loss_critic"].item() == pytest.approx(expected["loss_critic"], rel=1e-6)
        sum_of_losses(output).backward()
        gradients = numpy_gradients(case, clip_value=CLIP_VALUE)
        for name, parameter in parameters_of(networks).items():
            assert parameter.grad is not None
            np.testing.assert_allclose(parameter.grad.numpy(), gradients[short_name(name)], rtol=1e-6, atol=1e-8)

    def test_the_rollouts_exercise_every_clip(self, case: Case) -> None:
        expected = numpy_losses(case, case.theta)
        assert 0.2 < expected["clip_fraction"] < 0.8
        assert expected["loss_critic"] < numpy_losses(case, case.theta, clip_value=0.5)["loss_critic"]


def hidden_layers(shared: bool) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(NUM_FEATURES, NUM_FEATURES), nn.Tanh()) for _ in range(1 if shared else 2)]


class TestTorchRLReference:
    @pytest.mark.parametrize("clip_value", [None, CLIP_VALUE])
    @pytest.mark.parametrize("shared", [False, True])
    def test_losses_and_gradients_equal_torchrl(self, case: Case, shared: bool, clip_value: float | None) -> None:
        theirs = {"functional": False, "loss_critic_type": "l2", "normalize_advantage": False}
        makers: list[tuple[Callable[..., nn.Module], dict[str, Any]]] = [
            (ClipPPOLoss, {}),
            (TorchRLClipPPOLoss, theirs),
        ]
        outputs, gradients = [], []
        for make, options in makers:
            networks = case.networks_with_hidden_layers(*hidden_layers(shared))
            output = make(*networks, **CLIPPED, clip_value=clip_value, **options)(case.data())
            sum_of_losses(output).backward()
            outputs.append(output)
            gradients.append({name: parameter.grad for name, parameter in parameters_of(networks).items()})
        for key in [*LOSSES, "entropy", *METRICS[ClipPPOLoss]]:
            torch.testing.assert_close(*(output[key].double() for output in outputs), rtol=1e-6, atol=1e-9)
        for name in gradients[0]:
            torch.testing.assert_close(*(gradient[name] for gradient in gradients), rtol=1e-6, atol=1e-9)


class TestValueLoss:
    @pytest.mark.parametrize(
        ("value", "target", "old_value", "error"),
        [
            (1.0, 3.0, 1.0, 4.0),  # no change: both alike
            (2.0, 3.0, 0.0, 6.25),  # moved towards the target, further than 0.5: counts from 0.5
            (0.4, 3.0, 0.0, 6.76),  # moved less: counts from itself
            (-2.0, 3.0, 0.0, 25.0),  # moved away: the larger error counts
            (5.0, 3.0, 0.0, 6.25),  # passed the target: counts from 0.5 still
            (7.0, 3.0, 0.0, 16.0),  # passed it by more than that
        ],
    )
    def test_clipped_error_is_the_larger_of_clipped_and_unclipped(
        self, value: float, target: float, old_value: float, error: float
    ) -> None:
        v, r, old = (torch.tensor([[number]], dtype=torch.float64) for number in (value, target, old_value))
        assert squared_error(v, r, old, clip_value=0.5).item() == pytest.approx(error, rel=1e-12)

    def test_old_value_is_not_used_without_clipping(self) -> None:
        columns = torch.tensor([[1.0], [3.0]]), torch.tensor([[2.0], [0.0]]), torch.full((2, 1), math.nan)
        assert squared_error(*columns, clip_value=None).tolist() == [[1.0], [9.0]]

    @pytest.mark.parametrize("clip_value", [None, CLIP_VALUE])
    def test_clipped_value_has_no_gradient(self, clip_value: float | None) -> None:
        value = torch.tensor([[2.0]], requires_grad=True)
        squared_error(value, torch.tensor([[3.0]]), torch.tensor([[0.0]]), clip_value).sum().backward()
        assert value.grad is not None
        assert value.grad.item() == (-2.0 if clip_value is None else 0.0)

    @pytest.mark.parametrize("shape", [(NUM_FRAMES,), (1, NUM_FRAMES), (1, 1)])
    def test_rejects_values_and_targets_of_different_shapes(self, shape: tuple[int, ...]) -> None:
        value = torch.zeros(NUM_FRAMES, 1)
        with pytest.raises(ValueError, match=r"state_value \[40, 1\] and value_target .* differ in shape"):
            squared_error(value, torch.zeros(shape), value, None)

    @pytest.mark.parametrize(
        ("objective", "name"), [(ClipPPOLoss, "clip_value"), (KLPENPPOLoss, "clip_value"), (KLPENPPOLoss, "dtarg")]
    )
    def test_rejects_a_clip_value_that_is_not_positive(
        self, case: Case, objective: Callable[..., PPOLoss], name: str
    ) -> None:
        with pytest.raises(ConfigurationError, match=rf"objective.{name}=-1 must be positive"):
            objective(*case.networks(), **{name: -1})

    def test_objective_rejects_targets_without_the_last_dimension(self, case: Case) -> None:
        data = case.data()
        data["value_target"] = data["value_target"].squeeze(-1)
        with pytest.raises(ValueError, match=r"state_value \[40, 1\] and value_target \[40\] differ in shape"):
            ClipPPOLoss(*case.networks())(data)


class TestKL:
    @given(st.lists(st.floats(-30, 30), min_size=1, max_size=50), st.sampled_from([torch.float32, torch.float64]))
    def test_estimate_is_never_negative(self, log_ratio: list[float], dtype: torch.dtype) -> None:
        assert (kl_estimate(torch.tensor(log_ratio, dtype=dtype)) >= 0).all()

    @pytest.mark.parametrize("size", [1e-1, 1e-4, 1e-6])
    def test_estimate_is_accurate_for_small_changes(self, size: float) -> None:
        series = sum(size**n / math.factorial(n) for n in range(2, 12))
        assert kl_estimate(torch.tensor(size, dtype=torch.float64)).item() == pytest.approx(series, rel=1e-9)

    @pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES.keys())
    def test_estimate_is_unbiased(self, family: CategoricalPolicy | GaussianPolicy) -> None:
        generator = np.random.default_rng(3)
        thetas = [{name: 0.2 * generator.normal(size=shape) for name, shape in family.shapes().items()} for _ in "on"]
        x = np.repeat(generator.normal(size=(1, NUM_FEATURES)), 50_000, 0)
        old, new = (family.params(theta, x) for theta in thetas)
        action = family.sample(old, generator)
        samples = kl_estimate(torch.from_numpy(family.log_prob(new, action) - family.log_prob(old, action))).numpy()
        exact = family.kl(old, new)[0]
        assert exact > 0.01
        assert samples.mean() == pytest.approx(exact, abs=4 * samples.std() / np.sqrt(len(samples)))

    def test_closed_form_is_used_if_it_exists(self) -> None:
        old = D.Independent(D.Normal(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 2.0]])), 1)
        new = D.Independent(D.Normal(torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 1.0]])), 1)
        kl = policy_kl(old, new, torch.full((1,), math.nan))  # samples are not used
        assert kl.item() == pytest.approx(0.5 + (-math.log(2) + 2.0 - 0.5), rel=1e-6)

    def test_estimate_is_used_without_a_closed_form(self) -> None:
        old = D.TransformedDistribution(D.Normal(torch.zeros(3), torch.ones(3)), [D.TanhTransform()])
        new = D.TransformedDistribution(D.Normal(torch.zeros(3), torch.ones(3)), [D.SigmoidTransform()])
        log_ratio = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
        expected = [0.0, math.e - 2, math.exp(-1)]
        np.testing.assert_allclose(policy_kl(old, new, log_ratio).numpy(), expected, rtol=1e-12)

    def test_unchanged_policy_has_zero_kl(self, case: Case) -> None:
        data = case.data()
        with torch.no_grad():
            networks = case.networks()
            data.update(networks.actor.get_dist_params(data.copy()).select(*networks.actor.out_keys, strict=False))
            data["action_log_prob"] = networks.actor.build_dist_from_params(data).log_prob(data["action"])
        output = ClipPPOLoss(*networks)(data)
        assert output["kl_approx"].item() == pytest.approx(0, abs=1e-12)
        assert output["clip_fraction"].item() == 0
        assert output["loss_objective"].item() == pytest.approx(-data["advantage"].mean().item(), rel=1e-9)


class TestEntropy:
    def test_closed_form_is_used_if_it_exists(self) -> None:
        uniform = D.Categorical(logits=torch.zeros(2, 5))
        np.testing.assert_allclose(policy_entropy(uniform).numpy(), math.log(5), rtol=1e-6)

    def test_estimate_is_unbiased(self) -> None:
        torch.manual_seed(0)
        squashed = D.TransformedDistribution(
            D.Normal(torch.zeros(50_000, dtype=torch.float64), 1.0), [D.SigmoidTransform()]
        )
        # of y = sigmoid(z): h(z) + E log(y (1 - y)), the expectation by quadrature
        nodes, weights = np.polynomial.hermite_e.hermegauss(80)
        slope = np.log(1 / (1 + np.exp(-nodes))) + np.log(1 / (1 + np.exp(nodes)))
        expected = 0.5 * np.log(2 * np.pi * np.e) + weights @ slope / np.sqrt(2 * np.pi)
        samples = policy_entropy(squashed).numpy()
        assert samples.mean() == pytest.approx(expected, abs=4 * samples.std() / np.sqrt(len(samples)))

    def test_bonus_of_a_uniform_policy_is_the_coefficient_times_log_n(self) -> None:
        column = torch.zeros(2, 1)
        rollout = {
            "observation": torch.ones(2, NUM_FEATURES, dtype=torch.float64),
            "logits": torch.zeros(2, 4),
            "action": torch.tensor([0, 3]),
            "action_log_prob": torch.full((2,), -math.log(4)),
            **dict.fromkeys(("state_value", "advantage", "value_target"), column),
        }
        data = TensorDict(rollout, [2])
        output = ClipPPOLoss(*zero_case("discrete").networks(), entropy_coeff=0.25)(data)
        assert output["entropy"].item() == pytest.approx(math.log(4))
        assert output["loss_entropy"].item() == pytest.approx(-0.25 * math.log(4))


BOX = Bounded(torch.tensor([-2.0, 0.1]), torch.tensor([2.0, 0.7]), (2,), dtype=torch.float32)
NESTED = Composite(
    move=Categorical(4, dtype=torch.int64),
    arm=Composite(reach=BOX, grip=Binary(3, dtype=torch.int8)),
    gears=MultiCategorical(torch.tensor([2, 3]), dtype=torch.int64),
)
HEADS: dict[str, tuple[TensorSpec, ContinuousHead]] = {
    "discrete": (Categorical(4, dtype=torch.int64), gaussian),
    "one-hot": (OneHot(4, dtype=torch.int64), gaussian),
    "multi-discrete": (MultiCategorical(torch.tensor([2, 3]), dtype=torch.int64), gaussian),
    "multi-binary": (Binary(3, dtype=torch.int8), gaussian),
    "gaussian": (BOX, gaussian),
    "gaussian of the state": (BOX, partial(gaussian, state_dependent=True)),
    "tanh_gaussian": (BOX, tanh_gaussian),
    "tanh_gaussian of the state": (BOX, partial(tanh_gaussian, state_dependent=True)),
    "beta": (BOX, beta),
    "gsde": (BOX, gsde),
    "composite, gaussian": (NESTED, gaussian),
    "composite, tanh_gaussian": (NESTED, tanh_gaussian),
    "composite, beta": (NESTED, beta),
}


def make_networks_and_batch(head: str = "gaussian", **options: Any) -> tuple[ActorCritic, TensorDict]:
    """Return networks with a head of `HEADS`, and a minibatch that they collected."""
    spec, continuous = HEADS[head]
    torch.manual_seed(0)
    observation = Composite(observation=Unbounded((NUM_FEATURES,))).expand(NUM_FRAMES)
    actions = spec.expand(NUM_FRAMES, *spec.shape)
    networks = make_actor_critic(observation, actions, body=partial(mlp, num_cells=(8,)), head=continuous, **options)
    data = observation.rand()
    data["is_init"] = torch.rand(NUM_FRAMES, 1) < 0.5
    data.update({key: torch.rand(NUM_FRAMES, *shape) for key, shape in recurrent_state_shapes(networks.actor).items()})
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        data = networks.critic(networks.actor(data)).exclude("next", "gsde_noise")
    return networks, data.update({key: torch.randn(NUM_FRAMES, 1) for key in ("advantage", "value_target")})


@pytest.mark.parametrize("head", HEADS)
class TestFirstMinibatch:
    """Collection and learning use the same policy, so every ratio is exactly 1."""

    @pytest.mark.parametrize("options", [{}, {"memory": partial(GRU, width=8)}], ids=["", "memory"])
    def test_clips_nothing(self, head: str, options: dict[str, Any]) -> None:
        networks, data = make_networks_and_batch(head, **options)
        losses = ClipPPOLoss(*networks, clip_epsilon=1e-9)(data)
        assert losses["kl_approx"].item() == pytest.approx(0, abs=1e-7)
        assert losses["clip_fraction"].item() == 0
        assert losses["loss_objective"].item() == pytest.approx(-data["advantage"].mean().item(), abs=1e-6)

    def test_has_no_kl_penalty(self, head: str) -> None:
        networks, data = make_networks_and_batch(head)
        loss = KLPENPPOLoss(*networks, beta=100.0, dtarg=0.01)
        losses = loss(data)
        assert losses["kl_approx"].item() == pytest.approx(0, abs=1e-7)
        assert losses["loss_objective"].item() == pytest.approx(-data["advantage"].mean().item(), abs=1e-5)

    def test_step_changes_the_policy_and_all_gradients_are_finite(self, head: str) -> None:
        networks, data = make_networks_and_batch(head)
        loss = ClipPPOLoss(*networks, clip_epsilon=1e-9, entropy_coeff=0.01)
        losses = loss(data)
        sum_of_losses(losses).backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
        torch.optim.SGD(loss.parameters(), lr=1.0).step()
        after = loss(data)
        assert after["kl_approx"].item() > 0
        assert after["clip_fraction"].item() > 0.5


class TestValueClipping:
    @pytest.mark.parametrize("objective", [ClipPPOLoss, KLPENPPOLoss])
    @pytest.mark.parametrize("sigma_ratio", [0.75, 0.0])
    def test_rejects_clipping_for_a_categorical_critic(
        self, sigma_ratio: float, objective: Callable[..., PPOLoss]
    ) -> None:
        networks, data = make_networks_and_batch(critic=partial(CategoricalValue, sigma_ratio=sigma_ratio))
        message = r"objective\.clip_value=0\.2 is not supported by CategoricalValue; .*null"
        with pytest.raises(ConfigurationError, match=message):
            objective(*networks, clip_value=0.2)
        assert objective(*networks)(data)["loss_critic"].isfinite()

    @pytest.mark.parametrize("critic", [SquaredErrorValue, HuberValue, PopArtValue])
    def test_clipping_increases_the_error_of_other_critics(self, critic: type[ValueHead]) -> None:
        networks, data = make_networks_and_batch(critic=critic)
        data["state_value"] = data["state_value"] + torch.randn(NUM_FRAMES, 1)
        free, clipped = (ClipPPOLoss(*networks, clip_value=value)(data)["loss_critic"] for value in (None, 0.01))
        assert clipped > free


@pytest.mark.parametrize(("objective", "options"), [(ClipPPOLoss, CLIPPED), (KLPENPPOLoss, PENALIZED)])
class TestEveryObjective:
    def test_coefficients_are_buffers_that_take_effect(
        self, objective: type[PPOLoss], options: dict[str, float], case: Case
    ) -> None:
        loss = objective(*case.networks(), **options)
        before = loss(case.data())
        loss.entropy_coeff.mul_(2)
        loss.critic_coeff.mul_(3)
        after = loss(case.data())
        assert after["loss_entropy"].item() == pytest.approx(2 * before["loss_entropy"].item())
        assert after["loss_critic"].item() == pytest.approx(3 * before["loss_critic"].item())
        assert set(options) <= set(dict(loss.named_buffers()))

    def test_state_dict_contains_beta_but_no_coefficient(
        self, objective: type[PPOLoss], options: dict[str, float], case: Case
    ) -> None:
        loss = objective(*case.networks(), **options)
        saved = {key for key in loss.state_dict() if not key.startswith(("actor_network.", "critic_network."))}
        assert saved == {"beta"} & set(options)
        restored = objective(*case.networks(), **{key: value / 2 for key, value in options.items()})
        restored.load_state_dict(loss.state_dict())
        for name, value in options.items():
            assert restored.get_buffer(name).item() == (value if name == "beta" else value / 2)

    def test_every_parameter_is_registered_once(
        self, objective: type[PPOLoss], options: dict[str, float], case: Case
    ) -> None:
        for shared in (False, True):
            networks = case.networks_with_hidden_layers(*hidden_layers(shared))
            unique = set(networks.actor.parameters()) | set(networks.critic.parameters())
            parameters = list(objective(*networks, **options).parameters())
            assert len(parameters) == len(unique)
            assert set(parameters) == unique

    def test_only_losses_have_gradients(self, objective: type[PPOLoss], options: dict[str, float], case: Case) -> None:
        output = objective(*case.networks(), **options)(case.data())
        assert {key for key, value in output.items() if value.requires_grad} == set(LOSSES)
        assert {key for key in output.keys() if key.startswith(LOSS_PREFIX)} == set(LOSSES)  # noqa: SIM118
        assert set(output.keys()) == {*LOSSES, "kl_approx", "entropy", *METRICS[objective]}

    def test_input_is_not_modified(self, objective: type[PPOLoss], options: dict[str, float], case: Case) -> None:
        data = case.data()
        loss = objective(*case.networks(), **options)
        loss(data)
        assert set(data.keys()) == set(case.rollout)
        for key, array in case.rollout.items():
            np.testing.assert_array_equal(data[key].numpy(), array)

    @pytest.mark.parametrize("shared", [False, True])
    def test_every_body_runs_once(
        self, objective: type[PPOLoss], options: dict[str, float], shared: bool, case: Case
    ) -> None:
        calls: list[nn.Module] = []
        bodies = hidden_layers(shared)
        for body in bodies:
            body.register_forward_hook(lambda module, *_: calls.append(module))
        objective(*case.networks_with_hidden_layers(*bodies), **options)(case.data())
        assert len(calls) == len(bodies)
        assert set(calls) == set(bodies)


class TestOptionsOfTorchRL:
    @pytest.mark.parametrize(
        "options",
        [
            {"functional": True},
            {"delay_actor": True},
            {"advantage_norm": None},
            {"gamma": 0.9},
            {"reduction": "none"},
            {"clip_epsilonn": 0.1},
            {"clip_epsilon": (0.1, -0.1)},
            {"loss_critic_type": "l1"},
            {"dual_clip": 1.0},
            {"max_importance_ratio": 0.0},
            {"importance_quantile": 1.5},
        ],
    )
    def test_what_has_no_effect_is_refused(self, options: dict[str, Any]) -> None:
        networks, _ = make_networks_and_batch()
        with pytest.raises(ConfigurationError, match=rf"objective\.{next(iter(options))}"):
            ClipPPOLoss(*networks, **options)

    def test_separate_losses_are_refused_if_the_actor_writes_the_value(self) -> None:
        networks, _ = make_networks_and_batch(shared=True)
        with pytest.raises(ConfigurationError, match="separate_losses"):
            ClipPPOLoss(*networks, separate_losses=True)

    @pytest.mark.parametrize(
        "options",
        [
            {"max_importance_ratio": 1.0},
            {"reduction": "sum"},
            {"normalize_advantage": True},
            {"entropy_bonus": False},
            {"clip_epsilon": (0.1, 0.3)},
            {"separate_losses": True},
        ],
        ids=str,
    )
    def test_options_have_the_effect_of_torchrl(self, case: Case, options: dict[str, Any]) -> None:
        theirs = {"functional": False, "loss_critic_type": "l2", "entropy_coeff": 0.0, "critic_coeff": 0.5}
        ours = ClipPPOLoss(*case.networks(), **options)(case.data())
        other = TorchRLClipPPOLoss(*case.networks(), **{**theirs, **options})(case.data())
        for key in ("loss_objective", "loss_critic", "loss_entropy", "clip_fraction"):
            assert (key in ours.keys()) == (key in other.keys())  # noqa: SIM118
            if key in ours.keys():  # noqa: SIM118
                torch.testing.assert_close(ours[key].double(), other[key].double(), rtol=1e-6, atol=1e-9)

    @pytest.mark.parametrize("objective", [ClipPPOLoss, KLPENPPOLoss])
    def test_outputs_are_the_declared_ones_also_without_old_parameters(
        self, case: Case, objective: type[PPOLoss]
    ) -> None:
        loss = objective(*case.networks())
        data = case.data().exclude(*loss.actor_network.dist_params_keys)
        assert set(loss(data).keys()) == set(loss.out_keys)
        assert loss(data)["kl_approx"] >= 0
