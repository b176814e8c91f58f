"""The base class of the PPO objectives.

TorchRL's `ClipPPOLoss(functional=False)` has the same contract and can be used instead. These classes exist because
TorchRL's losses report an estimate of the KL divergence with a high variance (k1), adapt the penalty in every forward
pass, and take twice as long.
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

MAX_LOG_RATIO = 80.0
"""In float32, larger log-ratios have an infinite ratio, and a NaN gradient where the clipped gradient is 0."""


class PPOLoss(nn.Module, ABC):
    """Base class of PPO objectives, with the value loss, the entropy bonus and the KL divergence.

    `forward` reads the action, `action_log_prob`, `advantage`, `value_target`, `state_value`, the distribution
    parameters and the inputs of the networks, all `[batch, ...]`, or `[batch, time, ...]` for sequences. It returns
    scalars: `loss_objective`, `loss_critic` and `loss_entropy`, whose sum is minimized, and the metrics `kl_approx`,
    `entropy` and those of `metrics`.

    Args:
        actor_network: Policy that writes the distribution of the action.
        critic_network: Writes `state_value` `[batch, 1]`.
        entropy_coeff: Weight of the entropy bonus (c2).
        critic_coeff: Weight of the value loss (c1).
        clip_value: Largest change of a value that is not clipped, in units of the value. `None` disables clipping.

    Raises:
        ConfigurationError: If `clip_value` is not positive, or the value head does not support it.

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
        super().__init__()
        if clip_value is not None and clip_value <= 0:
            raise ConfigurationError(f"objective.clip_value={clip_value} must be positive; null disables clipping")
        self.actor_network = actor_network
        self.critic_network = critic_network
        self.clip_value = clip_value
        # Buffers, so that schedules can change them in a compiled graph; not saved, because they are configuration.
        self.register_buffer("entropy_coeff", torch.tensor(float(entropy_coeff)), persistent=False)
        self.register_buffer("critic_coeff", torch.tensor(float(critic_coeff)), persistent=False)
        self._sample_key = actor_network.dist_sample_keys[0]
        self._value_error = get_value_error(critic_network, clip_value)
        # In a tuple, so that its parameters are not registered twice.
        self._unshared_critic = (unshared_critic(actor_network, critic_network),)

    @abstractmethod
    def policy_loss(self, log_ratio: Tensor, advantage: Tensor, kl: Tensor) -> Tensor:
        """Compute the loss of the policy for every sample.

        Args:
            log_ratio: log(new / old) of the actions taken, `[batch]`.
            advantage: `[batch]`.
            kl: KL(old || new) in every state, `[batch]`.

        Returns:
            Losses, `[batch]`.

        """

    @abstractmethod
    def metrics(self, log_ratio: Tensor) -> dict[str, Tensor]:
        """Return additional scalar metrics of a minibatch from the log-ratios `[batch]`."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses and metrics of a minibatch."""
        data = tensordict.copy()
        distribution, log_ratio, kl = self.compare(data)
        entropy = policy_entropy(distribution).mean()
        old_value = tensordict["state_value"]  # an actor with a shared extractor overwrites the one in `data`
        predicted = self._unshared_critic[0](data)
        error = self._value_error(predicted, data["value_target"], old_value, self.clip_value)
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
        """Run the policy on `data`, which receives its outputs, and compare it with the policy at collection.

        Returns:
            The new distribution, log(new / old) of the actions taken, `[batch]`, and KL(old || new), `[batch]`.

        """
        old = self.actor_network.build_dist_from_params(data)
        new = self.actor_network.get_dist(data)
        log_ratio = new.log_prob(data[self._sample_key]) - data["action_log_prob"]
        return new, log_ratio, policy_kl(old, new, log_ratio)


def probability_ratio(log_ratio: Tensor) -> Tensor:
    """Return the ratio new / old, limited to finite values."""
    return log_ratio.clamp(max=MAX_LOG_RATIO).exp()


def policy_kl(old: D.Distribution, new: D.Distribution, log_ratio: Tensor) -> Tensor:
    """Return KL(old || new), `[batch]`, in closed form if there is one, otherwise `kl_estimate`."""
    if isinstance(new, D.TransformedDistribution):  # PyTorch compares the transforms by value, which breaks a graph
        return kl_estimate(log_ratio)
    try:
        return D.kl_divergence(old, new)
    except NotImplementedError:
        return kl_estimate(log_ratio)


def kl_estimate(log_ratio: Tensor) -> Tensor:
    """Estimate KL(old || new) from samples of the old policy: r - 1 - log r >= 0, with r = new / old.

    Source: Schulman 2020, "Approximating KL divergence", k3. Shapes: `[batch] -> [batch]`.
    """
    return log_ratio.expm1() - log_ratio


def policy_entropy(distribution: D.Distribution) -> Tensor:
    """Return the entropy, `[batch]`, in closed form if there is one, otherwise estimated from one sample."""
    try:
        return distribution.entropy()
    except NotImplementedError:
        return -distribution.log_prob(distribution.rsample())


def unshared_critic(actor: ProbabilisticTensorDictSequential, critic: TensorDictModuleBase) -> TensorDictModuleBase:
    """Return the part of the critic that the actor does not run."""
    if not isinstance(critic, TensorDictSequential):
        return critic
    actor_modules = set(actor.modules())
    return TensorDictSequential(*[module for module in critic.module if module not in actor_modules])


def get_value_error(critic: TensorDictModuleBase, clip_value: float | None) -> Callable[..., Tensor]:
    """Return the `error` method of the critic's `ValueHead`, or the squared error if it has none.

    Raises:
        ConfigurationError: If `clip_value` is set and the head does not support it.

    """
    heads = [module for module in critic.modules() if isinstance(module, ValueHead)]
    if not heads:
        return lambda predicted, *args: squared_error(predicted["state_value"], *args)
    if clip_value is not None and not heads[-1].supports_clipping:
        raise ConfigurationError(
            f"objective.clip_value={clip_value} is not supported by {type(heads[-1]).__name__}; set it to null, "
            "or use critic=mse"
        )
    return heads[-1].error
