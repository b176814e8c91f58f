"""From one rollout to a better policy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import NestedKey
from torch import Tensor

from ...errors import ConfigurationError
from ..distributed import normalized

Step = Callable[[dict[NestedKey, Tensor], Tensor], Tensor | None]


class MinibatchUpdate:
    """Epochs of shuffled minibatches, one optimiser step each (Schulman et al. 2017, algorithm 1).

    Args:
        epochs: passes over a rollout (K).
        critic_epochs: passes in which the critic learns; none: as many. The longer of the two goes on alone.
        minibatch_size: frames in a minibatch (M), on each rank; must divide the rollout.
        sequence_length: frames of the sequences that a policy with a memory learns from, one after the other cut
            from each environment's rollout, which it must divide; none: the whole rollout.
        burn_in: frames before each sequence from which its memory is worked out anew in every epoch but the first,
            instead of taking it as it was collected; within a rollout, so not for the first sequence.
        target_kl: all remaining epochs are dropped, before the step is taken, as soon as the KL of a
            minibatch from which the policy learns is above 1.5 times this; none: never.
        recompute_advantage: value all states anew before every epoch but the first, and estimate from that.

    """

    def __init__(
        self,
        epochs: int,
        minibatch_size: int,
        *,
        critic_epochs: int | None = None,
        sequence_length: int | None = None,
        burn_in: int = 0,
        target_kl: float | None = None,
        recompute_advantage: bool = False,
    ) -> None:
        """Nothing is known of the rollout yet."""
        if epochs < 1:
            raise ConfigurationError(f"update.epochs={epochs} must be at least 1")
        if critic_epochs is not None and critic_epochs < 1:
            raise ConfigurationError(f"critic.epochs={critic_epochs} must be at least 1, or null for update.epochs")
        if minibatch_size < 1:
            raise ConfigurationError(f"update.minibatch_size={minibatch_size} must be at least 1")
        if sequence_length is not None and sequence_length < 1:
            raise ConfigurationError(f"update.sequence_length={sequence_length} must be at least 1")
        if burn_in < 0 or (burn_in and burn_in > (sequence_length or 0)):
            raise ConfigurationError(
                f"update.burn_in={burn_in} must lie within 0 and update.sequence_length={sequence_length}"
            )
        if target_kl is not None and target_kl <= 0:
            raise ConfigurationError(f"update.target_kl={target_kl} must be positive, or null for no limit")
        self.epochs = epochs
        self.critic_epochs = epochs if critic_epochs is None else critic_epochs
        self.recompute_advantage = recompute_advantage
        self.minibatch_size = minibatch_size
        self.sequence_length = sequence_length
        self.burn_in = burn_in
        self.kl_limit = None if target_kl is None else 1.5 * target_kl

    def check(self, num_envs: int, frames_per_env: int, *, in_sequences: bool) -> None:
        """Refuse a rollout that minibatches, and where a memory asks for them sequences, cannot fill.

        Raises:
            ConfigurationError: naming the nearest sizes that do.

        """
        length = self.length(frames_per_env) if in_sequences else 1
        if frames_per_env % length:
            raise ConfigurationError(
                f"update.sequence_length={length} does not divide collector.frames_per_env={frames_per_env}; "
                f"the nearest that fits is {nearest_divisors(length, frames_per_env, 1)}"
            )
        self._check_size(num_envs * frames_per_env, length)

    def _check_size(self, frames: int, length: int) -> None:
        """Refuse minibatches that do not fill a rollout of `frames` with whole sequences of `length`."""
        size = self.minibatch_size
        if size > frames or frames % size:
            problem = f"{'is larger than' if size > frames else 'does not divide'} the rollout of {frames} frames"
        elif size % length:
            problem = f"does not hold whole sequences of {length} frames, of the rollout of {frames} frames"
        else:
            return
        raise ConfigurationError(
            f"update.minibatch_size={size} {problem} (env.num_envs x collector.frames_per_env); the nearest that "
            f"fits is {nearest_divisors(size, frames, length)}"
        )

    def length(self, frames_per_env: int) -> int:
        """Frames of a sequence that a memory learns from; all of an environment's if not set."""
        return self.sequence_length or frames_per_env

    def num_steps(self, frames: int) -> int:
        """Optimiser steps for a rollout of `frames` if none is dropped."""
        return max(self.epochs, self.critic_epochs) * (frames // self.minibatch_size)

    def __call__(
        self, begin_epoch: Callable[[int], dict[NestedKey, Tensor] | None], step: Step, *, normalize: bool = False
    ) -> tuple[Tensor, int]:
        """Run over a rollout.

        Args:
            begin_epoch: called before every epoch, counted from 0; returns what it learns from: tensors
                `[frames, ...]`, or of whole sequences `[sequences, time, ...]` (see `training_data`), or none to stop.
            step: takes the rollout and the indices of a minibatch's rows, returns metrics, or none to stop.
            normalize: whether to normalise the advantages of every minibatch.

        Returns:
            The metrics' mean over the steps taken `[metrics]`, and the number of steps taken.

        Raises:
            ConfigurationError: if minibatches cannot fill the rollout, naming the nearest sizes that do.

        """
        metrics: list[Tensor] = []
        for epoch in range(max(self.epochs, self.critic_epochs)):
            data = begin_epoch(epoch)
            if data is None:
                break
            rows, frames = len(data["advantage"]), data["advantage"].numel()
            self._check_size(frames, frames // rows)
            order = torch.randperm(rows).to(data["advantage"].device)
            minibatches = order.reshape(frames // self.minibatch_size, -1)
            if normalize:
                advantage = torch.empty_like(data["advantage"])
                advantage[minibatches] = normalized(data["advantage"][minibatches])
                data = data | {"advantage": advantage}
            for indices in minibatches.unbind():
                result = step(data, indices)
                if result is None:
                    return self._mean(metrics), len(metrics)
                metrics.append(result)
        return self._mean(metrics), len(metrics)

    @staticmethod
    def _mean(metrics: list[Tensor]) -> Tensor:
        return torch.stack(metrics).mean(0) if metrics else torch.empty(0)


def nearest_divisors(size: int, frames: int, multiple: int) -> str:
    """The divisors of `frames` next to `size`, multiples of `multiple` among them, as words."""
    divisors = [n for n in range(multiple, frames + 1, multiple) if frames % n == 0]
    below = max((n for n in divisors if n <= size), default=divisors[0])
    above = min((n for n in divisors if n >= size), default=divisors[-1])
    return " or ".join(str(n) for n in sorted({below, above}))
