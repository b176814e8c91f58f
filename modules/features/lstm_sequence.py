"""An LSTM for whole sequences, in which episodes may begin.

For 2 sequences of 128 steps and 64 units on a CPU, the forward and backward pass takes 30 ms with a Python loop over
cells, and 2 ms with the functions of this file.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .sequence_operators import SequenceOperator

CLOSED = 1e9
"""Subtracted from the input of a gate to close it: sigmoid(-CLOSED) and its derivative are 0. Float16 uses a smaller
number, because this one would be infinite."""


def lstm_sequence(
    inputs: Tensor, is_init: Tensor, hidden: Tensor, state: Tensor, weight: Tensor, *others: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply an LSTM to sequences with one call of PyTorch's LSTM.

    A step is inserted before every episode that begins after the first step. It closes all gates, so that both states
    and their gradients become 0. Rows with fewer inserted steps are padded at the end with steps that keep the cell
    state. It would be slower to pad or pack the episodes as separate sequences.

    Args:
        inputs: `[batch, time, num_inputs]`.
        is_init: Whether an episode begins with this step, bool `[batch, time, 1]`.
        hidden: Hidden state before the first step, `[batch, width]`.
        state: Cell state before the first step, `[batch, width]`.
        weight: Weight of the inputs of an `nn.LSTMCell`, `[4 width, num_inputs]`.
        *others: Its weight of the hidden state, and its biases of inputs and hidden state.

    Returns:
        The hidden states of all steps, `[batch, time, width]`, and the last cell state, `[batch, width]`.

    """
    run = lstm_operator if torch.compiler.is_compiling() else lstm
    outputs, last = run(is_init, inputs, hidden, state, weight, *others)
    return outputs, last


def lstm(is_init: Tensor, *tensors: Tensor) -> list[Tensor]:
    """Compute `lstm_sequence`; `tensors` are its other arguments."""
    inputs, hidden, state, weight, *others = tensors
    batch, time = inputs.shape[:2]
    begins = is_init.squeeze(-1)
    hidden, state = (one.masked_fill(begins[:, :1], 0.0).unsqueeze(0) for one in (hidden, state))
    shift = begins.clone()
    shift[:, 0] = False
    shift = shift.cumsum(1)  # number of inserted steps before each step
    num_steps = time + int(shift[:, -1].max())
    if num_steps > time:
        steps = torch.arange(num_steps, device=inputs.device)
        place = (steps[:time] + shift + num_steps * torch.arange(batch, device=inputs.device).unsqueeze(1)).flatten()
        # The first flag marks inserted and padding steps, the second one only padding steps.
        flags = inputs.new_ones(batch, num_steps, 2)
        flags[..., 0].view(-1)[place] = 0.0
        flags[..., 1] = steps >= time + shift[:, -1:]
        padded = inputs.new_zeros(batch * num_steps, inputs.shape[-1]).index_copy(0, place, inputs.flatten(0, 1))
        inputs = torch.cat([padded.unflatten(0, (batch, num_steps)), flags], -1)
        effects = weight.new_zeros(4, hidden.shape[-1], 2)  # input, forget, new value, output
        closed = min(CLOSED, torch.finfo(weight.dtype).max / 4)
        effects[[0, 1, 3], :, 0] = -closed
        effects[1, :, 1] = 2 * closed
        weight = torch.cat([weight, effects.flatten(0, 1)], 1)
    outputs, _, last = call_lstm(inputs, (hidden, state), (weight, *others))
    if num_steps > time:
        outputs = outputs.flatten(0, 1).index_select(0, place).unflatten(0, (batch, time))
    return [outputs, last[0]]


def lstm_backward(
    gradients: Sequence[Tensor], is_init: Tensor, tensors: Sequence[Tensor], _results: Sequence[Tensor]
) -> list[Tensor]:
    """Compute the gradients of the tensors of `lstm` from those of its results, which are computed again."""
    leaves = [tensor.requires_grad_() for tensor in tensors]
    return [*torch.autograd.grad(lstm(is_init, *leaves), leaves, gradients)]


lstm_operator = SequenceOperator(
    "lstm",
    lambda is_init, tensors: [result.contiguous() for result in lstm(is_init, *tensors)],
    lstm_backward,
    lambda is_init, tensors: [(*is_init.shape[:2], tensors[1].shape[-1]), tensors[1].shape],
    num_gradients=2,
)


def call_lstm(inputs: Tensor, states: tuple[Tensor, Tensor], weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Call the function behind `nn.LSTM`, which PyTorch does not document. The batch is the first dimension."""
    results: tuple[Tensor, ...] = torch.lstm(inputs, states, weights, True, 1, 0.0, True, False, True)
    return results
