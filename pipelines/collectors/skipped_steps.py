"""Replaces the steps of a rollout in which an environment was reset (see `NextStepReset`) or failed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase


class SkippedStep(NamedTuple):
    """A step of a rollout, and which environments were reset in it, bool `[num_envs]`. It is never true for all."""

    step: int
    skipped: NDArray[np.bool_]


def replace_skipped(rollout: TensorDictBase, steps: Sequence[SkippedStep]) -> TensorDictBase:
    """Replace every skipped step by a copy of the transition of another environment at the same time.

    As a result, every frame of the rollout is a true on-policy transition. The copy is an episode of one step: it is
    truncated unless the transition is terminal. The transition is used twice in the update, once with a one-step
    advantage. `step_count` of the copy is 0, so that statistics do not count it as an episode.

    Args:
        rollout: `[num_envs, time]`. It is modified in place.
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


def discard_failed(rollout: TensorDictBase, steps: Sequence[SkippedStep], *, is_recurrent: bool) -> TensorDictBase:
    """Truncate the episodes of failed environments in the step before, and replace the failed steps.

    The step before keeps its next observation, from which its return is bootstrapped. The episode is not counted. The
    failed step is replaced by a copy (see `replace_skipped`). If the policy is recurrent or all environments failed, it
    is kept: it has the same observation before and after it, the reward 0, and is truncated.

    Args:
        rollout: `[num_envs, time]`. It is modified in place.
        steps: the failed steps, and which environments failed in them.
        is_recurrent: whether the update needs the sequences of the observations.

    """
    ending = rollout["next"]
    for step, failed in steps:
        envs = torch.from_numpy(np.flatnonzero(failed))
        ending["step_count"][envs, step] = 0
        if step > 0:
            running = envs[~ending["done"][envs, step - 1].flatten()]
            ending["truncated"][running, step - 1] = True
            ending["done"][running, step - 1] = True
            ending["step_count"][running, step - 1] = 0
    if not is_recurrent:
        replace_skipped(rollout, [one for one in steps if not one.skipped.all()])
    return rollout
