"""The contracts of update rules and of the LightningModule that they train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.optim import Optimizer

from ..advantages import RolloutBatch


class Learner(Protocol):
    """The members of the LightningModule that an update uses.

    Attributes:
        objective: the objective, with its `actor_network` and `critic_network`.
        normalize_advantage: whether the update normalizes the advantages of each minibatch.
        after_step: functions that are called after every optimizer step, such as an average of the weights.

    """

    objective: nn.Module
    normalize_advantage: Literal["rollout", "minibatch"] | None
    after_step: list[Callable[[], None]]

    @property
    def optimizer(self) -> Optimizer: ...

    def step(self, rows: TensorDictBase, indices: Tensor) -> dict[str, Tensor] | None:
        """Take an optimizer step on the rows `indices`; return metrics, or `None` if the stopping rule forbids it."""

    def set_trainable(self, *, policy: bool, critic: bool) -> bool:
        """Freeze policy or critic; return whether any parameter is still trainable."""


class Update(Protocol):
    """An update rule: how the networks learn from one rollout.

    `RolloutBatch.refreshed` recomputes values, advantages or recurrent states with the current weights.

    Attributes:
        stop_above: limit of the objective's `stopping_metric` (by default `kl_approx`). A step whose minibatch exceeds
            it is not taken. `None` means no limit.
        freezes: whether the update calls `set_trainable`, which needs separate parameter groups.

    """

    stop_above: float | None
    freezes: bool

    def setup(self, learner: Learner) -> None:
        """Prepare the first update; called when training starts, with the optimizer in place."""

    def __call__(self, batch: RolloutBatch) -> dict[str, float]:
        """Learn from one rollout and return metrics."""

    def num_steps(self, frames: int) -> int:
        """Return the number of calls of `Learner.step` for a rollout of `frames`, which `compile="auto"` needs."""

    def frames_per_sequence(self, frames_per_env: int) -> int:
        """Return the length of the sequences that recurrent policies are trained on."""

    def check(self, num_envs: int, frames_per_env: int, *, in_sequences: bool) -> None:
        """Raise a ConfigurationError if the update does not fit a rollout of this size."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint needs to continue."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`."""
