"""Action heads for continuous actions."""

from __future__ import annotations

import math
from functools import partial

from torch import Tensor, nn
from torchrl.data import Bounded, TensorSpec
from torchrl.modules import IndependentNormal

from ...errors import ConfigurationError
from ..distributions import continuous as distributions
from ..distributions.action import MultiCategorical
from ..features.bodies import FullPrecision, orthogonal_
from .action_heads import Head, Logits, Unmasked
from .networks import (
    GAIN,
    BetaParameters,
    ResampleNoise,
    ScaleLimits,
    ScaleParameters,
    StateDependentExploration,
    StateDependentScale,
    StateIndependentScale,
)
from .to_action import BinToUnitInterval, ScaleToBounds, TanhToUnitInterval


def gaussian(
    width: int,
    spec: TensorSpec,
    *,
    log_std: float = 0.0,
    state_dependent: bool = False,
    fixed_std: bool = False,
    min_std: float | None = None,
    max_std: float | None = None,
) -> Head:
    """Build a Gaussian head; the environment clips the actions.

    Mean and scale are in units of the action, or relative to the range if the bounds are far from [-1, 1] (see
    `scale_to_range`).

    Args:
        width: Number of features.
        spec: Spec of the actions, `[*, n]`.
        log_std: Initial logarithm of the scale.
        state_dependent: Whether the scale depends on the features, or is one parameter per action dimension.
        fixed_std: Whether the scale keeps its initial value.
        min_std: Smallest scale, in the same unit. `None` means no limit.
        max_std: Largest scale. `None` means no limit.

    Raises:
        ConfigurationError: If the limits exclude the initial scale, or a fixed scale is state-dependent.

    """
    limits = _scale_limits(log_std, min_std, max_std, is_fixed=fixed_std, state_dependent=state_dependent)
    options = {"is_fixed": fixed_std, "state_dependent": state_dependent}
    network = _normal_network(width, spec.shape[-1], log_std, limits, **options)
    return Head(scale_to_range(network, spec), ["loc", "scale"], partial(IndependentNormal, validate_args=False))


def tanh_gaussian(
    width: int,
    spec: TensorSpec,
    *,
    log_std: float = 0.0,
    state_dependent: bool = False,
    fixed_std: bool = False,
    min_std: float | None = None,
    max_std: float | None = None,
) -> Head:
    """Build a Gaussian head whose samples a tanh maps to the action bounds.

    Args:
        width: Number of features.
        spec: Spec of the actions, `[*, n]`.
        log_std: Initial logarithm of the scale before the tanh.
        state_dependent: Whether the scale depends on the features, or is one parameter per action dimension.
        fixed_std: Whether the scale keeps its initial value.
        min_std: Smallest scale, in the same unit. `None` means no limit.
        max_std: Largest scale. `None` means no limit.

    Raises:
        ConfigurationError: If a bound is not finite, the limits exclude the initial scale, or a fixed scale is
            state-dependent.

    """
    low, high = _finite_bounds(spec, "tanh_gaussian")
    limits = _scale_limits(log_std, min_std, max_std, is_fixed=fixed_std, state_dependent=state_dependent)
    return Head(
        _normal_network(width, spec.shape[-1], log_std, limits, is_fixed=fixed_std, state_dependent=state_dependent),
        ["loc", "scale"],
        partial(distributions.SquashedNormal, low=low.tolist(), high=high.tolist(), validate_args=False),
        sample_key="action_sample",
        to_action=nn.Sequential(TanhToUnitInterval(), ScaleToBounds(low, high)),
    )


def beta(width: int, spec: TensorSpec) -> Head:
    """Build a head with a beta distribution between the action bounds.

    Args:
        width: Number of features.
        spec: Spec of the actions, `[*, n]`.

    Raises:
        ConfigurationError: If a bound is not finite.

    """
    low, high = _finite_bounds(spec, "beta")
    return Head(
        FullPrecision(Unmasked(BetaParameters(width, spec.shape[-1]))),
        ["alpha", "beta"],
        partial(distributions.IndependentBeta, validate_args=False),
        sample_key="action_sample",
        to_action=ScaleToBounds(low, high),
    )


def categorical(width: int, spec: TensorSpec, *, num_bins: int = 11) -> Head:
    """Build a head that chooses one of `num_bins` equally spaced values for every action dimension.

    The values include both bounds. The dimensions are independent. Log-probabilities and entropies are those of the
    choices.

    Source: Tang and Agrawal 2020, "Discretizing continuous action space for on-policy optimization".

    Args:
        width: Number of features.
        spec: Spec of the actions, `[*, n]`.
        num_bins: Number of values of every dimension.

    Raises:
        ConfigurationError: If a bound is not finite, or `num_bins` is less than 2.

    """
    if num_bins < 2:
        raise ConfigurationError(f"policy.head.num_bins={num_bins} must be at least 2; 11 is usual")
    low, high = _finite_bounds(spec, "categorical")
    num_actions = spec.shape[-1]
    return Head(
        FullPrecision(Unmasked(Logits(width, num_actions * num_bins))),
        ["logits"],
        partial(MultiCategorical, nvec=[num_bins] * num_actions, validate_args=False),
        sample_key="action_sample",
        to_action=nn.Sequential(BinToUnitInterval(num_bins), ScaleToBounds(low, high)),
    )


