"""Transformers as memories."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from ...errors import ConfigurationError
from .bodies import orthogonal_
from .recurrent import Memory, require_positive


class Transformer(Memory):
    """A transformer over a sliding window of the past, with relative positions.

    Every step attends to itself and to the `context_length` steps before it, as far as they belong to its episode. A
    record is what entered every layer at that step, and the step's age in its episode. Gated, this is GTrXL
    (Parisotto et al. 2020); without gates Transformer-XL with pre-normalisation (Dai et al. 2019).

    Args:
        num_inputs: see `Memory`.
        width: of every layer.
        num_layers: how many.
        num_heads: of the attention; divides the width.
        context_length: steps that are remembered.
        gated: join each layer's work by a GRU-like gate instead of adding it.

    Raises:
        ConfigurationError: if a size is not positive, or the heads do not divide the width.

    """

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
        """Build the layers."""
        super().__init__()
        require_positive(width=width, num_layers=num_layers, context_length=context_length)
        if num_heads < 1 or width % num_heads or width % 2:
            raise ConfigurationError(
                f"policy.memory.width={width} must be even and a multiple of policy.memory.num_heads={num_heads}"
            )
        self.num_features = width
        self.context_length = context_length
        self.state_size = num_layers * width + 1
        self.embed = orthogonal_(nn.Linear(num_inputs, width), math.sqrt(2))
        self.layers = nn.ModuleList([Layer(width, num_heads, context_length, gated) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, features: Tensor, is_init: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """See `Memory`."""
        time = features.shape[1]
        age = self.ages(is_init.squeeze(-1), past[:, -1, -1])
        # How long before a step, in rows, an entry of the tape is, in columns.
        distance = torch.arange(time, device=age.device).unsqueeze(1) + self.context_length
        distance = distance - torch.arange(self.context_length + time, device=age.device)
        visible = (distance >= 0) & (distance <= self.context_length) & (distance <= age.unsqueeze(-1))
        distance = distance.clamp(0, self.context_length)
        hidden = self.embed(features)
        entered, tapes = past[..., :-1].chunk(len(self.layers), -1), []
        for layer, before in zip(self.layers, entered, strict=True):
            tapes.append(torch.cat([before, hidden.to(past.dtype)], 1))
            hidden = layer(hidden, tapes[-1], distance, visible)
        ages = torch.cat([past[..., -1], age], 1).unsqueeze(-1)
        return self.norm(hidden), torch.cat([*tapes, ages], -1)

    @staticmethod
    def ages(is_init: Tensor, last_age: Tensor) -> Tensor:
        """Steps since the episode began: bool `[batch, time]`, `[batch]` of the step before, to `[batch, time]`."""
        steps = torch.arange(is_init.shape[1], device=is_init.device)
        begun = torch.where(is_init, steps, -1).cummax(1).values
        age = torch.where(begun >= 0, steps - begun, last_age.unsqueeze(-1) + 1 + steps)
        return age.to(last_age.dtype)


class Layer(nn.Module):
    """Attention and a perceptron, each behind a normalisation and before a gate."""

    def __init__(self, width: int, num_heads: int, context_length: int, gated: bool) -> None:
        """Build the parts."""
        super().__init__()
        self.attention = RelativeAttention(width, num_heads, context_length)
        self.perceptron = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norms = nn.ModuleList([nn.LayerNorm(width), nn.LayerNorm(width)])
        self.joins = nn.ModuleList([Gate(width) if gated else Sum(), Gate(width) if gated else Sum()])
        orthogonal_(self.perceptron, 1.0)

    def forward(self, hidden: Tensor, tape: Tensor, distance: Tensor, visible: Tensor) -> Tensor:
        """`[batch, time, width]`, the tape `[batch, context_length + time, width]` of it, and who sees whom."""
        norm_1, norm_2 = self.norms
        join_1, join_2 = self.joins
        hidden = join_1(hidden, self.attention(norm_1(hidden), norm_1(tape), distance, visible))
        return join_2(hidden, self.perceptron(norm_2(hidden)))


class RelativeAttention(nn.Module):
    """Attention whose scores know how long before a step another one was (Dai et al. 2019, section 3.3)."""

    positions: Tensor

    def __init__(self, width: int, num_heads: int, context_length: int) -> None:
        """Share one sinusoidal code of distances 0 to `context_length` among the heads."""
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.position = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width)
        self.content_bias = nn.Parameter(torch.zeros(num_heads, 1, width // num_heads))
        self.position_bias = nn.Parameter(torch.zeros(num_heads, 1, width // num_heads))
        angles = torch.arange(context_length + 1).unsqueeze(1) * 10_000.0 ** (-torch.arange(0, width, 2) / width)
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], -1), persistent=False)
        orthogonal_(self, 1.0)

    def forward(self, hidden: Tensor, tape: Tensor, distance: Tensor, visible: Tensor) -> Tensor:
        """Scores (q + u) k + (q + v) r of the distance, eq. in section 3.3: `[batch, time, width]`."""
        query = self.by_head(self.query(hidden))
        key, value = (self.by_head(part) for part in self.key_value(tape).chunk(2, -1))
        position = self.by_head(self.position(self.positions))
        by_distance = (query + self.position_bias) @ position.transpose(-1, -2)
        index = distance.expand(*by_distance.shape[:-1], -1)
        scores = (query + self.content_bias) @ key.transpose(-1, -2) + by_distance.gather(-1, index)
        scores = scores.float() / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(~visible.unsqueeze(1), -torch.inf).softmax(-1)
        return self.output((weights.to(value.dtype) @ value).transpose(1, 2).flatten(2))

    def by_head(self, features: Tensor) -> Tensor:
        """`[*, time, width] -> [*, heads, time, width / heads]`."""
        return features.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


class Sum(nn.Module):
    """A residual connection."""

    def forward(self, hidden: Tensor, change: Tensor) -> Tensor:
        """`[*, width]` each."""
        return hidden + change


class Gate(nn.Module):
    """A GRU-like gate, which starts almost closed: the transformer begins as no more than its embedding.

    Source: Parisotto et al. 2020, section 3.2, with the ReLU of their eq. 4 before the gate.
    """

    def __init__(self, width: int, bias: float = 2.0) -> None:
        """Start with the gate shifted by `bias` towards closed."""
        super().__init__()
        self.change = nn.Linear(width, 3 * width, bias=False)
        self.hidden = nn.Linear(width, 2 * width, bias=False)
        self.reset = nn.Linear(width, width, bias=False)
        self.bias = nn.Parameter(torch.full((width,), bias))
        orthogonal_(self, 1.0)

    def forward(self, hidden: Tensor, change: Tensor) -> Tensor:
        """`(1 - z) hidden + z tanh(W change + U (r hidden))`: `[*, width]` each."""
        change_r, change_z, change_h = self.change(F.relu(change)).chunk(3, -1)
        hidden_r, hidden_z = self.hidden(hidden).chunk(2, -1)
        keep = torch.sigmoid(change_z + hidden_z - self.bias)
        proposal = torch.tanh(change_h + self.reset(torch.sigmoid(change_r + hidden_r) * hidden))
        return torch.lerp(hidden, proposal.to(hidden.dtype), keep.to(hidden.dtype))
