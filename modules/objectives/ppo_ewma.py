"""The clipped objective around an average of recent weights (PPO-EWMA)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase
from torch import Tensor, nn
from torch import distributions as D  # noqa: N812
from torch.func import functional_call

from ...errors import ConfigurationError
from .clip import ClipPPOLoss


class PPOEWMALoss(ClipPPOLoss):
    """The decoupled clipped objective: it clips the ratio to a proximal policy, not to the policy at collection.

    With r = new / proximal, it maximizes (proximal / old) min(r A, clip(r, 1 - eps, 1 + eps) A). The weights of the
    proximal policy are an exponentially weighted average of the weights after every step. The metrics of ratios are
    those of r; `kl_approx` is KL(old || new). TorchRL's `delay_actor` needs a functional loss, which graphs cannot
    train.

    Source: Hilton et al. 2021, "Batch size-invariance for policy optimization".

    Args:
        actor_network: See `PPOLoss`.
        critic_network: See `PPOLoss`.
        decay: Factor of the weight of older parameters per step (beta_prox). The mean age is decay / (1 - decay) steps.
        options: See `ClipPPOLoss`.

    Raises:
        ConfigurationError: If `decay` is out of range, or the actor writes several log-probabilities; see also
            `ClipPPOLoss`.

    """

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModuleBase,
        *,
        decay: float = 0.889,
        **options: Any,
    ) -> None:
        if not 0 <= decay < 1:
            raise ConfigurationError(f"objective.decay={decay} must be at least 0 and below 1; 0.889 is usual")
        if len(actor_network.log_prob_keys) != 1:
            raise ConfigurationError(
                f"objective=ppo_ewma needs an actor with one log-probability, not {actor_network.log_prob_keys}; use "
                "objective=clip"
            )
        super().__init__(actor_network, critic_network, **options)
        self.average = AveragedPolicy(actor_network, decay)

    @property
    def after_step(self) -> list[Callable[[], None]]:
        """Functions that `PPO` calls after every step of the policy."""
        return [self.average.update]

    def _log_weight(
        self, tensordict: TensorDictBase, adv_shape: torch.Size
    ) -> tuple[Tensor, D.Distribution, Tensor, Tensor | None]:
        """Return log(new / proximal) and the logarithm of proximal / old; see `PPOLoss`.

        A limit of the importance weights applies to new / old.
        """
        proximal = self.average.log_prob(tensordict)
        log_ratio, new, kl, log_factor = super()._log_weight(tensordict, adv_shape)
        log_prob = tensordict[self.tensor_keys.sample_log_prob]
        log_proximal = (proximal - log_prob).reshape(log_ratio.shape)
        return log_ratio - log_proximal, new, kl, log_proximal if log_factor is None else log_proximal + log_factor


class AveragedPolicy(nn.Module):
    """A policy with an exponentially weighted average of the weights of another one.

    The average of the weights w_0, ..., w_n is sum_i decay^(n - i) w_i / sum_i decay^(n - i). Normalizers are those of
    the other policy. The average is saved in checkpoints.

    Args:
        actor: The policy whose weights are averaged.
        decay: See `PPOEWMALoss`.

    """

    total_weight: Tensor

    def __init__(self, actor: ProbabilisticTensorDictSequential, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._actor = (PolicyLogProb(actor),)  # in a tuple, so that its parameters are not registered twice
        self._current = list(actor.parameters())
        index_of = {param: index for index, param in enumerate(self._current)}
        self._index_of = {
            name: index_of[param] for name, param in self._actor[0].named_parameters(remove_duplicate=False)
        }
        for index, param in enumerate(self._current):
            self.register_buffer(f"weight_{index}", param.detach().clone())
        self.register_buffer("total_weight", torch.ones(()))

    @property
    def weights(self) -> list[Tensor]:
        """The average, in the order of the parameters."""
        return [getattr(self, f"weight_{index}") for index in range(len(self._current))]

    @torch.no_grad()
    def update(self) -> None:
        """Add the current weights to the average."""
        self.total_weight.mul_(self.decay).add_(1.0)
        for weight, param in zip(self.weights, self._current, strict=True):
            weight.lerp_(param, 1 / self.total_weight)

    @torch.no_grad()
    def log_prob(self, data: TensorDictBase) -> Tensor:
        """Return the log-probability of the actions taken, `[batch]`."""
        weights = self.weights
        named = {name: weights[index] for name, index in self._index_of.items()}
        log_prob: Tensor = functional_call(self._actor[0], named, (data.copy(),), tie_weights=False)
        return log_prob


class PolicyLogProb(nn.Module):
    """A function of the parameters of a policy, for `functional_call`."""

    def __init__(self, actor: ProbabilisticTensorDictSequential) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, data: TensorDictBase) -> Tensor:
        """Return the log-probability of the actions in a minibatch, `[batch]`."""
        log_prob: Tensor = self.actor.get_dist(data).log_prob(data[self.actor.dist_sample_keys[0]])
        return log_prob
