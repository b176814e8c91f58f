"""Action heads: from features to a distribution over the actions of a spec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch import distributions as D  # noqa: N812
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, OneHot, TensorSpec, Unbounded

from ...errors import ConfigurationError
from ..distributions import action as distributions
from ..distributions.joint import JointComponent, JointDistribution
from ..features.bodies import FullPrecision, orthogonal_
from .networks import GAIN, ConcatHeads, Parameters
from .to_action import AddOffset, RoundToBounds, SplitAction

Path = tuple[str, ...]
"""Path of a leaf in a nested action spec."""
MAX_CHOICES = 64
"""Maximum number of values of an integer with one logit per value. Wider ranges use a continuous head and rounding."""


@dataclass(frozen=True)
class Head:
    """A network and the distribution over actions that it parametrizes.

    Attributes:
        network: Maps features `[*, width]`, and optionally `mask` `[*, n]` (second argument or keyword) and the
            keyword `noise`, to a tuple of distribution parameters.
        param_keys: Names of the parameters, as TensorDict keys and as keyword arguments of `distribution_class`.
        distribution_class: Makes the distribution. Its `log_prob` is that of the sample, not of the action.
        sample_key: Key under which the sample is stored.
        to_action: Maps a sample to one action, or to a tuple of actions. `None` if the sample is the action.
        action_keys: Keys of the actions, in the order of the tuple.
        noise_shape: Shape of the noise that persists over steps, for one environment.
        resample_noise: Maps `noise, is_init` to the noise of the next step. `None` if there is no persistent noise.

    """

    network: nn.Module
    param_keys: list[str]
    distribution_class: Callable[..., D.Distribution]
    sample_key: str = "action"
    to_action: nn.Module | None = None
    action_keys: list[str | Path] = field(default_factory=lambda: ["action"])
    noise_shape: tuple[int, ...] = ()
    resample_noise: nn.Module | None = None

    def __post_init__(self) -> None:
        if self.to_action is not None:
            # Registered as a submodule, so that its buffers move to the device of the network.
            self.network.add_module("to_action", self.to_action)


ContinuousHead = Callable[[int, TensorSpec], Head]
"""A function from the number of features and the spec of a batch of float actions `[*, n]` to a head."""


def make_head(action_spec: TensorSpec, num_batch: int, width: int, continuous: ContinuousHead) -> Head:
    """Build the head of an action space.

    Args:
        action_spec: Spec of a batch of actions: a leaf, or a `Composite` of leaves, which are sampled independently.
        num_batch: Number of batch dimensions of the spec.
        width: Number of features.
        continuous: Builds the head of a leaf of floats `[*, n]`. Leaves of other ranks are flattened.

    Raises:
        ConfigurationError: If a leaf has no head, or `continuous` does not support it.

    """
    if not isinstance(action_spec, Composite):
        head = _flat_head(("action",), action_spec, num_batch, width, continuous)
        shape = action_spec.shape[num_batch:]
        is_integer_box = isinstance(action_spec, Bounded | Unbounded) and not action_spec.dtype.is_floating_point
        is_choice = isinstance(action_spec, Categorical) and not isinstance(action_spec, Binary)
        if (is_choice and not shape) or (len(shape) == 1 and not is_integer_box):
            return head
        to_action = SplitAction([shape], [action_spec.dtype], [head.to_action or nn.Identity()])
        return replace(head, sample_key="action_sample", to_action=to_action)
    leaves = _flatten_spec(action_spec)
    if not leaves:
        raise ConfigurationError(f"action is {action_spec}, which has no leaf; add at least one action")
    return _composite_head(
        {path: _flat_head(("action", *path), spec, num_batch, width, continuous) for path, spec in leaves.items()},
        [spec.shape[num_batch:] for spec in leaves.values()],
        [spec.dtype for spec in leaves.values()],
    )


def _flatten_spec(spec: Composite) -> dict[Path, TensorSpec]:
    """Return the leaves of a nested spec by path, in the order of the spec."""
    leaves: dict[Path, TensorSpec] = {}
    for key, child in spec.items():
        child_leaves = _flatten_spec(child) if isinstance(child, Composite) else {(): child}
        leaves |= {(key, *path): leaf for path, leaf in child_leaves.items()}
    return leaves


def _flat_head(path: Path, spec: TensorSpec, num_batch: int, width: int, continuous: ContinuousHead) -> Head:
    """Build the head of the leaf at `path`. Its actions are flat, `[*, n]`, or `[*]` for a Categorical."""
    shape, first = spec.shape[num_batch:], (0,) * num_batch
    to_action: nn.Module | None = None
    match spec:
        case MultiCategorical():
            nvec = spec.nvec[first].flatten().tolist()
            network: nn.Module = Logits(width, sum(nvec))
            distribution: Callable[..., D.Distribution] = partial(distributions.MultiCategorical, nvec=nvec)
        case Binary():
            network, distribution = Unmasked(Logits(width, shape.numel())), distributions.IndependentBernoulli
        case OneHot() if len(shape) == 1:
            network, distribution = Logits(width, shape[0]), distributions.OneHotCategorical
        case Categorical() if not shape:
            network, distribution = Logits(width, spec.n), distributions.Categorical
        case Categorical():
            nvec = [spec.n] * shape.numel()
            network, distribution = Logits(width, sum(nvec)), partial(distributions.MultiCategorical, nvec=nvec)
        case Bounded() if not spec.dtype.is_floating_point and (nvec := _num_integers(spec, first)):
            network, distribution = Logits(width, sum(nvec)), partial(distributions.MultiCategorical, nvec=nvec)
            to_action = AddOffset(spec.space.low[first].flatten().long())
        case Bounded() | Unbounded():
            return _continuous_head(path, spec, num_batch, width, continuous)
        case _:
            raise ConfigurationError(
                f"{'.'.join(path)} is {spec}, which has no head; use a box, Categorical, MultiCategorical or Binary of "
                "any shape, or a OneHot of one dimension"
            )
    return Head(FullPrecision(network), ["logits"], partial(distribution, validate_args=False), to_action=to_action)


def has_continuous_head(spec: TensorSpec, num_batch: int) -> bool:
    """Return whether the head of a leaf is continuous: that of a box of floats, or of integers in a wide range."""
    is_integer_range = isinstance(spec, Bounded) and not spec.dtype.is_floating_point
    is_choice = is_integer_range and len(_num_integers(spec, (0,) * num_batch)) > 0
    return isinstance(spec, Bounded | Unbounded) and not is_choice


def _num_integers(spec: Bounded, first: tuple[int, ...]) -> list[int]:
    """Return the number of values of every entry, or an empty list if an entry has more than `MAX_CHOICES`."""
    low, high = (bound[first].flatten().tolist() for bound in (spec.space.low, spec.space.high))
    nvec = [int(upper) - int(lower) + 1 for lower, upper in zip(low, high, strict=True)]
    return nvec if max(nvec, default=0) <= MAX_CHOICES else []


def _continuous_head(path: Path, spec: TensorSpec, num_batch: int, width: int, continuous: ContinuousHead) -> Head:
    """Build the head of a box of floats, or of integers with a wide range, at `path`."""
    batch, shape = spec.shape[:num_batch], spec.shape[num_batch:]
    flat, is_float = torch.Size([*batch, shape.numel()]), spec.dtype.is_floating_point
    bounds = [bound.reshape(flat) for bound in (spec.space.low, spec.space.high)] if isinstance(spec, Bounded) else []
    if not is_float or len(shape) != 1:
        floats = [bound.float() for bound in bounds]
        spec = Bounded(*floats, flat, dtype=torch.float32) if floats else Unbounded(flat, dtype=torch.float32)
    try:
        head = continuous(width, spec)
    except ConfigurationError as error:
        raise ConfigurationError(f"{'.'.join(path)}: {error}") from error
    if is_float:
        return head
    low, high = (bound.reshape(-1, flat[-1])[0].long() for bound in bounds) if bounds else _int64_limits(flat[-1])
    rounded = nn.Sequential(*([head.to_action] if head.to_action else []), RoundToBounds(low, high))
    return replace(head, to_action=rounded)


def _int64_limits(size: int) -> tuple[Tensor, Tensor]:
    limits = torch.iinfo(torch.int64)
    return torch.full((size,), limits.min), torch.full((size,), limits.max)


def _composite_head(heads: dict[Path, Head], shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype]) -> Head:
    """Combine independent heads into one.

    Args:
        heads: Heads of the leaves, by path.
        shapes: Action shape of every leaf.
        dtypes: Action dtype of every leaf.

    Raises:
        ConfigurationError: If a head has persistent noise.

    """
    if any(head.resample_noise for head in heads.values()):
        raise ConfigurationError(
            f"head=gsde supports a single action, but the action has the parts {', '.join(map('.'.join, heads))}; "
            "use head=gaussian"
        )
    param_names = [{key: "/".join([*path, key]) for key in head.param_keys} for path, head in heads.items()]
    components = [
        JointComponent(head.distribution_class, names) for head, names in zip(heads.values(), param_names, strict=True)
    ]
    return Head(
        Unmasked(ConcatHeads([head.network for head in heads.values()])),
        [name for names in param_names for name in names.values()],
        partial(JointDistribution, components),
        sample_key="action_sample",
        to_action=SplitAction(shapes, dtypes, [head.to_action or nn.Identity() for head in heads.values()]),
        action_keys=[("action", *path) for path in heads],
    )


class Logits(nn.Module):
    """A linear layer with one logit per choice; the initial probabilities are almost uniform."""

    def __init__(self, width: int, num_choices: int) -> None:
        super().__init__()
        self.linear = orthogonal_(nn.Linear(width, num_choices), GAIN)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Parameters:
        """Compute the logits; choices where the mask is zero are never sampled.

        Shapes: `[*, width], [*, num_choices] -> [*, num_choices]`.

        Raises:
            ConfigurationError: If the mask does not have one entry per choice.

        """
        logits: Tensor = self.linear(features)
        if mask is None:
            return (logits,)
        if mask.shape[-1] != logits.shape[-1]:
            raise ConfigurationError(
                f"action_mask has {mask.shape[-1]} entries; it needs {logits.shape[-1]}, one for each choice"
            )
        return (distributions.masked_logits(logits, mask),)


class Unmasked(nn.Module):
    """Wraps a network that does not support action masks, and raises an error if there is one."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, mask: Tensor | None = None, **kwargs: Tensor | None) -> Parameters:
        """Call the network without a mask.

        Raises:
            ConfigurationError: If there is a mask.

        """
        if mask is not None:
            raise ConfigurationError(
                "action_mask applies to Discrete and MultiDiscrete action spaces, not to this one; "
                "remove action_mask from the observations"
            )
        parameters: Parameters = self.network(features, **kwargs)
        return parameters
