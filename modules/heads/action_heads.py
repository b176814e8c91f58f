"""Heads: what turns features into a distribution over the actions of a spec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn
from torch import distributions as D  # noqa: N812
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, OneHot, TensorSpec, Unbounded

from ...errors import ConfigurationError
from ..distributions import action as distributions
from ..distributions.joint import JointDistribution, JointFactor
from ..features.bodies import FullPrecision, orthogonal_
from .networks import GAIN, ConcatHeads, Parameters, SplitAction

Path = tuple[str, ...]


@dataclass(frozen=True)
class Head:
    """What turns features into a distribution over one action space.

    `network` maps features `[*, width]`, an optional second argument or keyword `mask` `[*, n]`, and the keyword
    `noise` if there is any, to the parameters of `distribution_class`: their names in the data, and its keywords, are
    `param_keys`. Its sample is stored under `sample_key`, and log-probabilities are the sample's.
    `to_action` maps a sample to the actions under `action_keys`, in their order; none: the sample is the action.
    Noise that goes on from step to step, `noise_shape` for one environment, is renewed by `redraw`: `noise, is_init ->
    noise`.
    """

    network: nn.Module
    param_keys: list[str]
    distribution_class: Callable[..., D.Distribution]
    sample_key: str = "action"
    to_action: nn.Module | None = None
    action_keys: list[str | Path] = field(default_factory=lambda: ["action"])
    noise_shape: tuple[int, ...] = ()
    redraw: nn.Module | None = None

    def __post_init__(self) -> None:
        """Let `to_action` move between devices with the network."""
        if self.to_action is not None:
            self.network.add_module("to_action", self.to_action)


ContinuousHead = Callable[[int, TensorSpec], Head]


def make_head(action_spec: TensorSpec, num_batch: int, width: int, continuous: ContinuousHead) -> Head:
    """The head of an action space.

    Args:
        action_spec: a leaf, or a `Composite` of leaves whose actions are independent of each other.
        num_batch: number of its leading batch dimensions.
        width: of the features.
        continuous: makes the head of a leaf of floats.

    Raises:
        ConfigurationError: for a leaf that has no head, or that `continuous` cannot serve.

    """
    if not isinstance(action_spec, Composite):
        return leaf_head(("action",), action_spec, num_batch, width, continuous)
    leaves = leaves_of(action_spec)
    if not leaves:
        raise ConfigurationError(f"action is {action_spec}, without a leaf to act on; give it one")
    return composite_head(
        {path: leaf_head(("action", *path), spec, num_batch, width, continuous) for path, spec in leaves.items()},
        [spec.shape[num_batch:] for spec in leaves.values()],
        [spec.dtype for spec in leaves.values()],
    )


def leaves_of(spec: Composite) -> dict[Path, TensorSpec]:
    """The leaves of a nested spec by their paths, in its order."""
    leaves: dict[Path, TensorSpec] = {}
    for key, child in spec.items():
        below = leaves_of(child) if isinstance(child, Composite) else {(): child}
        leaves |= {(key, *path): leaf for path, leaf in below.items()}
    return leaves


def leaf_head(path: Path, spec: TensorSpec, num_batch: int, width: int, continuous: ContinuousHead) -> Head:
    """The head of the leaf at `path`; see `make_head`."""
    is_scalar, is_vector = (len(spec.shape) == num_batch + ndim for ndim in (0, 1))
    match spec:
        case MultiCategorical() if is_vector:
            nvec = [int(n) for n in spec.nvec.reshape(-1, spec.shape[-1])[0]]
            network: nn.Module = Logits(width, sum(nvec))
            distribution: Callable[..., D.Distribution] = partial(distributions.MultiCategorical, nvec=nvec)
        case Binary() if is_vector:
            network, distribution = Unmasked(Logits(width, spec.shape[-1])), distributions.IndependentBernoulli
        case OneHot() if is_vector:
            network, distribution = Logits(width, spec.shape[-1]), distributions.OneHotCategorical
        case Categorical() if is_scalar and not isinstance(spec, Binary):  # TorchRL derives Binary of it
            network, distribution = Logits(width, spec.n), distributions.Categorical
        case Bounded() | Unbounded() if is_vector and spec.dtype.is_floating_point:
            try:
                return continuous(width, spec)
            except ConfigurationError as error:
                raise ConfigurationError(f"{'.'.join(path)}: {error}") from error
        case _:
            raise ConfigurationError(
                f"{'.'.join(path)} is {spec}, which no head acts on; supported are Discrete, and "
                "MultiDiscrete, MultiBinary and Box of floats of one dimension"
            )
    return Head(FullPrecision(network), ["logits"], partial(distribution, validate_args=False))


def composite_head(heads: dict[Path, Head], shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype]) -> Head:
    """One head of independent ones, given by their paths, with the shapes and types of their actions.

    Raises:
        ConfigurationError: for a head that carries noise.

    """
    if any(head.redraw for head in heads.values()):
        raise ConfigurationError(
            f"head=gsde carries the noise of a single action, not of {', '.join(map('.'.join, heads))}; "
            "head=gaussian acts on several"
        )
    keywords = [{key: "/".join([*path, key]) for key in head.param_keys} for path, head in heads.items()]
    classes = [head.distribution_class for head in heads.values()]
    factors = [JointFactor(one, names) for one, names in zip(classes, keywords, strict=True)]
    return Head(
        Unmasked(ConcatHeads([head.network for head in heads.values()])),
        [name for names in keywords for name in names.values()],
        partial(JointDistribution, factors),
        sample_key="action_sample",
        to_action=SplitAction(shapes, dtypes, [head.to_action or nn.Identity() for head in heads.values()]),
        action_keys=[("action", *path) for path in heads],
    )


class Unmasked(nn.Module):
    """Refuses a mask on behalf of a network whose actions are no choices."""

    def __init__(self, network: nn.Module) -> None:
        """Wrap a network that takes no mask."""
        super().__init__()
        self.network = network

    def forward(self, features: Tensor, mask: Tensor | None = None, **carried: Tensor | None) -> Parameters:
        """What the network makes of everything but the mask.

        Raises:
            ConfigurationError: if there is a mask.

        """
        if mask is not None:
            raise ConfigurationError(
                "action_mask is for a Discrete or MultiDiscrete action space, and this is another; "
                "leave it out of the observations"
            )
        parameters: Parameters = self.network(features, **carried)
        return parameters


class Logits(nn.Module):
    """One logit for every choice."""

    def __init__(self, width: int, num_choices: int) -> None:
        """Start with nearly equal odds."""
        super().__init__()
        self.linear = orthogonal_(nn.Linear(width, num_choices), GAIN)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Parameters:
        """`[*, width], mask [*, choices] -> logits [*, choices]`, never to be chosen where the mask is zero.

        Raises:
            ConfigurationError: if the mask is not of all choices.

        """
        logits: Tensor = self.linear(features)
        if mask is None:
            return (logits,)
        if mask.shape[-1] != logits.shape[-1]:
            raise ConfigurationError(
                f"action_mask has {mask.shape[-1]} entries; it needs one for each of {logits.shape[-1]} choices"
            )
        return (distributions.masked_logits(logits, mask),)
