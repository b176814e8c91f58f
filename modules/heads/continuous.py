"""Heads of continuous actions."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn
from torchrl.data import Bounded, TensorSpec
from torchrl.modules import IndependentNormal

from ...errors import ConfigurationError
from ..distributions import action as distributions
from ..features.bodies import FullPrecision, orthogonal_
from .action_heads import Head, Unmasked
from .networks import (
    GAIN,
    Concentrations,
    IntoBounds,
    Redraw,
    StateDependentExploration,
    StateDependentScale,
    StateIndependentScale,
    TanhFraction,
)


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
        noise_shape=(width, spec.shape[-1]),
        redraw=Redraw(1 / num_steps),
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
        f"head={head} needs finite bounds, each low below its high, not {spec}; head=gaussian needs none"
    )
