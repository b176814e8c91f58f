"""From an environment and a policy to rollouts of a fixed length."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from ..envs import VectorEnv
from ..errors import ConfigurationError, NumericalError
from .array_rollouts import ArrayRollouts
from .policy_step import PolicyStep
from .ranks import num_ranks


class Collector:
    """Rollouts `[num_envs, frames_per_env]` from a batched environment, the policy acting as it is now.

    A sized iterable, so it is a Trainer's dataloader as it stands; Lightning does not prefetch from sized
    loaders, and each rollout therefore sees the weights of the last update. Episodes run on from one
    rollout into the next.

    A rollout holds `observation`, `is_init`, what the policy writes (`action`, `action_log_prob`, the
    parameters of the distribution), and under `next` the true next `observation` (also where an episode
    ends), `reward`, `terminated`, `truncated`, `done`, `episode_reward` (raw) and `step_count`.

    Args:
        env: a batched environment; a `VectorEnv` is stepped on NumPy arrays, any other through TorchRL.
        policy: reads observations, writes `action` and `action_log_prob`.
        frames_per_env: length of a rollout.
        total_frames: environment steps over all environments and ranks that iteration stays within.
        compile: whether to compile the policy's step.
        double_buffer: let the policy act for one half of the environments while worker processes step the other.

    Raises:
        ConfigurationError: if the numbers are not positive.
        NumericalError: while iterating, at the first observation or reward that is not finite.

    """

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        *,
        frames_per_env: int,
        total_frames: int,
        compile: bool = False,  # noqa: A002
        double_buffer: bool = False,
    ) -> None:
        """Nothing is stepped before the first rollout is asked for."""
        for name, value in (("collector.frames_per_env", frames_per_env), ("total_frames", total_frames)):
            if value < 1:
                raise ConfigurationError(f"{name}={value} must be at least 1")
        self.env = env
        self.frames_per_env = frames_per_env
        self.total_frames = total_frames
        self.seconds = 0.0
        self.precision: Callable[[], AbstractContextManager[Any]] = nullcontext  # set by PPO to the Trainer's
        self._act = PolicyStep(policy, compile=compile)
        self._arrays: ArrayRollouts | None = None
        if isinstance(env, VectorEnv):
            self._arrays = ArrayRollouts(env, self._act, frames_per_env, double_buffer=double_buffer)
        elif double_buffer:
            raise ConfigurationError("collector.double_buffer=true needs a vector environment without transforms")
        self._carrier: Any = None

    @property
    def frames_per_batch(self) -> int:
        """Environment steps in one rollout of this rank."""
        return int(self.env.batch_size.numel()) * self.frames_per_env

    def __len__(self) -> int:
        """The number of rollouts on each rank: as many as `total_frames` has room for, at least one."""
        return max(1, self.total_frames // (self.frames_per_batch * num_ranks()))

    def __iter__(self) -> Iterator[TensorDictBase]:
        """Collect, rollout by rollout."""
        for _ in range(len(self)):
            start = time.perf_counter()
            with torch.no_grad(), self.precision(), set_exploration_type(ExplorationType.RANDOM):
                rollout = checked(self._rollout())
            self.seconds += time.perf_counter() - start
            yield rollout

    def _rollout(self) -> TensorDictBase:
        if self._arrays is None:
            return self._rollout_of_tensordicts()
        try:
            return self._arrays()
        except Exception:  # an observation that is not finite makes an action that is none: look for the reason
            refuse_not_finite("observation", torch.from_numpy(self._arrays.observed).transpose(0, 1), first_step=-1)
            raise

    def _rollout_of_tensordicts(self) -> TensorDictBase:
        carrier = self.env.reset() if self._carrier is None else self._carrier
        if "is_init" not in carrier:
            carrier["is_init"] = torch.ones_like(carrier["done"])
        device = next(self._act.policy.parameters()).device
        steps = []
        for _ in range(self.frames_per_env):
            acted = self._act.policy(carrier.to(device)).to(self.env.device or "cpu")
            stepped, carrier = self.env.step_and_maybe_reset(acted)
            carrier["is_init"] = stepped["next", "done"]
            steps.append(stepped)
        self._carrier = carrier
        return torch.stack(steps, dim=-1)


def checked(rollout: TensorDictBase) -> TensorDictBase:
    """The rollout, if every observation and reward in it is finite.

    Raises:
        NumericalError: naming the environment, the step of the rollout and the key.

    """
    refuse_not_finite("observation", rollout["next", "observation"])
    refuse_not_finite("observation", rollout["observation"], first_step=-1)
    refuse_not_finite("reward", rollout["next", "reward"])
    return rollout


def refuse_not_finite(key: str, values: Tensor, first_step: int = 0) -> None:
    """Raise a NumericalError for the first entry of `[num_envs, time, ...]` that is not finite."""
    if not values.is_floating_point() or values.sum().isfinite() or values.isfinite().all():
        return
    step, env = values.isfinite().flatten(2).all(-1).T.logical_not().nonzero()[0].tolist()
    bad = values[env, step]
    raise NumericalError(
        f"{key} of environment {env} is {bad[~bad.isfinite()][0].item()} at step {step + first_step} of the rollout; "
        "mend the environment"
    )
