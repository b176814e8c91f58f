"""Tests of the quadratic-advantage critic."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, TensorSpec, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.heads import continuous
from torchppo.modules.heads.quadratic_advantage import QuadraticAdvantageValue
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.symmetry import SymmetricObjective, Symmetry

Array = NDArray[np.float64]
WIDTH, SIZE, BATCH = 4, 3, 7
FACTOR_OFFSET = math.log(math.exp(0.1) - 1)  # softplus of it is the square root of the initial curvature


def make_head() -> QuadraticAdvantageValue:
    torch.manual_seed(0)
    head = QuadraticAdvantageValue(WIDTH)
    head.setup(spec := Unbounded((1, SIZE)), continuous.gaussian(WIDTH, spec))
    for param in head.parameters():
        torch.nn.init.normal_(param)
    return head.double()


def numpy_q(weights: list[Array], features: Array, action: Array, loc: Array, scale: Array) -> Array:
    """Return Q(s, a) of every sample, with loops over the entries of the matrix."""
    value, best, entries = (
        features @ weight.T + bias for weight, bias in zip(weights[::2], weights[1::2], strict=True)
    )
    result = np.zeros(len(features))
    for row in range(len(features)):
        lower = np.zeros((SIZE, SIZE))
        for i, j in itertools.product(range(SIZE), repeat=2):
            entry = entries[row, SIZE * i + j]
            lower[i, j] = entry if i > j else math.log1p(math.exp(entry + FACTOR_OFFSET)) if i == j else 0.0
        matrix = lower @ lower.T
        centered, of_mean = action[row] - best[row], loc[row] - best[row]
        expectation = of_mean @ matrix @ of_mean + np.trace(matrix @ np.diag(scale[row] ** 2))
        result[row] = value[row, 0] - 0.5 * (centered @ matrix @ centered - expectation)
    return result


@pytest.fixture
def batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = {"features": WIDTH, "action": SIZE, "loc": SIZE, "scale": SIZE, "target": 1}
    data = {name: torch.randn(BATCH, size, generator=generator).double() for name, size in sizes.items()}
    return data | {"scale": data["scale"].exp()}


def error_of(head: QuadraticAdvantageValue, batch: dict[str, Tensor]) -> Tensor:
    predicted = dict(zip(head.out_keys, head(batch["features"]), strict=True)) | batch
    return head.error(predicted, batch["target"], torch.zeros(BATCH, 1), None)


def test_error_and_gradient_equal_numpy(batch: dict[str, Tensor]) -> None:
    head, arrays = make_head(), {name: value.numpy() for name, value in batch.items()}
    weights = [param.detach().numpy().copy() for param in head.parameters()]

    def mean_error() -> float:
        q = numpy_q(weights, arrays["features"], arrays["action"], arrays["loc"], arrays["scale"])
        return float(np.square(q - arrays["target"][:, 0]).mean())

    error = error_of(head, batch)
    error.mean().backward()
    assert error.shape == (BATCH, 1)
    assert error.mean().item() == pytest.approx(mean_error(), rel=1e-9)
    for weight, param in zip(weights, head.parameters(), strict=True):
        expected = np.zeros_like(weight)
        for index in np.ndindex(weight.shape):
            errors = []
            for shift in (1e-5, -2e-5):
                weight[index] += shift
                errors.append(mean_error())
            weight[index] += 1e-5
            expected[index] = (errors[0] - errors[1]) / 2e-5
        assert param.grad is not None
        np.testing.assert_allclose(param.grad.numpy(), expected, rtol=1e-6, atol=1e-6 * np.abs(expected).max())


def test_advantage_has_the_mean_0_under_the_policy(batch: dict[str, Tensor]) -> None:
    """Gauss-Hermite quadrature with 3 points integrates quadratic functions of the action exactly."""
    head = make_head()
    points, masses = np.polynomial.hermite_e.hermegauss(3)
    total = torch.zeros(BATCH, 1, dtype=torch.float64)
    value = head(batch["features"])[0].detach()
    for indices in itertools.product(range(3), repeat=SIZE):
        mass = math.prod(masses[index] / math.sqrt(2 * math.pi) for index in indices)
        action = batch["loc"] + batch["scale"] * torch.tensor([points[index] for index in indices])
        arrays = [(batch | {"action": action})[name].numpy() for name in ("features", "action", "loc", "scale")]
        q = numpy_q([param.detach().numpy() for param in head.parameters()], *arrays)
        found = error_of(head, batch | {"action": action, "target": torch.zeros(BATCH, 1).double()}).detach()
        np.testing.assert_allclose(found[:, 0], q**2)
        total += mass * torch.from_numpy(q).unsqueeze(-1)
    torch.testing.assert_close(total, value)


def make_networks(action: TensorSpec, **options: Any) -> ActorCritic:
    observation = Composite(observation=Unbounded((2, WIDTH)), shape=[2])
    torch.manual_seed(0)
    return make_actor_critic(observation, action, body=mlp, critic=QuadraticAdvantageValue, **options)


def make_rows(networks: ActorCritic) -> TensorDict:
    rows = TensorDict({"observation": torch.randn(BATCH, WIDTH)}, [BATCH])
    with torch.no_grad():
        networks.actor(rows)
    return rows.update({"advantage": torch.randn(BATCH, 1), "value_target": torch.randn(BATCH, 1)})


@pytest.mark.parametrize("shared", [False, True])
def test_objective_uses_the_policy_at_collection(shared: bool) -> None:
    networks = make_networks(Unbounded((2, SIZE)), shared=shared)
    rows, loss = make_rows(networks), ClipPPOLoss(*networks, critic_coeff=1.0)
    before = loss(rows)["loss_critic"].item()
    with torch.no_grad():
        for param in {*networks.actor.parameters()} - {*networks.critic.parameters()}:
            param.add_(0.5)
    assert loss(rows)["kl_approx"] > 0.1
    assert loss(rows)["loss_critic"].item() == before
    assert loss.loss_critic(rows)[0].mean().item() == pytest.approx(before)
    rows["loc"] += 1.0
    assert loss(rows)["loss_critic"].item() != before


def test_starts_almost_as_the_squared_error() -> None:
    networks = make_networks(Unbounded((2, SIZE)))
    rows = make_rows(networks)
    found = ClipPPOLoss(*networks, critic_coeff=1.0)(rows)["loss_critic"]
    value = networks.critic(rows.select("observation"))["state_value"]
    torch.testing.assert_close(found, (value - rows["value_target"]).square().mean(), rtol=0, atol=0.2)


@pytest.mark.parametrize(
    ("action", "options", "message"),
    [
        (Categorical(3, (2,)), {}, "needs one continuous action"),
        (Bounded(-1, 1, (2, SIZE)), {"head": continuous.beta}, "needs one continuous action"),
        (Bounded(-1, 1, (2, SIZE)), {"head": continuous.gsde}, "needs one continuous action"),
        (Composite(one=Unbounded((2, 1)), two=Unbounded((2, 1)), shape=[2]), {}, "needs one continuous action"),
        (Bounded(0, 100, (2, SIZE)), {}, "needs action bounds near"),
    ],
)
def test_refuses_other_policies(action: TensorSpec, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        make_networks(action, **options)


def test_refuses_value_clipping_and_mirrored_samples() -> None:
    networks = make_networks(Unbounded((2, SIZE)))
    with pytest.raises(ConfigurationError, match=r"objective\.clip_value=0\.2 is not supported"):
        ClipPPOLoss(*networks, clip_value=0.2)
    with pytest.raises(ConfigurationError, match=r"ppo\.symmetry\.augment=true does not work"):
        SymmetricObjective(ClipPPOLoss(*networks), Symmetry(lambda data: data))


def test_refuses_a_curvature_that_is_not_positive() -> None:
    with pytest.raises(ConfigurationError, match=r"critic\.head\.initial_curvature=0 must be positive"):
        QuadraticAdvantageValue(WIDTH, initial_curvature=0)
