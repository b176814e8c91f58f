"""From one rollout to a better policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..errors import ConfigurationError

Step = Callable[[dict[str, Tensor], Tensor], Tensor | None]


class MinibatchUpdate:
    """Epochs of shuffled minibatches, one optimiser step each (Schulman et al. 2017, algorithm 1).

    Args:
        epochs: passes over a rollout (K).
        minibatch_size: frames in a minibatch (M), on each rank; must divide the rollout.
        target_kl: all remaining epochs are dropped, before the step is taken, as soon as the KL of a
            minibatch is above 1.5 times this; none: never.

    """

    def __init__(self, epochs: int = 10, minibatch_size: int = 64, target_kl: float | None = None) -> None:
        """Nothing is known of the rollout yet."""
        if epochs < 1:
            raise ConfigurationError(f"update.epochs={epochs} must be at least 1")
        if minibatch_size < 1:
            raise ConfigurationError(f"update.minibatch_size={minibatch_size} must be at least 1")
        if target_kl is not None and target_kl <= 0:
            raise ConfigurationError(f"update.target_kl={target_kl} must be positive, or null for no limit")
        self.epochs = epochs
        self.minibatch_size = minibatch_size
        self.kl_limit = None if target_kl is None else 1.5 * target_kl

    def check(self, frames: int) -> None:
        """Refuse a rollout of `frames` that minibatches cannot fill.

        Raises:
            ConfigurationError: naming the nearest sizes that do.

        """
        size = self.minibatch_size
        if 1 <= size <= frames and frames % size == 0:
            return
        divisors = [n for n in range(1, frames + 1) if frames % n == 0]
        below = max((n for n in divisors if n <= size), default=1)
        above = min((n for n in divisors if n >= size), default=frames)
        problem = "is larger than" if size > frames else "does not divide"
        raise ConfigurationError(
            f"update.minibatch_size={size} {problem} the rollout of {frames} frames (env.num_envs x "
            f"collector.frames_per_env); the nearest that fits is {' or '.join(str(n) for n in sorted({below, above}))}"
        )

    def num_steps(self, frames: int) -> int:
        """Optimiser steps for a rollout of `frames` if none is dropped."""
        return self.epochs * (frames // self.minibatch_size)

    def __call__(self, data: dict[str, Tensor], step: Step) -> tuple[Tensor, int]:
        """Run over a rollout.

        Args:
            data: tensors `[frames, ...]`.
            step: takes the rollout and a minibatch's indices, returns metrics, or none to stop.

        Returns:
            The metrics' mean over the steps taken `[metrics]`, and the number of steps taken.

        """
        frames = len(data["advantage"])
        self.check(frames)
        metrics: list[Tensor] = []
        for _ in range(self.epochs):
            order = torch.randperm(frames).to(data["advantage"].device)
            for indices in order.split(self.minibatch_size):
                result = step(data, indices)
                if result is None:
                    return self._mean(metrics), len(metrics)
                metrics.append(result)
        return self._mean(metrics), len(metrics)

    @staticmethod
    def _mean(metrics: list[Tensor]) -> Tensor:
        return torch.stack(metrics).mean(0) if metrics else torch.empty(0)
