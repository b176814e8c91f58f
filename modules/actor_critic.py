"""Actor and critic, built from the environment's specs."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from tensordict.nn import InteractionType, TensorDictModule, TensorDictSequential, set_composite_lp_aggregate
from torch import Tensor, nn
from torch import distributions as D  # noqa: N812
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec
from torchrl.modules import IndependentNormal, ProbabilisticActor, TanhNormal

from ..errors import ConfigurationError
from . import distributions
from .networks import orthogonal_
from .normalizers import ObservationNormalizer

# One log-probability for a whole action, the convention of every PPO objective; read when a policy is built.
set_composite_lp_aggregate(False).set()

Body = Callable[[torch.Size], nn.Module]


class ActorCritic(NamedTuple):
    """A policy and its value function.

    `actor` reads `observation` and writes `action`, `action_log_prob` and the parameters of the
    distribution, and where they share a trunk `state_value` too; `critic` reads `observation` and writes
    `state_value` `[*, 1]`.
    """

    actor: ProbabilisticActor
    critic: TensorDictModule


class Head(NamedTuple):
    """What turns features into a distribution over one action space."""

    num_outputs: int
    out_keys: list[str]
    distribution_class: Callable[..., D.Distribution]
    has_scale: bool = False


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


class FullPrecision(nn.Module):
    """Runs a head in its own precision, also under autocast: 8 bits of a log-probability are no basis for a ratio."""

    def __init__(self, head: nn.Module) -> None:
        """Wrap a head."""
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Any:
        """What the head makes of `features`."""
        with torch.autocast(features.device.type, enabled=False):
            return self.head(features.to(next(self.head.parameters()).dtype))


def make_actor_critic(
    observation_spec: Composite,
    action_spec: TensorSpec,
    *,
    body: Body,
    shared: bool = False,
    squash: bool = False,
    log_std: float = 0.0,
    normalize_observation: bool = False,
) -> ActorCritic:
    """An actor and a critic for an environment's specs.

    Args:
        observation_spec: of the batch, `[num_envs, ...]`; its entry `observation` is read.
        action_spec: of the batch, `[num_envs, *action]`.
        body: makes the network in front of a head from the shape of one observation.
        shared: one body for both instead of one each.
        squash: bound continuous actions with a tanh instead of clipping them for the environment.
        log_std: initial logarithm of a Gaussian's scale.
        normalize_observation: put a running normaliser in front of the bodies.

    Raises:
        ConfigurationError: if `squash` is asked for an action space without finite bounds.

    """
    if "observation" not in observation_spec.keys():  # noqa: SIM118 - a Composite has no `in` of its own
        raise ConfigurationError(
            f"the environment has no entry 'observation', only {', '.join(map(str, observation_spec.keys()))}; "
            "transforms=[...] takes torchrl.envs.CatTensors to make one"
        )
    spec = observation_spec["observation"]
    num_batch = len(observation_spec.shape)
    shape = spec.shape[num_batch:]
    normalizer: nn.Module = ObservationNormalizer(shape) if normalize_observation else nn.Identity()
    actor_body = body(shape)
    critic_body = actor_body if shared else body(shape)
    with torch.no_grad():
        width = actor_body(torch.zeros(1, *shape)).shape[-1]
    head = make_head(action_spec, num_batch, squash)
    network: nn.Module = orthogonal_(nn.Linear(width, head.num_outputs), gain=0.01)
    if head.has_scale:
        network = StateIndependentScale(network, head.num_outputs, log_std)
    trunks = [
        TensorDictModule(nn.Sequential(normalizer, part), in_keys=["observation"], out_keys=[key])
        for part, key in ((actor_body, "actor_features"), (critic_body, "critic_features"))
    ]
    if shared:
        trunks[1] = trunks[0]
    value = orthogonal_(nn.Linear(width, 1), gain=1.0)
    policy_head = TensorDictModule(FullPrecision(network), in_keys=trunks[0].out_keys, out_keys=head.out_keys)
    value_head = TensorDictModule(FullPrecision(value), in_keys=trunks[1].out_keys, out_keys=["state_value"])
    # A shared trunk has done the critic's work as well: the policy values a state as it acts in it.
    asides = [value_head] if shared else []
    actor = ProbabilisticActor(
        TensorDictSequential(trunks[0], *asides, policy_head),
        in_keys=head.out_keys,
        distribution_class=head.distribution_class,
        return_log_prob=True,
        default_interaction_type=InteractionType.RANDOM,
    )
    actor.select_out_keys(*head.out_keys, *(["state_value"] if shared else []), "action", "action_log_prob")
    return ActorCritic(actor, TensorDictSequential(trunks[1], value_head))


def make_head(action_spec: TensorSpec, num_batch: int, squash: bool) -> Head:
    """The head of an action space whose spec has `num_batch` leading batch dimensions."""
    bounded = isinstance(action_spec, Bounded)
    if squash and not bounded:
        raise ConfigurationError(f"policy.squash=true needs an action space with finite bounds, not {action_spec}")
    if isinstance(action_spec, MultiCategorical):
        nvec = [int(n) for n in action_spec.nvec.reshape(-1, action_spec.shape[-1])[0]]
        return Head(sum(nvec), ["logits"], partial(distributions.MultiCategorical, nvec=nvec, validate_args=False))
    num_actions = action_spec.shape[num_batch:].numel()
    if isinstance(action_spec, Binary):  # before Categorical, of which TorchRL derives it
        return Head(num_actions, ["logits"], partial(distributions.IndependentBernoulli, validate_args=False))
    if isinstance(action_spec, Categorical):
        return Head(action_spec.n, ["logits"], partial(distributions.Categorical, validate_args=False))
    distribution: Callable[..., D.Distribution] = partial(IndependentNormal, validate_args=False)
    if squash:
        low, high = (bound.reshape(-1, num_actions)[0] for bound in (action_spec.space.low, action_spec.space.high))
        distribution = partial(TanhNormal, low=low, high=high)
    return Head(num_actions, ["loc", "scale"], distribution, has_scale=True)
