"""Memories: steps and sequences alike, and nothing from before an episode began."""

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
from torchppo.modules.features.extractor import MemoryModule
from torchppo.modules.features.recurrent import GRU, LSTM, Memory, context_windows
from torchppo.modules.features.transformer import Transformer

NUM_INPUTS, BATCH = 3, 4
MEMORIES: dict[str, Callable[[int], Memory]] = {
    "lstm": partial(LSTM, width=6),
    "gru": partial(GRU, width=6),
    "transformer": partial(Transformer, width=8, num_heads=2, context_length=5),
    "transformer_xl": partial(Transformer, width=8, num_heads=2, context_length=5, gated=False),
}
every_memory = pytest.mark.parametrize("name", MEMORIES)


def remembering(name: str) -> MemoryModule:
    torch.manual_seed(0)
    return MemoryModule(MEMORIES[name](NUM_INPUTS), "memory")


def sequences(
    remember: MemoryModule, begins: Iterable[tuple[int, int]] = (), time: int = 8
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, where episodes begin, given as rows and steps, and the past of the first step."""
    generator = torch.Generator().manual_seed(1)
    is_init = torch.zeros(BATCH, time, 1, dtype=torch.bool)
    for row, step in begins:
        is_init[row, step % time] = True
    past = torch.rand(BATCH, *remember.state_shape, generator=generator) * 3  # positive, as ages are
    return torch.randn(BATCH, time, NUM_INPUTS, generator=generator), is_init, past


episodes = st.sets(st.tuples(st.integers(0, BATCH - 1), st.integers(0, 11)), max_size=12)


@every_memory
class TestSteps:
    @given(begins=episodes, time=st.integers(1, 12))
    @settings(max_examples=20)
    def test_equal_the_sequence_across_episodes(self, name: str, begins: set[tuple[int, int]], time: int) -> None:
        remember = remembering(name)
        features, is_init, past = sequences(remember, begins, time)
        whole, windows = remember(features, is_init, past)
        for step in range(time):
            output, past = remember(features[:, step], is_init[:, step], past)
            torch.testing.assert_close(output, whole[:, step], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(past, windows[:, step], rtol=1e-5, atol=1e-5)

    @given(begins=episodes, step=st.integers(1, 11))
    @settings(max_examples=20)
    def test_go_on_from_what_was_remembered(self, name: str, begins: set[tuple[int, int]], step: int) -> None:
        remember = remembering(name)
        features, is_init, past = sequences(remember, begins, 12)
        whole, windows = remember(features, is_init, past)
        rest, later = remember(features[:, step:], is_init[:, step:], windows[:, step - 1])
        torch.testing.assert_close(rest, whole[:, step:], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(later[:, -1], windows[:, -1], rtol=1e-5, atol=1e-5)

    @pytest.mark.parametrize("poison", [1e9, -1e9, 3.0])
    def test_nothing_of_before_an_episode_reaches_it(self, name: str, poison: float) -> None:
        remember = remembering(name)
        features, is_init, past = sequences(remember, [(0, 0), (1, 3), (2, 7)])
        output, _ = remember(features, is_init, past)
        spoilt = features.clone()
        spoilt[1, :3], spoilt[2, :7] = poison, poison
        spoilt_past = poison * torch.randn_like(past)
        spoilt_past[..., -1].abs_()  # the age, where there is one
        again, _ = remember(spoilt, is_init, spoilt_past)
        for row, begin in enumerate([0, 3, 7]):
            assert torch.equal(again[row, begin:], output[row, begin:])
            assert not any(torch.allclose(*pair) for pair in zip(again[row, :begin], output[row, :begin], strict=True))

    def test_what_was_remembered_reaches_an_episode_that_goes_on(self, name: str) -> None:
        remember = remembering(name)
        features, is_init, past = sequences(remember, time=1)
        past[..., -1:, -1] = 5.0  # the age, where there is one: as old as the window is long
        other = past.clone()
        other[..., :-1] += torch.randn_like(other[..., :-1])
        assert not torch.allclose(remember(features, is_init, other)[0], remember(features, is_init, past)[0])

    def test_nothing_of_the_future_reaches_the_past(self, name: str) -> None:
        remember = remembering(name)
        features, is_init, past = sequences(remember)
        output, _ = remember(features, is_init, past)
        changed = features.clone()
        changed[:, 5:] += 1.0
        again, _ = remember(changed, is_init, past)
        torch.testing.assert_close(again[:, :5], output[:, :5])
        assert not torch.allclose(again[:, 5:], output[:, 5:])

    def test_gradients_reach_every_parameter(self, name: str) -> None:
        remember = remembering(name)
        output, _ = remember(*sequences(remember, [(0, 2)], 6))
        (output * torch.randn_like(output)).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in remember.parameters())

    def test_are_one_graph(self, name: str) -> None:
        remember = remembering(name)
        arguments = sequences(remember, [(0, 2)], 4)
        traced = torch.compile(remember, fullgraph=True, backend="aot_eager")(*arguments)
        torch.testing.assert_close(traced[0], remember(*arguments)[0], rtol=1e-5, atol=1e-5)

    def test_run_under_mixed_precision_and_are_recorded_in_full(self, name: str) -> None:
        remember = remembering(name)
        with torch.autocast("cpu", torch.bfloat16):
            output, windows = remember(*sequences(remember, [(0, 2)], 4))
        assert output.isfinite().all()
        assert windows.dtype == torch.float32


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_recurrent_memory_equals_pytorchs_over_a_sequence(name: str) -> None:
    remember = remembering(name)
    features, is_init, _ = sequences(remember, time=7)
    cell = remember.memory.cell
    theirs = (nn.LSTM if name == "lstm" else nn.GRU)(NUM_INPUTS, 6, batch_first=True)
    theirs.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    output, _ = remember(features, is_init, torch.zeros(BATCH, *remember.state_shape))
    torch.testing.assert_close(output, theirs(features)[0], rtol=1e-5, atol=1e-6)


def test_an_lstm_starts_with_open_forget_gates() -> None:
    bias = LSTM(NUM_INPUTS, width=4).cell.bias_hh
    assert bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8


def test_windows_are_views_of_the_tape() -> None:
    tape = torch.arange(24.0).reshape(2, 6, 2)
    windows = context_windows(tape, 3, dim=1)
    assert windows.shape == (2, 4, 3, 2)
    assert windows.untyped_storage().data_ptr() == tape.untyped_storage().data_ptr()
    np.testing.assert_array_equal(windows[:, 1], tape[:, 1:4])


@pytest.mark.parametrize(
    ("name", "memory"), [("width", LSTM), ("width", GRU), ("num_layers", Transformer), ("context_length", Transformer)]
)
def test_no_size_is_below_one(name: str, memory: Any) -> None:
    with pytest.raises(ConfigurationError, match=rf"policy.memory.{name}=0 must be at least 1"):
        memory(3, **{name: 0})
