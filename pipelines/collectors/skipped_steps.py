"""Replaces the steps of a rollout in which an environment was reset (see `NextStepReset`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase


class SkippedStep(NamedTuple):
    """A step of a rollout and the environments that were reset in it, `[num_envs]`; never all of them."""

    step: int
    skipped: NDArray[np.bool_]


def replace_skipped(rollout: TensorDictBase, steps: Sequence[SkippedStep]) -> TensorDictBase:
    """Replace every skipped step by the transition of another environment at the same time, as an episode of its own.

    The copy is on-policy and ends with it: it is truncated unless the transition is terminal. So every frame of the
    rollout is a true transition. The copied transition counts twice in the update, once with an advantage of one step.
    `step_count` of the copy is 0, so that it does not count as an episode.

    Args:
        rollout: `[num_envs, time]`. It is changed in place.
        steps: the skipped steps.

    """
    for step, skipped in steps:
        others = np.flatnonzero(~skipped)
        envs = np.flatnonzero(skipped)
        source = torch.from_numpy(others[np.searchsorted(others, envs) % len(others)])
        target = torch.from_numpy(envs)
        is_init = rollout["is_init"][target, step]
        rollout[target, step] = rollout[source, step].clone()
        rollout["is_init"][target, step] = is_init
        ending = rollout["next"]
        ending["truncated"][target, step] = ~ending["terminated"][target, step]
        ending["done"][target, step] = True
        ending["step_count"][target, step] = 0
    return rollout
