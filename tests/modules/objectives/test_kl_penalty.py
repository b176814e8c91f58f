"""Tests of the objective with an adaptive KL penalty."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Composite, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.objectives.kl_penalty import KLPENPPOLoss

NUM_FEATURES = 3


@pytest.fixture(scope="module")
def networks() -> ActorCritic:
    """Return float64 networks whose parameters are zero: a standard Gaussian policy of two actions."""
    specs = Composite(observation=Unbounded((1, NUM_FEATURES)), shape=(1,)), Unbounded((1, 2))
    networks = make_actor_critic(*specs, body=partial(mlp, num_cells=(4,)))
    for network in networks:
        network.double()
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
    return networks


@pytest.fixture(scope="module")
def make_loss(networks: ActorCritic) -> Callable[..., KLPENPPOLoss]:
    def make(**options: float) -> KLPENPPOLoss:
        return KLPENPPOLoss(*networks, **{"beta": 1.0, "dtarg": 0.01, **options})

    return make


def rollout_with_kls(*kls: float) -> TensorDict:
    """Return a rollout of standard Gaussian policies with the given KL divergences from the current policy."""
    loc = torch.zeros(len(kls), 2, dtype=torch.float64)
    loc[:, 0] = (2 * torch.tensor(kls, dtype=torch.float64)).sqrt()  # KL = distance^2 / 2
    zero = torch.zeros(len(kls), dtype=torch.float64)
    column = zero[:, None]
    rollout = {
        "observation": column.expand(-1, NUM_FEATURES),
        "loc": loc,
        "scale": torch.ones_like(loc),
        "action": torch.zeros_like(loc),
        "action_log_prob": zero,
        **dict.fromkeys(("state_value", "advantage", "value_target"), column),
    }
    return TensorDict(rollout, [len(kls)])


class TestBeta:
    def test_a_forward_pass_does_not_change_beta(self, make_loss: Callable[..., KLPENPPOLoss]) -> None:
        loss = make_loss()
        for _ in range(3):
            output = loss(rollout_with_kls(1.0, 2.0))
            (output["loss_objective"] + output["loss_critic"]).backward()
            with torch.no_grad():
                loss(rollout_with_kls(1.0, 2.0))
        assert loss.beta.item() == 1.0

    def test_beta_is_saved_and_other_coefficients_are_not(self, make_loss: Callable[..., KLPENPPOLoss]) -> None:
        own = {name for name in make_loss().state_dict() if "." not in name}
        assert own == {"beta"}

    def test_its_controller_has_the_options_of_the_loss(self, make_loss: Callable[..., KLPENPPOLoss]) -> None:
        loss = make_loss(dtarg=0.5, increment=3.0, decrement=0.25, beta_min=0.1, beta_max=2.0)
        move = loss.controllers["beta"]
        values = [move(0.0, {"kl": kl}, value) for kl, value in ((1.0, 0.5), (0.1, 0.8), (1.0, 1.9), (0.1, 0.1))]
        assert values == [1.5, 0.2, 2.0, 0.1]

    def test_a_constant_beta_has_no_controller(self, make_loss: Callable[..., KLPENPPOLoss]) -> None:
        assert make_loss(increment=1.0, decrement=1.0).controllers == {}

    @pytest.mark.parametrize(
        "options",
        [
            {"beta": 0.0},
            {"beta": -1.0},
            {"beta": 5.0, "beta_max": 4.0},
            {"beta": 0.1, "beta_min": 0.2},
            {"beta_min": 0.0},
        ],
    )
    def test_rejects_a_beta_outside_its_bounds(
        self, make_loss: Callable[..., KLPENPPOLoss], options: dict[str, float]
    ) -> None:
        with pytest.raises(ConfigurationError, match=r"objective\.beta=.*beta_min=.*beta_max="):
            make_loss(**options)


def test_metrics_contain_beta(make_loss: Callable[..., KLPENPPOLoss]) -> None:
    loss = make_loss(beta=0.5)
    assert {key: value.item() for key, value in loss.metrics(torch.tensor([0.0, 5.0])).items()} == {"beta": 0.5}
