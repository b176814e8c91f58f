"""LSTM and GRU for whole sequences, which may contain the beginning of episodes.

A Python loop over cells takes most of the time of an update: for 2 sequences of 128 steps and 64 units on a CPU,
forward and backward pass take 30 ms. The functions of this file take 2 to 4 ms.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CLOSED = 1e9
"""Subtracted from the input of a gate to close it: sigmoid(-CLOSED) and its derivative are 0. It is smaller in float16,
where it would be infinite."""


def lstm_sequence(
    cell: nn.LSTMCell, inputs: Tensor, is_init: Tensor, hidden: Tensor, state: Tensor
) -> tuple[Tensor, Tensor]:
    """Apply an LSTM to sequences with one call of PyTorch's LSTM.

    A step is inserted before every episode that begins after the first step. It closes all gates, so that both states
    and their gradients become 0. Rows with fewer inserted steps are padded at the end with steps that keep the cell
    state. It would be slower to pad or pack the episodes as separate sequences.

    Args:
        cell: Weights of the LSTM.
        inputs: `[batch, time, num_inputs]`.
        is_init: Whether an episode begins with this step, bool `[batch, time, 1]`.
        hidden: Hidden state before the first step, `[batch, width]`.
        state: Cell state before the first step, `[batch, width]`.

    Returns:
        The hidden states of all steps, `[batch, time, width]`, and the last cell state, `[batch, width]`.

    """
    batch, time = inputs.shape[:2]
    begins = is_init.squeeze(-1)
    hidden, state = (one.masked_fill(begins[:, :1], 0.0).unsqueeze(0) for one in (hidden, state))
    shift = begins.clone()
    shift[:, 0] = False
    shift = shift.cumsum(1)  # number of inserted steps before each step
    num_steps = time + int(shift[:, -1].max())
    weight = cell.weight_ih
    if num_steps > time:
        steps = torch.arange(num_steps, device=inputs.device)
        place = (steps[:time] + shift + num_steps * torch.arange(batch, device=inputs.device).unsqueeze(1)).flatten()
        # The first flag marks inserted and padding steps, the second one only padding steps.
        flags = inputs.new_ones(batch, num_steps, 2)
        flags[..., 0].view(-1)[place] = 0.0
        flags[..., 1] = steps >= time + shift[:, -1:]
        padded = inputs.new_zeros(batch * num_steps, inputs.shape[-1]).index_copy(0, place, inputs.flatten(0, 1))
        inputs = torch.cat([padded.unflatten(0, (batch, num_steps)), flags], -1)
        effects = weight.new_zeros(4, cell.hidden_size, 2)  # input, forget, new value, output
        closed = min(CLOSED, torch.finfo(weight.dtype).max / 4)
        effects[[0, 1, 3], :, 0] = -closed
        effects[1, :, 1] = 2 * closed
        weight = torch.cat([weight, effects.flatten(0, 1)], 1)
    weights = (weight, cell.weight_hh, cell.bias_ih, cell.bias_hh)
    outputs, _, last = call_lstm(inputs, (hidden, state), weights)
    if num_steps > time:
        outputs = outputs.flatten(0, 1).index_select(0, place).unflatten(0, (batch, time))
    return outputs, last[0]


def call_lstm(inputs: Tensor, states: tuple[Tensor, Tensor], weights: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Call the function behind `nn.LSTM`, which PyTorch does not document. The batch is the first dimension."""
    results: tuple[Tensor, ...] = torch.lstm(inputs, states, weights, True, 1, 0.0, True, False, True)
    return results


