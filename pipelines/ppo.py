"""The binding: estimator, objective, update and schedules inside a LightningModule."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from operator import itemgetter
from typing import Any, Literal, cast

import torch
from lightning import Callback, LightningModule
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn
from torch.optim import Optimizer
from torchrl.objectives.value import ValueEstimatorBase

from ..errors import ConfigurationError, NumericalError
from ..modules.heads.value_heads import ValueHead
from ..modules.normalizers import ObservationNormalizer, RewardTransform
from ..modules.objectives.kl_penalty import Adaptive
from .compiled.optimizer_step import GraphStep, refuse_hooks
from .distributed import gathered, num_ranks, summed
from .garbage import SpareGarbageCollector
from .param_groups import let_learn, optimizer_of
from .rollout_batch import Data, Experience
from .step_factory import Compile, checked_compile, refuse_other_types
from .updates.eager_step import EagerStep
from .updates.minibatch import MinibatchUpdate

Schedule = Callable[[float], float]


class PPO(LightningModule):
    """Proximal policy optimisation: one Lightning batch is one rollout, and optimisation is manual inside.

    Args:
        objective: `td -> td` of `loss_*` and metrics, with `actor_network` and `critic_network`; ours, or
            a TorchRL `LossModule` made with `functional=False`.
        estimator: `td -> td`, writes `advantage` and `value_target` from `state_value` and
            `("next", "state_value")`.
        update: epochs, minibatches and early stop.
        optimizer: makes the optimiser from the parameters, or from groups of them where critic and policy take turns
            or the critic has options of its own.
        total_frames: environment steps of the whole training, over which the schedules run, and at which it ends.
        schedules: factors of `lr`, `clip_epsilon` or `entropy_coeff` over the training's progress.
        reward_normalizer: what learning sees of the rewards; none: the rewards themselves.
        max_grad_norm: limit of the gradients' global norm.
        normalize_advantage: to mean 0 and standard deviation 1, over each `rollout` or each `minibatch`, and all
            ranks; none: not at all.
        critic_estimator: another estimator for the critic's targets, such as GAE of another lambda; none: the same.
        critic_optimizer: options of the optimiser for what only the critic depends on, such as `lr`, where they are
            to differ.
        value_pretraining: the number of first rollouts that train the critic alone, and what it shares with the policy.
        compile: whether an optimiser step is a graph, compiled (true) or run as it was traced (`"trace"`). A graph
            takes `max_grad_norm` and the optimiser's options, other than `lr`, as they are at the first step.
        config: a plain dictionary to keep in every checkpoint, from which the command line rebuilds.

    Raises:
        ConfigurationError: for numbers and names that cannot be; as a training starts, for weights that are not
            float32, for frames that are all trained, and for hooks of Lightning that a graph would not call.

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
        """Keep the parts; nothing is allocated before the training starts."""
        super().__init__()
        for name in ("actor_network", "critic_network"):
            if not isinstance(getattr(objective, name, None), nn.Module):
                raise ConfigurationError(
                    f"{type(objective).__name__} has no {name}; an objective has actor_network and critic_network"
                )
        self.automatic_optimization = False
        self.objective = objective
        self.estimator = estimator
        self.update = update
        self.total_frames = total_frames
        self.reward_normalizer = reward_normalizer
        self.max_grad_norm = max_grad_norm
        if total_frames < 1:
            raise ConfigurationError(f"total_frames={total_frames} must be at least 1")
        if not max_grad_norm > 0:
            raise ConfigurationError(f"ppo.max_grad_norm={max_grad_norm} must be positive; inf is no limit")
        if value_pretraining < 0:
            raise ConfigurationError(f"ppo.value_pretraining={value_pretraining} must not be negative")
        if normalize_advantage not in ("rollout", "minibatch", None):
            raise ConfigurationError(
                f"ppo.normalize_advantage={normalize_advantage} is none of rollout, minibatch and null"
            )
        self.normalize_advantage = normalize_advantage
        self.critic_estimator = critic_estimator
        self.critic_optimizer = dict(critic_optimizer or {})
        self.value_pretraining = value_pretraining
        self.compile_step = checked_compile(compile)
        self.config = config or {}
        self.frames = 0
        self.num_rollouts = 0
        self.episodes: deque[tuple[float, int]] = deque(maxlen=100)
        self.num_episodes = 0
        self.seconds = {"estimate": 0.0, "update": 0.0}
        self.register_buffer("policy_weight", torch.ones(()), persistent=False)
        self.register_buffer("critic_weight", torch.ones(()), persistent=False)
        self.grad_norm = torch.zeros(())  # the hook's below, for a step to report
        self._make_optimizer = optimizer
        self._schedules = dict(schedules or {})
        for name in self._schedules:
            if name != "lr" and not isinstance(getattr(objective, name, None), Tensor):
                raise ConfigurationError(
                    f"schedule.{name}: {type(objective).__name__} has no buffer of that name to move"
                )
        self._initial = {name: float(getattr(objective, name)) for name in self._schedules if name != "lr"}
        self._step: EagerStep | GraphStep | None = None

    @property
    def actor(self) -> Any:
        """The policy."""
        return self.objective.actor_network

    @property
    def optimizer(self) -> Optimizer:
        """The one optimiser, without Lightning's wrapper."""
        return cast(Optimizer, self.optimizers(use_pl_optimizer=False))

    @property
    def critic(self) -> TensorDictModuleBase:
        """The value function."""
        return self.objective.critic_network

    def configure_optimizers(self) -> Optimizer:
        """One optimiser over all parameters; see `optimizer_of`."""
        takes_turns = self.value_pretraining > 0 or self.update.critic_epochs != self.update.epochs
        return optimizer_of(self.objective, self._make_optimizer, self.critic_optimizer, takes_turns=takes_turns)

    def configure_callbacks(self) -> list[Callback]:
        """What has to happen around a training whoever's Trainer it is."""
        return [SpareGarbageCollector()]

    def on_train_start(self) -> None:
        """Choose how a step is taken, now that devices, precision and optimiser exist."""
        next_frames = getattr(self.trainer.train_dataloader, "frames_per_batch", 1) * num_ranks()
        if self.frames and self.frames + next_frames > self.total_frames:
            raise ConfigurationError(
                f"total_frames={self.total_frames} have been trained: {self.frames}, by rollouts of {next_frames}"
            )
        refuse_other_types(self)
        self._reported_at = time.perf_counter()
        if act_under := getattr(self.trainer.train_dataloader, "act_under", None):
            act_under(self.trainer.precision_plugin.forward_context)
        limit = self.update.kl_limit
        is_scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if self.compile_step and not is_scaled:
            refuse_hooks(self, PPO)
            self._step = GraphStep(self, limit, compile=self.compile_step is True)
        else:  # a loss scale is Lightning's to take back
            self._step = EagerStep(self, limit, is_scaled=is_scaled)
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])

    def training_step(self, rollout: TensorDictBase) -> None:
        """Learn from one rollout `[num_envs, time]`."""
        start = time.perf_counter()
        self._apply_schedules()
        self._transform_rewards(rollout)
        experience = self.experience(rollout)
        data = experience.estimate()
        metrics = {"train/explained_variance": experience.explained_variance}
        estimated = time.perf_counter()
        step = self._step
        if step is None:
            raise RuntimeError("training_step belongs to trainer.fit, which calls on_train_start first")
        means, num_steps = self.update(
            partial(self._begin_epoch, experience, data), step, normalize=self.normalize_advantage == "minibatch"
        )
        self._count_steps(num_steps)
        self._let_learn(policy=True, critic=True)
        self._adapt(rollout, data)
        names = ("approx_kl" if name == "kl_approx" else name for name in step.names)  # TorchRL's key, users' metric
        metrics.update({f"train/{name}": value for name, value in zip(names, means.tolist(), strict=False)})
        self.seconds["estimate"] += estimated - start
        self.seconds["update"] += time.perf_counter() - estimated  # the metrics have waited for the device
        metrics["train/num_steps"] = float(num_steps)
        num_frames = self._count_frames(rollout)
        self._report(metrics, num_frames)
        if self.frames + num_frames > self.total_frames:
            self.trainer.should_stop = True

    def on_train_end(self) -> None:
        """Let graphs go, with what they hold."""
        self._step = None

    def experience(self, rollout: TensorDictBase) -> Experience:
        """A rollout whose rewards are as learning sees them, not yet estimated."""
        return Experience(
            rollout,
            self.actor,
            self.critic,
            self.estimator,
            self.critic_estimator,
            normalize=self.normalize_advantage == "rollout",
            length=self.update.length(rollout.shape[1]),
        )

    def _transform_rewards(self, rollout: TensorDictBase) -> None:
        if self.reward_normalizer is not None:
            reward = rollout["next", "reward"]
            self.reward_normalizer.update(reward, rollout["is_init"], summed)
            rollout["next", "reward"] = self.reward_normalizer(reward)

    def _begin_epoch(self, experience: Experience, data: Data, epoch: int) -> Data | None:
        """Choose who learns in an epoch, and return what from; nothing if nobody does any more."""
        policy = self.num_rollouts >= self.value_pretraining and epoch < self.update.epochs
        critic = epoch < self.update.critic_epochs
        if not (policy or critic):
            return None
        self._let_learn(policy=policy, critic=critic)
        if epoch and self.update.burn_in and experience.memories:
            data = experience.burned_in(data, self.update.burn_in)
        return experience.recomputed(data) if epoch and self.update.recompute_advantage else data

    def _adapt(self, rollout: TensorDictBase, data: Data) -> None:
        """Move what changes once per rollout: the objective's coefficient, and the statistics of the networks."""
        if isinstance(self.objective, Adaptive) and self.num_rollouts >= self.value_pretraining:
            self.objective.adapt(TensorDict(data, len(data["advantage"])), summed)
        for module in self.modules():
            if isinstance(module, ObservationNormalizer):
                module.update(rollout[module.key], summed)
            elif isinstance(module, ValueHead):
                module.update(rollout["value_target"], summed)

    def _let_learn(self, *, policy: bool, critic: bool) -> None:
        """Weigh the losses; the optimiser leaves alone what only an idle side depends on, momentum and all."""
        self.policy_weight.fill_(float(policy))
        self.critic_weight.fill_(float(critic))
        let_learn(self.optimizer, policy=policy, critic=critic)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Clip the gradients, once the precision plugin has taken a loss scale back."""
        self.grad_norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.max_grad_norm)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what resuming and rebuilding need: the configuration and the counters."""
        checkpoint["torchppo"] = {
            "config": self.config,
            "frames": self.frames,
            "num_rollouts": self.num_rollouts,
            "num_episodes": self.num_episodes,
            "episodes": list(self.episodes),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the counters back."""
        state = checkpoint["torchppo"]
        self.frames, self.num_rollouts, self.num_episodes = (
            state["frames"],
            state["num_rollouts"],
            state["num_episodes"],
        )
        self.episodes.clear()
        self.episodes.extend(tuple(episode) for episode in state["episodes"])

    def _apply_schedules(self) -> None:
        progress = min(self.frames / self.total_frames, 1.0)
        for name, schedule in self._schedules.items():
            if name == "lr":
                for group in self.optimizer.param_groups:
                    group["lr"] = group["initial_lr"] * schedule(progress)
            else:
                getattr(self.objective, name).fill_(self._initial[name] * schedule(progress))

    def _count_steps(self, num_steps: int) -> None:
        """Make `trainer.global_step` true where steps are taken outside of Lightning's optimiser."""
        if isinstance(self._step, GraphStep):
            progress = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
            progress.total.ready += num_steps
            progress.total.completed += num_steps

    def _count_frames(self, rollout: TensorDictBase) -> int:
        following = rollout["next"].select("done", "episode_reward", "step_count").transpose(0, 1)
        done = following["done"]
        steps = done.nonzero()[:, 0]
        columns = (steps, following["episode_reward"][done], following["step_count"][done])
        ended = sorted(gathered([*zip(*(column.tolist() for column in columns), strict=True)]), key=itemgetter(0))
        self.episodes.extend((reward, length) for _, reward, length in ended)
        self.num_episodes += len(ended)
        self.num_rollouts += 1
        num_frames: int = rollout.numel() * num_ranks()
        self.frames += num_frames
        return num_frames

    def _report(self, metrics: dict[str, float], num_frames: int) -> None:
        if self.episodes:
            rewards, lengths = zip(*self.episodes, strict=True)
            metrics["rollout/ep_rew_mean"] = sum(rewards) / len(rewards)
            metrics["rollout/ep_len_mean"] = sum(lengths) / len(lengths)
        metrics["train/lr"] = self.optimizer.param_groups[0]["lr"]
        bad = [name for name, value in metrics.items() if not math.isfinite(value)]
        if bad:
            raise NumericalError(
                f"{bad[0]}={metrics[bad[0]]} after {self.frames} frames; lower optimizer.lr, or look for extreme "
                "observations and rewards"
            )
        now = time.perf_counter()
        metrics["time/fps"] = num_frames / (now - self._reported_at)
        self._reported_at = now
        # For callbacks: `self.log` takes half a millisecond for each of them, a third of a small rollout's time.
        self.trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
        for logger in self.loggers:
            logger.log_metrics(metrics, step=self.frames)
            logger.save()
