"""The losses of proximal policy optimisation.

Our own, because TorchRL's report the biased estimate of the KL (k1), adapt the penalty in every forward,
and take twice as long; its `ClipPPOLoss(functional=False)` keeps the same contract and can be put here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torch import distributions as D  # noqa: N812

from ...errors import ConfigurationError
from ..heads.value_heads import ValueHead, squared_error

LOSS_PREFIX = "loss_"

HIGHEST_LOG_RATIO = 80.0
"""Beyond, in float32, the ratio is infinite, and a gradient that it does not count for is NaN instead of 0."""


def ratio_of(log_ratio: Tensor) -> Tensor:
    """The ratio new / old, finite: `[batch] -> [batch]`."""
    return log_ratio.clamp(max=HIGHEST_LOG_RATIO).exp()


def kl_estimate(log_ratio: Tensor) -> Tensor:
    """KL(old || new) from samples of the old policy: r - 1 - log r >= 0, with r = new / old.

    Source: Schulman 2020, "Approximating KL divergence", k3. Shapes: `[batch] -> [batch]`.
    """
    return log_ratio.expm1() - log_ratio


def kl_between(old: D.Distribution, new: D.Distribution, log_ratio: Tensor) -> Tensor:
    """KL(old || new) in every state, analytic where PyTorch knows it, else `kl_estimate`: `[batch]`."""
    if isinstance(new, D.TransformedDistribution):  # PyTorch would compare the transforms' values, not in a graph
        return kl_estimate(log_ratio)
    try:
        return D.kl_divergence(old, new)
    except NotImplementedError:
        return kl_estimate(log_ratio)


class PPOLoss(nn.Module, ABC):
    """What both objectives share: the value loss, the entropy bonus and the KL monitor.

    Args:
        actor_network: writes the distribution of `action`.
        critic_network: writes `state_value` `[batch, 1]`.
        entropy_coeff: weight of the entropy bonus (c2).
        critic_coeff: weight of the value loss (c1).
        clip_value: largest change of a value that is not clipped, in units of the value; none: no clipping.

    `forward` reads the action, `action_log_prob`, `advantage`, `value_target`, `state_value`, the
    distribution's parameters and what the networks read, all `[batch, ...]`, or of sequences
    `[batch, time, ...]`, and returns scalars:
    `loss_objective`, `loss_critic`, `loss_entropy` (their sum is minimised) and the metrics `kl_approx`,
    `entropy` and those of `metrics`.

    """

    entropy_coeff: Tensor
    critic_coeff: Tensor

    def __init__(
        self,
        actor_network: ProbabilisticTensorDictSequential,
        critic_network: TensorDictModuleBase,
        *,
        entropy_coeff: float,
        critic_coeff: float,
        clip_value: float | None,
    ) -> None:
        """Keep the networks and the coefficients."""
        super().__init__()
        if clip_value is not None and clip_value <= 0:
            raise ConfigurationError(f"objective.clip_value={clip_value} must be positive, or null for no clipping")
        self.actor_network = actor_network
        self.critic_network = critic_network
        self.clip_value = clip_value
        # Buffers, so that a compiled graph sees a schedule move them; not saved: the configuration owns them.
        self.register_buffer("entropy_coeff", torch.tensor(float(entropy_coeff)), persistent=False)
        self.register_buffer("critic_coeff", torch.tensor(float(critic_coeff)), persistent=False)
        self._sample_key = actor_network.dist_sample_keys[0]
        self._value_error = value_error_of(critic_network, clip_value)
        self._rest_of_critic = (after_shared_trunk(actor_network, critic_network),)  # a tuple: not registered twice

    @abstractmethod
    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        """The loss of the policy in every sample: `[batch]` each."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Losses and metrics of one minibatch `[batch]`."""
        data = tensordict.copy()
        new, log_ratio, kl = self.compare(data)
        entropy = entropy_of(new).mean()
        old_value = tensordict["state_value"]  # in `data` a shared actor has written the new one
        error = self._value_error(self._rest_of_critic[0](data), data["value_target"], old_value, self.clip_value)
        return TensorDict(
            {
                "loss_objective": self.policy_loss(log_ratio, data["advantage"].squeeze(-1), kl).mean(),
                "loss_critic": self.critic_coeff * error.mean(),
                "loss_entropy": -self.entropy_coeff * entropy,
                "kl_approx": kl.detach().mean(),
                "entropy": entropy.detach(),
                **self.metrics(log_ratio.detach()),
            }
        )

    def compare(self, data: TensorDictBase) -> tuple[D.Distribution, Tensor, Tensor]:
        """Run the policy on `data`, which it writes into.

        Returns:
            Its distribution, log(new / old) of the actions taken, and KL(old || new) in every state: `[batch]` each.

        """
        old = self.actor_network.build_dist_from_params(data)
        new = self.actor_network.get_dist(data)
        log_ratio = new.log_prob(data[self._sample_key]) - data["action_log_prob"]
        return new, log_ratio, kl_between(old, new, log_ratio)

    @abstractmethod
    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """What else to log of a minibatch: `[batch] -> []` each."""


def entropy_of(distribution: D.Distribution) -> Tensor:
    """Analytic entropy, or minus the log-probability of one sample where there is none: `[batch]`."""
    try:
        return distribution.entropy()
    except NotImplementedError:
        return -distribution.log_prob(distribution.rsample())


def after_shared_trunk(actor: ProbabilisticTensorDictSequential, critic: TensorDictModuleBase) -> TensorDictModuleBase:
    """What of the critic is left to run where the actor has already run: all, or all but a shared trunk."""
    if not isinstance(critic, TensorDictSequential):
        return critic
    done = set(actor.modules())
    return TensorDictSequential(*[module for module in critic.module if module not in done])


def value_error_of(critic: TensorDictModuleBase, clip_value: float | None) -> Callable[..., Tensor]:
    """How a critic's head judges its own error, or the squared error where it has no head of ours.

    Returns:
        A function with the arguments of `ValueHead.error`.

    Raises:
        ConfigurationError: if values are to be clipped that the head does not compare.

    """
    heads = [module for module in critic.modules() if isinstance(module, ValueHead)]
    if not heads:
        return lambda predicted, *arguments: squared_error(predicted["state_value"], *arguments)
    if clip_value is not None and not heads[-1].clips:
        raise ConfigurationError(
            f"objective.clip_value={clip_value} does not go with {type(heads[-1]).__name__}; set it to null, "
            "or choose critic=mse"
        )
    return heads[-1].error
