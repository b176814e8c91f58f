"""The LightningModule, which connects estimator, objective, update and schedules."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import torch
from lightning import LightningModule
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer
from torchrl.objectives.value import ValueEstimatorBase

from ..errors import ConfigurationError, NumericalError
from ..modules.heads.value_heads import ValueHead
from ..modules.normalizers import ObservationNormalizer, RewardTransform
from ..modules.objectives.kl_penalty import Adaptive
from ..modules.schedules import Schedule, Schedules
from . import param_groups
from .advantages import EpisodeStatistics, RolloutBatch, require_entries
from .distributed import num_ranks, summed
from .step_factory import Compile, check_compile, make_optimizer_step
from .updates.eager_step import clip_gradients
from .updates.minibatch import MinibatchUpdate

METRIC_NAMES = {"kl_approx": "approx_kl"}  # the names that PPO users know


class PPO(LightningModule):
    """Proximal policy optimization. One Lightning batch is one rollout; optimization is manual.

    Args:
        objective: `td -> td` of `loss_*` and metrics, such as a TorchRL `LossModule` with `functional=False`.
        estimator: `td -> td`, writes `advantage` and `value_target`.
        update: epochs, minibatches and early stopping.
        optimizer: makes the optimizer from parameters or parameter groups.
        total_frames: environment steps of the training over all ranks; it ends when no further rollout fits.
        schedules: of `lr`, `clip_epsilon` or `entropy_coeff`, as factors of their initial values.
        reward_normalizer: transforms rewards before learning; `None` keeps them.
        max_grad_norm: limit of the global gradient norm; infinity disables clipping.
        normalize_advantage: normalize to mean 0 and standard deviation 1 over each `rollout` or each `minibatch` of
            all ranks; `None` disables it.
        critic_estimator: estimator of value targets, such as GAE with another lambda; `None` uses `estimator`.
        critic_optimizer: optimizer options, such as `lr`, of the parameters that only the critic uses.
        value_pretraining: number of first rollouts that train only the critic and what it shares with the policy.
        compile: how an optimizer step runs (see `step_factory.Compile`). A graph keeps `max_grad_norm` and the
            optimizer's options, except `lr`, as they are at the first step.
        config: a plain dictionary that every checkpoint stores, to rebuild the components from.

    Raises:
        ConfigurationError: if a value is out of range or, when training starts, weights are not float32 or no frames
            are left. If a graph is required and would not call a Lightning hook, the error is a GraphError.

    """

    policy_weight: Tensor
    critic_weight: Tensor

    def __init__(
        self,
        objective: nn.Module,
        estimator: ValueEstimatorBase,
        update: MinibatchUpdate,
        optimizer: Callable[[Any], Optimizer],
        *,
        total_frames: int,
        schedules: Mapping[str, Schedule] | None = None,
        reward_normalizer: RewardTransform | None = None,
        max_grad_norm: float = 0.5,
        normalize_advantage: Literal["rollout", "minibatch"] | None = "rollout",
        critic_estimator: ValueEstimatorBase | None = None,
        critic_optimizer: Mapping[str, Any] | None = None,
        value_pretraining: int = 0,
        compile: Compile = False,  # noqa: A002
        config: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        check_options(objective, total_frames, max_grad_norm, normalize_advantage, value_pretraining)
        self.objective = objective
        self.estimator = estimator
        self.update = update
        self.total_frames = total_frames
        self.reward_normalizer = reward_normalizer
        self.max_grad_norm = max_grad_norm
        self.normalize_advantage = normalize_advantage
        self.critic_estimator = critic_estimator
        self.critic_optimizer = dict(critic_optimizer or {})
        self.value_pretraining = value_pretraining
        self.compile_mode = check_compile(compile)
        self.config = config or {}
        self.episodes = EpisodeStatistics()
        self.frames = 0
        self.num_rollouts = 0
        self.seconds = {"estimate": 0.0, "update": 0.0}
        self.grad_norm = torch.zeros(())  # of the last step; set by `on_before_optimizer_step`
        self.register_buffer("policy_weight", torch.ones(()), persistent=False)
        self.register_buffer("critic_weight", torch.ones(()), persistent=False)
        self._make_optimizer = optimizer
        self._schedules = Schedules(schedules or {}, objective)
        self._uses_param_groups = False  # `configure_optimizers` decides
        self._step: Any = None

    @property
    def actor(self) -> Any:
        return self.objective.actor_network

    @property
    def critic(self) -> Any:
        return self.objective.critic_network

    @property
    def optimizer(self) -> Optimizer:
        return cast(Optimizer, self.optimizers(use_pl_optimizer=False))

    def configure_optimizers(self) -> Optimizer:
        takes_turns = self.value_pretraining > 0 or self.update.critic_epochs != self.update.epochs
        self._uses_param_groups = takes_turns or bool(self.critic_optimizer)
        params: list[Any] = list(self.objective.parameters())
        if self._uses_param_groups:
            params = param_groups.make_param_groups(self.objective, self.critic_optimizer)
        try:
            optimizer = self._make_optimizer(params)
        except ValueError as error:
            raise ConfigurationError(f"optimizer: {error}; change optimizer.*") from error
        if self._uses_param_groups:
            param_groups.check_param_groups(optimizer, self.critic_optimizer)
        return optimizer

    def on_train_start(self) -> None:
        """Choose how a step runs, now that devices, precision and optimizer are known."""
        collector = self.trainer.train_dataloader
        next_frames = getattr(collector, "frames_per_batch", 1) * num_ranks()
        if self.frames and self.frames + next_frames > self.total_frames:
            raise ConfigurationError(
                f"total_frames={self.total_frames} leaves no room for a rollout of {next_frames} after {self.frames} "
                "trained frames; increase it"
            )
        if act_under := getattr(collector, "act_under", None):
            act_under(self.trainer.precision_plugin.forward_context)
        self._step = make_optimizer_step(self, self.compile_mode)
        self._logged_at = time.perf_counter()

    def training_step(self, rollout: TensorDictBase) -> None:
        """Learn from one rollout `[num_envs, time]`."""
        start = time.perf_counter()
        self._schedules.apply(min(self.frames / self.total_frames, 1.0), self.objective, self.optimizer)
        if self.reward_normalizer is not None:
            reward = require_entries(rollout, "is_init")["next", "reward"]
            self.reward_normalizer.update(reward, rollout["is_init"], summed)
            rollout["next", "reward"] = self.reward_normalizer(reward)
        batch = self.make_batch(rollout)
        batch.estimate()
        metrics = {"explained_variance": batch.explained_variance}
        estimated = time.perf_counter()
        metrics |= self.update(self, batch)
        self._update_statistics(batch)
        metrics = {f"train/{METRIC_NAMES.get(name, name)}": value for name, value in metrics.items()}
        self.seconds["estimate"] += estimated - start
        self.seconds["update"] += time.perf_counter() - estimated  # computing the metrics waits for the device
        self.episodes.update(rollout)
        num_frames = rollout.numel() * num_ranks()
        self.frames += num_frames
        self.num_rollouts += 1
        self._log_metrics(metrics | self.episodes.metrics, num_frames)
        if self.frames + num_frames > self.total_frames:
            self.trainer.should_stop = True

    def make_batch(self, rollout: TensorDictBase) -> RolloutBatch:
        """Return the batch of a rollout, without advantages."""
        return RolloutBatch(
            rollout,
            self.actor,
            self.critic,
            self.estimator,
            self.critic_estimator,
            normalize=self.normalize_advantage == "rollout",
            sequence_length=self.update.frames_per_sequence(rollout.shape[1]),
        )

    def step(self, rows: TensorDictBase, indices: Tensor) -> dict[str, Tensor] | None:
        """Take one optimizer step; see `EagerStep`."""
        metrics: dict[str, Tensor] | None = self._step(rows, indices)
        return metrics

    def set_trainable(self, *, policy: bool, critic: bool) -> bool:
        """Freeze policy or critic; a frozen part keeps its optimizer state. Return whether anything is trainable."""
        policy = policy and self.num_rollouts >= self.value_pretraining
        if self._uses_param_groups:
            self.policy_weight.fill_(float(policy))
            self.critic_weight.fill_(float(critic))
            param_groups.set_trainable(self.optimizer, policy=policy, critic=critic)
        return policy or critic

    def _update_statistics(self, batch: RolloutBatch) -> None:
        """Update what changes once per rollout: the KL coefficient and the networks' normalizers."""
        if isinstance(self.objective, Adaptive) and self.num_rollouts >= self.value_pretraining:
            self.objective.adapt(batch.rows, summed)
        for module in self.modules():
            if isinstance(module, ObservationNormalizer):
                module.update(batch.rollout[module.key], summed)
            elif isinstance(module, ValueHead):
                module.update(batch.rollout["value_target"], summed)

    def _log_metrics(self, metrics: dict[str, float], num_frames: int) -> None:
        metrics["train/lr"] = self.optimizer.param_groups[0]["lr"]
        for name, value in metrics.items():
            if not math.isfinite(value):
                raise NumericalError(f"{name}={value} after {self.frames} frames; lower optimizer.lr or scale rewards")
        now = time.perf_counter()
        metrics["time/fps"] = num_frames / (now - self._logged_at)
        self._logged_at = now
        # `self.log` takes half a millisecond per metric, a third of the time of a small rollout.
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.frames)
            logger.save()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        self.grad_norm = clip_gradients(self)

    def on_train_end(self) -> None:
        self._step = None  # graphs hold the memory of their inputs and outputs

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = {"config": self.config, "frames": self.frames, "num_rollouts": self.num_rollouts}
        checkpoint["torchppo"] = {**state, **self.episodes.state_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        state = checkpoint["torchppo"]
        self.frames, self.num_rollouts = state["frames"], state["num_rollouts"]
        self.episodes.load_state_dict(state)


def check_options(objective: Any, frames: int, max_norm: float, normalize: str | None, pretraining: int) -> None:
    """Raise a ConfigurationError for an option of `PPO` that cannot work."""
    for name in ("actor_network", "critic_network"):
        if not isinstance(getattr(objective, name, None), nn.Module):
            raise ConfigurationError(f"objective={type(objective).__name__} needs an nn.Module in its attribute {name}")
    if frames < 1:
        raise ConfigurationError(f"total_frames={frames} must be at least 1")
    if not max_norm > 0:
        raise ConfigurationError(f"ppo.max_grad_norm={max_norm} must be positive; use inf for no limit")
    if normalize not in ("rollout", "minibatch", None):
        raise ConfigurationError(f"ppo.normalize_advantage={normalize} must be rollout, minibatch or null")
    if pretraining < 0:
        raise ConfigurationError(f"ppo.value_pretraining={pretraining} must not be negative")
