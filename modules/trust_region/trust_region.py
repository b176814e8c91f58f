"""The base class of trust regions, which project the policy's distribution before an objective uses it."""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch import distributions as D  # noqa: N812

from ...errors import ConfigurationError
from ..distributions.action import Categorical, OneHotCategorical
from ..distributions.joint import JointDistribution
from ..heads.sample_to_action import SampleToAction
from ..objectives.ppo_loss import old_distribution

Objective = TypeVar("Objective", bound=nn.Module)

CATEGORICALS = (Categorical, OneHotCategorical, D.Categorical)


class TrustRegion(ABC):
    """Base class of trust regions.

    In every state, the distribution of the network pi is projected to the closest distribution pi~ whose distance from
    the distribution at collection is at most a bound. The objective uses pi~. A regression loss
    `alpha * mean d(pi, pi~)` moves the network toward the projection, which has no gradient in this loss. The network
    itself acts in training and in evaluations, because pi~ depends on the policies of all earlier rollouts.

    Distributions within the bounds do not change. Means and covariances of Gaussians have separate bounds. Categorical
    distributions use `mean_bound`. The components of a joint distribution are projected one by one.

    Source: Otto et al. 2021, "Differentiable trust region layers for deep reinforcement learning", section 4.

    Args:
        mean_bound: Largest distance of a mean, or of the probabilities of a categorical distribution.
        cov_bound: Largest distance of a covariance.
        alpha: Weight of the regression loss.

    Raises:
        ConfigurationError: If a bound is not positive, or `alpha` is negative.

    """

    def __init__(self, *, mean_bound: float, cov_bound: float, alpha: float) -> None:
        for key, value in (("mean_bound", mean_bound), ("cov_bound", cov_bound)):
            if not value > 0:
                raise ConfigurationError(f"trust_region.{key}={value} must be positive")
        if not alpha >= 0:
            raise ConfigurationError(f"trust_region.alpha={alpha} must not be negative")
        self.mean_bound = mean_bound
        self.cov_bound = cov_bound
        self.alpha = alpha
        self._distance: Tensor | None = None

    @abstractmethod
    def gaussian_distances(
        self, loc: Tensor, scale: Tensor, old_loc: Tensor, old_scale: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the distances of mean and covariance from those of the old distribution.

        Shapes: `[*, n]` for all arguments `-> [*], [*]`.
        """

    @abstractmethod
    def project_scale(self, scale: Tensor, old_scale: Tensor, distance: Tensor) -> Tensor:
        """Project the standard deviations of a diagonal Gaussian whose covariance has the distance.

        Shapes: `[*, n], [*, n], [*] -> [*, n]`.
        """

    @abstractmethod
    def categorical_distance(self, logits: Tensor, old_logits: Tensor) -> Tensor:
        """Return the distance of a categorical distribution; logits are normalized: `[*, n], [*, n] -> [*]`."""

    @abstractmethod
    def project_logits(self, logits: Tensor, old_logits: Tensor, distance: Tensor) -> Tensor:
        """Project normalized logits: `[*, n], [*, n], [*] -> [*, n]`."""

    def apply_to(self, objective: Objective) -> Objective:
        """Make an objective use projected distributions, and add `loss_trust_region` to its losses.

        The objective then also returns the metric `projected_fraction`, the fraction of the states in which pi~ differs
        from pi.

        Args:
            objective: Calls `actor_network.get_dist` with the distribution parameters at collection, as all objectives
                of torchppo and TorchRL do.

        Returns:
            The objective itself.

        """
        objective.register_forward_pre_hook(self._replace_get_dist)
        objective.register_forward_hook(self._add_loss, always_call=True)
        return objective

    def project(self, new: Any, old: Any) -> tuple[Any, Tensor]:
        """Return the projection of `new`, and d(new, projection) `[*]`, whose gradient is only that of `new`.

        Raises:
            ConfigurationError: If there is no projection of this class of distributions.

        """
        if isinstance(new, JointDistribution):
            pairs = [self.project(*pair) for pair in zip(new.components, old.components, strict=True)]
            distances = torch.stack([distance for _, distance in pairs]).sum(0)
            return replaced(new, components=[component for component, _ in pairs]), distances
        base = getattr(new, "base_dist", None)
        if isinstance(new, SampleToAction) or (isinstance(new, D.Independent) and isinstance(base, D.Categorical)):
            projected, distance = self.project(base, old.base_dist)
            return replaced(new, base_dist=projected), distance.reshape(*new.batch_shape, -1).sum(-1)
        if isinstance(new, D.Independent) and type(base) is D.Normal:
            parameters, distance = self._project_gaussian(base, old.base_dist)
            return replaced(new, base_dist=D.Normal(*parameters, validate_args=False)), distance
        if type(new) in CATEGORICALS:
            logits, distance = self._project_categorical(new.logits, old.logits)
            return type(new)(logits=logits, validate_args=False), distance
        raise ConfigurationError(
            f"{type(self).__name__} has no projection of {type(new).__name__}; use trust_region=none, or head=gaussian "
            "for continuous actions"
        )

    def _project_gaussian(self, new: D.Normal, old: D.Normal) -> tuple[tuple[Tensor, Tensor], Tensor]:
        (loc, scale), old_parameters = (new.loc, new.scale), (old.loc, old.scale)
        of_mean, of_cov = self.gaussian_distances(loc, scale, *old_parameters)
        projected = mixed(loc, old.loc, of_mean, self.mean_bound), self.project_scale(scale, old.scale, of_cov)
        target = projected[0].detach(), projected[1].detach()
        is_outside = (of_mean > self.mean_bound) | (of_cov > self.cov_bound)
        from_mean, from_cov = self.gaussian_distances(loc, scale, *target)
        return projected, where_outside(is_outside, from_mean + from_cov)

    def _project_categorical(self, logits: Tensor, old_logits: Tensor) -> tuple[Tensor, Tensor]:
        distance = self.categorical_distance(logits, old_logits)
        projected = self.project_logits(logits, old_logits, distance)
        target = projected.detach().log_softmax(-1)
        return projected, where_outside(distance > self.mean_bound, self.categorical_distance(logits, target))

    def _replace_get_dist(self, objective: Any, arguments: tuple[TensorDictBase]) -> None:
        """Replace `get_dist` of the actor until the objective returns."""
        actor = objective.actor_network
        old = old_distribution(actor, arguments[0])
        if old is None:
            raise ConfigurationError(
                "trust_region needs the distribution parameters at collection; let the policy write "
                f"{', '.join(map(str, actor.dist_params_keys))}, or use trust_region=none"
            )
        get_dist: Callable[..., Any] = actor.get_dist

        def get_projected_dist(*args: Any, **kwargs: Any) -> Any:
            projected, self._distance = self.project(get_dist(*args, **kwargs), old)
            return projected

        vars(actor)["get_dist"] = get_projected_dist

    def _add_loss(self, objective: Any, _: Any, losses: TensorDictBase | None) -> None:
        vars(objective.actor_network).pop("get_dist", None)
        distance, self._distance = self._distance, None
        if losses is None:  # the objective has raised an error
            return
        if distance is None:
            raise ConfigurationError(
                f"trust_region: objective={type(objective).__name__} does not call actor_network.get_dist; call it, or "
                "use trust_region=none"
            )
        losses["loss_trust_region"] = self.alpha * distance.mean()
        losses["projected_fraction"] = (distance.detach() > 0).float().mean()


def mixed(new: Tensor, old: Tensor, distance: Tensor, bound: float) -> Tensor:
    """Compute (new + w old) / (1 + w) with w = sqrt(distance / bound) - 1 where the distance is above the bound.

    If the distance is the square of a norm of `new - old`, the distance of the result is the bound.

    Source: Otto et al. 2021, eq. 6 and 7. Shapes: `[*, n], [*, n], [*] -> [*, n]`.
    """
    is_outside = distance > bound
    step = (bound / distance.where(is_outside, bound)).sqrt().unsqueeze(-1)
    return torch.where(is_outside.unsqueeze(-1), old + step * (new - old), new)


def where_outside(is_outside: Tensor, distance: Tensor) -> Tensor:
    """Return the distance from the projection, exactly 0 within the bounds: `[*], [*] -> [*]`."""
    return distance.where(is_outside, distance.detach() * 0.0)


def mahalanobis(loc: Tensor, old_loc: Tensor, old_scale: Tensor) -> Tensor:
    """Compute (m - m_old)^T S_old^-1 (m - m_old) with a diagonal covariance S: `[*, n], [*, n], [*, n] -> [*]`."""
    return ((loc - old_loc) / old_scale).square().sum(-1)


def replaced(distribution: Any, **attributes: Any) -> Any:
    """Return a copy of a distribution with other attributes."""
    new = copy.copy(distribution)
    vars(new).update(attributes)
    return new
