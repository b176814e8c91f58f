"""The protocols of collectors and of objects that step the environment, and checks of the size of a rollout."""

from __future__ import annotations

import os
from typing import Any, Protocol

import numpy as np
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from ...errors import ConfigurationError
from ..distributed import num_ranks, rank


class Rollouts(Protocol):
    """Collects one rollout `[num_envs, time]` in every call.

    An optional method `restart` lets the next rollout begin with a reset. The resume class `reset` needs it.
    """

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in the parts of the collection that are measured."""

    def __call__(self) -> TensorDictBase: ...


def length_of_rollout(frames_per_env: int | None, frames_per_batch: int | None, num_envs: int) -> int:
    """Return the steps of each environment in a rollout, from either of the two arguments.

    Raises:
        ConfigurationError: if not exactly one is given, it is below 1, or `frames_per_batch` is not a multiple of
            `num_envs`.

    """
    if (frames_per_env is None) == (frames_per_batch is None):
        problem = "is missing" if frames_per_env is None else "and collector.frames_per_batch are both set"
        raise ConfigurationError(f"collector.frames_per_env {problem}; set one of collector.frames_per_{{env,batch}}")
    name = "frames_per_batch" if frames_per_env is None else "frames_per_env"
    value = frames_per_batch if frames_per_env is None else frames_per_env
    assert value is not None
    if value < 1:
        raise ConfigurationError(f"collector.{name}={value} must be at least 1")
    if frames_per_env is not None:
        return frames_per_env
    if value % num_envs:
        below = value // num_envs * num_envs
        nearest = [str(frames) for frames in (below, below + num_envs) if frames > 0]
        raise ConfigurationError(
            f"collector.frames_per_batch={value} is not a multiple of the number of environments ({num_envs}); use "
            f"{' or '.join(nearest)}"
        )
    return value // num_envs


def seed_at(seed: int, frames: int) -> int:
    """Return the seed of the episodes that this rank starts after `frames` frames of a run with `seed`."""
    return int(np.random.SeedSequence([seed % 2**32, frames, rank()]).generate_state(1)[0])


def check_fits_into_ram(env: EnvBase, num_frames: int) -> None:
    """Raise a ConfigurationError if the observations of a rollout do not fit into the memory of this machine."""
    leaves = env.observation_spec.values(include_nested=True, leaves_only=True)
    num_bytes = num_frames * sum(leaf.shape.numel() * leaf.dtype.itemsize for leaf in leaves) // env.batch_size.numel()
    available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if num_bytes > available:
        raise ConfigurationError(
            f"a rollout of {num_frames} frames needs {num_bytes / 2**30:.0f} GiB, but this machine has "
            f"{available / 2**30:.0f} GiB; lower collector.frames_per_env or env.num_envs"
        )


def check_collector(collector: Any, frames: int, total_frames: int, *, may_be_complete: bool) -> bool:
    """Return whether a rollout fits after `frames` trained frames.

    Raises:
        ConfigurationError: if Lightning would prefetch, or if no rollout fits and `may_be_complete` is false.

    """
    if not hasattr(collector, "__len__"):
        raise ConfigurationError(
            f"train_dataloaders={type(collector).__name__} has no length, so Lightning would collect the next rollout "
            "with old weights; add __len__, the number of rollouts"
        )
    next_frames = getattr(collector, "frames_per_batch", 1) * num_ranks()
    fits = not frames or frames + next_frames <= total_frames
    if not (fits or may_be_complete):
        raise ConfigurationError(
            f"total_frames={total_frames} leaves no room for a rollout of {next_frames} after {frames} trained frames; "
            "increase it"
        )
    return fits
