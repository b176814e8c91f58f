"""The auxiliary phase: its losses, its schedule, and its state in checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning import Trainer
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.modules import ProbabilisticActor, ValueOperator, set_recurrent_mode

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import GRU
from torchppo.modules.heads.quadratic_advantage import QuadraticAdvantageValue
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.pipelines.advantages import RolloutBatch
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.updates.eager_step import LossWeights
from torchppo.pipelines.updates.phasic import PhasicUpdate
from torchppo.pipelines.updates.skipped import SkippedSteps

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


class Learner:
    """An objective whose optimizer steps change nothing, so that only the auxiliary phase trains."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.normalize_advantage = "rollout"
        self.loss_weights = LossWeights()
        self.skipped = SkippedSteps(20)
        self.trains_policy = True
        self.after_step: list[Callable[[], None]] = []

    def step(self, rows: TensorDictBase, indices: Tensor) -> dict[str, Tensor]:
        return {"grad_norm": torch.ones(())}

    def set_trainable(self, *, policy: bool, critic: bool) -> bool:
        self.loss_weights.policy.fill_(float(policy))
        self.loss_weights.critic.fill_(float(critic))
        return policy or critic


class Batch:
    def __init__(self, rows: TensorDictBase) -> None:
        self.rows = rows


def objective_and_rows(shape: tuple[int, ...] = (32,), **options: Any) -> tuple[ClipPPOLoss, TensorDictBase]:
    torch.manual_seed(0)
    action = Bounded(-1.0, 1.0, (2,))
    specs = Composite(observation=Unbounded((3,)), shape=()).expand(8), action.expand(8, 2)
    actor, critic = make_actor_critic(*specs, body=partial(mlp, num_cells=[8]), **options)
    rows = TensorDict({"observation": torch.randn(*shape, 3), "is_init": torch.zeros(*shape, 1).bool()}, shape[:1])
    for module in actor.modules():
        if hasattr(module, "state_shape"):
            rows[module.key] = torch.zeros(shape[0], *module.state_shape)
    for param in actor.parameters():
        if param.shape == (2, 8):
            param.data *= 100  # the action head, so that features change the policy
    with torch.no_grad(), set_recurrent_mode(len(shape) > 1):
        acted = actor(rows.copy())
    rows.update(acted.select(*[key for key in actor.out_keys if key[0] != "next"]))
    for key in ("advantage", "value_target", "state_value"):
        rows[key] = torch.randn(*shape, 1)
    return ClipPPOLoss(actor, critic), rows


def phase(objective: Any, rows: TensorDictBase, **options: Any) -> tuple[dict[str, float], PhasicUpdate]:
    update = PhasicUpdate(1, rows["advantage"].numel(), num_rollouts=1, **options)
    update.setup(cast(Any, Learner(objective)))
    return update(cast(RolloutBatch, Batch(rows))), update


def features_of(objective: Any, rows: TensorDictBase) -> Tensor:
    data = rows.copy()
    with torch.no_grad():
        objective.actor_network.get_dist(data)
    key = next(key for key in data.keys() if "actor" in key)  # noqa: SIM118
    return data[key]


