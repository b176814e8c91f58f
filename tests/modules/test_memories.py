"""Memories: steps and sequences alike, and nothing from before an episode began."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from torchppo.errors import ConfigurationError
from torchppo.modules.memories import GRU, LSTM, Memory, Remembering, windows_of
from torchppo.modules.transformer import Gate, RelativeAttention, Transformer

NUM_INPUTS, BATCH = 3, 4
MEMORIES: dict[str, Callable[[int], Memory]] = {
    "lstm": partial(LSTM, width=6),
    "gru": partial(GRU, width=6),
    "transformer": partial(Transformer, width=8, num_heads=2, num_past=5),
    "transformer_xl": partial(Transformer, width=8, num_heads=2, num_past=5, gated=False),
}
every_memory = pytest.mark.parametrize("name", MEMORIES)


def remembering(name: str) -> Remembering:
    torch.manual_seed(0)
    return Remembering(MEMORIES[name](NUM_INPUTS), "memory")


def sequences(remember: Remembering, begins: list[int], time: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    is_init = torch.zeros(BATCH, time, 1, dtype=torch.bool)
    for row, start in enumerate(begins):
        is_init[row, start % time] = True
    past = torch.rand(BATCH, *remember.carried_shape, generator=generator) * 3  # positive, as ages are
    return torch.randn(BATCH, time, NUM_INPUTS, generator=generator), is_init, past


@every_memory
class TestSteps:
    @given(begins=st.lists(st.integers(0, 11), max_size=BATCH), time=st.integers(1, 12))
    @settings(max_examples=25, deadline=None)
    def test_equal_the_sequence_across_episodes(self, name: str, begins: list[int], time: int) -> None:
        remember = remembering(name)
        features, is_init, past = sequences(remember, begins, time)
        whole, windows = remember(features, is_init, past)
        for step in range(time):
            output, past = remember(features[:, step], is_init[:, step], past)
            torch.testing.assert_close(output, whole[:, step], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(past, windows[:, step], rtol=1e-5, atol=1e-5)

    def test_go_on_from_what_was_remembered(self, name: str) -> None:
        remember = remembering(name)
        features, is_init, past = sequences(remember, [0, 2, 9], 12)
        whole, windows = remember(features, is_init, past)
        rest, _ = remember(features[:, 7:], is_init[:, 7:], windows[:, 6])
        torch.testing.assert_close(rest, whole[:, 7:], rtol=1e-5, atol=1e-5)

    def test_nothing_of_before_an_episode_reaches_it(self, name: str) -> None:
        remember = remembering(name)
        features, is_init, past = sequences(remember, [3, 3, 3, 3], 8)
        output, _ = remember(features, is_init, past)
        poisoned = features.clone()
        poisoned[:, :3] = 1e6
        poison, _ = remember(poisoned, is_init, torch.full_like(past, 1e6))
        assert torch.equal(poison[:, 3:], output[:, 3:])
        assert not torch.allclose(poison[:, :3], output[:, :3])

    def test_nothing_of_the_future_reaches_the_past(self, name: str) -> None:
        remember = remembering(name)
        features, is_init, past = sequences(remember, [], 8)
        output, _ = remember(features, is_init, past)
        changed = features.clone()
        changed[:, 5:] += 1.0
        again, _ = remember(changed, is_init, past)
        torch.testing.assert_close(again[:, :5], output[:, :5])
        assert not torch.allclose(again[:, 5:], output[:, 5:])

    def test_gradients_reach_every_parameter(self, name: str) -> None:
        remember = remembering(name)
        output, _ = remember(*sequences(remember, [2], 6))
        (output * torch.randn_like(output)).sum().backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in remember.parameters())

    def test_are_one_graph(self, name: str) -> None:
        remember = remembering(name)
        arguments = sequences(remember, [2], 4)
        traced = torch.compile(remember, fullgraph=True, backend="aot_eager")(*arguments)
        torch.testing.assert_close(traced[0], remember(*arguments)[0], rtol=1e-5, atol=1e-5)

    def test_run_under_mixed_precision_and_are_recorded_in_full(self, name: str) -> None:
        remember = remembering(name)
        with torch.autocast("cpu", torch.bfloat16):
            output, windows = remember(*sequences(remember, [2], 4))
        assert output.isfinite().all()
        assert windows.dtype == torch.float32


@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_a_recurrent_memory_equals_pytorchs_over_a_sequence(name: str) -> None:
    remember = remembering(name)
    features, is_init, _ = sequences(remember, [], 7)
    cell = remember.memory.cell
    theirs = (nn.LSTM if name == "lstm" else nn.GRU)(NUM_INPUTS, 6, batch_first=True)
    theirs.load_state_dict({f"{key}_l0": value for key, value in cell.state_dict().items()})
    output, _ = remember(features, is_init, torch.zeros(BATCH, *remember.carried_shape))
    torch.testing.assert_close(output, theirs(features)[0], rtol=1e-5, atol=1e-6)


def test_an_lstm_starts_with_open_forget_gates() -> None:
    bias = LSTM(NUM_INPUTS, width=4).cell.bias_hh
    assert bias.tolist() == [0.0] * 4 + [1.0] * 4 + [0.0] * 8


class TestTransformer:
    @pytest.mark.parametrize(("distance", "reaches"), [(5, True), (6, False)])
    def test_one_layer_sees_exactly_its_past(self, distance: int, reaches: bool) -> None:
        torch.manual_seed(0)
        remember = Remembering(Transformer(NUM_INPUTS, width=8, num_heads=2, num_past=5, num_layers=1), "memory")
        features, is_init, past = sequences(remember, [0, 0, 0, 0], 12)
        output, _ = remember(features, is_init, past)
        changed = features.clone()
        changed[:, 10 - distance] += 1.0
        again, _ = remember(changed, is_init, past)
        assert torch.allclose(again[:, 10], output[:, 10], atol=1e-7) is not reaches

    def test_attention_equals_its_formula_step_by_step(self) -> None:
        torch.manual_seed(0)
        attention = RelativeAttention(4, 1, 3).double()
        nn.init.normal_(attention.content_bias)
        nn.init.normal_(attention.position_bias)
        hidden, tape = torch.randn(1, 2, 4).double(), torch.randn(1, 5, 4).double()
        distance = torch.tensor([[3, 2, 1, 0, -1], [4, 3, 2, 1, 0]])
        visible = ((distance >= 0) & (distance <= 3)).unsqueeze(0)
        actual = attention(hidden, tape, distance.clamp(0, 3), visible)[0].detach().numpy()

        def array(tensor: Tensor) -> np.ndarray:
            return tensor.detach().numpy()

        key_w, value_w = np.split(array(attention.key_value.weight), 2)
        u, v = array(attention.content_bias)[0, 0], array(attention.position_bias)[0, 0]
        for step in range(2):
            query = array(attention.query.weight) @ array(hidden[0, step])
            seen = [j for j in range(5) if visible[0, step, j]]
            scores = []
            for j in seen:
                position = array(attention.position.weight) @ array(attention.positions[int(distance[step, j])])
                scores.append(((query + u) @ (key_w @ array(tape[0, j])) + (query + v) @ position) / np.sqrt(4))
            weights = np.exp(scores) / np.exp(scores).sum()
            mixed = sum(w * (value_w @ array(tape[0, j])) for w, j in zip(weights, seen, strict=True))
            expected = array(attention.output.weight) @ mixed + array(attention.output.bias)
            np.testing.assert_allclose(actual[step], expected, rtol=1e-5)

    def test_its_gates_are_almost_closed_at_first(self) -> None:
        torch.manual_seed(0)
        hidden = torch.randn(100, 16)
        changed = Gate(16)(hidden, torch.randn(100, 16)) - hidden
        assert changed.norm() < 0.5 * hidden.norm()

    def test_heads_have_to_divide_the_width(self) -> None:
        with pytest.raises(ConfigurationError, match=r"width=10 must .*num_heads=4"):
            Transformer(3, width=10, num_heads=4)


def test_windows_are_views_of_the_tape() -> None:
    tape = torch.arange(24.0).reshape(2, 6, 2)
    windows = windows_of(tape, 3, dim=1)
    assert windows.shape == (2, 4, 3, 2)
    assert windows.untyped_storage().data_ptr() == tape.untyped_storage().data_ptr()
    np.testing.assert_array_equal(windows[:, 1], tape[:, 1:4])
