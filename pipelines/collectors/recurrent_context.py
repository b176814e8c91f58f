"""Recurrent states of a rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


class RecurrentContext:
    """The states that a recurrent policy reads: those of the previous `context_length` steps.

    The states of a rollout are `[context_length + num_steps, num_envs, state_size]`. The first `context_length` are
    the last states of the previous rollout.

    Args:
        shapes: `(context_length, state_size)` of every recurrent state.
        num_steps: length of the rollout.
        num_envs: number of environments.
        device: device of the policy.
        previous: `last_states` of the previous rollout; `None` starts from zeros.

    """

    def __init__(
        self,
        shapes: Mapping[str, tuple[int, int]],
        num_steps: int,
        num_envs: int,
        device: torch.device,
        previous: Mapping[str, Tensor] | None,
    ) -> None:
        self._lengths = {key: length for key, (length, _) in shapes.items()}
        self._states = {
            key: torch.zeros(length + num_steps, num_envs, size, device=device)
            for key, (length, size) in shapes.items()
        }
        if previous is not None:
            for key, length in self._lengths.items():
                self._states[key][:length] = previous[key]

    def read(self, step: int, env_slice: slice, is_init: NDArray[Any]) -> dict[Any, Tensor]:
        """Return `is_init` `[envs, 1]` and the states before a step `[envs, context_length, state_size]`."""
        states = {
            key: self._states[key][step : step + length, env_slice].transpose(0, 1)
            for key, length in self._lengths.items()
        }
        device = next(iter(self._states.values())).device
        return {"is_init": torch.from_numpy(is_init).to(device).unsqueeze(-1), **states}

    def write(self, step: int, env_slice: slice, states: Sequence[Tensor]) -> None:
        """Store the states after a step, `[envs, state_size]` each."""
        for (key, length), state in zip(self._lengths.items(), states, strict=True):
            self._states[key][step + length, env_slice] = state

    def last_states(self) -> dict[str, Tensor]:
        """Return the states that the next rollout begins with, `[context_length, num_envs, state_size]`."""
        return {key: self._states[key][-length:].clone() for key, length in self._lengths.items()}

    def windows(self) -> dict[str, Tensor]:
        """Return the states before every step and after the last one, as views.

        Shapes: `[num_steps + 1, num_envs, context_length, state_size]`.
        """
        return {key: context_windows(self._states[key], length, dim=0) for key, length in self._lengths.items()}


def context_windows(states: Tensor, context_length: int, dim: int) -> Tensor:
    """Return every window of `context_length` consecutive states along `dim`, as a view.

    Shapes: `[*, context_length + time, *, state_size] -> [*, time + 1, *, context_length, state_size]`.
    """
    return states.unfold(dim, context_length, 1).transpose(-1, -2)
