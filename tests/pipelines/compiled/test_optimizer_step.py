"""Graph steps take the same steps as eager ones."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from tensordict import TensorDictBase

from torchppo.errors import ConfigurationError, GraphError
from torchppo.modules.controllers import Linear
from torchppo.modules.features.recurrent import GRU, LSTM
from torchppo.modules.features.transformer import Transformer
from torchppo.modules.heads.continuous import tanh_gaussian
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.objectives.espo import ESPOLoss
from torchppo.modules.objectives.kl_penalty import KLPENPPOLoss
from torchppo.modules.objectives.ppo_ewma import PPOEWMALoss
from torchppo.modules.objectives.ppo_loss import PPOLoss
from torchppo.modules.objectives.rollback import RollbackPPOLoss
from torchppo.modules.objectives.spo import SPOLoss
from torchppo.modules.trust_region.kl import KLTrustRegion
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.step_factory import Compile
from torchppo.pipelines.updates.eager_step import total_loss
from torchppo.pipelines.updates.minibatch import MinibatchUpdate

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


@pytest.mark.parametrize("graph", ["trace", True], ids=["traced", "compiled"])
class TestGraphStep:
    @pytest.mark.parametrize(
        ("env_id", "objective", "options"),
        [
            (
                "CartPole-v1",
                ClipPPOLoss,
                {
                    "controllers": {"lr": Linear(), "clip_epsilon": Linear()},
                    "shared": True,
                    "update": MinibatchUpdate(2, 8, target_kl=1.0),
                },
            ),
            (
                "Pendulum-v1",
                KLPENPPOLoss,
                {"normalize_observation": True, "value_pretraining": 1, "head": tanh_gaussian},
            ),
            ("CartPole-v1", partial(PPOEWMALoss, importance_quantile=0.9), {}),
        ],
    )
    def test_weights_and_optimizer_state_of_a_checkpoint_equal_the_eager_ones(
        self, env_id: str, objective: Any, options: dict[str, Any], graph: Compile, make: Make, fit: Fit
    ) -> None:
        trained = {}
        for choice in (False, graph):
            ppo, collector = make(env_id, objective=objective, rollouts=3, compile=choice, **options)
            trainer = fit(ppo, collector)
            adam = {index: dict(state) for index, state in ppo.optimizer.state_dict()["state"].items()}
            trained[choice] = dict(ppo.state_dict()), adam
            assert trainer.global_step == 3 * 2 * 4
            assert any(state["exp_avg"].abs().sum() > 0 for state in adam.values())
        torch.testing.assert_close(trained[graph], trained[False], rtol=1e-4, atol=1e-5)

    def test_other_optimizers_are_refused(self, graph: Compile, make: Make, fit: Fit) -> None:
        ppo, collector = make(compile=graph, optimizer=partial(torch.optim.SGD, lr=1e-3))
        with pytest.raises(GraphError, match="SGD"):
            fit(ppo, collector)


@pytest.mark.parametrize(
    "memory",
    [partial(LSTM, width=4), partial(GRU, width=4), partial(Transformer, width=4, num_heads=2, context_length=4)],
)
def test_memories_take_the_same_steps_wherever_episodes_begin(
    memory: Any, graph: Compile, make: Make, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    results: dict[Compile, list[Any]] = {False: [], graph: []}
    for choice, logged in results.items():
        ppo, collector = make(memory=memory, compile=choice, update=MinibatchUpdate(1, 16), frames_per_env=16)
        monkeypatch.setattr(type(ppo), "step", recording(logged))
        fit(ppo, collector)
        logged.append(dict(ppo.state_dict()))
        monkeypatch.undo()
    *metrics, weights = results[graph]
    *expected, expected_weights = results[False]
    if graph == "trace":
        assert {**metrics[0], "grad_norm": 0.0} == {**expected[0], "grad_norm": 0.0}  # bitwise
    torch.testing.assert_close(metrics, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-5 if graph is True else 1e-7)


def recording(logged: list[Any]) -> Callable[..., Any]:
    """Return `PPO.step`, which also appends the metrics of a step to a list."""
    step = PPO.step

    def recorded(*arguments: Any) -> Any:
        result = step(*arguments)
        logged.append({name: value.item() for name, value in result.items()})
        return result

    return recorded


@pytest.mark.parametrize(
    "objective",
    [
        partial(ClipPPOLoss, dual_clip=1.5, max_importance_ratio=1.05),
        partial(KLPENPPOLoss, importance_quantile=0.9),
        PPOLoss,
        SPOLoss,
        ESPOLoss,
        RollbackPPOLoss,
        partial(RollbackPPOLoss, max_kl=1e-4),
        PPOEWMALoss,
    ],
    ids=["clip", "penalty", "unclipped", "spo", "espo", "rollback", "truly", "ewma"],
)
def test_traced_losses_and_gradients_are_bitwise_those_of_autograd(objective: Any, make: Make, fit: Fit) -> None:
    ppo, collector = make(objective=objective, rollouts=3, compile="trace")
    take_step, num_equal = ppo.step, 0

    def compare(rows: TensorDictBase, indices: torch.Tensor) -> dict[str, torch.Tensor] | None:
        nonlocal num_equal
        with torch.enable_grad():
            losses = ppo.objective(rows[indices])
            gradients = torch.autograd.grad(total_loss(losses, ppo.loss_weights), list(ppo.objective.parameters()))
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        found = take_step(rows, indices)
        num_equal += found is not None and all(torch.equal(found[key], losses[key]) for key in losses.keys())  # noqa: SIM118
        assert found is not None
        assert torch.equal(found["grad_norm"], norm)
        return found

    ppo.step = compare  # type: ignore[method-assign]
    fit(ppo, collector)
    assert num_equal == 3 * 2 * 4


class CountingLoss(ClipPPOLoss):
    """Counts its calls in a tensor, as a running mean would."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.calls = self.calls + 1
        return super().forward(tensordict)


