"""Epochs of shuffled minibatches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules import set_recurrent_mode

from ...errors import ConfigurationError
from ..advantages import RolloutBatch
from ..distributed import normalized, num_ranks
from .skipped import stacked_metrics
from .update import Learner


class Minibatches(NamedTuple):
    """Rows of the minibatches of an epoch, `[num_minibatches, rows]`, and their advantages if they are normalized."""

    indices: Tensor
    advantage: Tensor | None


class MinibatchUpdate:
    """Epochs of shuffled minibatches with one optimizer step each (Schulman et al. 2017, algorithm 1).

    Args:
        epochs: passes over a rollout (K).
        minibatch_size: frames in a minibatch (M) on each rank; must divide the rollout.
        critic_epochs: passes in which the critic is trained; `None` means `epochs`. The longer of the two
            continues alone.
        sequence_length: frames of the sequences that recurrent policies are trained on; must divide the frames
            of an environment. `None` uses all of them.
        burn_in: frames before each sequence from which its recurrent state is recomputed in every epoch but the
            first. The first sequence of a rollout keeps the state it was collected with.
        target_kl: stop the update before a step whose minibatch has a KL above 1.5 times this; `None` disables it.
        recompute_advantage: recompute values and advantages before every epoch but the first
            (Andrychowicz et al. 2020, section 3.5).

    Raises:
        ConfigurationError: if a value is out of range.

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
        counts = {
            "update.epochs": epochs,
            "critic.epochs": critic_epochs,
            "update.minibatch_size": minibatch_size,
            "update.sequence_length": sequence_length,
        }
        for key, value in counts.items():
            if value is not None and value < 1:
                raise ConfigurationError(f"{key}={value} must be at least 1")
        if burn_in < 0 or (burn_in and burn_in > (sequence_length or 0)):
            raise ConfigurationError(
                f"update.burn_in={burn_in} must be between 0 and update.sequence_length={sequence_length}"
            )
        if target_kl is not None and target_kl <= 0:
            raise ConfigurationError(f"update.target_kl={target_kl} must be positive, or null for no limit")
        self.epochs = epochs
        self.critic_epochs = epochs if critic_epochs is None else critic_epochs
        self.recompute_advantage = recompute_advantage
        self.minibatch_size = minibatch_size
        self.sequence_length = sequence_length
        self.burn_in = burn_in
        self.stop_above = None if target_kl is None else 1.5 * target_kl
        self.freezes = self.critic_epochs != epochs

    def setup(self, learner: Learner) -> None:
        """Keep the LightningModule, which takes the steps; called when training starts."""
        self.learner = learner

    @set_recurrent_mode(True)  # type: ignore[untyped-decorator] # of TorchRL's LSTMModule and GRUModule
    def __call__(self, batch: RolloutBatch) -> dict[str, float]:
        """Train on one rollout.

        Returns:
            The result of `means`, and `num_epochs`, the passes over the rollout. Skipped steps are left out.

        """
        learner = self.learner
        metrics: list[Mapping[str, Tensor]] = []
        num_epochs, drawn = max(self.epochs, self.critic_epochs), list[Minibatches]()
        # An epoch is drawn when it starts, so that no random numbers are drawn after an early stop. Several ranks draw
        # all epochs at the beginning, so that one all-reduce normalizes all advantages.
        is_ahead = num_ranks() > 1 and learner.normalize_advantage == "minibatch" and not self.recompute_advantage
        for epoch in range(num_epochs):
            if not learner.set_trainable(policy=epoch < self.epochs, critic=epoch < self.critic_epochs):
                break
            rows = batch.rows
            if epoch > 0:
                rows = batch.refreshed(burn_in=self.burn_in, recompute_advantage=self.recompute_advantage)
            drawn = drawn or self._draw(rows, num_epochs if is_ahead else 1)
            if not self._run_epoch(rows, metrics, drawn.pop(0)):
                break
        learner.set_trainable(policy=True, critic=True)
        results = means(metrics)
        return {**results, "num_epochs": results["num_steps"] * self.minibatch_size / batch.rows["advantage"].numel()}

    def _draw(self, rows: TensorDictBase, num_epochs: int) -> list[Minibatches]:
        """Draw the minibatches of epochs, and normalize their advantages over all ranks if the learner does so."""
        advantage = rows["advantage"]
        orders = [torch.randperm(len(rows)).to(advantage.device) for _ in range(num_epochs)]
        parts = [order.reshape(advantage.numel() // self.minibatch_size, -1) for order in orders]
        if self.learner.normalize_advantage != "minibatch":
            return [Minibatches(part, None) for part in parts]
        return [*map(Minibatches, parts, normalized(advantage[torch.cat(parts)]).chunk(num_epochs))]

    def _run_epoch(self, rows: TensorDictBase, metrics: list[Mapping[str, Tensor]], minibatches: Minibatches) -> bool:
        """Append the metrics of every step; return whether the next epoch may start."""
        if minibatches.advantage is not None:
            advantage = torch.empty_like(rows["advantage"])
            advantage[minibatches.indices] = minibatches.advantage
            rows = rows.copy().set("advantage", advantage)
        for indices in minibatches.indices.unbind():
            result = self.learner.step(rows, indices)
            if result is None:
                return False
            metrics.append(result)
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return an empty dictionary: no rollout depends on an earlier one."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Do nothing; see `state_dict`."""

    def num_steps(self, frames: int) -> int:
        """Return the number of optimizer steps for a rollout of `frames` without early stopping."""
        return max(self.epochs, self.critic_epochs) * (frames // self.minibatch_size)

    def frames_per_sequence(self, frames_per_env: int) -> int:
        """Return the length of the sequences that recurrent policies are trained on."""
        return self.sequence_length or frames_per_env

    def check(self, num_envs: int, frames_per_env: int, *, in_sequences: bool) -> None:
        """Check that minibatches, and sequences for recurrent policies, fill a rollout.

        Raises:
            ConfigurationError: if they do not; the message names the nearest sizes that do.

        """
        length = self.frames_per_sequence(frames_per_env) if in_sequences else 1
        if frames_per_env % length:
            raise ConfigurationError(
                f"update.sequence_length={length} does not divide collector.frames_per_env={frames_per_env}; "
                f"use {nearest_divisors(length, frames_per_env, 1)}"
            )
        size, frames = self.minibatch_size, num_envs * frames_per_env
        if size > frames or frames % size:
            problem = f"{'is larger than' if size > frames else 'does not divide'} the rollout ({frames} frames)"
        elif size % length:
            problem = f"does not hold whole sequences of {length} frames, in a rollout of {frames} frames"
        else:
            return
        raise ConfigurationError(
            f"update.minibatch_size={size} {problem}; use {nearest_divisors(size, frames, length)} "
            "(a rollout has env.num_envs x collector.frames_per_env frames)"
        )


def means(metrics: Sequence[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return the mean of every metric over the steps whose `grad_norm` is finite, and the largest `max_ratio`.

    `num_steps` is the number of these steps, and `first_kl` is `kl_approx` of the first of them.
    """
    if not metrics:
        return {"num_steps": 0.0}
    names = list(metrics[0])
    table = torch.stack([stacked_metrics(step) for step in metrics])
    if "grad_norm" in names:
        table = table[table[:, names.index("grad_norm")].isfinite()]
    if not len(table):
        return {"num_steps": 0.0}
    first, mean, largest = torch.stack([table[0], table.mean(0), table.amax(0)]).tolist()
    results = {name: largest[i] if name == "max_ratio" else mean[i] for i, name in enumerate(names)}
    kl = {"first_kl": first[names.index("kl_approx")]} if "kl_approx" in names else {}
    return {**results, **kl, "num_steps": float(len(table))}


def nearest_divisors(size: int, frames: int, multiple: int) -> str:
    """Return the divisors of `frames` next to `size` that are multiples of `multiple`, such as `64 or 128`."""
    divisors = [n for n in range(multiple, frames + 1, multiple) if frames % n == 0]
    below = max((n for n in divisors if n <= size), default=divisors[0])
    above = min((n for n in divisors if n >= size), default=divisors[-1])
    return " or ".join(str(n) for n in sorted({below, above}))
