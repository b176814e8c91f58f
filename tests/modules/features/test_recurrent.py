"""Tests of the memories."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from torchppo.errors import ConfigurationError
from torchppo.modules.features.recurrent import GRU, LSTM, Memory, MemoryModule
from torchppo.modules.features.transformer import Transformer

Array = NDArray[np.float64]
NUM_INPUTS, BATCH = 3, 4
MEMORIES: dict[str, Callable[[int], Memory]] = {
    "lstm": partial(LSTM, width=6),
    "gru": partial(GRU, width=6),
    "transformer": partial(Transformer, width=8, num_heads=2, context_length=5),
    "transformer_xl": partial(Transformer, width=8, num_heads=2, context_length=5, gated=False),
}
every_memory = pytest.mark.parametrize("name", MEMORIES)


def make_module(name: str) -> MemoryModule:
    torch.manual_seed(0)
    return MemoryModule(MEMORIES[name](NUM_INPUTS), "memory")


def sequences(
    module: MemoryModule, starts: Iterable[tuple[int, int]] = (), time: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Return features, `is_init` with episode starts at the given rows and steps, and a context."""
    generator = torch.Generator().manual_seed(1)
    is_init = torch.zeros(BATCH, time, 1, dtype=torch.bool)
    for row, step in starts:
        is_init[row, step % time] = True
    context = torch.rand(BATCH, *module.state_shape, generator=generator) * 3  # positive, as ages are
    return torch.randn(BATCH, time, NUM_INPUTS, generator=generator), is_init, context


episodes = st.sets(st.tuples(st.integers(0, BATCH - 1), st.integers(0, 11)), max_size=12)


