"""Memories: modules that carry a recurrent state from one step to the next.

A memory reads the states of the last `context_length` steps, its context. An LSTM or GRU reads a single state; a
transformer reads the hidden states of all steps that it attends to. A single step during collection and a whole
sequence during learning are the same call: features and a context in, features and the next context out. Learning needs
only the features. Collection and burn-in also need the next context.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torchrl.data import Unbounded
from torchrl.envs import TensorDictPrimer

from .bodies import require_positive


class Memory(nn.Module, ABC):
    """Base class of memories, which are built from the number of input features.

    Attributes:
        num_features: Number of output features.
        context_length: Number of previous states that a step reads.
        state_size: Size of the state of one step.
        compiles_sequences: Whether `compile=auto` compiles learning. A loop over steps takes minutes to compile.

    """

    num_features: int
    context_length: int
    state_size: int
    compiles_sequences: bool = False

    @abstractmethod
    def forward(self, features: Tensor, is_init: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Process a batch of sequences; a single step is a sequence of length 1.

        States from before an episode begins must not affect the features of that episode. The result must not depend on
        how a sequence is divided into calls.

        Args:
            features: Input features, `[batch, time, num_inputs]`.
            is_init: Whether an episode begins with this step, bool `[batch, time, 1]`.
            context: States of the steps before the first one, oldest first, `[batch, context_length, state_size]`.

        Returns:
            The output features of all steps, `[batch, time, num_features]`, and the context of the step after the last
            one, `[batch, context_length, state_size]`.

        """


