"""One step of a policy as one call over plain tensors."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor

from .compilation import one_graph


class PolicyStep:
    """Calls a policy on an observation and stores everything it writes.

    Args:
        policy: reads `observation`, writes its `out_keys`, `action` among them.
        compile: whether a call is one compiled graph; the TensorDict then exists only while tracing.

    """

    def __init__(self, policy: TensorDictModuleBase, *, compile: bool) -> None:  # noqa: A002
        """Choose the way to call the policy."""
        self.policy = policy
        self._keys = list(policy.out_keys)
        self._action = self._keys.index("action")
        self._call = one_graph(self._outputs) if compile else self._outputs
        self._storage: list[NDArray[Any]] = []

    def begin(self, num_steps: int) -> None:
        """Forget the stored steps and make room for `num_steps` new ones."""
        self._storage = [np.empty((num_steps, *array.shape[1:]), array.dtype) for array in self._storage]
        self._num_steps = num_steps
        self._device = next(self.policy.parameters()).device

    def __call__(self, step: int, observation: NDArray[Any]) -> NDArray[Any]:
        """Act on `observation` `[num_envs, ...]` and store as `step`.

        Returns:
            The action, `[num_envs, ...]`.

        """
        written = self._call(torch.from_numpy(observation).to(self._device))
        outputs = [output.cpu().numpy() for output in written]
        if not self._storage:
            self._storage = [np.empty((self._num_steps, *output.shape), output.dtype) for output in outputs]
        for array, output in zip(self._storage, outputs, strict=True):
            array[step] = output
        return outputs[self._action]

    def stored(self) -> dict[Any, Tensor]:
        """What the policy wrote since `begin`: tensors `[num_steps, num_envs, ...]`."""
        return {key: torch.from_numpy(array) for key, array in zip(self._keys, self._storage, strict=True)}

    def _outputs(self, observation: Tensor) -> list[Tensor]:
        written = self.policy(TensorDict({"observation": observation}, observation.shape[:1]))
        return [written[key].contiguous() for key in self._keys]