def gru_sequence(cell: nn.GRUCell, inputs: Tensor, is_init: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Apply a GRU to sequences; PyTorch's own GRU takes as long as a loop over cells on a CPU.

    Args:
        cell: Weights of the GRU.
        inputs: `[batch, time, num_inputs]`.
        is_init: Whether an episode begins with this step, bool `[batch, time, 1]`.
        hidden: Hidden state before the first step, `[batch, width]`.

    Returns:
        The hidden states of all steps, `[batch, time, width]`, and the last one, `[batch, width]`.

    """
    projected = nn.functional.linear(inputs.transpose(0, 1), cell.weight_ih, cell.bias_ih)
    begins = is_init.transpose(0, 1)
    arguments = projected, cell.weight_hh, cell.bias_hh, hidden, begins
    outputs: Tensor = GRUFunction.apply(*arguments)  # type: ignore[no-untyped-call]
    return outputs.transpose(0, 1), outputs[-1]


class GRUFunction(torch.autograd.Function):
    """A GRU with five operations per step, and two in the backward pass. Time is the first dimension of all tensors.

    Source: Cho et al. 2014, with the reset gate after the product, as in `nn.GRU`. In each step,

        q = W h + b                    split into q_r, q_z, q_n
        r, z = sigmoid(x_r + q_r), sigmoid(x_z + q_z)
        n = tanh(x_n + r q_n)
        h = (1 - z) n + z h
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: Tensor, bias: Tensor, hidden: Tensor, begins: Tensor) -> Tensor:
        """Compute the hidden states of all steps.

        Args:
            ctx: Receives the tensors for the backward pass.
            inputs: x, `[time, batch, 3 width]`.
            weight: W, `[3 width, width]`.
            bias: b, `[3 width]`.
            hidden: h before the first step, `[batch, width]`.
            begins: Whether an episode begins with this step, bool `[time, batch, 1]`.

        Returns:
            h of all steps, `[time, batch, width]`.

        """
        width, transposed, first = hidden.shape[-1], weight.t(), hidden
        products = inputs + bias
        products[..., 2 * width :] = bias[2 * width :]
        gates = torch.empty_like(products[..., : 2 * width])
        outputs, news = torch.empty_like(products[..., :width]), torch.empty_like(products[..., :width])
        to_gates, to_news = products.split([2 * width, width], -1)
        resets, updates = gates.chunk(2, -1)
        tensors = products, to_gates, gates, inputs[..., 2 * width :], resets, to_news, news, updates, outputs
        starts = starting_steps(begins)
        for step, (product, to_gate, gate, new_input, reset, to_new, new, update, output) in enumerate(
            zip(*(tensor.unbind() for tensor in tensors), strict=True)
        ):
            before = hidden.masked_fill(begins[step], 0.0) if step in starts else hidden
            product.addmm_(before, transposed)
            torch.sigmoid(to_gate, out=gate)
            torch.addcmul(new_input, reset, to_new, out=new).tanh_()
            hidden = torch.lerp(new, before, update, out=output)
        ctx.starts = starts
        ctx.save_for_backward(inputs, weight, bias, first, begins, outputs, gates, news, to_news)
        return outputs

    @staticmethod
    def backward(ctx: Any, grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of inputs, weight, bias and first hidden state.

        A step multiplies the gradient of its h by `factors`. The products are the gradients of q_r, q_z and q_n, and
        the direct part of the gradient of the previous h. A product with W and the identity adds the parts of it.
        """
        *inputs, begins, outputs, gates, news, to_news = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            return differentiate_steps(inputs, begins, grad_outputs, ctx.needs_input_grad)
        _, weight, _, first = inputs
        width = first.shape[-1]
        before = torch.cat([first.unsqueeze(0), outputs[:-1]]).masked_fill(begins, 0.0)
        reset, update = gates.chunk(2, -1)
        of_new = (1 - update) * (1 - news * news)
        of_reset = of_new * to_news * reset * (1 - reset)
        of_update = (before - news) * update * (1 - update)
        factors = torch.stack([of_reset, of_update, of_new * reset, update], -2)
        grads, totals = torch.empty_like(factors), torch.empty_like(outputs)
        totals[-1] = grad_outputs[-1]
        with torch.autocast(weight.device.type, enabled=False):
            back = torch.cat([weight, torch.eye(width, dtype=weight.dtype, device=weight.device)])
            flats = grads.flatten(-2)
            for step in range(len(outputs) - 1, -1, -1):
                torch.mul(factors[step], totals[step].unsqueeze(-2), out=grads[step])
                flat = flats[step].masked_fill(begins[step], 0.0) if step in ctx.starts else flats[step]
                if step:
                    torch.addmm(grad_outputs[step - 1], flat, back, out=totals[step - 1])
            grad_first = flat @ back
            of_products = grads[..., :3, :].flatten(-2)
            rows = of_products.flatten(0, 1)
            grad_weight, grad_bias = rows.t() @ before.flatten(0, 1), rows.sum(0)
        grad_inputs = torch.cat([of_products[..., : 2 * width], totals * of_new], -1)
        return grad_inputs, grad_weight, grad_bias, grad_first, None


def differentiate_steps(
    inputs: Sequence[Tensor], begins: Tensor, grad_outputs: Tensor, is_needed: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Return the gradients of `GRUFunction` in a form that PyTorch can differentiate again.

    Args:
        inputs: Inputs, weight, bias and first hidden state of the function.
        begins: See `GRUFunction.forward`.
        grad_outputs: Gradient of the outputs.
        is_needed: Which arguments of the function need a gradient.

    """
    all_steps, weight, bias, hidden = inputs
    outputs = []
    for of_input, begin in zip(all_steps.unbind(), begins.unbind(), strict=True):
        hidden = hidden.masked_fill(begin, 0.0)
        x_reset, x_update, x_new = of_input.chunk(3, -1)
        q_reset, q_update, q_new = nn.functional.linear(hidden, weight, bias).chunk(3, -1)
        new = torch.tanh(x_new + torch.sigmoid(x_reset + q_reset) * q_new)
        hidden = torch.lerp(new, hidden, torch.sigmoid(x_update + q_update))
        outputs.append(hidden)
    needed = [one for one, is_one in zip(inputs, is_needed, strict=False) if is_one]
    gradients = iter(torch.autograd.grad(torch.stack(outputs), needed, grad_outputs, create_graph=True))
    return tuple(next(gradients) if is_one else None for is_one in is_needed)


def starting_steps(begins: Tensor) -> set[int]:
    """Return the steps at which an episode begins in any row of `begins`, `[time, batch, 1]`."""
    return set(begins.flatten(1).any(1).nonzero().squeeze(-1).tolist())
