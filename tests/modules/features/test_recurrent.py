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
from torch import Tensor, nn

from torchppo.errors import ConfigurationError
from torchppo.modules.features.recurrent import GRU, LSTM, Memory, MemoryModule, context_windows
from torchppo.modules.features.transformer import Transformer

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
        whole, contexts = module(features, is_init, context)
        for step in range(time):
            output, context = module(features[:, step], is_init[:, step], context)
            torch.testing.assert_close(output, whole[:, step], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(context, contexts[:, step], rtol=1e-5, atol=1e-5)

    @given(starts=episodes, step=st.integers(1, 11))
    @settings(max_examples=20)
    def test_a_sequence_can_continue_from_a_stored_context(
        self, name: str, starts: set[tuple[int, int]], step: int
    ) -> None:
        module = make_module(name)
        features, is_init, context = sequences(module, starts, 12)
        whole, contexts = module(features, is_init, context)
        rest, later = module(features[:, step:], is_init[:, step:], contexts[:, step - 1])
        torch.testing.assert_close(rest, whole[:, step:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(later[:, -1], contexts[:, -1], rtol=1e-5, atol=1e-5)

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
            output, contexts = module(*sequences(module, [(0, 2)], 4))
        assert output.isfinite().all()
        assert contexts.dtype == torch.float32


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_lstm_and_gru_equal_pytorch(name: str) -> None:
    module = make_module(name)
    features, is_init, _ = sequences(module, time=7)
    cell = module.memory.cell
    reference = (nn.LSTM if name == "lstm" else nn.GRU)(NUM_INPUTS, 6, batch_first=True)
    reference.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    output, _ = module(features, is_init, torch.zeros(BATCH, *module.state_shape))
    torch.testing.assert_close(output, reference(features)[0], rtol=1e-5, atol=1e-6)


def test_lstm_starts_with_open_forget_gates() -> None:
    bias = LSTM(NUM_INPUTS, width=4).cell.bias_hh
    assert bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8


def test_context_windows_are_views() -> None:
    states = torch.arange(24.0).reshape(2, 6, 2)
    contexts = context_windows(states, 3, dim=1)
    assert contexts.shape == (2, 4, 3, 2)
    assert contexts.untyped_storage().data_ptr() == states.untyped_storage().data_ptr()
    np.testing.assert_array_equal(contexts[:, 1], states[:, 1:4])


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
    (features, states), (normed_features, normed_states) = plain(*inputs), normed(*inputs)
    assert torch.equal(states, normed_states)
    torch.testing.assert_close(normed_features, torch.nn.functional.layer_norm(features, (8,)))
