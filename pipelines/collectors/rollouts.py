"""The protocol of objects that collect rollouts, and the seeds of episodes that a continued training starts."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from tensordict import TensorDictBase

from ..distributed import rank


class Rollouts(Protocol):
    """Collects one rollout `[num_envs, time]` in every call.

    An optional method `restart` lets the next rollout begin with a reset. The resume class `reset` needs it.
    """

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in the parts of the collection that are measured."""

    def __call__(self) -> TensorDictBase: ...


def seed_at(seed: int, frames: int) -> int:
    """Return the seed of the episodes that this rank starts after `frames` frames of a run with `seed`."""
    return int(np.random.SeedSequence([seed % 2**32, frames, rank()]).generate_state(1)[0])
