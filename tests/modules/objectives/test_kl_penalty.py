"""Tests of the objective with an adaptive KL penalty."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensordict import TensorDict
from torch import Tensor, nn
from torchrl.data import Composite, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.objectives.kl_penalty import Adaptive, KLPENPPOLoss

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


class TestAdapt:
    @pytest.mark.parametrize(
        ("kl", "factor"),
        [
            (0.1, 2.0),
            (0.0151, 2.0),  # just above 1.5 x 0.01
            (0.0149, 1.0),
            (0.01, 1.0),
            (0.0067, 1.0),
            (0.0066, 0.5),  # just below 0.01 / 1.5
            (0.0, 0.5),
        ],
    )
    def test_beta_doubles_above_the_target_and_halves_below(
        self, make_loss: Callable[..., KLPENPPOLoss], kl: float, factor: float
    ) -> None:
        loss = make_loss(beta=3.0)
        loss.adapt(rollout_with_kls(kl, kl))
        assert loss.beta.item() == 3.0 * factor

    def test_adapts_to_the_mean_kl_of_the_whole_rollout(self, make_loss: Callable[..., KLPENPPOLoss]) -> None:
        loss = make_loss()
        loss.adapt(rollout_with_kls(0.0, 0.0, 0.0, 0.04).reshape(2, 2))  # three states alone would halve it
        assert loss.beta.item() == 1.0

    @pytest.mark.parametrize(("kl", "bound"), [(1.0, 8.0), (0.0, 0.25)])
    def test_beta_is_clamped_and_recovers(
        self, make_loss: Callable[..., KLPENPPOLoss], kl: float, bound: float
    ) -> None:
        loss = make_loss(beta_min=0.25, beta_max=8.0)
        for _ in range(6):
            loss.adapt(rollout_with_kls(kl))
        assert loss.beta.item() == bound
        loss.adapt(rollout_with_kls(1.0 - kl))
        assert loss.beta.item() == (4.0 if bound == 8.0 else 0.5)

    @given(kls=st.lists(st.floats(0, 10), min_size=1, max_size=30))
    def test_beta_never_leaves_its_bounds(self, make_loss: Callable[..., KLPENPPOLoss], kls: list[float]) -> None:
        loss = make_loss(beta_min=0.25, beta_max=5.0)
        for kl in kls:
            loss.beta.copy_(loss.next_beta(torch.tensor(kl)))
            assert 0.25 <= loss.beta.item() <= 5.0

    def test_beta_changes_only_in_adapt(self, make_loss: Callable[..., KLPENPPOLoss]) -> None:
        loss = make_loss()
        for _ in range(3):
            output = loss(rollout_with_kls(1.0, 2.0))
            (output["loss_objective"] + output["loss_critic"]).backward()
            with torch.no_grad():
                loss(rollout_with_kls(1.0, 2.0))
        assert loss.beta.item() == 1.0
        loss.adapt(rollout_with_kls(1.0, 2.0))
        assert loss.beta.item() == 2.0

    def test_all_ranks_adapt_to_the_mean_over_all_states(self, make_loss: Callable[..., KLPENPPOLoss]) -> None:
        rollouts = [rollout_with_kls(0.06), rollout_with_kls(0.0, 0.0, 0.0)]  # means of 0.06 and 0, together 0.015
        sums: list[Tensor] = []
        for rollout in rollouts:  # what each rank contributes
            make_loss().adapt(rollout, lambda tensor: sums.append(tensor) or tensor)  # type: ignore[func-returns-value]
        for rollout in rollouts:
            loss = make_loss(dtarg=0.0099)
            loss.adapt(rollout, lambda _: torch.stack(sums).sum(0))
            assert loss.beta.item() == 2.0

    def test_only_the_kl_penalty_is_adaptive(
        self, make_loss: Callable[..., KLPENPPOLoss], networks: ActorCritic
    ) -> None:
        assert isinstance(make_loss(), Adaptive)
        assert not isinstance(ClipPPOLoss(*networks), Adaptive)

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
