"""One step of a policy, of arrays or a TensorDict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from tensordict import NestedKey, TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from ...modules.features.extractor import recurrent_state_shapes
from ...modules.features.recurrent import context_windows
from ..compiled.graph import OneGraph
from ..step_factory import Compile, checked_compile


class PolicyStep:
    """Calls a policy on observations and keeps everything it writes, on the policy's device.

    What a policy carries from step to step is a tape of records, of which it sees the last ones; every step
    adds one (see `modules/memories.py`).

    Args:
        policy: reads the observation, and `is_init` and what it carries if it does; writes its `out_keys`.
        compile: whether a call is one graph, traced or compiled; the TensorDict then exists only while tracing.

    """

    def __init__(self, policy: TensorDictModuleBase, *, compile: Compile) -> None:  # noqa: A002
        """Choose the way to call the policy."""
        self.policy = policy
        self._carried = recurrent_state_shapes(policy)
        self._keys = [key for key in policy.out_keys if key not in [("next", name) for name in self._carried]]
        self._actions = {key: index for index, key in enumerate(self._keys) if is_action(key)}
        self._graph = graph_of(self._outputs, compile)
        self._call = self._graph or self._outputs
        self._steps: list[list[Sequence[Tensor]]] = []
        self._tapes: dict[str, Tensor] = {}

    @property
    def device(self) -> torch.device:
        """The policy's."""
        return device_of(self.policy)

    def begin(self, groups: Sequence[slice], num_envs: int, num_steps: int) -> None:
        """Forget all steps; `num_steps` come next, from groups of `num_envs` environments in turn."""
        if self._graph is not None:
            self._graph.refresh()
        self._groups = groups
        self._steps = [[] for _ in groups]
        for key, (context_length, state_size) in self._carried.items():
            tape = torch.zeros(context_length + num_steps, num_envs, state_size, device=self.device)
            if key in self._tapes:
                tape[:context_length] = self._tapes[key][-context_length:]
            self._tapes[key] = tape

    def __call__(
        self, group: int, observation: Mapping[NestedKey, Tensor], is_init: NDArray[Any]
    ) -> NDArray[Any] | dict[NestedKey, NDArray[Any]]:
        """Act on the observations of a group.

        Args:
            group: which one.
            observation: tensors `[group, ...]` on the policy's device.
            is_init: bool `[group]`, whether an episode begins.

        Returns:
            The action, `[group, ...]`, or where it is nested its parts by their keys.

        """
        steps, rows = self._steps[group], self._groups[group]
        given = dict(observation)
        if self._tapes:
            given["is_init"] = torch.from_numpy(is_init).to(next(iter(self._tapes.values())).device).unsqueeze(-1)
            for key, tape in self._tapes.items():
                given[key] = tape[len(steps) : len(steps) + self._carried[key][0], rows].transpose(0, 1)
        written = self._call(given)
        if self._tapes:
            for key, record in zip(self._tapes, written[len(self._keys) :], strict=True):
                self._tapes[key][len(steps) + self._carried[key][0], rows] = record
            written = written[: len(self._keys)]
        steps.append(written)  # stacked at the end: cheaper than a copy at every step
        if "action" in self._actions:
            return self._to_array(written[self._actions["action"]])
        return {key: self._to_array(written[index]) for key, index in self._actions.items()}

    def written(self) -> dict[Any, Tensor]:
        """What the policy wrote since `begin`: tensors `[num_steps, num_envs, ...]`."""
        groups = [[torch.stack(column) for column in zip(*steps, strict=True)] for steps in self._steps]
        return {key: torch.cat(parts, 1) for key, *parts in zip(self._keys, *groups, strict=True)}

    def carried(self) -> dict[str, Tensor]:
        """What the policy carried into every step since `begin`, and out of the last: views of its tapes.

        Shapes: `[num_steps + 1, num_envs, context_length, state_size]`.
        """
        return {key: context_windows(tape, self._carried[key][0], dim=0) for key, tape in self._tapes.items()}

    def _to_array(self, tensor: Tensor) -> NDArray[Any]:
        array: NDArray[Any] = tensor.cpu().numpy()
        return array

    def _outputs(self, given: dict[NestedKey, Tensor]) -> list[Tensor]:
        written = self.policy(TensorDict(given, next(iter(given.values())).shape[:1]))
        records = [written["next", key][:, -1] for key in self._carried]
        return [*(written[key].contiguous() for key in self._keys), *(record.contiguous() for record in records)]


def graph_of(outputs: Callable[..., list[Tensor]], compile: Compile) -> OneGraph | None:  # noqa: A002
    """What a policy writes as a graph that casts its weights once for a rollout, or none."""
    as_graph = checked_compile(compile)
    return OneGraph(outputs, compile=as_graph is True, keep_casts=True) if as_graph else None


def device_of(policy: nn.Module) -> torch.device:
    """Where a policy is; one without parameters is on the CPU."""
    return next((param.device for param in policy.parameters()), torch.device("cpu"))


def is_action(key: NestedKey) -> bool:
    """Whether `key` is the action or a part of it."""
    return key == "action" or (isinstance(key, tuple) and key[0] == "action")
