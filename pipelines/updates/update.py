"""Protocols of update rules and of the LightningModule that they train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer

from ...modules.symmetry import Symmetry
from ..advantages import RolloutBatch
from .eager_step import LossWeights
from .skipped import SkippedSteps


class Learner(Protocol):
    """The members of the LightningModule that an update uses.

    Attributes:
        objective: the objective, with its `actor_network` and `critic_network`.
        normalize_advantage: whether the update normalizes the advantages of each minibatch.
        loss_weights: weights of the losses of policy and critic, which `set_trainable` sets.
        skipped: counts steps that are not finite. An update that does not use `step` adds the metrics of its own steps.
        symmetry: the symmetry that the losses use, or `None`.
        trains_policy: whether the policy is trainable now.
        after_step: functions that run after every step that trains the policy, for example to average its weights.

    """

    objective: nn.Module
    normalize_advantage: Literal["rollout", "minibatch"] | None
    loss_weights: LossWeights
    skipped: SkippedSteps
    symmetry: Symmetry | None
    trains_policy: bool
    after_step: list[Callable[[], None]]

    @property
    def optimizer(self) -> Optimizer: ...

    def step(self, rows: TensorDictBase, indices: Tensor) -> Mapping[str, Tensor] | None:
        """Take an optimizer step on the rows `indices`. Return metrics, or `None` if the step is skipped."""

    def set_trainable(self, *, policy: bool, critic: bool) -> bool:
        """Freeze or unfreeze policy and critic. Return whether any parameter is trainable."""


class Update(Protocol):
    """Update rule that trains the networks on one rollout.

    `RolloutBatch.refreshed` recomputes values, advantages or recurrent states with the current weights.

    Attributes:
        stop_above: limit of the objective's `stopping_metric` (by default `kl_approx`). A step is skipped if its
            minibatch exceeds the limit. `None` means no limit.
        freezes: whether the update calls `set_trainable`, which needs separate parameter groups.

    """

    stop_above: float | None
    freezes: bool

    def setup(self, learner: Learner) -> None:
        """Prepare the first update. Called when training starts, after the optimizer has been created."""

    def __call__(self, batch: RolloutBatch) -> dict[str, float]:
        """Train on one rollout and return metrics."""

    def num_steps(self, frames: int) -> int:
        """Return the number of `Learner.step` calls for a rollout of `frames`. `compile="auto"` uses it."""

    def frames_per_sequence(self, frames_per_env: int) -> int:
        """Return the length of the sequences that recurrent policies are trained on."""

    def check(self, num_envs: int, frames_per_env: int, *, in_sequences: bool) -> None:
        """Raise a ConfigurationError if the update does not fit a rollout of this size."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a checkpoint saves."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