class RecurrentCell(Memory):
    """Base class of LSTM and GRU, whose context is the previous state.

    All gates start with orthogonal weights and zero biases.

    Args:
        cell: Cell that is applied at every step.
        num_states: Number of vectors of the cell's hidden size in a state.
        layer_norm: Whether to apply layer normalization to the output features.

    """

    context_length = 1

    def __init__(self, cell: nn.LSTMCell | nn.GRUCell, num_states: int, layer_norm: bool) -> None:
        super().__init__()
        self.cell = cell
        self.norm = nn.LayerNorm(cell.hidden_size) if layer_norm else nn.Identity()
        self.num_features = cell.hidden_size
        self.state_size = num_states * cell.hidden_size
        for weight in (cell.weight_ih, cell.weight_hh):
            for gate in weight.split(cell.hidden_size):
                nn.init.orthogonal_(gate)
        nn.init.zeros_(cell.bias_ih)
        nn.init.zeros_(cell.bias_hh)

    @property
    def compiles_sequences(self) -> bool:  # type: ignore[override]
        return self.cell.weight_ih.device.type == "cpu"

    @abstractmethod
    def step(self, features: Tensor, state: Tensor) -> Tensor:
        """Compute the next state, which starts with the output features.

        Shapes: `[batch, num_inputs], [batch, state_size] -> [batch, state_size]`.
        """

    @abstractmethod
    def sequence(self, features: Tensor, is_init: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the same as `steps` with fewer operations."""

    def steps(self, features: Tensor, is_init: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the cell step by step.

        Args:
            features: `[batch, time, num_inputs]`.
            is_init: `[batch, time, 1]`.
            state: State before the first step, `[batch, state_size]`.

        Returns:
            The outputs of all steps, `[batch, time, num_features]`, and the last state.

        """
        outputs = []
        for inputs, is_first in zip(features.unbind(1), is_init.unbind(1), strict=True):
            state = self.step(inputs, state.masked_fill(is_first, 0.0))
            outputs.append(state[:, : self.num_features])
        return torch.stack(outputs, 1), state

    def forward(self, features: Tensor, is_init: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the cell to every step; see `Memory.forward`."""
        # The operations of `sequence` depend on where episodes begin. Only our graphs support this, and only on a CPU.
        in_other_graph = torch.compiler.is_dynamo_compiling() or not self.compiles_sequences
        in_steps = features.shape[1] == 1 or (torch.compiler.is_compiling() and in_other_graph)
        # Full precision, because rounding errors accumulate over the steps.
        with torch.autocast(features.device.type, enabled=False):
            run = self.steps if in_steps else self.sequence
            outputs, state = run(features.to(context.dtype), is_init, context[:, 0])
        return self.norm(outputs), state.unsqueeze(1)


class LSTM(RecurrentCell):
    """Long short-term memory (Hochreiter and Schmidhuber 1997) with forget gates that start open.

    The state is the hidden state followed by the cell state.

    Args:
        num_inputs: Number of input features.
        width: Number of hidden units.
        layer_norm: Whether to apply layer normalization to the output features.

    Raises:
        ConfigurationError: If `width` is less than 1.

    """

    cell: nn.LSTMCell

    def __init__(self, num_inputs: int, *, width: int = 128, layer_norm: bool = False) -> None:
        from .lstm_sequence import lstm_sequence  # defines operators that other policies do not need

        require_positive("policy.memory", width=width)
        super().__init__(nn.LSTMCell(num_inputs, width), 2, layer_norm)
        with torch.no_grad():
            self.cell.bias_hh[width : 2 * width] = 1.0
        self._sequence = lstm_sequence

    def step(self, features: Tensor, state: Tensor) -> Tensor:
        hidden, cell = state.chunk(2, -1)
        return torch.cat(self.cell(features, (hidden, cell)), -1)

    def sequence(self, features: Tensor, is_init: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, cell = self._sequence(features, is_init, *state.chunk(2, -1), *cell_weights(self.cell))
        return outputs, torch.cat([outputs[:, -1], cell], -1)


class GRU(RecurrentCell):
    """Gated recurrent unit (Cho et al. 2014).

    Args:
        num_inputs: Number of input features.
        width: Number of hidden units.
        layer_norm: Whether to apply layer normalization to the output features.

    Raises:
        ConfigurationError: If `width` is less than 1.

    """

    cell: nn.GRUCell

    def __init__(self, num_inputs: int, *, width: int = 128, layer_norm: bool = False) -> None:
        from .gru_sequence import gru_sequence

        require_positive("policy.memory", width=width)
        super().__init__(nn.GRUCell(num_inputs, width), 1, layer_norm)
        self._sequence = gru_sequence

    def step(self, features: Tensor, state: Tensor) -> Tensor:
        next_state: Tensor = self.cell(features, state)
        return next_state

    def sequence(self, features: Tensor, is_init: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return self._sequence(features, is_init, state, *cell_weights(self.cell))


def cell_weights(cell: nn.LSTMCell | nn.GRUCell) -> tuple[Tensor, ...]:
    """Return the weights and biases of the inputs and of the hidden state, in the order of PyTorch's functions."""
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


class RecurrentModule(nn.Module, ABC):
    """A module that reads the state that it wrote in the previous step.

    Attributes:
        key: Key of the state `[*, *state_shape]`, which is zero before the first step.
        state_shape: `(context_length, state_size)`.

    """

    key: str
    state_shape: tuple[int, int]

    def make_tensordict_primer(self) -> TensorDictPrimer:
        """Return the transform that writes the first state, as `torchrl.modules.LSTMModule` does."""
        return TensorDictPrimer({self.key: Unbounded(self.state_shape)}, expand_specs=True)


class MemoryModule(RecurrentModule):
    """Applies a memory to single steps and to sequences.

    Args:
        memory: The memory.
        key: Key of the context: the states that the memory reads.

    """

    def __init__(self, memory: Memory, key: str) -> None:
        super().__init__()
        self.memory = memory
        self.key = key
        self.state_shape = (memory.context_length, memory.state_size)

    @property
    def compiles_sequences(self) -> bool:
        return self.memory.compiles_sequences

    def forward(self, features: Tensor, is_init: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features, and the context of the step that follows.

        Args:
            features: `[batch, num_inputs]` for single steps, or `[batch, time, num_inputs]` for sequences.
            is_init: `[batch, 1]` or `[batch, time, 1]`.
            context: Context of the first step, `[batch, context_length, state_size]`.

        Returns:
            Features, `[batch, (time,) num_features]`, and the context of the step after the last one,
            `[batch, context_length, state_size]`.

        """
        if features.dim() > 2:
            return self.memory(features, is_init, context)
        features, next_context = self.memory(features.unsqueeze(1), is_init.unsqueeze(1), context)
        return features.squeeze(1), next_context
