"""Arguments, collectors and Trainers that would train something else than intended are refused."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torchrl.objectives import ClipPPOLoss as TorchRLClipPPOLoss
from torchrl.objectives import KLPENPPOLoss as TorchRLKLPENPPOLoss

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.controllers import Linear
from torchppo.modules.features.bodies import mlp
from torchppo.modules.heads.value_heads import HuberValue
from torchppo.pipelines import requirements
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.updates.minibatch import MinibatchUpdate
from torchppo.pipelines.updates.natural_gradient import NaturalGradientUpdate

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


def with_objective(ppo: PPO, objective: Any, **options: Any) -> PPO:
    """Return a module with the components of `ppo` and another objective or option."""
    arguments = {"estimator": ppo.estimator, "update": ppo.update, "optimizer": torch.optim.Adam, "total_frames": 64}
    return PPO(objective, **{**arguments, **options})


@pytest.mark.parametrize(
    ("options", "loss", "message"),
    [
        ({"critic": HuberValue}, {"functional": False}, "does not use the loss of HuberValue"),
        ({"normalize_observation": True}, {}, "functional=False"),
    ],
)
def test_losses_of_torchrl_that_ignore_a_part_of_the_networks_are_refused(
    options: dict[str, Any], loss: dict[str, Any], message: str, make: Make
) -> None:
    ppo, collector = make()
    env = collector.env
    networks = make_actor_critic(env.observation_spec, env.action_spec, body=mlp, **options)
    with pytest.raises(ConfigurationError, match=message):
        with_objective(ppo, TorchRLClipPPOLoss(*networks, **loss))


def test_an_update_without_the_protocol_is_refused(make: Make) -> None:
    ppo, _ = make()
    with pytest.raises(ConfigurationError, match="update=GAE has no stop_above"):
        with_objective(ppo, ppo.objective, update=ppo.estimator)


def test_a_property_of_an_update_may_need_setup(make: Make) -> None:
    class LimitOfObjective(MinibatchUpdate):
        @property
        def stop_above(self) -> Any:
            return self.learner.objective.limit

        @stop_above.setter
        def stop_above(self, value: Any) -> None: ...

    ppo, _ = make()
    with_objective(ppo, ppo.objective, update=LimitOfObjective(1, 16))


def test_numbers_of_frames_are_whole_numbers(make: Make) -> None:
    ppo, collector = make()
    assert with_objective(ppo, ppo.objective, total_frames=1e6).total_frames == 1_000_000
    assert len(Collector(collector.env, ppo.actor, frames_per_env=8, total_frames=1e3)) == 62  # type: ignore[arg-type]
    for frames in (1.5, float("inf"), float("nan")):
        with pytest.raises(ConfigurationError, match=f"total_frames={frames}"):
            with_objective(ppo, ppo.objective, total_frames=frames)


def test_a_collector_with_another_policy_is_refused(make: Make, fit: Fit) -> None:
    (ppo, collector), (_, other) = make(), make()
    with pytest.raises(ConfigurationError, match="another policy"):
        fit(ppo, other)
    collector.policy = lambda data: data  # type: ignore[assignment] # its parameters are unknown
    fit(ppo, collector)


def test_a_schedule_in_the_optimizer_is_refused(make: Make, fit: Fit) -> None:
    def optimizer(params: Any) -> dict[str, Any]:
        adam = torch.optim.Adam(params)
        return {"optimizer": adam, "lr_scheduler": torch.optim.lr_scheduler.StepLR(adam, 1)}

    ppo, collector = make(optimizer=optimizer)
    with pytest.raises(ConfigurationError, match=r"dict, not an Optimizer; .* controllers"):
        fit(ppo, collector)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"callbacks": [StochasticWeightAveraging(1e-3, swa_epoch_start=1)]}, "StochasticWeightAveraging"),
        ({"overfit_batches": 1}, "overfit_batches"),
    ],
)
def test_options_of_the_trainer_with_a_wrong_effect_are_refused(
    options: dict[str, Any], message: str, make: Make
) -> None:
    ppo, collector = make()
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(max_epochs=-1, accelerator="cpu", enable_model_summary=False, **quiet, **options)
    with pytest.raises(ConfigurationError, match=message):
        trainer.fit(ppo, train_dataloaders=collector)


def test_ranks_with_the_same_seed_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    monkeypatch.setattr(requirements, "num_ranks", lambda: 2)
    monkeypatch.setattr(requirements, "gathered", lambda own: [*own, own[0] + 1])
    requirements.check_trainer(trainer)
    monkeypatch.setattr(requirements, "gathered", lambda own: own * 2)
    with pytest.raises(ConfigurationError, match="same random seed"):
        requirements.check_trainer(trainer)


def test_a_controller_can_be_used_for_several_trainings(make: Make, fit: Fit) -> None:
    controllers = {"lr": Linear(0.5)}
    for lr in (1e-3, 1e-5):
        ppo, collector = make(controllers=controllers, optimizer=partial(torch.optim.Adam, lr=lr))
        fit(ppo, collector)
        assert ppo.optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * lr)


def test_a_controller_may_refer_to_the_trained_networks(make: Make) -> None:
    class Reader(Linear):
        network: Any = None

    controller = Reader()
    ppo, _ = make()
    controller.network = ppo.actor
    copied = with_objective(ppo, ppo.objective, controllers={"lr": controller}).coefficients._controllers["lr"]
    assert copied is not controller
    assert getattr(copied, "network", None) is ppo.actor


def test_natural_gradients_refuse_a_loss_that_changes_in_the_line_search(make: Make, fit: Fit) -> None:
    ppo, collector = make()
    loss = TorchRLKLPENPPOLoss(ppo.actor, ppo.critic, functional=False)
    with pytest.raises(ConfigurationError, match=r"torchppo\.KLPENPPOLoss"):
        fit(with_objective(ppo, loss, update=NaturalGradientUpdate(minibatch_size=8)), collector)
