"""Errors and warnings for values that an environment must not return."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tensordict import NestedKey
from torch import Tensor

from ...envs.failures import cause_of
from ...errors import EnvironmentFailure, NumericalError

logger = logging.getLogger("torchppo")


def raise_for(key: NestedKey, values: Tensor, name: str, first_step: int, data: Any, vector: Any) -> None:
    """Raise the error for the first entry of `values` that is not finite.

    Args:
        key: key of the values.
        values: `[num_envs, time, ...]`.
        name: name of the data in the message.
        first_step: index of the first step of the values.
        data: the rollout with the actions before the values; `None` if there are none.
        vector: see `require_finite`.

    """
    step, env = values.isfinite().reshape(*values.shape[:2], -1).all(-1).T.logical_not().nonzero()[0].tolist()
    bad = values[env, step]
    text = f"{path_of(key)} of environment {env} is {bad[~bad.isfinite()][0].item()}"
    action = None if data is None else action_of(data, env, step)
    if action is not None and action.dtype.kind == "f" and not np.isfinite(action).all():
        raise NumericalError(
            f"the policy's action in environment {env} is {action} at step {step} of the {name}; lower optimizer.lr or "
            "scale rewards"
        )
    if step + first_step < 0:
        text += f" at the start of the {name}"
    elif action is None:
        seed = "" if vector is None else f" (after a reset; seed {seed_of(vector, env)})"
        text += f" at step {step + first_step} of the {name}{seed}"
    else:
        text += f" at step {step + first_step} of the {name} ({cause_of(seed_of(vector, env), action)})"
    raise EnvironmentFailure(f"{text}; fix the environment")


def action_of(data: Any, env: int, step: int) -> NDArray[Any] | None:
    """Return the action of one step; `None` if it is nested or missing."""
    action = data.get("action", None)
    return action[env, step].cpu().numpy() if isinstance(action, Tensor) else None


def seed_of(vector: Any, env: int) -> int | None:
    """Return the last seed of an environment, or `None` if it is unknown."""
    seeds = None if vector is None else vector.last_seeds
    return None if seeds is None or seeds[env] is None or seeds[env] < 0 else int(seeds[env])


def path_of(key: NestedKey) -> str:
    return key if isinstance(key, str) else "/".join(key)


def warn_about(observed: Tensor, low: Tensor, high: Tensor) -> None:
    """Warn about the first observation that is outside of its space.

    Args:
        observed: `[num_envs, time, *observation]`.
        low: lower bounds, `[*observation]`.
        high: upper bounds.

    """
    outside = ((observed < low) | (observed > high)).transpose(0, 1)
    step, env, *index = outside.nonzero()[0].tolist()
    place = tuple(index)
    logger.warning(
        "torchppo: observation%s of environment %d is %g at step %d of the rollout, outside of %g to %g in its space; "
        "it is used as it is, and no other one is reported",
        *(index or "", env, observed[(env, step, *index)].item(), step, low[place].item(), high[place].item()),
    )
