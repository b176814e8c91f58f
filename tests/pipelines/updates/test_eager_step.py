"""The losses of the first step must be named scalars that depend on the policy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical, Composite, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import LSTM
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.pipelines.updates.eager_step import check_connected, check_losses

NETWORKS: dict[str, dict[str, Any]] = {
    "separate": {},
    "shared": {"shared": True},
    "recurrent": {"memory": partial(LSTM, width=4)},
}


def make_objective(**options: Any) -> ClipPPOLoss:
    observation = Composite(observation=Unbounded((2, 3)), shape=(2,))
    return ClipPPOLoss(*make_actor_critic(observation, Categorical(4, (2,)), body=mlp, **options))


def gradients(objective: ClipPPOLoss, has_gradient: Callable[[nn.Parameter], bool]) -> dict[nn.Parameter, Any]:
    return {param: param.detach() if has_gradient(param) else None for param in objective.parameters()}


@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
class TestCheckConnected:
    def test_gradient_of_the_critic_alone_is_refused(self, options: dict[str, Any]) -> None:
        objective = make_objective(**options)
        critic = {*objective.critic_network.parameters()}
        with pytest.raises(ConfigurationError, match=r"objective=ClipPPOLoss .*actor_network"):
            check_connected(objective, gradients(objective, critic.__contains__))

    def test_frozen_policy_is_accepted(self, options: dict[str, Any]) -> None:
        objective = make_objective(**options)
        critic = {*objective.critic_network.parameters()}
        for param in {*objective.actor_network.parameters()} - critic:
            param.requires_grad_(False)
        check_connected(objective, gradients(objective, critic.__contains__))

    def test_parameter_without_gradient_is_reported(
        self, options: dict[str, Any], caplog: pytest.LogCaptureFixture
    ) -> None:
        objective = make_objective(**options)
        last = list(objective.critic_network.parameters())[-1]
        check_connected(objective, gradients(objective, lambda param: param is not last))
        assert "do not depend on 1 of" in caplog.text


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        (torch.zeros(()), "returned Tensor; return a TensorDict"),
        (None, "returned NoneType; return a TensorDict"),
        (TensorDict({"objective": torch.zeros(())}), "no loss_"),
        (TensorDict({"loss_objective": torch.zeros(3)}), r"loss_objective .* shape \(3,\); return its mean"),
    ],
    ids=["tensor", "nothing", "no loss", "loss per sample"],
)
def test_an_objective_without_scalar_losses_is_refused(losses: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_losses(losses, None)


def test_metrics_may_have_several_elements() -> None:
    check_losses(TensorDict({"loss_objective": torch.zeros(()), "metric": torch.zeros(3)}), None)
