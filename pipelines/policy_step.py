"""One step of a policy as one call over plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from .compilation import OneGraph


class PolicyStep:
    """Calls a policy on observations and keeps everything it writes, on the policy's device.

    Args:
        policy: reads `observation`, writes its `out_keys`, `action` among them.
        compile: whether a call is one compiled graph; the TensorDict then exists only while tracing.

    """

    def __init__(self, policy: TensorDictModuleBase, *, compile: bool) -> None:  # noqa: A002
        """Choose the way to call the policy."""
        self.policy = policy
        self._keys = list(policy.out_keys)
        self._action = self._keys.index("action")
        self._call = OneGraph(self._outputs) if compile else self._outputs
        self._steps: list[list[Sequence[Tensor]]] = []

    def begin(self, num_groups: int) -> None:
        """Forget all steps; the next ones come from `num_groups` groups of environments in turn."""
        self._steps = [[] for _ in range(num_groups)]
        self._device = next(self.policy.parameters()).device
        self._on_cpu = self._device.type == "cpu"

    def __call__(self, group: int, observation: NDArray[Any]) -> NDArray[Any]:
        """Act on the observations of a group, `[group, ...]`.

        Returns:
            The action, `[group, ...]`.

        """
        given = torch.from_numpy(observation)
        written = self._call(given if self._on_cpu else given.to(self._device))
        self._steps[group].append(written)  # stacked at the end: cheaper than a copy at every step
        action = written[self._action]
        return (action if self._on_cpu else action.cpu()).numpy()

    def written(self) -> dict[Any, Tensor]:
        """What the policy wrote since `begin`: tensors `[num_steps, num_envs, ...]`."""
        groups = [[torch.stack(column) for column in zip(*steps, strict=True)] for steps in self._steps]
        return {key: torch.cat(parts, 1) for key, *parts in zip(self._keys, *groups, strict=True)}

    def _outputs(self, observation: Tensor) -> list[Tensor]:
        written = self.policy(TensorDict({"observation": observation}, observation.shape[:1]))
        return [written[key].contiguous() for key in self._keys]