class TestAuxiliaryPhase:
    def test_first_step_has_the_losses_and_the_gradient_of_the_paper(self) -> None:
        objective, rows = objective_and_rows()
        features, target = (one.double().numpy() for one in (features_of(objective, rows), rows["value_target"]))
        metrics, update = phase(objective, rows, auxiliary_epochs=1, auxiliary_lr=1e-3)
        assert metrics["auxiliary_value"] == pytest.approx(0.5 * (target**2).mean(), rel=1e-5)
        assert metrics["auxiliary_kl"] == pytest.approx(0.0, abs=1e-6)
        head = update.state_dict()["head"]
        # The first step of Adam is the learning rate times the sign of the gradient.
        np.testing.assert_allclose(head["weight"][0].numpy(), 1e-3 * np.sign((target * features).mean(0)), rtol=1e-3)
        np.testing.assert_allclose(head["bias"].numpy(), 1e-3 * np.sign(target.mean()), rtol=1e-3)

    def test_it_trains_values_of_both_networks_and_clones_the_policy(self) -> None:
        kls = []
        for beta_clone in (0.0, 100.0):
            objective, rows = objective_and_rows()
            before = float(objective(rows)["loss_critic"].detach())
            metrics, _ = phase(objective, rows, auxiliary_epochs=50, beta_clone=beta_clone, auxiliary_lr=1e-2)
            assert metrics["auxiliary_value"] < 0.9 * 0.5 * float(rows["value_target"].square().mean())
            assert objective(rows)["loss_critic"].detach() < 0.9 * before
            kls.append(float(objective(rows)["kl_approx"]))
        assert 0 < kls[1] < 0.01 < kls[0]

    def test_rows_of_a_recurrent_policy_are_sequences(self) -> None:
        objective, rows = objective_and_rows((4, 8), memory=partial(GRU, width=4))
        metrics, _ = phase(objective, rows, auxiliary_epochs=30, auxiliary_lr=1e-2)
        assert metrics["auxiliary_value"] < 0.5 * float(rows["value_target"].square().mean())

    def test_values_are_clipped_around_those_before_the_phase(self) -> None:
        errors = []
        for offset in (0.0, 100.0):  # of the values at collection, whose clipped errors would have no gradient
            objective, rows = objective_and_rows()
            objective.clip_value = torch.tensor(0.5)
            rows["state_value"] += offset
            phase(objective, rows, auxiliary_epochs=1, auxiliary_lr=1e-2)
            with torch.no_grad():
                values = objective.critic_network(rows.copy())["state_value"]
            errors.append(float((values - rows["value_target"]).square().mean()))
        assert errors[0] == errors[1]

    def test_a_step_that_is_not_finite_is_skipped(self) -> None:
        objective, rows = objective_and_rows()
        rows["value_target"][0] = float("inf")
        before = [param.clone() for param in objective.parameters()]
        metrics, update = phase(objective, rows)
        assert all(torch.equal(*pair) for pair in zip(before, objective.parameters(), strict=True))
        assert not any(name.startswith("auxiliary") for name in metrics)
        update.learner.skipped.count(rows, 32, is_last=False)
        assert update.learner.skipped.number == 6


class TestTraining:
    def test_it_runs_after_every_few_rollouts(self, make: Make, fit: Fit) -> None:
        update = PhasicUpdate(1, 16, num_rollouts=2, auxiliary_epochs=3)
        ppo, collector = make(rollouts=5, update=update, compile="trace")
        hooks: list[int] = []
        ppo.after_step.append(lambda: hooks.append(ppo.num_rollouts))
        trainer = fit(ppo, collector)
        assert hooks == [0, 0, *[1] * (2 + 12), 2, 2, *[3] * (2 + 12), 4, 4]
        assert trainer.callback_metrics["train/auxiliary_value"] > 0

    def test_value_pretraining_leaves_the_policy(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(update=PhasicUpdate(1, 16, num_rollouts=1), value_pretraining=2)
        before = [param.clone() for param in ppo.actor.parameters()]
        fit(ppo, collector)
        assert all(torch.equal(*pair) for pair in zip(before, ppo.actor.parameters(), strict=True))

    def test_a_run_with_an_interruption_is_equal_bit_by_bit(self) -> None:
        words = ("env=cartpole", "env.num_envs=2", "collector.frames_per_env=16", "update.minibatch_size=16")
        update = ("update=ppg", "update.num_rollouts=2", "update.auxiliary_epochs=1")
        assert main(["verify-resume", *update, *words, "compile=false", "--rollouts", "3"]) == 0


def test_an_action_head_that_reads_the_observation_is_refused() -> None:
    network = TensorDictModule(nn.Linear(3, 2), ["observation"], ["logits"])
    actor = ProbabilisticActor(network, ["logits"], distribution_class=torch.distributions.Categorical)
    objective = ClipPPOLoss(actor, ValueOperator(nn.Linear(3, 1)))
    with pytest.raises(ConfigurationError, match=r"update=ppg .* observation"):
        PhasicUpdate().setup(cast(Any, Learner(objective)))


def test_a_critic_that_needs_the_distribution_at_collection_is_refused() -> None:
    objective, _ = objective_and_rows(critic=QuadraticAdvantageValue)
    with pytest.raises(ConfigurationError, match="critic=quadratic_advantage"):
        PhasicUpdate().setup(cast(Any, Learner(objective)))


@pytest.mark.parametrize(
    ("name", "value"),
    [("num_rollouts", 0), ("auxiliary_epochs", 0), ("beta_clone", -1.0), ("auxiliary_lr", -1.0), ("epochs", 0)],
)
def test_values_out_of_range_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigurationError, match=f"update.{name}={value}"):
        PhasicUpdate(**{name: value})  # type: ignore[arg-type]
