"""A transformer as a memory: attention over a sliding window of the previous steps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ...errors import ConfigurationError
from .bodies import orthogonal_, require_positive
from .recurrent import Memory

MIN_BLOCK = 32
"""Smallest size of a block of a sequence. Smaller blocks do not save time."""


class Transformer(Memory):
    """A transformer over a sliding window, with relative positions.

    Every step attends to itself and to the `context_length` steps before it that belong to the same episode. The
    state of a step is the input of every layer at that step, followed by the age of the step in its episode.

    Source: GTrXL (Parisotto et al. 2020) if `gated`, otherwise Transformer-XL (Dai et al. 2019) with
    pre-normalization.

    Args:
        num_inputs: Number of input features.
        width: Width of every layer.
        num_layers: Number of layers.
        num_heads: Number of attention heads; must divide `width`.
        context_length: Number of previous steps in the window.
        gated: Whether layers are combined with a GRU-like gate instead of a sum.

    Raises:
        ConfigurationError: If a size is less than 1, or `width` is odd or not a multiple of `num_heads`.

    """

    compiles_sequences = True

    def __init__(
        self,
        num_inputs: int,
        *,
        width: int = 64,
        num_layers: int = 2,
        num_heads: int = 4,
        context_length: int = 64,
        gated: bool = True,
    ) -> None:
        super().__init__()
        require_positive("policy.memory", width=width, num_layers=num_layers, context_length=context_length)
        if num_heads < 1 or width % num_heads or width % 2:
            raise ConfigurationError(
                f"policy.memory.width={width} must be even and a multiple of policy.memory.num_heads={num_heads}"
            )
        self.num_features = width
        self.context_length = context_length
        self.state_size = num_layers * width + 1
        self.embed = orthogonal_(nn.Linear(num_inputs, width), math.sqrt(2))
        self.layers = nn.ModuleList(
            [TransformerLayer(width, num_heads, context_length, gated) for _ in range(num_layers)]
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, is_init: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Attend to the window of every step; see `Memory.forward`."""
        length = self.context_length
        age = self.episode_ages(is_init.squeeze(-1), context[:, -1, -1])
        mask = self.visibility(age)
        hidden = self.embed(features)
        layer_contexts, layer_states = context[..., :-1].chunk(len(self.layers), -1), []
        for layer, layer_context in zip(self.layers, layer_contexts, strict=True):
            layer_states.append(torch.cat([layer_context, hidden.to(context.dtype)], 1))
            hidden = layer(hidden, layer_states[-1], mask)
        ages = torch.cat([context[..., -1], age], 1).unsqueeze(-1)
        return self.norm(hidden), torch.cat([states[:, -length:] for states in (*layer_states, ages)], -1)

    def visibility(self, age: Tensor) -> Tensor:
        """Return 0 where a step attends to a state, and minus infinity elsewhere.

        Blocks of steps attend to their own states and the `context_length` states before them, so that the work grows
        linearly with the length of a sequence.

        Args:
            age: The ages of the steps, `[batch, time]`; see `episode_ages`.

        Returns:
            The mask, `[batch * blocks, block, context_length + block]`.

        """
        time, length = age.shape[1], self.context_length
        block = next(size for size in range(min(time, max(length, MIN_BLOCK)), time + 1) if time % size == 0)
        # distance[i, j]: number of steps from state j to step i of a block.
        steps = torch.arange(length + block, dtype=age.dtype, device=age.device)
        distance = steps[length:].unsqueeze(1) - steps
        is_visible = (distance >= 0) & (distance <= age.reshape(-1, block, 1).clamp(max=length))
        return torch.where(is_visible, 0.0, -torch.inf)

    @staticmethod
    def episode_ages(is_init: Tensor, last_age: Tensor) -> Tensor:
        """Count the steps since the episode began.

        Args:
            is_init: Whether an episode begins with this step, bool `[batch, time]`.
            last_age: Age of the step before the first one, `[batch]`.

        Returns:
            The age of every step, `[batch, time]`, 0 for the first step of an episode.

        """
        steps = torch.arange(is_init.shape[1], device=is_init.device)
        start = torch.where(is_init, steps, -1).cummax(1).values
        age = torch.where(start >= 0, steps - start, last_age.unsqueeze(-1) + 1 + steps)
        return age.to(last_age.dtype)


