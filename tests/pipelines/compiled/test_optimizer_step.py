"""A step that is a graph takes the same trajectory as the eager one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from tensordict import TensorDictBase

from torchppo.errors import ConfigurationError
from torchppo.modules import schedules
from torchppo.modules.heads.continuous import tanh_gaussian
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.objectives.kl_penalty import KLPENPPOLoss
from torchppo.modules.objectives.ppo_loss import PPOLoss
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.step_factory import Compile
from torchppo.pipelines.updates.minibatch import MinibatchUpdate

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


@pytest.mark.parametrize("graph", ["trace", True], ids=["traced", "compiled"])
class TestGraphStep:
    @pytest.mark.parametrize(
        ("env_id", "objective", "options"),
        [
            ("CartPole-v1", ClipPPOLoss, {"schedules": {"lr": schedules.linear, "clip_epsilon": schedules.linear}}),
            ("Pendulum-v1", KLPENPPOLoss, {"normalize_observation": True, "value_pretraining": 1}),
            ("Pendulum-v1", ClipPPOLoss, {"head": tanh_gaussian}),
            ("CartPole-v1", ClipPPOLoss, {"shared": True, "update": MinibatchUpdate(2, 8, target_kl=1.0)}),
        ],
    )
    def test_takes_the_eager_trajectory_while_schedules_move(
        self, env_id: str, objective: type[PPOLoss], options: dict[str, Any], graph: Compile, make: Make, fit: Fit
    ) -> None:
        trained = {}
        for choice in (False, graph):
            ppo, collector = make(env_id, objective=objective, rollouts=3, compile=choice, **options)
            trainer = fit(ppo, collector)
            trained[choice] = ppo.state_dict()
            assert trainer.global_step == 3 * 2 * 4
        for name, value in trained[False].items():
            torch.testing.assert_close(trained[graph][name], value, rtol=1e-4, atol=1e-5)

    def test_updates_the_state_that_checkpoints_save(self, graph: Compile, make: Make, fit: Fit) -> None:
        ppo, collector = make(rollouts=1, compile=graph)
        fit(ppo, collector)
        state = ppo.optimizer.state_dict()["state"]
        assert len(state) == len(list(ppo.parameters()))
        assert all(entry["step"] == 2 * 4 for entry in state.values())
        assert any(entry["exp_avg"].abs().sum() > 0 for entry in state.values())

    def test_refuses_an_optimiser_that_it_does_not_know(self, graph: Compile, make: Make, fit: Fit) -> None:
        ppo, collector = make(compile=graph, optimizer=partial(torch.optim.SGD, lr=1e-3))
        with pytest.raises(ConfigurationError, match=r"compile=true or trace needs Adam or AdamW, not SGD"):
            fit(ppo, collector)


class PolicyAlone(ClipPPOLoss):
    """Says no more than it has to."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        return super().forward(tensordict).select("loss_objective", "entropy")


@pytest.mark.parametrize("graph", [False, "trace"])
class TestAnObjectiveOfFewWords:
    def test_trains(self, graph: Compile, make: Make, fit: Fit) -> None:
        ppo, collector = make(objective=PolicyAlone, rollouts=1, compile=graph)
        before = [param.detach().clone() for param in ppo.actor.parameters()]
        fit(ppo, collector)
        assert not all(torch.equal(a, b) for a, b in zip(before, ppo.actor.parameters(), strict=True))

    def test_has_no_kl_to_stop_at(self, graph: Compile, make: Make, fit: Fit) -> None:
        ppo, collector = make(objective=PolicyAlone, update=MinibatchUpdate(2, 8, target_kl=0.1), compile=graph)
        with pytest.raises(ConfigurationError, match=r"update.target_kl needs an objective that reports kl_approx"):
            fit(ppo, collector)


class TestEarlyStop:
    @pytest.mark.parametrize("graph", [False, "trace", True])
    def test_no_step_is_taken_above_the_limit_and_all_epochs_end(self, graph: Compile, make: Make, fit: Fit) -> None:
        ppo, collector = make(update=MinibatchUpdate(10, 8, target_kl=1e-9), rollouts=1, compile=graph)
        trainer = fit(ppo, collector)
        assert trainer.global_step == 1, "the first minibatch has a KL of 0, the second is above the limit"

    @pytest.mark.parametrize("graph", [False, "trace"])
    def test_a_critic_that_goes_on_alone_is_not_held_back(self, graph: Compile, make: Make, fit: Fit) -> None:
        update = MinibatchUpdate(1, 32, critic_epochs=5, target_kl=1e-9)
        ppo, collector = make(update=update, rollouts=1, compile=graph)
        trainer = fit(ppo, collector)
        assert trainer.global_step == 5, "the KL of the only policy step is above the limit from then on"
