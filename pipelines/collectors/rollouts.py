"""The protocol of objects that collect rollouts."""

from __future__ import annotations

from typing import Protocol

from tensordict import TensorDictBase


class Rollouts(Protocol):
    """Collects one rollout `[num_envs, time]` in every call."""

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in the parts of the collection that are measured."""

    def __call__(self) -> TensorDictBase: ...
