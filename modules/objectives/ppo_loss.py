"""The base class of our PPO objectives: TorchRL's `PPOLoss` with an exact KL divergence and any value head."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from functools import reduce
from typing import Any, ClassVar, Literal

import torch
import torchrl.objectives as torchrl_objectives
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import CompositeDistribution, ProbabilisticTensorDictSequential, TensorDictModuleBase, dispatch
from torch import Tensor
from torch import distributions as D  # noqa: N812

from ...errors import ConfigurationError
from ..actor_critic import get_value_error, unshared_critic, value_heads
from ..distributions.action import MAX_LOG_RATIO, policy_entropy, policy_kl, probability_ratio

LOSS_PREFIX = "loss_"

UNSUPPORTED_OPTIONS = {
    "samples_mc_kl": "the estimate uses the actions taken",
    "advantage_norm": "use the option normalize_advantage of PPO",
    "delay_actor": "use torchrl.objectives.ClipPPOLoss",
    "log_explained_variance": "PPO logs train/explained_variance of every rollout",
    **dict.fromkeys(("actor", "critic"), "pass actor_network and critic_network"),
    **dict.fromkeys(("gamma", "advantage_key", "value_target_key", "value_key"), "use set_keys or the estimator"),
}
"""Options of TorchRL's losses that ours do not accept, and what to use instead."""


