"""Collects rollouts from an environment with a policy."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from ...envs import EPISODE_KEYS, VectorEnv
from ...errors import ConfigurationError
from ..distributed import num_ranks, raise_on_all_ranks
from ..requirements import check_total_frames, length_of_rollout
from ..step_factory import Compile
from .rollout_buffer import require_finite
from .rollouts import Rollouts, seed_at
from .torchrl import TorchRLRollouts
from .vector import VectorRollouts


class SizedRollouts(ABC):
    """A sized iterable of rollouts `[num_envs, time]`, each collected with the current weights.

    It is the `train_dataloaders` of a Trainer. Lightning does not prefetch from a sized iterable, so every rollout uses
    the weights of the last update. The iteration ends after `total_frames`.

    Args:
        frames_per_batch: environment steps in one rollout of this rank, over all its environments.
        total_frames: environment steps of the whole training, over all environments and ranks.

    """

    def __init__(self, frames_per_batch: int, total_frames: int) -> None:
        self.frames_per_batch = frames_per_batch
        self.total_frames = int(total_frames)
        self._acting_context: Callable[[], AbstractContextManager[Any]] = nullcontext
        self._seconds = 0.0
        self._frames = 0
        self._is_resumed = False

    @abstractmethod
    def _collect(self) -> TensorDictBase:
        """Collect the next rollout, `[num_envs, time]`."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in `collect`, and in its parts if they are measured."""
        return {"collect": self._seconds}

    def act_under(self, context: Callable[[], AbstractContextManager[Any]]) -> None:
        """Set the context in which the policy acts, such as the precision of a Trainer."""
        self._acting_context = context

    def __len__(self) -> int:
        """Return the number of rollouts of each rank that fit into `total_frames`, at least one."""
        return max(1, self.total_frames // (self.frames_per_batch * num_ranks()))

    def __iter__(self) -> Iterator[TensorDictBase]:
        frames_per_rollout = self.frames_per_batch * num_ranks()
        if not self._is_resumed:
            self._frames = 0
        self._is_resumed = False
        for _ in range(len(self) - self._frames // frames_per_rollout):
            start = time.perf_counter()
            with torch.no_grad(), self._acting_context(), set_exploration_type(ExplorationType.RANDOM):
                rollout = raise_on_all_ranks(self._collect)
            self._seconds += time.perf_counter() - start
            self._frames += frames_per_rollout
            yield rollout

    @property
    def resume_class(self) -> str:
        """How episodes continue after a restart, one of `envs.resume.resumability.RESUME_CLASSES`."""
        return "inexact"

    def state_dict(self) -> dict[str, Any]:
        """Return the number of frames collected so far, over all ranks, and the seconds."""
        return {"frames": self._frames, "seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the number of frames, so that the next iteration collects only the remaining frames."""
        self._frames = int(state_dict["frames"])
        self._seconds = float(state_dict["seconds"])
        self._is_resumed = True


class Collector(SizedRollouts):
    """A sized iterable of rollouts `[num_envs, frames_per_env]`, each collected with the current weights.

    It is the `train_dataloaders` of a Trainer, and it has the interface of `torchrl.collectors.Collector` for plain
    training loops. Episodes continue from one rollout to the next.

    A rollout has `observation`, `is_init`, the policy's outputs (`action`, `action_log_prob`, the parameters of the
    distribution), and under `next` the true next `observation` (the final one where an episode ends), `reward`,
    `terminated`, `truncated`, `done`, `episode_reward` (raw) and `step_count`.

    Args:
        env: a batched environment (see `envs.batched`). A `VectorEnv` is stepped on NumPy arrays, and any other
            environment through TorchRL.
        policy: reads observations, writes `action` and `action_log_prob`.
        frames_per_env: length of a rollout.
        frames_per_batch: frames of a rollout over all environments of this rank, instead of `frames_per_env`.
        total_frames: environment steps of the whole training, over all environments and ranks.
        compile: how the policy step runs (see `step_factory.Compile`).
        double_buffer: let the policy act for one half of the environments while Atari threads step the other half.
            Worker processes do not have this option: a second call of the policy per step costs more than it saves.
        num_ranks: number of processes that share `total_frames`, for `compile="auto"`.
        rollouts: factory of a `Rollouts` object. It receives the environment, the policy and `frames_per_env`;
            `compile` does not apply to it. `None` chooses the fastest implementation.

    Raises:
        ConfigurationError: if a number is out of range or the environment lacks an entry of the rollout.
        EnvironmentFailure: while iterating, if an observation or reward is not finite.

    """

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        *,
        frames_per_env: int | None = None,
        frames_per_batch: int | None = None,
        total_frames: int,
        compile: Compile = False,  # noqa: A002
        double_buffer: bool = False,
        num_ranks: int = 1,
        rollouts: Callable[[EnvBase, TensorDictModuleBase, int], Rollouts] | None = None,
    ) -> None:
        if not env.batch_size or not {*EPISODE_KEYS}.issubset(env.observation_spec.keys(include_nested=True)):
            raise ConfigurationError(
                "a collector's environment needs a batch dimension, episode_reward and step_count; "
                "torchppo.envs.batched(env) adds them"
            )
        num_envs = int(env.batch_size.numel())
        self.frames_per_env = length_of_rollout(frames_per_env, frames_per_batch, num_envs)
        check_total_frames(total_frames)
        super().__init__(num_envs * self.frames_per_env, total_frames)
        self.env = env
        self.policy = policy
        steps: Any = {"compile": compile, "num_policy_steps": total_frames / (num_envs * num_ranks)}
        if rollouts is not None:
            self._rollouts = rollouts(env, policy, self.frames_per_env)
        elif isinstance(env, VectorEnv):
            self._rollouts = VectorRollouts(env, policy, self.frames_per_env, double_buffer=double_buffer, **steps)
        else:
            self._rollouts = TorchRLRollouts(env, policy, self.frames_per_env, **steps)
        if double_buffer and not isinstance(self._rollouts, VectorRollouts):
            raise ConfigurationError(
                "collector.double_buffer=true does not work with transforms or collector.rollouts; remove them, or set "
                "collector.double_buffer=false"
            )

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in `collect`, and in its parts if they are measured.

        The parts are `policy` and `environment`, or with a double buffer `waiting` for the environment.
        """
        return {**super().seconds, **self._rollouts.seconds}

    def update_policy_weights_(
        self,
        policy_or_weights: nn.Module | TensorDictBase | dict[str, Any] | None = None,
        *,
        weights: TensorDictBase | dict[str, Any] | None = None,
        policy: nn.Module | None = None,
    ) -> None:
        """Copy weights into the policy. Does nothing without arguments, because the policy is in this process.

        Every rollout uses the current weights and refreshes the cached casts of a compiled policy at its start.

        Args:
            policy_or_weights: a module like the policy, or its weights as `TensorDict.from_module` returns them.
            weights: TorchRL's other name for weights.
            policy: TorchRL's other name for a module.

        """
        given = [source for source in (policy_or_weights, weights, policy) if source is not None]
        if len(given) > 1:
            raise ConfigurationError("update_policy_weights_ received several sources of weights; pass one of them")
        for source in given:
            new = TensorDict.from_module(source) if isinstance(source, nn.Module) else TensorDict(source)
            TensorDict.from_module(self.policy).data.update_(new.data)

    @property
    def resume_class(self) -> str:
        return getattr(self._rollouts, "resume_class", super().resume_class)

    def set_resume_class(self, name: str | None = None) -> None:
        """Set how episodes continue after a restart. Without a name, test new environments."""
        if set_class := getattr(self._rollouts, "set_resume_class", None):
            set_class(name)

    @property
    def may_save(self) -> bool:
        """Whether a checkpoint of this moment continues as `resume_class` says; see `FixedResets`."""
        return getattr(self._rollouts, "may_save", True)

    @property
    def may_reset(self) -> bool:
        """Whether `reset_every` works."""
        return hasattr(self._rollouts, "restart")

    def reset_every(self, frames: int) -> None:
        """Start new episodes at fixed numbers of frames; see `FixedResets`."""
        from .fixed_resets import FixedResets

        self._rollouts = FixedResets(self._rollouts, self.env, frames, self.total_frames, torch.initial_seed())

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the collection as plain data: frames, episodes and environments (see `resume_class`)."""
        save = getattr(self._rollouts, "state_dict", dict)
        return {**super().state_dict(), "rollouts": save()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue the collection of `state_dict`, with environments that were made in the same way."""
        super().load_state_dict(state_dict)
        self.env.set_seed(seed_at(torch.initial_seed(), self._frames))  # for new episodes
        rollouts = state_dict["rollouts"]
        if rollouts.get("resume_class") == "reset" and self.resume_class != "reset":
            self.reset_every(rollouts["every_frames"])
        if load := getattr(self._rollouts, "load_state_dict", None):
            load(rollouts)

    def set_seed(self, seed: int, static_seed: bool = False) -> int:
        """Seed the next reset of all environments; return a seed for another environment."""
        next_seed: int = self.env.set_seed(seed, static_seed=static_seed)
        return next_seed

    def shutdown(self, timeout: float | None = None, close_env: bool = True, raise_on_error: bool = True) -> None:
        """Close the environment, unless `close_env` is false. `timeout` has no effect, as in TorchRL's Collector."""
        if close_env and not self.env.is_closed:
            with nullcontext() if raise_on_error else suppress(Exception):
                self.env.close()

    def _collect(self) -> TensorDictBase:
        return require_finite(self._rollouts(), vector=self.env.vector if isinstance(self.env, VectorEnv) else None)


def seconds_of(collector: Any) -> dict[str, float]:
    """Return the seconds that a collector measured; a user's own collector may not measure any."""
    return getattr(collector, "seconds", {})