def gsde(width: int, spec: TensorSpec, *, log_std: float = -2.0, num_steps: int = 8) -> Head:
    """Build a head with generalized state-dependent exploration (gSDE).

    The distribution is a Gaussian, but the noise is a function of the features whose weights persist over steps.

    Source: Raffin et al. 2021, "Smooth exploration for robotic reinforcement learning".

    Args:
        width: Number of features.
        spec: Spec of the actions, `[*, n]`.
        log_std: Initial logarithm of the scale of the noise weights, in units of the action per feature (see
            `scale_to_range`).
        num_steps: Mean number of steps before new noise weights are drawn within an episode.

    Raises:
        ConfigurationError: If `num_steps` is less than 1.

    """
    if num_steps < 1:
        raise ConfigurationError(
            f"policy.head.num_steps={num_steps} must be at least 1; use more steps than an episode has to draw noise "
            "once per episode"
        )
    network = StateDependentExploration(width, spec.shape[-1], log_std)
    return Head(
        scale_to_range(FullPrecision(Unmasked(network)), spec),
        ["loc", "scale", "perturbation"],
        partial(distributions.StateDependentNoise, validate_args=False),
        noise_shape=(width, spec.shape[-1]),
        resample_noise=ResampleNoise(1 / num_steps),
    )


def _normal_network(
    width: int, num_actions: int, log_std: float, limits: ScaleLimits, *, is_fixed: bool, state_dependent: bool
) -> nn.Module:
    """Build a network from features `[*, width]` to the mean and scale of a Gaussian, `[*, num_actions]` each."""
    if state_dependent:
        return FullPrecision(Unmasked(StateDependentScale(width, num_actions, log_std, limits)))
    loc = orthogonal_(nn.Linear(width, num_actions), GAIN)
    return FullPrecision(Unmasked(StateIndependentScale(loc, num_actions, log_std, limits, is_fixed=is_fixed)))


def _scale_limits(
    log_std: float, min_std: float | None, max_std: float | None, *, is_fixed: bool, state_dependent: bool
) -> ScaleLimits:
    """Return the limits of the logarithm of the scale."""
    low, high = (0.0 if min_std is None else min_std), (math.inf if max_std is None else max_std)
    std = math.exp(log_std)
    if low < 0 or not low * (1 - 1e-6) <= std <= high * (1 + 1e-6):
        raise ConfigurationError(
            f"policy.head.log_std={log_std} is a standard deviation of {std:.3g}, which is not between "
            f"min_std={min_std} and max_std={max_std}; change one of them"
        )
    if is_fixed and state_dependent:
        raise ConfigurationError(
            "policy.head.fixed_std=true does not work with state_dependent=true; remove one of them"
        )
    return ScaleLimits(math.log(low) if low > 0 else -math.inf, math.log(high) if high < math.inf else math.inf)


def scale_to_range(network: nn.Module, spec: TensorSpec) -> nn.Module:
    """Scale a Gaussian to the range of every entry whose finite bounds are far from [-1, 1].

    A standard Gaussian does not explore such a range. The mean becomes `center + half_range * mean`, and the scale
    becomes `half_range / 2 * scale`. Entries near [-1, 1] are unchanged: their `half_range` is between 1/4 and 4, and
    their `center` is at most `half_range / 4` from 0. Ranges of 2^31 or more are also unchanged, because they are the
    limits of a dtype.

    Returns:
        The scaled network, or `network` itself if all entries are unchanged.

    """
    if not isinstance(spec, Bounded):
        return network
    low, high = (bound.reshape(-1, spec.shape[-1])[0].double() for bound in (spec.space.low, spec.space.high))
    center, half_range = (low + high) / 2, (high - low) / 2
    is_near = (half_range >= 0.25) & (half_range <= 4) & (center.abs() <= half_range / 4)
    is_scaled = ~is_near & (half_range > 0) & (half_range < 2**30)
    if not is_scaled.any():
        return network
    return ScaleParameters(network, center.float(), half_range.float(), is_scaled)


def _finite_bounds(spec: TensorSpec, head: str) -> tuple[Tensor, Tensor]:
    """Return the lower and upper bounds of one action, `[n]` each.

    Raises:
        ConfigurationError: If a bound is not finite, or a lower bound is not below the upper bound.

    """
    if isinstance(spec, Bounded):
        low, high = (bound.reshape(-1, spec.shape[-1])[0] for bound in (spec.space.low, spec.space.high))
        if ((high > low) & (high - low).isfinite()).all():
            return low, high
    raise ConfigurationError(
        f"head={head} needs finite bounds with low < high, but the action is {spec}; use head=gaussian"
    )