class PPOLoss(torchrl_objectives.PPOLoss):
    """The unclipped objective, and the base class of the other objectives, which override `policy_loss`.

    This is a subclass of `torchrl.objectives.PPOLoss` with the same keys and most of the same options. It differs
    from TorchRL's class in these points (see also docs/torchrl.md):

    - `kl_approx` is the exact KL(old || new) where it has a closed form. Otherwise it is the estimate k3, which
      is never negative. TorchRL's k1 has a high variance.
    - The critic's `ValueHead`, if there is one, defines the value loss.
    - Ratios are limited to finite values, so gradients are finite even if the policy has changed a lot.
    - Layers that actor and critic share run once. `clip_value` compares with the value at collection.

    `forward` reads the action, `action_log_prob`, `advantage`, `value_target`, `state_value`, the distribution
    parameters and the inputs of the networks, all `[batch, ...]`, or `[batch, time, ...]` for sequences. It returns
    scalars: `loss_objective`, `loss_critic` and `loss_entropy`, whose sum is minimized, and the metrics `kl_approx`,
    `entropy` and those of `metrics`.

    Source: Schulman et al. 2017, eq. 6.

    Args:
        actor_network: Policy that writes the distribution of the action.
        critic_network: Writes `state_value` `[batch, 1]`.
        entropy_coeff: Weight of the entropy bonus (c2). A mapping has one weight per part of a composite action.
        critic_coeff: Weight of the value loss (c1).
        clip_value: Largest change of a value that is not clipped, in units of the value. `None` disables clipping.
        loss_critic_type: `l2`, `l1` or `smooth_l1` for a critic without a `ValueHead`.
        importance_quantile: Ratios above this quantile of a minibatch are truncated in the loss and in the gradient
            (Ionides 2008). `max_importance_ratio` is a fixed limit; both may be used. `None` means no quantile.
        functional: Must be false, because DDP and compiled steps need the networks as modules of the loss.
        options: Further options of TorchRL's class, with its defaults: `entropy_bonus`, `samples_mc_entropy`,
            `normalize_advantage`, `normalize_advantage_exclude_dims`, `separate_losses`, `reduction`,
            `max_importance_ratio`, `device`.

    Raises:
        ConfigurationError: If an option is unknown or out of range, or the value head does not support it.

    """

    metric_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModuleBase,
        *,
        entropy_coeff: float | Mapping[NestedKey, float] = 0.0,
        critic_coeff: float | None = 0.5,
        clip_value: float | None = None,
        loss_critic_type: Literal["l2", "l1", "smooth_l1"] = "l2",
        importance_quantile: float | None = None,
        functional: bool = False,
        **options: Any,
    ) -> None:
        check_options(type(self), options, clip_value, functional=functional)
        check_truncation(options.get("max_importance_ratio"), importance_quantile)
        super().__init__(
            actor_network,
            critic_network,
            entropy_coeff=entropy_coeff if isinstance(entropy_coeff, Mapping) else float(entropy_coeff),
            critic_coeff=0.5 if critic_coeff is None else float(critic_coeff),
            clip_value=clip_value,
            loss_critic_type=loss_critic_type,
            functional=False,
            log_explained_variance=False,
            **options,
        )
        for name, buffer in list(self.named_buffers(recurse=False)):  # not saved, because they are configuration
            self.register_buffer(name, buffer, persistent=False)
        self.importance_quantile = importance_quantile
        self._value_error = get_value_error(critic_network, clip_value, loss_critic_type)
        self._collected_keys = [key for head in value_heads(critic_network) for key in head.collected_keys]
        # In a tuple, so that its parameters are not registered twice.
        self._unshared_critic = (unshared_critic(actor_network, critic_network),)
        if self.separate_losses and "state_value" in actor_network.out_keys:
            raise ConfigurationError(
                "objective.separate_losses=true does not work with an actor that writes state_value, because it shares "
                "layers with the critic or has a memory; remove it"
            )
        names = [LOSS_PREFIX + "objective", *([LOSS_PREFIX + "critic"] if self._has_critic else [])]
        names += [LOSS_PREFIX + "entropy", "entropy"] if self.entropy_bonus else []
        self._out_keys = [*names, "kl_approx", *self.metric_keys]

    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        """Compute the loss of the policy for every sample.

        Args:
            log_ratio: log(new / old) of the actions taken, `[batch, 1]`.
            advantage: `[batch, 1]`.
            kl: KL(old || new) in every state, `[batch, 1]`.

        Returns:
            Losses, `[batch, 1]`.

        """
        return -probability_ratio(log_ratio) * advantage

    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """Return the additional metrics `metric_keys` of a minibatch, scalars, from the log-ratios `[batch, 1]`."""
        return {}

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses and metrics of a minibatch."""
        data = tensordict.copy()
        advantage, old_value = self._advantage(data), data.get(self.tensor_keys.value, None)
        log_ratio, distribution, kl, log_factor = self._log_weight(data, advantage.shape[:-1])
        if log_factor is not None:
            advantage = advantage * log_factor.exp()
        losses = {LOSS_PREFIX + "objective": self.policy_loss(log_ratio, advantage, kl)}
        metrics: dict[str, Any] = {"kl_approx": kl.detach().mean()}
        if self._has_critic:
            losses[LOSS_PREFIX + "critic"] = self.critic_coeff * self._critic_error(data, old_value, tensordict)
        if self.entropy_bonus:
            entropy = self._get_entropy(distribution, advantage.shape[:-1])
            if self._entropy_coeff_map is not None and isinstance(entropy, Tensor):
                raise ConfigurationError("objective.entropy_coeff must be a number if the action has one distribution")
            losses[LOSS_PREFIX + "entropy"] = self._weighted_loss_entropy(entropy)
            total = entropy if isinstance(entropy, Tensor) else sum(entropy.values(True, True))
            metrics["entropy"] = total.detach().mean()
        reduced = {name: self._reduce_loss(loss, tensordict).squeeze(-1) for name, loss in losses.items()}
        return TensorDict({**reduced, **metrics, **self.metrics(log_ratio.detach())})

    def _advantage(self, data: TensorDictBase) -> Tensor:
        """Return the advantage, computed with the loss's own estimator if `data` has none, as in TorchRL."""
        if is_missing := data.get(self.tensor_keys.advantage, None) is None:
            self.value_estimator(data, params=None, target_params=None)
        advantage = data[self.tensor_keys.advantage]
        normalized: Tensor = self._maybe_normalize_advantage(advantage, data, update_norm=is_missing)
        return normalized

    def _log_weight(
        self, tensordict: TensorDictBase, adv_shape: torch.Size
    ) -> tuple[Tensor, D.Distribution, Tensor, Tensor | None]:
        """Run the policy, write its outputs, and compare it with the policy at collection.

        Returns:
            log(new / old) of the actions taken, the new distribution, KL(old || new), and the logarithm of the factor
            of each advantage, without a gradient, or `None`. The tensors are `[batch, 1]`.

        """
        old = old_distribution(self.actor_network, tensordict)
        log_ratio, new, *_ = super()._log_weight(tensordict, adv_shape)
        kl = policy_kl(old, new, log_ratio.squeeze(-1)).unsqueeze(-1)
        return log_ratio, new, kl, self._log_truncation(log_ratio)

    def _log_truncation(self, log_ratio: Tensor) -> Tensor | None:
        """Return the logarithm of the factor that truncates each ratio, or `None` without a limit.

        TorchRL's factor of a ratio that is not finite would be 0. Shapes: `[batch, 1] -> [batch, 1]`.
        """
        if self.max_importance_ratio is None and self.importance_quantile is None:
            return None
        log_ratio = log_ratio.detach().clamp(max=MAX_LOG_RATIO)
        limits = [] if self.max_importance_ratio is None else [self.max_importance_ratio.log()]
        if self.importance_quantile is not None:
            limits.append(log_ratio.flatten().quantile(self.importance_quantile))
        return (reduce(torch.minimum, limits) - log_ratio).clamp(max=0.0)

    def _get_entropy(self, dist: D.Distribution, adv_shape: torch.Size) -> Tensor | TensorDictBase:
        """Return the entropy, `[batch, 1]`.

        Unlike TorchRL's method, it does not branch on the values of the entropy, which a graph does not support.
        """
        if isinstance(dist, CompositeDistribution):
            entropies: Tensor | TensorDictBase = super()._get_entropy(dist, adv_shape)
            return entropies
        return policy_entropy(dist, self.samples_mc_entropy).unsqueeze(-1)

    def loss_critic(self, tensordict: TensorDictBase) -> tuple[Tensor, None, None]:
        """Return the loss of the critic as TorchRL's method does, without the metrics."""
        error = self._critic_error(tensordict.copy(), tensordict.get(self.tensor_keys.value, None), tensordict)
        return (self.critic_coeff * error if self._has_critic else error), None, None

    def _critic_error(self, data: TensorDictBase, old_value: Tensor | None, collected: TensorDictBase) -> Tensor:
        """Run the critic on `data` and return the error of every value, `[batch, 1]`."""
        if self.separate_losses:
            data = data.detach()
        predicted = self._unshared_critic[0](data)
        for key in self._collected_keys:  # the policy has replaced its outputs
            predicted[key] = collected[key]
        return self._value_error(predicted, data[self.tensor_keys.value_target], old_value, self.clip_value)