def test_a_graph_that_fails_leaves_the_state_of_the_losses_as_it_was(make: Make, fit: Fit) -> None:
    ppo, collector = make(objective=CountingLoss, rollouts=1, compile="trace")
    with pytest.raises(GraphError, match=r"CountingLoss\.calls"):
        fit(ppo, collector)
    assert ppo.objective.calls == 0


class PolicyLossOnly(ClipPPOLoss):
    """Returns one loss and one metric, without the critic's loss and the KL."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return super().forward(tensordict).select("loss_objective", "entropy")


@pytest.mark.parametrize("graph", [False, "trace"])
class TestObjectiveWithFewOutputs:
    def test_objective_without_critic_loss_trains(self, graph: Compile, make: Make, fit: Fit) -> None:
        ppo, collector = make(objective=PolicyLossOnly, rollouts=1, compile=graph)
        before = [param.detach().clone() for param in ppo.actor.parameters()]
        fit(ppo, collector)
        assert not all(torch.equal(a, b) for a, b in zip(before, ppo.actor.parameters(), strict=True))

    def test_target_kl_needs_kl_approx(self, graph: Compile, make: Make, fit: Fit) -> None:
        ppo, collector = make(objective=PolicyLossOnly, update=MinibatchUpdate(2, 8, target_kl=0.1), compile=graph)
        with pytest.raises(ConfigurationError, match=r"update\.target_kl.*kl_approx"):
            fit(ppo, collector)


class TestEarlyStop:
    @pytest.mark.parametrize("graph", [False, "trace"])
    def test_update_ends_before_a_step_above_the_limit(self, graph: Compile, make: Make, fit: Fit) -> None:
        ppo, collector = make(update=MinibatchUpdate(10, 8, target_kl=1e-9), rollouts=1, compile=graph)
        trainer = fit(ppo, collector)
        assert trainer.global_step == 1, "the KL of the first minibatch is 0, that of the second is above the limit"

    @pytest.mark.parametrize("graph", [False, "trace"])
    def test_objective_may_have_its_own_rule(self, graph: Compile, make: Make, fit: Fit) -> None:
        ppo, collector = make(objective=partial(ESPOLoss, delta=1e-9), rollouts=1, compile=graph)
        assert fit(ppo, collector).global_step == 1

    def test_two_rules_are_refused(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(objective=ESPOLoss, update=MinibatchUpdate(2, 8, target_kl=0.1))
        with pytest.raises(ConfigurationError, match=r"update\.target_kl has no effect with ESPOLoss"):
            fit(ppo, collector)

    @pytest.mark.parametrize("graph", [False, "trace"])
    def test_kl_does_not_stop_epochs_of_only_the_critic(self, graph: Compile, make: Make, fit: Fit) -> None:
        update = MinibatchUpdate(1, 32, critic_epochs=5, target_kl=1e-9)
        ppo, collector = make(update=update, rollouts=1, compile=graph)
        trainer = fit(ppo, collector)
        assert trainer.global_step == 5, "the KL is above the limit after the only step of the policy"


def test_projections_of_a_trust_region_are_traced(make: Make, fit: Fit) -> None:
    def objective(*networks: Any) -> ClipPPOLoss:
        return KLTrustRegion(mean_bound=1e-5, cov_bound=1e-6).apply_to(ClipPPOLoss(*networks))

    states = []
    for graph in (False, "trace"):
        ppo, collector = make("Pendulum-v1", objective=objective, rollouts=3, compile=graph)
        trainer = fit(ppo, collector)
        assert trainer.callback_metrics["train/projected_fraction"] > 0.1
        states.append(ppo.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-5)
