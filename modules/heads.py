"""Heads: what turns features into a distribution over the actions of a spec."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as D  # noqa: N812
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded
from torchrl.modules import IndependentNormal

from ..errors import ConfigurationError
from . import distributions
from .networks import orthogonal_

GAIN = 0.01
LOWEST_LOG_STD, HIGHEST_LOG_STD = -20.0, 2.0

Parameters = tuple[Tensor, ...]
Path = tuple[str, ...]


@dataclass(frozen=True)
class Head:
    """What turns features into a distribution over one action space.

    `network` maps features `[*, width]`, an optional second argument or keyword `mask` `[*, n]`, and as keywords
    what is carried, to the parameters of `distribution_class`: their names in the data, and its keywords, are
    `param_keys`. Its sample is stored under `sample_key`, and log-probabilities are the sample's.
    `to_action` maps a sample to the actions under `action_keys`, in their order; none: the sample is the action.
    `carried` names what goes from step to step, with the shape for one environment: `gsde_noise`, the keyword
    `noise`, which `redraw` renews as `noise, is_init -> noise`.
    """

    network: nn.Module
    param_keys: list[str]
    distribution_class: Callable[..., D.Distribution]
    sample_key: str = "action"
    to_action: nn.Module | None = None
    action_keys: list[str | Path] = field(default_factory=lambda: ["action"])
    carried: dict[str, tuple[int, ...]] = field(default_factory=dict)
    redraw: nn.Module | None = None

    def __post_init__(self) -> None:
        """Let `to_action` move between devices with the network."""
        if self.to_action is not None:
            self.network.add_module("to_action", self.to_action)


ContinuousHead = Callable[[int, TensorSpec], Head]


class FullPrecision(nn.Module):
    """Runs a head in its own precision, also under autocast: 8 bits of a log-probability are no basis for a ratio."""

    def __init__(self, head: nn.Module) -> None:
        """Wrap a head."""
        super().__init__()
        self.head = head

    def forward(self, features: Tensor, *others: Tensor | None, **keywords: Tensor | None) -> Any:
        """What the head makes of `features`."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.to(next(self.head.parameters()).dtype), *others, **keywords)


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


class StateIndependentScale(nn.Module):
    """A mean from the features and one learned scale for every action, the same in all states."""

    def __init__(self, head: nn.Module, num_actions: int, log_std: float) -> None:
        """Start every scale at `exp(log_std)`."""
        super().__init__()
        self.head = head
        self.log_std = nn.Parameter(torch.full((num_actions,), log_std))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[*, features] -> loc [*, actions], scale [*, actions]`."""
        loc = self.head(features)
        return loc, self.log_std.exp().expand_as(loc)


class StateDependentScale(nn.Module):
    """A mean and a scale from the features."""

    def __init__(self, width: int, num_actions: int, log_std: float) -> None:
        """Start every scale near `exp(log_std)`."""
        super().__init__()
        self.linear = orthogonal_(nn.Linear(width, 2 * num_actions), GAIN)
        nn.init.constant_(self.linear.bias[num_actions:], log_std)  # type: ignore[index]

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[*, width] -> loc [*, actions], scale [*, actions]`."""
        loc, log_std = self.linear(features).chunk(2, -1)
        return loc, log_std.clamp(LOWEST_LOG_STD, HIGHEST_LOG_STD).exp()


class Concentrations(nn.Module):
    """Both concentrations of a beta distribution, above 1: it has one peak and falls to zero at the bounds."""

    def __init__(self, width: int, num_actions: int) -> None:
        """Start nearly symmetric."""
        super().__init__()
        self.linear = orthogonal_(nn.Linear(width, 2 * num_actions), GAIN)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[*, width] -> alpha [*, actions], beta [*, actions]`."""
        alpha, beta = (1 + nn.functional.softplus(self.linear(features))).chunk(2, -1)
        return alpha, beta


