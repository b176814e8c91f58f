"""Memories: what a policy keeps of the past, from one step to the next.

A memory is a tape of records, one for every step, and what it keeps is the window of the last `context_length` of
them: a recurrent network's only record is its state, a transformer's records are the hidden states that later
steps attend to. SampleToAction step by step and learning from whole sequences are the same call, with a length of one
or more.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError


class Memory(nn.Module, ABC):
    """What every memory has.

    Args:
        num_inputs: features that one step brings.

    """

    num_features: int
    context_length: int
    state_size: int

    @abstractmethod
    def forward(self, features: Tensor, is_init: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Go through sequences.

        Nothing that was recorded before an `is_init` reaches the features at it or after it.

        Args:
            features: `[batch, time, num_inputs]`.
            is_init: bool `[batch, time, 1]`, whether an episode begins with this step.
            past: the records of the steps before, oldest first: `[batch, context_length, state_size]`.

        Returns:
            Features `[batch, time, num_features]`, and the tape `[batch, context_length + time, state_size]`.

        """


def context_windows(tape: Tensor, context_length: int, dim: int) -> Tensor:
    """All runs of `context_length` records of a tape along `dim`, without a copy.

    Shapes: `[*, context_length + time, *, state_size] -> [*, time + 1, *, context_length, state_size]`.
    """
    return tape.unfold(dim, context_length, 1).transpose(-1, -2)


class Recurrent(Memory):
    """What LSTM and GRU share: one record, the state, which passes through a cell at every step."""

    context_length = 1

    def __init__(self, cell: nn.LSTMCell | nn.GRUCell, num_states: int) -> None:
        """Start with orthogonal weights for every gate and zero biases."""
        super().__init__()
        self.cell = cell
        self.num_features = cell.hidden_size
        self.state_size = num_states * cell.hidden_size
        for weight in (cell.weight_ih, cell.weight_hh):
            for gate in weight.split(cell.hidden_size):
                nn.init.orthogonal_(gate)
        nn.init.zeros_(cell.bias_ih)
        nn.init.zeros_(cell.bias_hh)

    @abstractmethod
    def step(self, features: Tensor, state: Tensor) -> Tensor:
        """`[batch, num_inputs], [batch, state_size] -> [batch, state_size]`, the output first."""

    def forward(self, features: Tensor, is_init: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """See `Memory`; in full precision, because errors add up over the steps."""
        tape = [past[:, 0]]
        with torch.autocast(features.device.type, enabled=False):
            for inputs, begins in zip(features.to(past.dtype).unbind(1), is_init.unbind(1), strict=True):
                tape.append(self.step(inputs, tape[-1].masked_fill(begins, 0.0)))
        records = torch.stack(tape, 1)
        return records[:, 1:, : self.num_features], records


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), which starts with open forget gates."""

    cell: nn.LSTMCell

    def __init__(self, num_inputs: int, *, width: int = 128) -> None:
        """Make a cell of `width`; the state is its output and its cell."""
        require_positive(width=width)
        super().__init__(nn.LSTMCell(num_inputs, width), num_states=2)
        with torch.no_grad():
            self.cell.bias_hh[width : 2 * width] = 1.0

    def step(self, features: Tensor, state: Tensor) -> Tensor:
        """See `Recurrent`."""
        output, cell = state.chunk(2, -1)
        return torch.cat(self.cell(features, (output, cell)), -1)


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014)."""

    cell: nn.GRUCell

    def __init__(self, num_inputs: int, *, width: int = 128) -> None:
        """Make a cell of `width`; the state is its output."""
        require_positive(width=width)
        super().__init__(nn.GRUCell(num_inputs, width), num_states=1)

    def step(self, features: Tensor, state: Tensor) -> Tensor:
        """See `Recurrent`."""
        new: Tensor = self.cell(features, state)
        return new


def require_positive(**sizes: int) -> None:
    """Raise ConfigurationError for a size below 1, naming it."""
    for name, size in sizes.items():
        if size < 1:
            raise ConfigurationError(f"policy.memory.{name}={size} must be at least 1")
