"""Running statistics that are part of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from tensordict import NestedKey
from torch import Tensor, nn

Reduce = Callable[[Tensor], Tensor]
"""Sums a tensor over all ranks."""


def alone(tensor: Tensor) -> Tensor:
    """The sum over the only rank."""
    return tensor


class RewardTransform(Protocol):
    """What learning sees of the rewards."""

    def update(self, reward: Tensor, is_init: Tensor, reduce: Reduce) -> None:
        """Take a rollout's `[num_envs, time, 1]` into the statistics."""

    def __call__(self, reward: Tensor) -> Tensor:
        """`[*] -> [*]`."""
        ...


class RunningMoments(nn.Module):
    """Mean and variance of all values ever seen, one for every feature.

    Source: Chan, Golub, LeVeque 1983 (parallel variance). Buffers are float64: the count grows without
    end and the update subtracts large numbers.
    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: torch.Size | tuple[int, ...] = ()) -> None:
        """Nothing seen yet: mean 0, variance 1."""
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, values: Tensor, reduce: Reduce = alone) -> None:
        """Take in a batch `[*, *shape]` from every rank, in place."""
        values = values.reshape(-1, *self.mean.shape).double()
        size = reduce(torch.tensor(float(len(values)), dtype=torch.float64, device=values.device))
        mean = reduce(values.sum(0)) / size
        square = reduce((values - mean).square().sum(0))
        total = self.count + size
        delta = mean - self.mean
        self.var.copy_((self.var * self.count + square + delta.square() * self.count * size / total) / total)
        self.mean.add_(delta * size / total)
        self.count.copy_(total)


class ObservationNormalizer(nn.Module):
    """Observations with mean 0 and variance 1, clipped.

    The statistics stand still until `update` is called; call it once per rollout, after the optimiser's
    last step, so that the first minibatch sees the policy that collected the data.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, shape: torch.Size | tuple[int, ...], clip: float = 10.0, key: NestedKey = "observation") -> None:
        """Normalise the observations of `shape` under `key` and clip them to `[-clip, clip]`."""
        super().__init__()
        self.key = key
        self.moments = RunningMoments(shape)
        self.register_buffer("loc", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.clip = clip

    def forward(self, observation: Tensor) -> Tensor:
        """`[*, *shape] -> float32 [*, *shape]`."""
        return ((observation - self.loc) * self.scale).clamp(-self.clip, self.clip)

    def update(self, observation: Tensor, reduce: Reduce = alone) -> None:
        """Take a rollout's observations `[*, *shape]` into the statistics."""
        self.moments.update(observation, reduce)
        self.loc.copy_(self.moments.mean)
        self.scale.copy_((self.moments.var + 1e-8).rsqrt())


class RewardNormalizer(nn.Module):
    """Rewards divided by the running standard deviation of the discounted return, then clipped.

    The mean is never subtracted: that would change the optimum when the lengths of episodes vary.
    Source: Engstrom et al. 2020, section 2 ("reward scaling").
    """

    def __init__(self, gamma: float, clip: float = 10.0) -> None:
        """Discount returns by `gamma` and clip rewards to `[-clip, clip]`."""
        super().__init__()
        self.gamma = gamma
        self.clip = clip
        self.moments = RunningMoments()
        self._running: np.ndarray | None = None  # discounted return of the episodes under way, per environment

    @torch.no_grad()
    def update(self, reward: Tensor, is_init: Tensor, reduce: Reduce = alone) -> None:
        """Follow the returns through a rollout, from the last one's unless every environment begins an episode.

        Args:
            reward: `[num_envs, time, 1]`.
            is_init: bool `[num_envs, time, 1]`, whether an episode begins with this step.
            reduce: sums over ranks.

        """
        rewards, begins = reward.double().cpu().numpy()[..., 0].T, is_init.cpu().numpy()[..., 0].T
        returns = np.empty_like(rewards)
        running = np.zeros(reward.shape[0]) if self._running is None or begins[0].all() else self._running
        for step in range(len(rewards)):
            running = np.where(begins[step], 0.0, running * self.gamma) + rewards[step]
            returns[step] = running
        self._running = running
        self.moments.update(torch.from_numpy(returns).to(reward.device), reduce)

    def forward(self, reward: Tensor) -> Tensor:
        """`[*] -> [*]`, in the reward's own type."""
        return (reward * (self.moments.var + 1e-8).rsqrt().to(reward.dtype)).clamp(-self.clip, self.clip)


class RewardClipper(nn.Module):
    """Rewards clipped to `[-limit, limit]` for learning, as Mnih et al. 2015 do for Atari."""

    def __init__(self, limit: float = 1.0) -> None:
        """Clip to `[-limit, limit]`."""
        super().__init__()
        self.limit = limit

    def update(self, reward: Tensor, is_init: Tensor, reduce: Reduce = alone) -> None:
        """Nothing to learn."""

    def forward(self, reward: Tensor) -> Tensor:
        """`[*] -> [*]`."""
        return reward.clamp(-self.limit, self.limit)
