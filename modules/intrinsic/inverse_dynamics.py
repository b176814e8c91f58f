"""Features of observations, trained to predict the action between two observations."""

from __future__ import annotations

import math

import torch
from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Binary, Categorical, Composite, MultiCategorical, OneHot, TensorSpec

from ..features.bodies import ToFloat, orthogonal_
from ..features.encoders import ConcatEncoders, Flatten, MultiOneHot
from ..heads.value_heads import last_layer
from .networks import next_keys, output_of

HIDDEN = 256
"""Width of the hidden layer of the networks that predict actions or features (Pathak et al. 2017, section 4.1)."""


class ActionCode(nn.Module):
    """Encodes actions as vectors. Choices become one-hot vectors, and bounded numbers are scaled to [-1, 1].

    Args:
        action_spec: Spec of a batch of actions, a leaf or nested.
        num_batch: Number of batch dimensions of the spec.

    Attributes:
        keys: Keys of the leaves.
        sizes: Length of every part: the number of choices, or 1 for a number.

    """

    def __init__(self, action_spec: TensorSpec, num_batch: int) -> None:
        super().__init__()
        leaves: dict[NestedKey, TensorSpec] = {"action": action_spec}
        if isinstance(action_spec, Composite):
            names = action_spec.keys(include_nested=True, leaves_only=True)
            leaves = {("action", *((name,) if isinstance(name, str) else name)): action_spec[name] for name in names}
        self.keys = list(leaves)
        self.sizes: list[int] = []
        encoders = []
        for spec in leaves.values():
            encoder, sizes = make_code(spec, num_batch)
            encoders.append(encoder)
            self.sizes += sizes
        self.encoders = ConcatEncoders(encoders)

    def forward(self, data: TensorDictBase) -> Tensor:
        """Return the codes of the actions of data `[*]`, float32 `[*, sum(sizes)]`."""
        codes: Tensor = self.encoders(*(data[key] for key in self.keys))
        return codes

    def error(self, predicted: Tensor, code: Tensor) -> Tensor:
        """Return the sum over the parts of the cross-entropy of choices and the squared error of numbers.

        Args:
            predicted: Logits of choices and values of numbers, `[*, sum(sizes)]`.
            code: Codes of the actions, `[*, sum(sizes)]`.

        Returns:
            Errors, `[*]`.

        """
        parts = zip(predicted.split(self.sizes, -1), code.split(self.sizes, -1), strict=True)
        errors = [
            (one - other).square().sum(-1) if one.shape[-1] == 1 else -(one.log_softmax(-1) * other).sum(-1)
            for one, other in parts
        ]
        return torch.stack(errors).sum(0)


def make_code(spec: TensorSpec, num_batch: int) -> tuple[nn.Module, list[int]]:
    """Return the encoder of a leaf, `[*, *shape] -> [*, sum(sizes)]`, and the lengths of its parts."""
    shape = spec.shape[num_batch:]
    num_values = math.prod(shape)
    flatten = Flatten(len(shape))
    match spec:
        case MultiCategorical():
            sizes = [int(size) for size in spec.nvec[(0,) * num_batch].flatten()]
            return nn.Sequential(flatten, MultiOneHot(sizes)), sizes
        case OneHot() if len(shape) == 1:
            return ToFloat(), [num_values]
        case Categorical() if not isinstance(spec, Binary):
            sizes = [int(spec.n)] * num_values
            return nn.Sequential(flatten, MultiOneHot(sizes)), sizes
    low = torch.zeros(num_values)
    high = torch.ones(num_values)
    if not isinstance(spec, Binary) and hasattr(spec.space, "low"):
        low, high = (bound[(0,) * num_batch].flatten().float() for bound in (spec.space.low, spec.space.high))
    return nn.Sequential(flatten, ScaleToUnit(low, high)), [1] * num_values


class ScaleToUnit(nn.Module):
    """Clips numbers to finite bounds and maps them to [-1, 1]; other numbers stay unchanged.

    The environment clips actions too, so the next observation does not tell how far they were beyond the bounds.

    Args:
        low: Lower bounds, `[n]`.
        high: Upper bounds, `[n]`.

    """

    center: Tensor
    scale: Tensor
    limit: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        super().__init__()
        is_bounded = low.isfinite() & high.isfinite() & (high > low) & (high - low < 1e6)
        self.register_buffer("center", ((low + high) / 2).where(is_bounded, 0.0), persistent=False)
        self.register_buffer("scale", ((high - low) / 2).where(is_bounded, 1.0), persistent=False)
        self.register_buffer("limit", torch.ones_like(low).where(is_bounded, torch.inf), persistent=False)

    def forward(self, value: Tensor) -> Tensor:
        """Shapes: `[*, n] -> float32 [*, n]`."""
        return ((value.float() - self.center) / self.scale).clamp(-self.limit, self.limit)


class InverseDynamics(nn.Module):
    """Features phi(s), trained to predict the action a from phi(s) and phi(s').

    They describe what the actions can change. They ignore, for example, noise on a screen.

    Source: Pathak et al. 2017 (ICM, arXiv:1705.05363), section 2.2, eq. 2 and 3.

    Args:
        features: Network that writes the features `[*, num_features]`.
        num_features: Number of features.
        code: Code of the actions.

    """

    def __init__(self, features: TensorDictSequential, num_features: int, code: ActionCode) -> None:
        super().__init__()
        self.features = features
        self.code = code
        self.head = two_layers(2 * num_features, sum(code.sizes))

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys that `loss` reads."""
        return [*self.features.in_keys, *next_keys(self.features.in_keys), *self.code.keys]

    def pair(self, rows: TensorDictBase) -> tuple[Tensor, Tensor]:
        """Return the features of the observations and of the next observations of rows `[*]`."""
        return output_of(self.features, rows), output_of(self.features, rows["next"])

    def loss(self, rows: TensorDictBase, features: Tensor, next_features: Tensor) -> Tensor:
        """Return the mean error of the predicted actions of rows `[*]`, a scalar."""
        predicted = self.head(torch.cat([features, next_features], -1))
        return self.code.error(predicted, self.code(rows)).mean()


def two_layers(width: int, num_outputs: int) -> nn.Module:
    """Build a network with one hidden layer, `[*, width] -> [*, num_outputs]`."""
    hidden = orthogonal_(nn.Linear(width, HIDDEN), math.sqrt(2))
    return nn.Sequential(hidden, nn.ReLU(), last_layer(HIDDEN, num_outputs))
