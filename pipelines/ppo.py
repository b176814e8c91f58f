"""The LightningModule, which connects estimator, objective, update and controllers."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cached_property
from typing import Any, Literal, cast

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer
from torchrl.objectives.value import ValueEstimatorBase

from ..errors import ConfigurationError
from ..modules.controllers import Controller
from ..modules.heads.value_heads import ValueHead
from ..modules.intrinsic.reward_model import LossesWithRewardModels, RewardModel
from ..modules.intrinsic.streams import write_rewards
from ..modules.normalizers import ObservationNormalizer, RewardTransform
from ..modules.symmetry import SymmetricObjective, Symmetry
from .advantages import RolloutBatch, require_entries
from .collectors.vector import failed_steps
from .distributed import Exchange, num_ranks, reduce_at_once
from .metrics.episode_statistics import EPISODE_KEYS, EpisodeStatistics
from .metrics.learning import METRIC_NAMES, critic_metrics, learning_metrics
from .monitoring import MonitoredModule
from .requirements import check_collector, check_components, check_options, require_optimizer
from .saving.state import has_same_end, load_training_state, start_training, training_state
from .step_factory import Compile, check_compile, make_optimizer_step
from .updates import param_groups
from .updates.coefficients import Coefficients
from .updates.eager_step import LossWeights, clip_gradients
from .updates.skipped import SkippedSteps
from .updates.update import Update


class PPO(MonitoredModule):
    """Proximal policy optimization. One Lightning batch is one rollout; optimization is manual.

    Args:
        objective: `td -> td` of `loss_*` and metrics, such as a TorchRL `LossModule` with `functional=False`.
        estimator: `td -> td`, writes `advantage` and `value_target`.
        update: learns from a rollout, such as `MinibatchUpdate`.
        optimizer: makes the optimizer from parameters or parameter groups.
        total_frames: environment steps of the training over all ranks. Training ends when no further rollout fits.
        controllers: controllers by coefficient: `lr`, or a buffer of the objective such as `clip_epsilon`. They set it
            once per rollout. Callbacks may change a coefficient without a controller in place, with `fill_`.
        reward_models: models of additional rewards, each with its own critic.
        reward_normalizer: transforms rewards before learning; `None` keeps them.
        max_grad_norm: limit of the global gradient norm; infinity disables clipping.
        max_skipped_steps: steps in a row that may be skipped because their loss or gradient is not finite.
        normalize_advantage: normalize to mean 0 and standard deviation 1 over each `rollout` or each `minibatch` of
            all ranks; `None` disables it.
        critic_estimator: estimator of value targets, such as GAE with another lambda; `None` uses `estimator`.
        critic_optimizer: optimizer options, such as `lr`, of the parameters that only the critic uses.
        value_pretraining: number of first rollouts that train only the critic and what it shares with the policy.
        symmetry: a symmetry of the task, for mirrored samples or a mirror loss; `None` disables it.
        compile: how an optimizer step runs (see `step_factory.Compile`). A graph keeps `max_grad_norm` and the
            optimizer's options, except `lr`, as they are at the first step.
        config: a plain dictionary that every checkpoint stores, to rebuild the components from.

    Raises:
        ConfigurationError: if a value is out of range or, when training starts, weights are not float32, no frames are
            left, or a required graph would not call a Lightning hook.

    """

    def __init__(
        self,
        objective: nn.Module,
        estimator: ValueEstimatorBase,
        update: Update,
        optimizer: Callable[[Any], Optimizer],
        *,
        total_frames: int,
        controllers: Mapping[str, Controller] | None = None,
        reward_models: Collection[RewardModel] = (),
        reward_normalizer: RewardTransform | None = None,
        max_grad_norm: float = 0.5,
        max_skipped_steps: int = 20,
        normalize_advantage: Literal["rollout", "minibatch"] | None = "rollout",
        critic_estimator: ValueEstimatorBase | None = None,
        critic_optimizer: Mapping[str, Any] | None = None,
        value_pretraining: int = 0,
        symmetry: Symmetry | None = None,
        compile: Compile = False,  # noqa: A002
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        check_components(objective, estimator, update, reward_models)
        check_options(total_frames, max_grad_norm, normalize_advantage, value_pretraining)
        self.objective, self.estimator, self.update = objective, estimator, update
        self.reward_models = nn.ModuleDict({model.name: model for model in reward_models})
        self.total_frames, self._make_optimizer, self.symmetry = int(total_frames), optimizer, symmetry
        self.reward_normalizer, self.max_grad_norm = reward_normalizer, max_grad_norm
        self.normalize_advantage, self.compile_mode = normalize_advantage, check_compile(compile)
        self.critic_estimator, self.critic_optimizer = critic_estimator, dict(critic_optimizer or {})
        self.value_pretraining, self.config, self.episodes = value_pretraining, config or {}, EpisodeStatistics()
        self.frames, self.num_rollouts, self.trains_policy, self.exchange = 0, 0, True, Exchange()
        self.seconds = {"estimate": 0.0, "update": 0.0}
        self.grad_norm = torch.zeros(())  # of the last step; set by `on_before_optimizer_step`
        self.skipped = SkippedSteps(max_skipped_steps)
        self.loss_weights = LossWeights(f"loss_{name}" for name in self.reward_models)
        self.coefficients = Coefficients(controllers or {}, objective)
        self.after_step: list[Callable[[], None]] = [*getattr(objective, "after_step", ())]
        self._step: Any = None
        self._resumed: dict[str, Any] | None = None  # the state of the checkpoint that the training continues from

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: Any, *, trust: Iterable[str] = (), **components: Any
    ) -> PPO:
        from .checkpoint import load_module

        return load_module(cls, checkpoint_path, components, trust)

    @property
    def actor(self) -> Any:
        return self.objective.actor_network

    @property
    def critic(self) -> Any:
        return self.objective.critic_network

    @cached_property  # a plain attribute would register the parameters twice
    def losses(self) -> nn.Module:
        """The module that computes the losses of a minibatch: the objective, with a symmetry and reward models."""
        losses = SymmetricObjective(self.objective, self.symmetry) if self.symmetry else self.objective
        return LossesWithRewardModels(losses, self._models) if self.reward_models else losses

    @property
    def _models(self) -> list[RewardModel]:
        return cast(list[RewardModel], [*self.reward_models.values()])

    @property
    def optimizer(self) -> Optimizer:
        return cast(Optimizer, self.optimizers(use_pl_optimizer=False))

    @property
    def _uses_param_groups(self) -> bool:
        return bool(self.value_pretraining or self.update.freezes or self.critic_optimizer or self.reward_models)

    def configure_optimizers(self) -> Optimizer:
        params: list[Any] = list(self.objective.parameters())
        if self._uses_param_groups:
            params = param_groups.make_param_groups(self.objective, self.critic_optimizer, self.reward_models)
        try:
            optimizer = require_optimizer(self._make_optimizer(params))
        except Exception as error:
            raise ConfigurationError(f"optimizer: {type(error).__name__}: {error}; change optimizer.*") from error
        if self._uses_param_groups:
            param_groups.check_param_groups(optimizer, self.critic_optimizer, self.reward_models)
        return optimizer

    def on_train_start(self) -> None:
        """Choose how a step runs, now that devices, precision and optimizer are known."""
        collector = self.trainer.train_dataloader
        is_same = has_same_end(self)
        fits = check_collector(collector, self, self.frames, self.total_frames, may_be_complete=is_same)
        self.trainer.should_stop = self.trainer.should_stop or not fits  # only the last evaluation may be missing
        if act_under := getattr(collector, "act_under", None):
            act_under(self.trainer.precision_plugin.forward_context)
        self._step = make_optimizer_step(self, self.compile_mode)
        self.update.setup(self)
        if not is_same:
            self.coefficients.move(self.frames / self.total_frames, {}, self.optimizer)
        start_training(self)
        self._has_frozen_objects, self._published_at = False, time.perf_counter()

    def training_step(self, rollout: TensorDictBase) -> None:
        """Learn from one rollout `[num_envs, time]`."""
        start = time.perf_counter()
        metrics = write_rewards(rollout, self._models, reduce_at_once) if self.reward_models else {}
        if self.reward_normalizer is not None:
            reward = require_entries(rollout, "is_init")["next", "reward"]
            self.reward_normalizer.update(reward, rollout["is_init"], reduce_at_once)
            rollout["next", "reward"] = self.reward_normalizer(reward)
        batch = self.make_batch(rollout)
        self.update.check(*rollout.shape, in_sequences=batch.in_sequences)
        batch.estimate()
        estimated = time.perf_counter()
        results = {**self.coefficients.values(self.optimizer), **critic_metrics(batch), **self.update(batch)}
        num_frames = rollout.numel() * num_ranks()
        self.frames, self.num_rollouts = self.frames + num_frames, self.num_rollouts + 1
        self.skipped.count(rollout, self.frames, is_last=self.frames + num_frames > self.total_frames)
        trains_policy = self.num_rollouts > self.value_pretraining
        results |= self.coefficients.kl(batch) if trains_policy else {}
        results = learning_metrics(self, batch, results, self.exchange.reduce)
        self._update_statistics(batch)
        self.exchange.run()
        measured = self.coefficients.measured(results) if trains_policy else {}
        self.coefficients.move(self.frames / self.total_frames, measured, self.optimizer)
        metrics |= {f"train/{METRIC_NAMES.get(name, name)}": value for name, value in results.items()}
        self.seconds["estimate"] += estimated - start
        self.seconds["update"] += time.perf_counter() - estimated  # computing the metrics waits for the device
        self.publish_rollout(metrics | self.episodes.metrics | failed_steps(self.trainer.train_dataloader), num_frames)
        self.trainer.should_stop |= self.frames + num_frames > self.total_frames
        if not self._has_frozen_objects:
            self._has_frozen_objects = True
            gc.freeze()  # a full collection of all modules and graphs takes 0.3 s, as long as a rollout of HalfCheetah

    def make_batch(self, rollout: TensorDictBase) -> RolloutBatch:
        """Return the batch of a rollout, without advantages."""
        components = rollout, self.actor, self.critic, self.estimator, self.critic_estimator, self._models
        length = self.update.frames_per_sequence(rollout.shape[1])
        return RolloutBatch(*components, normalize=self.normalize_advantage == "rollout", sequence_length=length)

    def step(self, rows: TensorDictBase, indices: Tensor) -> Mapping[str, Tensor] | None:
        """Take one optimizer step; see `EagerStep`."""
        if (metrics := self._step(rows, indices)) is not None:
            self.skipped.add(metrics)
            for hook in self.after_step if self.trains_policy else ():
                hook()
        return metrics

    def set_trainable(self, *, policy: bool, critic: bool) -> bool:
        """Freeze policy or critic; a frozen part keeps its optimizer state. Return whether anything is trainable."""
        self.trains_policy = policy = policy and self.num_rollouts >= self.value_pretraining
        if self._uses_param_groups:
            self.loss_weights.policy.fill_(float(policy))
            self.loss_weights.critic.fill_(float(critic))
            param_groups.set_trainable(self.optimizer, policy=policy, critic=critic)
        return policy or critic

    def _update_statistics(self, batch: RolloutBatch) -> None:
        self.episodes.update(require_entries(batch.rollout, *EPISODE_KEYS), self.exchange.reduce)
        for module in self.objective.modules():
            if isinstance(module, ObservationNormalizer):
                module.update(batch.rollout[module.key], self.exchange.reduce)
            elif isinstance(module, ValueHead) and self.skipped.number == 0:  # else targets may not be finite
                module.update(batch.rollout["value_target"], self.exchange.reduce)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.grad_norm = clip_gradients(self)

    def on_train_end(self) -> None:
        self._step = None  # graphs hold the memory of their inputs and outputs
        gc.unfreeze()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["torchppo"] = training_state(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        load_training_state(self, checkpoint)
        self._resumed = checkpoint["torchppo"]
