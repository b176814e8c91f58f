"""A bonus for observations that were visited rarely."""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, MultiCategorical, TensorSpec

from ...errors import ConfigurationError
from ..features.extractor import Body
from ..normalizers import Reduce
from .reward_model import RewardModel, make_stream_critic

MAX_STATES = 10_000_000
"""Largest number of different observations."""


class CountBonus(RewardModel):
    """The bonus 1 / sqrt(N(s')) of a discrete observation s' that was visited N times.

    N counts all visits up to the end of the rollout, over all ranks. It is saved in the state dict.

    Source: Strehl and Littman 2008, section 3; Bellemare et al. 2016, eq. 4, without the constant 0.01.

    Args:
        observation_spec: Batched spec whose `observation` is Discrete or MultiDiscrete.
        body: Builds the body of the stream's critic, as in `make_actor_critic`.
        weight: See `RewardModel`.
        normalize: See `RewardModel`.
        options: See `RewardModel`.

    Raises:
        ConfigurationError: If the observation is not discrete or has too many values; see also `RewardModel`.

    """

    counts: Tensor

    def __init__(
        self,
        observation_spec: Composite,
        *,
        body: Body,
        weight: float = 0.1,
        normalize: bool = False,
        **options: Any,
    ) -> None:
        sizes = discrete_sizes(observation_spec["observation"], len(observation_spec.shape))
        critic = make_stream_critic("count", observation_spec, body)
        super().__init__("count", critic, weight=weight, normalize=normalize, **options)
        self.register_buffer("counts", torch.zeros(math.prod(sizes), dtype=torch.int64))
        strides = [math.prod(sizes[index + 1 :]) for index in range(len(sizes))]
        self.register_buffer("_strides", torch.tensor(strides), persistent=False)

    def update(self, rollout: TensorDictBase, reduce: Reduce) -> None:
        """Count the next observations of a rollout."""
        visits = torch.bincount(self._states(rollout).flatten(), minlength=len(self.counts))
        reduce(visits, lambda of_ranks: self.counts.add_(of_ranks.sum(0)))

    def reward(self, rollout: TensorDictBase) -> Tensor:
        """Return the bonus of the next observations, `[num_envs, time, 1]`."""
        return self.counts[self._states(rollout)].clamp(min=1).float().rsqrt().unsqueeze(-1)

    def _states(self, rollout: TensorDictBase) -> Tensor:
        """Return the index of every next observation, `[num_envs, time]`."""
        observation = rollout["next", "observation"].long()
        if observation.dim() == rollout.dim():
            observation = observation.unsqueeze(-1)
        return (observation * self._strides).sum(-1)


def discrete_sizes(spec: TensorSpec, num_batch: int) -> list[int]:
    """Return the number of values of every component of a discrete observation.

    Raises:
        ConfigurationError: If the observation is not discrete or has too many values.

    """
    if isinstance(spec, MultiCategorical):
        sizes = [int(size) for size in spec.nvec.reshape(-1, spec.nvec.shape[-1])[0]]
    elif isinstance(spec, Categorical) and not isinstance(spec, Binary) and len(spec.shape) == num_batch:
        sizes = [int(spec.space.n)]
    else:
        raise ConfigurationError(
            f"intrinsic=count needs a Discrete or MultiDiscrete observation, not {type(spec).__name__}; use "
            "intrinsic=rnd"
        )
    if math.prod(sizes) > MAX_STATES:
        raise ConfigurationError(
            f"intrinsic=count needs at most {MAX_STATES} different observations, not {math.prod(sizes)}; use "
            "intrinsic=rnd"
        )
    return sizes