@every_memory
class TestEveryMemory:
    @given(starts=episodes, time=st.integers(1, 12))
    @settings(max_examples=20)
    def test_single_steps_equal_the_sequence(self, name: str, starts: set[tuple[int, int]], time: int) -> None:
        module = make_module(name)
        features, is_init, context = sequences(module, starts, time)
        whole, last = module(features, is_init, context)
        for step in range(time):
            output, context = module(features[:, step], is_init[:, step], context)
            torch.testing.assert_close(output, whole[:, step], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(context, last, rtol=1e-5, atol=1e-5)

    @given(starts=episodes, step=st.integers(1, 11))
    @settings(max_examples=20)
    def test_a_sequence_can_continue_from_a_stored_context(
        self, name: str, starts: set[tuple[int, int]], step: int
    ) -> None:
        module = make_module(name)
        features, is_init, context = sequences(module, starts, 12)
        whole, last = module(features, is_init, context)
        _, stored = module(features[:, :step], is_init[:, :step], context)
        rest, later = module(features[:, step:], is_init[:, step:], stored)
        torch.testing.assert_close(rest, whole[:, step:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(later, last, rtol=1e-5, atol=1e-5)

    @given(starts=episodes, time=st.integers(1, 12))
    @settings(max_examples=8)
    def test_gradients_equal_those_of_single_steps(self, name: str, starts: set[tuple[int, int]], time: int) -> None:
        module = make_module(name).double()
        features, is_init, context = sequences(module, starts, time)
        inputs = features.double().requires_grad_(), context.double().requires_grad_()
        weights = torch.randn(BATCH, time, module.memory.num_features, dtype=torch.float64)
        last_weights = torch.randn(BATCH, *module.state_shape, dtype=torch.float64)

        def gradients(outputs: Tensor, last: Tensor) -> list[Tensor]:
            total = (outputs * weights).sum() + (last * last_weights).sum()
            return [*torch.autograd.grad(total, [*inputs, *module.parameters()], materialize_grads=True)]

        single, state = [], inputs[1]
        for step in range(time):
            output, state = module(inputs[0][:, step], is_init[:, step], state)
            single.append(output)
        expected = gradients(torch.stack(single, 1), state)
        actual = gradients(*module(inputs[0], is_init, inputs[1]))
        tolerance = 1e-5 if "transformer" in name else 1e-9  # attention computes scores in float32
        torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)

    @pytest.mark.parametrize("value", [1e9, -1e9, 3.0])
    def test_states_before_an_episode_do_not_affect_it(self, name: str, value: float) -> None:
        module = make_module(name)
        features, is_init, context = sequences(module, [(0, 0), (1, 3), (2, 7)])
        output, _ = module(features, is_init, context)
        changed = features.clone()
        changed[1, :3], changed[2, :7] = value, value
        changed_context = value * torch.randn_like(context)
        changed_context[..., -1].abs_()  # the age, where there is one
        again, _ = module(changed, is_init, changed_context)
        for row, begin in enumerate([0, 3, 7]):
            assert torch.equal(again[row, begin:], output[row, begin:])
            assert not any(torch.allclose(*pair) for pair in zip(again[row, :begin], output[row, :begin], strict=True))

    def test_context_affects_an_episode_that_continues(self, name: str) -> None:
        module = make_module(name)
        features, is_init, context = sequences(module, time=1)
        context[..., -1:, -1] = 5.0  # the age, where there is one: as old as the window is long
        other = context.clone()
        other[..., :-1] += torch.randn_like(other[..., :-1])
        assert not torch.allclose(module(features, is_init, other)[0], module(features, is_init, context)[0])

    def test_later_steps_do_not_affect_earlier_ones(self, name: str) -> None:
        module = make_module(name)
        features, is_init, context = sequences(module)
        output, _ = module(features, is_init, context)
        changed = features.clone()
        changed[:, 5:] += 1.0
        again, _ = module(changed, is_init, context)
        torch.testing.assert_close(again[:, :5], output[:, :5])
        assert not torch.allclose(again[:, 5:], output[:, 5:])

    def test_gradients_reach_every_parameter(self, name: str) -> None:
        module = make_module(name)
        output, _ = module(*sequences(module, [(0, 2)], 6))
        (output * torch.randn_like(output)).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in module.parameters())

    def test_compiles_to_one_graph(self, name: str) -> None:
        module = make_module(name)
        arguments = sequences(module, [(0, 2)], 4)
        traced = torch.compile(module, fullgraph=True, backend="aot_eager")(*arguments)
        torch.testing.assert_close(traced[0], module(*arguments)[0], rtol=1e-5, atol=1e-5)

    def test_states_are_float32_under_autocast(self, name: str) -> None:
        module = make_module(name)
        with torch.autocast("cpu", torch.bfloat16):
            output, context = module(*sequences(module, [(0, 2)], 4))
        assert output.isfinite().all()
        assert context.dtype == torch.float32


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_lstm_and_gru_equal_the_formulas(name: str) -> None:
    module = make_module(name)
    for param in module.parameters():
        nn.init.normal_(param)
    features, is_init, context = sequences(module, [(0, 0), (1, 3), (1, 4), (2, 6)], time=7)
    output, last = module(features, is_init, context)
    w_ih, w_hh, b_ih, b_hh = (param.detach().double().numpy() for param in module.memory.cell.parameters())
    for row in range(BATCH):
        state = context[row, 0].double().numpy()
        for step in range(7):
            state = state * (not is_init[row, step, 0])
            x, h, c = features[row, step].double().numpy(), state[:6], state[6:]
            of_x, of_h = w_ih @ x + b_ih, w_hh @ h + b_hh
            if name == "lstm":
                i, f, g, o = np.split(of_x + of_h, 4)
                c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
                state = np.concatenate([sigmoid(o) * np.tanh(c), c])
            else:
                r, z = (sigmoid(one) for one in np.split((of_x + of_h)[:12], 2))
                state = (1 - z) * np.tanh(of_x[12:] + r * of_h[12:]) + z * h
            np.testing.assert_allclose(output[row, step].detach().numpy(), state[:6], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(last[row, 0].detach().numpy(), state, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_second_derivatives_equal_those_of_single_steps(name: str) -> None:
    module = make_module(name).double()
    features, is_init, context = sequences(module, [(0, 2), (1, 1)], 3)
    inputs, weight = (features.double(), is_init, context[:, 0].double()), module.memory.cell.weight_hh

    def curvature(run: Any) -> Tensor:
        (slope,) = torch.autograd.grad(run(*inputs)[0].square().sum(), weight, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), weight)[0]

    torch.testing.assert_close(curvature(module.memory.sequence), curvature(module.memory.steps))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [LSTM, GRU])
def test_sequences_equal_single_steps_in_every_precision(make: type[LSTM] | type[GRU], dtype: torch.dtype) -> None:
    memory = make(NUM_INPUTS, width=4).to(dtype)
    features, is_init = torch.randn(3, 5, NUM_INPUTS, dtype=dtype), torch.rand(3, 5, 1) < 0.5
    context = torch.randn(3, 1, memory.state_size, dtype=dtype)
    whole, last = memory(features, is_init, context)
    for step, output in enumerate(whole.unbind(1)):
        expected, context = memory(features[:, step : step + 1], is_init[:, step : step + 1], context)
        torch.testing.assert_close(output, expected[:, 0], rtol=0.03, atol=0.03)
    torch.testing.assert_close(last, context, rtol=0.03, atol=0.03)


def test_lstm_starts_with_open_forget_gates() -> None:
    bias = LSTM(NUM_INPUTS, width=4).cell.bias_hh
    assert bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8


@pytest.mark.parametrize(
    ("name", "memory"), [("width", LSTM), ("width", GRU), ("num_layers", Transformer), ("context_length", Transformer)]
)
def test_rejects_sizes_below_1(name: str, memory: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"policy.memory.{name}=0 must be at least 1"):
        memory(3, **{name: 0})


@pytest.mark.parametrize("make", [LSTM, GRU])
def test_layer_norm_normalizes_the_output_but_not_the_state(make: type[LSTM] | type[GRU]) -> None:
    torch.manual_seed(0)
    plain = make(3, width=8)
    torch.manual_seed(0)
    normed = make(3, width=8, layer_norm=True)
    inputs = torch.randn(2, 4, 3), torch.zeros(2, 4, 1, dtype=torch.bool), torch.zeros(2, 1, plain.state_size)
    (features, state), (normed_features, normed_state) = plain(*inputs), normed(*inputs)
    assert torch.equal(state, normed_state)
    torch.testing.assert_close(normed_features, torch.nn.functional.layer_norm(features, (8,)))