class StateDependentExploration(nn.Module):
    """A mean, and noise that is a linear function of the features, which it does not train (gSDE)."""

    def __init__(self, width: int, num_actions: int, log_std: float) -> None:
        """Start every scale of the noise's weights at `exp(log_std)`."""
        super().__init__()
        self.linear = orthogonal_(nn.Linear(width, num_actions), GAIN)
        self.log_std = nn.Parameter(torch.full((width, num_actions), log_std))

    def forward(self, features: Tensor, noise: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`[*, width], noise [*, width, actions] -> loc, scale, perturbation`, `[*, actions]` each; no noise: zeros."""
        loc = self.linear(features)
        fixed = features.detach()
        scale = (fixed.square() @ self.log_std.exp().square() + 1e-6).sqrt()
        perturbation = torch.zeros_like(loc) if noise is None else (fixed.unsqueeze(-2) @ noise).squeeze(-2)
        return loc, scale, perturbation


def redraw(noise: Tensor, is_init: Tensor, log_std: Tensor, probability: float) -> Tensor:
    """Noise N(0, exp(log_std)^2), drawn anew where an episode begins and with `probability` at every other step.

    Shapes: `noise [*, width, actions], is_init [*, 1], log_std [width, actions] -> [*, width, actions]`.
    """
    fresh = torch.randn_like(noise) * log_std.detach().exp()
    anew = is_init | (torch.rand_like(is_init, dtype=noise.dtype) < probability)
    return torch.where(anew.unsqueeze(-1), fresh, noise)


class Redraw(nn.Module):
    """`redraw` with the scale of a network that learns it."""

    def __init__(self, log_std: nn.Parameter, probability: float) -> None:
        """Share `log_std` `[width, actions]`."""
        super().__init__()
        self.log_std = log_std
        self.probability = probability

    def forward(self, noise: Tensor, is_init: Tensor) -> Tensor:
        """`[*, width, actions], [*, 1] -> [*, width, actions]`."""
        return redraw(noise, is_init, self.log_std, self.probability)


class IntoBounds(nn.Module):
    """From fractions of the way between two bounds to actions."""

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor) -> None:
        """Keep the bounds, `[n]` each; not saved: the environment owns them."""
        super().__init__()
        self.register_buffer("low", low.clone(), persistent=False)
        self.register_buffer("high", high.clone(), persistent=False)

    def forward(self, fraction: Tensor) -> Tensor:
        """`[*, n]` in [0, 1] to `[*, n]` within the bounds, in their type."""
        action = self.low + (self.high - self.low) * fraction
        return action.to(self.low.dtype).clamp(self.low, self.high)  # rounding may have left them


class TanhFraction(nn.Module):
    """From a real number to a fraction."""

    def forward(self, value: Tensor) -> Tensor:
        """(tanh(u) + 1) / 2: `[*] -> [*]`."""
        return (value.tanh() + 1) / 2


class Together(nn.Module):
    """Several networks over the same features."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        """Keep their order."""
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, features: Tensor) -> Parameters:
        """`[*, width] ->` the parameters of all, one network's after the other's."""
        return tuple(parameter for network in self.networks for parameter in network(features))


class Split(nn.Module):
    """From one flat sample to the action of every leaf.

    Args:
        shapes: of every leaf's action.
        dtypes: of every leaf's action.
        to_actions: from every leaf's sample to its action.

    """

    def __init__(
        self, shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype], to_actions: Sequence[nn.Module]
    ) -> None:
        """Keep the order of the leaves."""
        super().__init__()
        self.shapes = list(shapes)
        self.dtypes = list(dtypes)
        self.to_actions = nn.ModuleList(to_actions)

    def forward(self, sample: Tensor) -> tuple[Tensor, ...]:
        """`[*, sum of sizes] ->` `[*, *shape]` of every leaf."""
        parts = sample.split([shape.numel() for shape in self.shapes], -1)
        leaves = zip(parts, self.shapes, self.dtypes, self.to_actions, strict=True)
        return tuple(to(part.reshape(part.shape[:-1] + shape)).to(dtype) for part, shape, dtype, to in leaves)


def gaussian(width: int, spec: TensorSpec, *, log_std: float = 0.0, state_dependent: bool = False) -> Head:
    """A Gaussian over actions, which the environment clips.

    Args:
        width: of the features.
        spec: of the actions, `[*, n]`.
        log_std: initial logarithm of the scale, in units of the action.
        state_dependent: whether the scale is a function of the features, not one parameter for all states.

    """
    network = normal_network(width, spec.shape[-1], log_std, state_dependent)
    return Head(network, ["loc", "scale"], partial(IndependentNormal, validate_args=False))


def tanh_gaussian(width: int, spec: TensorSpec, *, log_std: float = 0.0, state_dependent: bool = False) -> Head:
    """A Gaussian that a tanh squashes into the bounds.

    Args:
        width: of the features.
        spec: of the actions, `[*, n]`.
        log_std: initial logarithm of the scale in front of the tanh, where the bounds are at infinity.
        state_dependent: whether the scale is a function of the features, not one parameter for all states.

    Raises:
        ConfigurationError: if a bound is not finite.

    """
    low, high = finite_bounds(spec, "tanh_gaussian")
    return Head(
        normal_network(width, spec.shape[-1], log_std, state_dependent),
        ["loc", "scale"],
        partial(distributions.SquashedNormal, low=low.tolist(), high=high.tolist(), validate_args=False),
        sample_key="action_sample",
        to_action=nn.Sequential(TanhFraction(), IntoBounds(low, high)),
    )


def beta(width: int, spec: TensorSpec) -> Head:
    """A beta distribution between the bounds of actions `[*, n]`, over features of `width`.

    Raises:
        ConfigurationError: if a bound is not finite.

    """
    low, high = finite_bounds(spec, "beta")
    return Head(
        FullPrecision(Unmasked(Concentrations(width, spec.shape[-1]))),
        ["alpha", "beta"],
        partial(distributions.IndependentBeta, validate_args=False),
        sample_key="action_sample",
        to_action=IntoBounds(low, high),
    )


def gsde(width: int, spec: TensorSpec, *, log_std: float = -2.0, num_steps: int = 8) -> Head:
    """A Gaussian whose noise is a function of the features that changes only every few steps.

    Args:
        width: of the features.
        spec: of the actions, `[*, n]`.
        log_std: initial logarithm of the scale of the noise's weights, in units of the action per feature.
        num_steps: mean number of steps between two drawings of the weights within an episode.

    Raises:
        ConfigurationError: if `num_steps` is below 1.

    Source: Raffin et al. 2021, "Smooth exploration for robotic reinforcement learning".

    """
    if num_steps < 1:
        raise ConfigurationError(
            f"head.num_steps={num_steps} must be at least 1; with more than an episode has, noise changes with episodes"
        )
    network = StateDependentExploration(width, spec.shape[-1], log_std)
    return Head(
        FullPrecision(Unmasked(network)),
        ["loc", "scale", "perturbation"],
        partial(distributions.StateDependentNoise, validate_args=False),
        carried={"gsde_noise": (width, spec.shape[-1])},
        redraw=Redraw(network.log_std, 1 / num_steps),
    )


def normal_network(width: int, num_actions: int, log_std: float, state_dependent: bool) -> nn.Module:
    """Features `[*, width]` to the mean and the scale of a Gaussian, `[*, num_actions]` each."""
    if state_dependent:
        return FullPrecision(Unmasked(StateDependentScale(width, num_actions, log_std)))
    loc = orthogonal_(nn.Linear(width, num_actions), GAIN)
    return FullPrecision(Unmasked(StateIndependentScale(loc, num_actions, log_std)))


def finite_bounds(spec: TensorSpec, head: str) -> tuple[Tensor, Tensor]:
    """The bounds of one action, `[n]` each.

    Raises:
        ConfigurationError: if they are not finite or have no room between them.

    """
    if isinstance(spec, Bounded):
        low, high = (bound.reshape(-1, spec.shape[-1])[0] for bound in (spec.space.low, spec.space.high))
        if ((high > low) & (high - low).isfinite()).all():
            return low, high
    raise ConfigurationError(
        f"head={head} needs finite bounds, each low below its high, not {one_line(spec)}; head=gaussian needs none"
    )


def make_head(action_spec: TensorSpec, num_batch: int, width: int, continuous: ContinuousHead = gaussian) -> Head:
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
        raise ConfigurationError(f"action is {one_line(action_spec)}, without a leaf to act on; give it one")
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
        case Categorical() if is_scalar and not isinstance(spec, Binary):  # TorchRL derives Binary of it
            network, distribution = Logits(width, spec.n), distributions.Categorical
        case Bounded() | Unbounded() if is_vector and spec.dtype.is_floating_point:
            try:
                return continuous(width, spec)
            except ConfigurationError as error:
                raise ConfigurationError(f"{'.'.join(path)}: {error}") from error
        case _:
            raise ConfigurationError(
                f"{'.'.join(path)} is {one_line(spec)}, which no head acts on; supported are Discrete, and "
                "MultiDiscrete, MultiBinary and Box of floats of one dimension"
            )
    return Head(FullPrecision(network), ["logits"], partial(distribution, validate_args=False))


def composite_head(heads: dict[Path, Head], shapes: Sequence[torch.Size], dtypes: Sequence[torch.dtype]) -> Head:
    """One head of independent ones, given by their paths, with the shapes and types of their actions.

    Raises:
        ConfigurationError: for a head that carries noise.

    """
    if any(head.carried for head in heads.values()):
        raise ConfigurationError(
            f"head=gsde carries the noise of a single action, not of {', '.join(map('.'.join, heads))}; "
            "head=gaussian acts on several"
        )
    keywords = [{key: "_".join([*path, key]) for key in head.param_keys} for path, head in heads.items()]
    classes = [head.distribution_class for head in heads.values()]
    factors = [distributions.Factor(one, names) for one, names in zip(classes, keywords, strict=True)]
    return Head(
        Unmasked(Together([head.network for head in heads.values()])),
        [name for names in keywords for name in names.values()],
        partial(distributions.Factors, factors),
        sample_key="action_sample",
        to_action=Split(shapes, dtypes, [head.to_action or nn.Identity() for head in heads.values()]),
        action_keys=[("action", *path) for path in heads],
    )


def one_line(spec: TensorSpec) -> str:
    """The spec as a message names it."""
    return " ".join(str(spec).split())
