"""Numbers that are not finite, found where they appear first."""

from __future__ import annotations

from tensordict import NestedKey, TensorDictBase
from torch import Tensor

from ..errors import NumericalError


def require_finite(rollout: TensorDictBase, *, of: str = "rollout", first_step: int = 0) -> TensorDictBase:
    """The rollout, if every observation and reward in it is finite.

    Args:
        rollout: `[num_envs, time]`.
        of: what it is, or is a part of.
        first_step: where in it the part begins.

    Raises:
        NumericalError: naming the environment, the step of the rollout and the key.

    """
    observation = rollout.select("observation")
    for key in observation.keys(include_nested=True, leaves_only=True):
        refuse_not_finite(key, rollout["next"][key], of, first_step)
        refuse_not_finite(key, rollout[key], of, first_step - 1)
    refuse_not_finite("reward", rollout["next", "reward"], of, first_step)
    return rollout


def refuse_not_finite(key: NestedKey, values: Tensor, of: str, first_step: int) -> None:
    """Raise a NumericalError for the first entry of `[num_envs, time, ...]` that is not finite."""
    if not values.is_floating_point() or values.sum().isfinite() or values.isfinite().all():
        return
    step, env = values.isfinite().reshape(*values.shape[:2], -1).all(-1).T.logical_not().nonzero()[0].tolist()
    bad = values[env, step]
    name = key if isinstance(key, str) else "/".join(key)
    raise NumericalError(
        f"{name} of environment {env} is {bad[~bad.isfinite()][0].item()} at step {step + first_step} of the {of}; "
        "mend the environment"
    )