class TransformerLayer(nn.Module):
    """Attention and a perceptron, each with layer normalization before it and a gate or sum after it."""

    def __init__(self, width: int, num_heads: int, context_length: int, gated: bool) -> None:
        super().__init__()
        self.attention = RelativeAttention(width, num_heads, context_length)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.joins = nn.ModuleList([Gate(width) if gated else Sum(), Gate(width) if gated else Sum()])
        orthogonal_(self.perceptron, 1.0)

    def forward(self, hidden: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Apply the layer to a batch of sequences; the arguments are those of `RelativeAttention.forward`."""
        norm_1, norm_2 = self.norms
        join_1, join_2 = self.joins
        states = norm_1(states)
        hidden = join_1(hidden, self.attention(states[:, -hidden.shape[1] :], states, mask))
        return join_2(hidden, self.perceptron(norm_2(hidden)))


class RelativeAttention(nn.Module):
    """Multi-head attention whose scores depend on the distance between steps.

    The heads share one sinusoidal encoding of the distances 0 to `context_length`.

    Source: Dai et al. 2019, section 3.3.
    """

    positions: Tensor

    def __init__(self, width: int, num_heads: int, context_length: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.position = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, width // num_heads))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 1, width // num_heads))
        angles = torch.arange(context_length, -1, -1).unsqueeze(1) * 10_000.0 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], -1), persistent=False)
        orthogonal_(self, 1.0)

    def forward(self, hidden: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        """Attend with the scores (q + u) k + (q + v) r, where r encodes the distance.

        Args:
            hidden: Inputs of the queries, `[batch, time, width]`.
            states: Inputs of the keys and values, `[batch, context_length + time, width]`. State j is
                `context_length` + i - j steps before query i.
            mask: See `Transformer.visibility`, `[batch * blocks, block, context_length + block]`.

        Returns:
            The output of the attention, `[batch, time, width]`.

        """
        block, time = mask.shape[1], hidden.shape[1]
        query = self.split_heads(self.query(hidden).reshape(-1, block, hidden.shape[2]))
        position = self.split_heads(self.position(self.positions))
        scale = 1 / math.sqrt(query.shape[-1])
        # The mask is float32, and so are the scores, also under autocast.
        scores = shift_rows((query + self.position_bias) * scale @ position.transpose(-1, -2)) + mask.unsqueeze(1)
        query = (query + self.content_bias) * scale
        # For one query, transforming the query and the mean of the states is cheaper than transforming all states.
        if time == 1:
            to_key, to_value = self.key_value.weight.unflatten(0, (2, self.num_heads, -1))
            scores += (torch.einsum("bhtd,hdw->bhw", query, to_key) @ states.transpose(1, 2)).unsqueeze(2)
            means = scores.softmax(-1).squeeze(2).to(states.dtype) @ states
            mixed = torch.einsum("bhw,hdw->bhd", means, to_value).unsqueeze(2)
        else:
            states = self.key_value(states)
            windows = [states[:, start : start + mask.shape[2]] for start in range(0, time, block)]
            key, value = (self.split_heads(part) for part in torch.stack(windows, 1).flatten(0, 1).chunk(2, -1))
            scores += query @ key.transpose(-1, -2)
            mixed = scores.softmax(-1).to(value.dtype) @ value
        return self.output(mixed.transpose(1, 2).reshape(*hidden.shape))

    def split_heads(self, features: Tensor) -> Tensor:
        """Shapes: `[*, time, width] -> [*, heads, time, width / heads]`."""
        return features.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


def shift_rows(scores: Tensor) -> Tensor:
    """Move row i of a matrix i columns to the right: `[*, time, length + 1] -> [*, time, length + time]`.

    The other entries are 0. Source: Dai et al. 2019, appendix B.
    """
    time, length = scores.shape[-2], scores.shape[-1] - 1
    # The rows are one entry longer than those of the result. A compiled graph would compute `pad` again for every use.
    padded = torch.cat([scores, scores.new_zeros(*scores.shape[:-1], time)], -1).flatten(-2)
    return padded[..., : time * (length + time)].unflatten(-1, (time, length + time))


class Sum(nn.Module):
    """A residual connection."""

    def forward(self, hidden: Tensor, update: Tensor) -> Tensor:
        """Shapes: `[*, width], [*, width] -> [*, width]`."""
        return hidden + update


class Gate(nn.Module):
    """A GRU-like gate that starts almost closed, so that the layers have little effect at first.

    Source: Parisotto et al. 2020, section 3.2, with the ReLU of their eq. 4 before the gate.

    Args:
        width: Number of features.
        bias: Initial bias towards a closed gate.

    """

    def __init__(self, width: int, bias: float = 2.0) -> None:
        super().__init__()
        self.update = nn.Linear(width, 3 * width, bias=False)
        self.hidden = nn.Linear(width, 2 * width, bias=False)
        self.reset = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.full((width,), bias))
        orthogonal_(self, 1.0)

    def forward(self, hidden: Tensor, update: Tensor) -> Tensor:
        """Compute (1 - z) hidden + z tanh(W update + U (r hidden)).

        Shapes: `[*, width], [*, width] -> [*, width]`.
        """
        update_r, update_z, update_h = self.update(F.relu(update)).chunk(3, -1)
        hidden_r, hidden_z = self.hidden(hidden).chunk(2, -1)
        gate = torch.sigmoid(update_z + hidden_z - self.bias)
        proposal = torch.tanh(update_h + self.reset(torch.sigmoid(update_r + hidden_r) * hidden))
        return torch.lerp(hidden, proposal.to(hidden.dtype), gate.to(hidden.dtype))
