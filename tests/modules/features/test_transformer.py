"""Tests of the transformer memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from torchppo.errors import ConfigurationError
from torchppo.modules.features import transformer
from torchppo.modules.features.recurrent import MemoryModule
from torchppo.modules.features.transformer import Gate, RelativeAttention, Transformer

NUM_INPUTS, LENGTH, TIME = 3, 5, 12

Array = NDArray[np.float64]


def array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().double().numpy())


def make_module(num_layers: int) -> MemoryModule:
    torch.manual_seed(0)
    memory = Transformer(NUM_INPUTS, width=8, num_heads=2, context_length=LENGTH, num_layers=num_layers)
    return MemoryModule(memory, "memory")


def reached_steps(module: MemoryModule, starts: list[int], step: int) -> list[int]:
    """Return the steps whose inputs affect the features at `step`."""
    features = torch.randn(1, TIME, NUM_INPUTS, generator=torch.Generator().manual_seed(1)).requires_grad_()
    is_init = torch.zeros(1, TIME, 1, dtype=torch.bool)
    is_init[0, starts] = True
    output, _ = module(features, is_init, torch.zeros(1, *module.state_shape))
    (gradient,) = torch.autograd.grad(output[0, step].square().sum(), features)
    return [int(index) for index in gradient[0].abs().sum(-1).nonzero()]


class TestWindow:
    @pytest.mark.parametrize("num_layers", [1, 2])
    def test_every_layer_extends_the_reach_by_the_context_length(self, num_layers: int) -> None:
        assert reached_steps(make_module(num_layers), [0], 11) == list(range(max(0, 11 - num_layers * LENGTH), 12))

    @pytest.mark.parametrize(("start", "step"), [(3, 5), (5, 5), (2, 11)])
    def test_does_not_reach_before_the_episode(self, start: int, step: int) -> None:
        assert reached_steps(make_module(1), [0, start], step) == list(range(max(start, step - LENGTH), step + 1))

    @pytest.mark.parametrize(("distance", "reaches"), [(LENGTH, True), (LENGTH + 1, False)])
    def test_moves_with_single_steps(self, distance: int, reaches: bool) -> None:
        module = make_module(1)
        outputs = []
        for change in (0.0, 1.0):
            context = torch.zeros(1, *module.state_shape)
            for step in range(TIME):
                features = torch.full((1, NUM_INPUTS), float(step)).sin() + change * (step == 11 - distance)
                output, context = module(features, torch.tensor([[step == 0]]), context)
            outputs.append(output)
        assert torch.equal(*outputs) is not reaches

    def test_blocks_of_a_sequence_equal_single_steps(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(transformer, "MIN_BLOCK", 4)
        module = make_module(2)
        features, context = torch.randn(3, TIME, NUM_INPUTS), torch.rand(3, *module.state_shape)
        is_init = torch.zeros(3, TIME, 1, dtype=torch.bool)
        is_init[1, 6] = is_init[1, 8] = is_init[2, 4] = True
        assert module.memory.visibility(torch.zeros(3, TIME)).shape == (3 * 2, 6, 5 + 6)  # type: ignore[operator]
        whole, last = module(features, is_init, context)
        for step in range(TIME):
            output, context = module(features[:, step], is_init[:, step], context)
            torch.testing.assert_close(output, whole[:, step], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(context, last, rtol=1e-5, atol=1e-5)

    @given(starts=st.lists(st.booleans(), min_size=1, max_size=12), last=st.integers(0, 9))
    @settings(max_examples=30)
    def test_episode_ages_count_steps_since_the_start(self, starts: list[bool], last: int) -> None:
        expected, age = [], last
        for start in starts:
            age = 0 if start else age + 1
            expected.append(age)
        assert Transformer.episode_ages(torch.tensor([starts]), torch.tensor([float(last)])).tolist() == [expected]


class TestRelativeAttention:
    def test_equals_the_formula(self) -> None:
        torch.manual_seed(0)
        attention = RelativeAttention(4, 1, 3).double()
        nn.init.normal_(attention.content_bias)
        nn.init.normal_(attention.position_bias)
        hidden, states = torch.randn(1, 2, 4).double(), torch.randn(1, 5, 4).double()
        distance = torch.tensor([[3, 2, 1, 0, -1], [4, 3, 2, 1, 0]])
        visible = ((distance >= 0) & (distance <= 3)).unsqueeze(0)
        actual = array(attention(hidden, states, torch.where(visible, 0.0, -torch.inf))[0])
        query_w, position_w, output_w = (array(getattr(attention, k).weight) for k in ("query", "position", "output"))
        key_w, value_w = np.split(array(attention.key_value.weight), 2)
        u, v = array(attention.content_bias)[0, 0], array(attention.position_bias)[0, 0]
        for step in range(2):
            query = query_w @ array(hidden[0, step])
            seen = [j for j in range(5) if visible[0, step, j]]
            scores = []
            for j in seen:
                steps = int(distance[step, j])
                code = np.array([np.sin(steps), np.sin(steps / 100), np.cos(steps), np.cos(steps / 100)])
                score = (query + u) @ (key_w @ array(states[0, j])) + (query + v) @ (position_w @ code)
                scores.append(score / np.sqrt(4))
            weights = np.exp(scores) / np.exp(scores).sum()
            mixed = sum(w * (value_w @ array(states[0, j])) for w, j in zip(weights, seen, strict=True))
            np.testing.assert_allclose(actual[step], output_w @ mixed + array(attention.output.bias), rtol=1e-5)

    def test_depends_on_distances_not_positions(self) -> None:
        module = make_module(1)
        output, _ = module(
            torch.ones(1, TIME, NUM_INPUTS),
            torch.zeros(1, TIME, 1, dtype=torch.bool),
            torch.zeros(1, *module.state_shape),
        )
        # From here on, the window holds only equal inputs.
        torch.testing.assert_close(output[:, LENGTH:-1], output[:, LENGTH + 1 :])

    def test_split_heads_gives_every_head_its_features(self) -> None:
        torch.manual_seed(0)
        attention = RelativeAttention(4, 2, 3)
        features = torch.arange(4.0).expand(1, 3, 4)
        assert attention.split_heads(features).tolist() == [[[[0, 1]] * 3, [[2, 3]] * 3]]


class TestGate:
    def test_equals_the_formula(self) -> None:
        torch.manual_seed(0)
        gate = Gate(3)
        hidden, change = torch.randn(2, 3), torch.randn(2, 3)
        x, y = array(hidden), np.maximum(array(change), 0)
        w_r, w_z, w_g = np.split(array(gate.update.weight), 3)
        u_r, u_z = np.split(array(gate.hidden.weight), 2)
        reset = 1 / (1 + np.exp(-(y @ w_r.T + x @ u_r.T)))
        opened = 1 / (1 + np.exp(-(y @ w_z.T + x @ u_z.T - 2)))
        proposal = np.tanh(y @ w_g.T + (reset * x) @ array(gate.reset.weight).T)
        expected = (1 - opened) * x + opened * proposal
        np.testing.assert_allclose(array(gate(hidden, change)), expected, rtol=1e-5, atol=1e-6)

    def test_starts_almost_closed(self) -> None:
        torch.manual_seed(0)
        hidden = torch.randn(100, 16)
        changed = Gate(16)(hidden, torch.randn(100, 16)) - hidden
        assert changed.norm() < 0.5 * hidden.norm()

    def test_bias_opens_or_closes_it(self) -> None:
        hidden, change = torch.randn(2, 8), torch.randn(2, 8)
        assert torch.equal(Gate(8, bias=100.0)(hidden, change), hidden)
        assert Gate(8, bias=-100.0)(hidden, change).abs().max() <= 1  # all tanh


@pytest.mark.parametrize(("width", "num_heads"), [(10, 4), (9, 3)])
def test_rejects_an_odd_width_or_one_not_divisible_by_the_heads(width: int, num_heads: int) -> None:
    with pytest.raises(ConfigurationError, match=rf"width={width} must be even .*num_heads={num_heads}"):
        Transformer(3, width=width, num_heads=num_heads)


def test_positions_are_not_saved() -> None:
    assert not [key for key in Transformer(3, width=8, num_heads=2).state_dict() if key.endswith("positions")]
