"""Symmetries of a task: mirrored samples in minibatches, and a loss that penalizes policies that are not symmetric."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.envs import EnvBase

from ..errors import ConfigurationError
from .actor_critic import value_heads
from .features.extractor import is_recurrent, recurrent_state_shapes


class Symmetry:
    """A symmetry of a task, such as that of left and right, and its use in training.

    With `augment`, every minibatch also contains the mirrored samples, with the log-probability, advantage and target
    of the originals. `mirror_coeff` is the weight of the loss

        L = mean |m(o') - M(m(o))|^2,  o' = M(o)

    where m is the most probable action, M the symmetry, and no gradient flows into M(m(o)).

    Sources: Yu, Turk and Liu 2018, "Learning symmetric and low-energy locomotion", eq. 6; Mittal et al. 2024, "Symmetry
    considerations for learning task symmetric robot policies", section 3.

    Args:
        mirror: Returns a mirrored TensorDict `[batch]`. It receives a copy with the observations of the networks and
            `action`, replaces both, and must be its own inverse.
        augment: Whether minibatches contain mirrored samples.
        mirror_coeff: Weight of the mirror loss; 0 disables it.

    Raises:
        ConfigurationError: If `mirror_coeff` is negative, or 0 without `augment`.

    """

    def __init__(
        self, mirror: Callable[[TensorDictBase], TensorDictBase], *, augment: bool = True, mirror_coeff: float = 0.0
    ) -> None:
        if mirror_coeff < 0 or not (augment or mirror_coeff):
            raise ConfigurationError(
                f"ppo.symmetry.mirror_coeff={mirror_coeff} must be positive, or 0 with ppo.symmetry.augment=true"
            )
        self.mirror = mirror
        self.augment = augment
        self.mirror_coeff = mirror_coeff

    def mirrored(self, data: TensorDictBase) -> TensorDictBase:
        """Return the mirrored entries of `data`, `[batch]`.

        Raises:
            ConfigurationError: If the function does not return a TensorDict, or an entry is missing or has another
                shape.

        """
        mirrored = self.mirror(data.clone())
        if not isinstance(mirrored, TensorDictBase):
            raise ConfigurationError(
                f"ppo.symmetry.mirror returns {type(mirrored).__name__}, not a TensorDict; return the mirrored data"
            )
        for key in data.keys(include_nested=True, leaves_only=True):
            if key not in mirrored.keys(include_nested=True):
                raise ConfigurationError(f"ppo.symmetry.mirror returns no {key}; return all entries of its argument")
            if mirrored[key].shape != data[key].shape:
                raise ConfigurationError(
                    f"ppo.symmetry.mirror changes the shape of {key} from {tuple(data[key].shape)} to "
                    f"{tuple(mirrored[key].shape)}; return it with the same shape"
                )
        return mirrored

    def check(self, data: TensorDictBase) -> None:
        """Raise a ConfigurationError if the function is not its own inverse, or writes other entries.

        Args:
            data: Observations and an action with any values, `[batch]`.

        """
        keys = {*data.keys(include_nested=True, leaves_only=True)}
        mirrored = self.mirrored(data)
        if others := {*mirrored.keys(include_nested=True, leaves_only=True)} - keys:
            names = ", ".join(sorted(map(str, keys)))
            raise ConfigurationError(f"ppo.symmetry.mirror writes {others.pop()}; it may write {names}")
        twice = self.mirrored(mirrored)
        for key in keys:
            if not torch.allclose(twice[key].double(), data[key].double(), rtol=1e-4, atol=1e-5, equal_nan=True):
                raise ConfigurationError(
                    f"ppo.symmetry.mirror is not its own inverse: applied twice, it changes {key}; correct it"
                )


class SymmetricObjective(nn.Module):
    """Computes the losses of an objective with a symmetry.

    With `augment`, KL divergences are estimated from the ratios (k3), because the distribution at collection is not
    mirrored.

    Args:
        objective: The objective.
        symmetry: The symmetry.

    Attributes:
        inputs: Entries that the policy and the critic read.

    Raises:
        ConfigurationError: If the policy has a memory, its action is not the sample of its distribution, or the critic
            needs the distribution at collection.

    """

    def __init__(self, objective: Any, symmetry: Symmetry) -> None:
        super().__init__()
        self.objective = objective
        self.symmetry = symmetry
        actor, critic = objective.actor_network, objective.critic_network
        if is_recurrent(actor):
            raise ConfigurationError("ppo.symmetry does not work with a policy with a memory; use symmetry=none")
        if list(actor.dist_sample_keys) != ["action"]:
            raise ConfigurationError(
                "ppo.symmetry needs actions that are the samples of the policy; use head=gaussian, or symmetry=none"
            )
        if symmetry.augment and any(head.collected_keys for head in value_heads(critic)):
            raise ConfigurationError(
                "ppo.symmetry.augment=true does not work with critic=quadratic_advantage, because the distribution at "
                "collection is not mirrored; set it to false, or use critic=mse"
            )
        others = {"is_init", *recurrent_state_shapes(actor)}  # the noise of gSDE is a recurrent state
        self.inputs = [key for key in dict.fromkeys([*actor.in_keys, *critic.in_keys]) if key not in others]
        self._dist_params = [key for key in actor.dist_params_keys if key not in self.inputs]

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses and metrics of the objective, and `loss_mirror` if it has a weight."""
        mirrored = self._mirrored(tensordict, tensordict["action"])
        data = tensordict
        if self.symmetry.augment:
            original = tensordict.exclude(*self._dist_params)
            data = torch.cat([original, original.copy().update(mirrored)])
        losses: TensorDictBase = self.objective(data)
        if self.symmetry.mirror_coeff:
            losses["loss_mirror"] = self.symmetry.mirror_coeff * self._mirror_loss(tensordict, mirrored)
        return losses

    def _mirror_loss(self, tensordict: TensorDictBase, mirrored: TensorDictBase) -> Tensor:
        actor = self.objective.actor_network
        action = actor.get_dist(tensordict.select(*self.inputs)).deterministic_sample
        if not action.is_floating_point():
            raise ConfigurationError("ppo.symmetry.mirror_coeff needs continuous actions; set it to 0")
        target = self._mirrored(tensordict, action)["action"].detach()
        found = actor.get_dist(mirrored.select(*self.inputs)).deterministic_sample
        return (found - target).square().mean()

    def _mirrored(self, tensordict: TensorDictBase, action: Tensor) -> TensorDictBase:
        """Return the mirrored inputs of the networks and the mirrored action."""
        data = TensorDict({**{key: tensordict[key] for key in self.inputs}, "action": action}, tensordict.batch_size)
        return self.symmetry.mirrored(data).select("action", *self.inputs)


def check_symmetry(symmetry: Symmetry, objective: Any, env: EnvBase) -> None:
    """Check that a symmetry works with an objective, and with random observations and actions of an environment.

    The random state does not change.
    """
    inputs = SymmetricObjective(objective, symmetry).inputs
    with torch.random.fork_rng([]):
        observations, action = env.observation_spec.rand(), env.full_action_spec["action"].rand()
    symmetry.check(observations.select(*inputs, strict=False).set("action", action))