def check_options(loss: type, options: Mapping[str, Any], clip_value: float | None, *, functional: bool) -> None:
    """Raise a ConfigurationError for an option that the loss does not accept."""
    if functional:
        raise ConfigurationError(
            f"objective.functional=true is not supported by {loss.__name__}; remove it, or use "
            f"torchrl.objectives.{loss.__name__}"
        )
    if (reduction := options.get("reduction")) not in (None, "mean", "sum"):
        raise ConfigurationError(f"objective.reduction={reduction} must be mean or sum")
    if clip_value is not None and clip_value <= 0:
        raise ConfigurationError(f"objective.clip_value={clip_value} must be positive; null disables clipping")
    theirs = [one for one in loss.__mro__ if one.__module__.startswith("torchrl.objectives")]
    known = {name for one in theirs for name in inspect.signature(one).parameters} - UNSUPPORTED_OPTIONS.keys()
    for name in options:
        if name not in known or name in ("kwargs", "args"):
            instead = UNSUPPORTED_OPTIONS.get(name, f"use one of {', '.join(sorted(known - {'args', 'kwargs'}))}")
            raise ConfigurationError(f"objective.{name} is not an option of {loss.__name__}; {instead}")


def check_truncation(max_ratio: float | None, quantile: float | None) -> None:
    """Raise a ConfigurationError if a limit of the importance weights is out of range."""
    if max_ratio is not None and not max_ratio > 0:
        raise ConfigurationError(f"objective.max_importance_ratio={max_ratio} must be positive, or null for no limit")
    if quantile is not None and not 0 < quantile <= 1:
        raise ConfigurationError(
            f"objective.importance_quantile={quantile} must be above 0 and at most 1, or null for no limit"
        )


def old_distribution(actor: Any, data: TensorDictBase) -> D.Distribution | None:
    """Return the distribution at collection, or `None` if `data` lacks its parameters."""
    keys = data.keys(include_nested=True)
    return actor.build_dist_from_params(data) if all(key in keys for key in actor.dist_params_keys) else None
