"""Normalizers of observations and rewards, whose running statistics are buffers of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from tensordict import NestedKey
from torch import Tensor, nn

Reduce = Callable[[Tensor, Callable[[Tensor], object]], None]
"""A function of a tensor and a function `use`. It calls `use` with the tensors of all ranks, `[num_ranks, *shape]`,
either at once or at the end of the rollout."""


def no_reduce(tensor: Tensor, use: Callable[[Tensor], object]) -> None:
    """Call `use` with the tensor of a single rank, at once."""
    use(tensor.unsqueeze(0))


class RewardTransform(Protocol):
    """A transform of the rewards that the agent learns from."""

    def update(self, reward: Tensor, is_init: Tensor, reduce: Reduce) -> None:
        """Update the statistics with the rewards of one rollout.

        Args:
            reward: Rewards, `[num_envs, time, 1]`.
            is_init: Whether an episode begins with this step, bool `[num_envs, time, 1]`.
            reduce: Calls a function with the tensors of all ranks, at once.

        """

    def __call__(self, reward: Tensor) -> Tensor:
        """Transform rewards of any shape."""
        ...


class RunningMoments(nn.Module):
    """Mean and variance of every feature over all values seen so far.

    The buffers are float64, because the count grows without limit and the update subtracts large numbers.

    Source: Chan, Golub and LeVeque 1983 (parallel variance).

    Args:
        shape: Shape of one value.

    """

    mean: Tensor
    var: Tensor
    count: Tensor

    def __init__(self, shape: torch.Size | tuple[int, ...] = ()) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape, dtype=torch.float64))
        self.register_buffer("var", torch.ones(shape, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    def update(self, values: Tensor, reduce: Reduce = no_reduce) -> None:
        """Add a batch of values `[*, *shape]` from every rank, in place."""
        reduce(self.measure(values), self.merge)

    @torch.no_grad()
    def measure(self, values: Tensor) -> Tensor:
        """Return count, sum and squared deviation of a batch `[*, *shape]`, float64 `[1 + 2 num_features]`."""
        values = values.reshape(-1, *self.mean.shape).double()
        total = values.sum(0)
        squared_deviation = (values - total / len(values)).square().sum(0)
        return torch.cat([total.new_tensor([len(values)]), total.reshape(-1), squared_deviation.reshape(-1)])

    @torch.no_grad()
    def merge(self, measured: Tensor) -> None:
        """Add the batches of all ranks, `[num_ranks, 1 + 2 num_features]`, in place."""
        size, shape = self.mean.numel(), self.mean.shape
        counts, totals, deviations = measured.split([1, size, size], dim=1)
        batch_count, batch_mean = counts.sum(), totals.sum(0) / counts.sum()
        between = counts * (totals / counts - batch_mean).square()
        squared_deviation = (deviations + between).sum(0).reshape(shape)
        batch_mean, total = batch_mean.reshape(shape), self.count + batch_count
        delta = batch_mean - self.mean
        self.var.copy_(
            (self.var * self.count + squared_deviation + delta.square() * self.count * batch_count / total) / total
        )
        self.mean.add_(delta * batch_count / total)
        self.count.copy_(total)


class ObservationNormalizer(nn.Module):
    """Scales observations to mean 0 and variance 1 and clips them.

    The statistics change only in `update`. Call it once per rollout, after the last optimizer step, so
    that minibatches are normalized in the same way as during collection.

    Args:
        shape: Shape of one observation.
        clip: Normalized observations are clipped to `[-clip, clip]`.
        key: Key of the observation in a TensorDict.

    """

    loc: Tensor
    scale: Tensor

    def __init__(self, shape: torch.Size | tuple[int, ...], clip: float = 10.0, key: NestedKey = "observation") -> None:
        super().__init__()
        self.key = key
        self.moments = RunningMoments(shape)
        self.register_buffer("loc", torch.zeros(shape))
        self.register_buffer("scale", torch.ones(shape))
        self.clip = clip

    def forward(self, observation: Tensor) -> Tensor:
        """Shapes: `[*, *shape] -> float32 [*, *shape]`."""
        return ((observation - self.loc) * self.scale).clamp(-self.clip, self.clip)

    def update(self, observation: Tensor, reduce: Reduce = no_reduce) -> None:
        """Update the statistics with the observations `[*, *shape]` of one rollout."""
        reduce(self.moments.measure(observation), self._merge)

    def _merge(self, measured: Tensor) -> None:
        self.moments.merge(measured)
        self.loc.copy_(self.moments.mean)
        self.scale.copy_((self.moments.var + 1e-8).rsqrt())


class RewardNormalizer(nn.Module):
    """Divides rewards by the running standard deviation of the discounted return and clips them.

    The mean is not subtracted, because that would change the optimal policy when episode lengths vary.

    Source: Engstrom et al. 2020, section 2 ("reward scaling").

    Args:
        gamma: Discount factor of the return.
        clip: Normalized rewards are clipped to `[-clip, clip]`.

    """

    def __init__(self, gamma: float, clip: float = 10.0) -> None:
        super().__init__()
        self.gamma = gamma
        self.clip = clip
        self.moments = RunningMoments()
        self._current_returns: np.ndarray | None = None  # of the unfinished episodes, one per environment

    def get_extra_state(self) -> Tensor | None:
        """Return the returns of the unfinished episodes, float64 `[num_envs]`."""
        return None if self._current_returns is None else torch.from_numpy(self._current_returns.copy())

    def set_extra_state(self, state: Tensor | None) -> None:
        self._current_returns = None if state is None else state.cpu().numpy().copy()

    @torch.no_grad()
    def update(self, reward: Tensor, is_init: Tensor, reduce: Reduce = no_reduce) -> None:
        """Accumulate the discounted returns over one rollout and update their statistics.

        Returns continue from the previous rollout.

        Args:
            reward: Rewards, `[num_envs, time, 1]`.
            is_init: Whether an episode begins with this step, bool `[num_envs, time, 1]`.
            reduce: Calls a function with the tensors of all ranks, at once.

        """
        rewards, is_first = reward.double().cpu().numpy()[..., 0].T, is_init.cpu().numpy()[..., 0].T
        returns = np.empty_like(rewards)
        current = self._current_returns
        if current is None or len(current) != len(reward):
            current = np.zeros(reward.shape[0])
        for step in range(len(rewards)):
            current = np.where(is_first[step], 0.0, current * self.gamma) + rewards[step]
            returns[step] = current
        self._current_returns = current
        self.moments.update(torch.from_numpy(returns).to(reward.device), reduce)

    def forward(self, reward: Tensor) -> Tensor:
        """Normalize rewards of any shape; the dtype stays the same."""
        return (reward * (self.moments.var + 1e-8).rsqrt().to(reward.dtype)).clamp(-self.clip, self.clip)


class RewardClipper(nn.Module):
    """Clips rewards to `[-limit, limit]`, as Mnih et al. 2015 do for Atari."""

    def __init__(self, limit: float = 1.0) -> None:
        super().__init__()
        self.limit = limit

    def update(self, reward: Tensor, is_init: Tensor, reduce: Reduce = no_reduce) -> None:
        """Do nothing: clipping has no statistics."""

    def forward(self, reward: Tensor) -> Tensor:
        return reward.clamp(-self.limit, self.limit)
