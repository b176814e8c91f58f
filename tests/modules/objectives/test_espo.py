"""Tests of early stopping policy optimization."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torchrl.data import Categorical, Composite, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.objectives.espo import ESPOLoss


def make_networks() -> ActorCritic:
    specs = Composite(observation=Unbounded((1, 3)), shape=(1,)), Categorical(4, (1,), dtype=torch.int64)
    return make_actor_critic(*specs, body=partial(mlp, num_cells=(4,)))


def test_names_its_stopping_metric_and_the_limit() -> None:
    loss = ESPOLoss(*make_networks(), delta=0.5)
    deviation = loss.metrics(torch.tensor([[0.0], [math.log(1.5)], [math.log(0.5)], [math.log(3.0)]]))
    assert deviation[loss.stopping_metric].item() == pytest.approx((0 + 0.5 + 0.5 + 2) / 4)
    assert loss.stop_above == 0.5


def test_rejects_a_limit_that_is_not_positive() -> None:
    with pytest.raises(ConfigurationError, match=r"objective\.delta=0 must be positive"):
        ESPOLoss(*make_networks(), delta=0)
