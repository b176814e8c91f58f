"""Numbers that are not finite, found where they appear first."""

from __future__ import annotations

from tensordict import TensorDictBase
from torch import Tensor

from ..errors import NumericalError


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
