"""Builds an actor and a critic from the specs of an environment, and provides the value error for objectives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

import torch
from tensordict import NestedKey
from tensordict.nn import (
    InteractionType,
    ProbabilisticTensorDictSequential,
    TensorDictModule,
    TensorDictModuleBase,
    TensorDictSequential,
    set_composite_lp_aggregate,
)
from torch import Tensor, nn
from torchrl.data import Composite, TensorSpec
from torchrl.modules import ProbabilisticActor
from torchrl.objectives.utils import distance_loss

from ..errors import ConfigurationError
from .features.bodies import require_base, require_builders
from .features.extractor import (
    Body,
    FeatureExtractor,
    FeatureExtractorBuilder,
    recurrent_modules,
    recurrent_state_shapes,
    select_both,
    split_observation_spec,
)
from .features.recurrent import Memory
from .heads.action_heads import ContinuousHead, Head, make_head
from .heads.continuous import gaussian
from .heads.exploration import PersistentNoiseHead
from .heads.sample_to_action import SampleToAction
from .heads.value_heads import SquaredErrorValue, ValueHead, clipped_error

# Objectives expect one log-probability for the whole action. TorchRL reads this setting when a policy is built.
set_composite_lp_aggregate(False).set()


class ActorCritic(NamedTuple):
    """A policy and its value function.

    Attributes:
        actor: Reads the observation, and `is_init` and the recurrent states if it has any. Writes the action,
            `action_log_prob`, the distribution parameters and the next recurrent states. Also writes `state_value` if
            it shares its feature extractor with the critic or has a memory.
        critic: Reads the same and writes `state_value` `[*, 1]`.

    """

    actor: ProbabilisticActor
    critic: TensorDictModule


def make_actor_critic(
    observation_spec: Composite,
    action_spec: TensorSpec,
    *,
    body: Body,
    critic_body: Body | None = None,
    shared: bool = False,
    actor_observations: Sequence[str] | None = None,
    critic_observations: Sequence[str] | None = None,
    encoders: Mapping[str, Body] | None = None,
    memory: Callable[[int], Memory] | None = None,
    head: ContinuousHead = gaussian,
    critic: Callable[[int], ValueHead] = SquaredErrorValue,
    normalize_observation: bool = False,
) -> ActorCritic:
    """Build an actor and a critic.

    Args:
        observation_spec: Batched spec with the entry `observation`, a tensor or nested, and optionally `action_mask`.
        action_spec: Batched spec of the action, a tensor or nested.
        body: Builds the network before the memory and heads from its input shape. It receives a single box of floats
            directly, and a single image unless it is `mlp`. Other observations are encoded and concatenated.
        critic_body: Body of the critic; `None` means `body`.
        shared: Whether actor and critic share one feature extractor.
        actor_observations: Entries that the actor reads, such as `image` or `left/image`; `None` means all.
        critic_observations: The same for the critic.
        encoders: Builders of encoders by entry name, from the shape of the entry. The specs choose other encoders.
        memory: Builds the memory between body and heads from the number of features.
        head: Builds the heads of continuous actions.
        critic: Builds the value head from the number of features.
        normalize_observation: Whether to normalize every entry of floats with running statistics.

    Raises:
        ConfigurationError: If a spec has no encoder or head, or an option does not fit it.

    """
    require_builders({**(encoders or {}), "body": body, "critic_body": critic_body, "memory": memory, "critic": critic})
    entries, num_batch = split_observation_spec(observation_spec), len(observation_spec.shape)
    of_actor, of_critic = select_both(observation_spec, entries, actor_observations, critic_observations)
    build = FeatureExtractorBuilder(of_actor | of_critic, num_batch, normalize_observation, encoders or {}, memory)
    _check_shared(shared and (critic_body is not None or set(of_actor) != set(of_critic)))
    actor_extractor = build("actor", of_actor, body)
    critic_extractor = actor_extractor if shared else build("critic", of_critic, critic_body or body)
    action_head = make_head(action_spec, num_batch, actor_extractor.num_features, head)
    value_module = _make_value_module(critic, critic_extractor, action_spec, action_head)
    critic_modules = [*critic_extractor.modules, value_module]
    # The actor writes the value too if the features are shared, or if the critic's recurrent state has to advance.
    value_modules = [value_module] if shared else critic_modules if memory is not None else []
    actor = _make_actor(action_head, actor_extractor, entries.mask_key, value_modules)
    return ActorCritic(actor, TensorDictSequential(*critic_modules))


def _check_shared(is_contradiction: bool) -> None:
    """Raise a ConfigurationError if actor and critic are to share a feature extractor, but cannot."""
    if is_contradiction:
        raise ConfigurationError(
            "policy.shared=true needs the same body and observations for actor and critic; set policy.shared=false, or "
            "remove policy.critic_body, policy.actor_observations and policy.critic_observations"
        )


def _make_actor(
    head: Head, extractor: FeatureExtractor, mask_key: NestedKey | None, value_modules: list[TensorDictModule]
) -> ProbabilisticActor:
    """Combine a feature extractor, modules that write the value, and a head into a policy."""
    modules = [*extractor.modules, *value_modules, _make_head_module(head, extractor.key, mask_key)]
    sample_keys = [head.sample_key, *(head.action_keys if head.to_action else [])]
    actor = ProbabilisticActor(
        TensorDictSequential(*modules),
        in_keys=head.param_keys,
        out_keys=sample_keys,
        distribution_class=partial(SampleToAction, head) if head.to_action else head.distribution_class,
        return_log_prob=True,
        log_prob_keys=["action_log_prob"],
        default_interaction_type=InteractionType.RANDOM,
    )
    value_keys = value_modules[-1].out_keys if value_modules else []
    next_state_keys = [key for module in modules for key in module.out_keys if key[0] == "next"]
    actor.select_out_keys(*head.param_keys, *value_keys, *next_state_keys, *sample_keys, "action_log_prob")
    return actor


def _make_value_module(
    critic: Callable[[int], ValueHead], extractor: FeatureExtractor, action_spec: TensorSpec, head: Head
) -> TensorDictModule:
    """Build a value head for the features of an extractor and the actions of a head."""
    value_head = require_base("critic", critic(extractor.num_features), ValueHead)
    value_head.setup(action_spec, head)
    return TensorDictModule(value_head, [extractor.key], value_head.out_keys)


def _make_head_module(head: Head, feature_key: str, mask_key: NestedKey | None) -> TensorDictModule:
    """Wrap the network of a head, with its persistent noise if it has any."""
    mask_keys = [mask_key] if mask_key else []
    if head.resample_noise is None:
        return TensorDictModule(head.network, [feature_key, *mask_keys], head.param_keys)
    network = PersistentNoiseHead(head, head.resample_noise)
    return TensorDictModule(
        network, [feature_key, "is_init", network.key, *mask_keys], [*head.param_keys, ("next", network.key)]
    )


def without_critic(actor: TensorDictModuleBase) -> TensorDictModuleBase:
    """Return the policy without the critic, whose recurrent state is only needed during collection.

    Returns:
        `actor` itself if it has no critic, or if its critic reads no additional entries.

    """
    if "critic_memory" not in recurrent_state_shapes(actor):
        return actor
    network, distribution = actor.module
    acting = network.select_subsequence(out_keys=list(distribution.in_keys))
    if {*actor.in_keys} - {*acting.in_keys} == {"critic_memory"}:
        return actor
    policy = ProbabilisticTensorDictSequential(acting, distribution)
    policy.select_out_keys(*[key for key in actor.out_keys if key in policy.out_keys])
    return policy.train(actor.training)


def check_critic_memory(actor: nn.Module, critic: nn.Module) -> None:
    """Raise a ConfigurationError if the critic has a memory that the actor does not run during collection."""
    if not {*recurrent_modules(critic)} <= {*actor.modules()}:
        raise ConfigurationError(
            "the critic has an LSTMModule or GRUModule that the actor does not run, so its state is not collected; "
            "share the module between both"
        )


def unshared_critic(actor: ProbabilisticTensorDictSequential, critic: TensorDictModuleBase) -> TensorDictModuleBase:
    """Return the critic without the modules that it shares with the actor."""
    if not isinstance(critic, TensorDictSequential):
        return critic
    actor_modules = set(actor.modules())
    return TensorDictSequential(*[module for module in critic.module if module not in actor_modules])


def get_value_error(critic: TensorDictModuleBase, clip_value: float | None, loss_type: str) -> Callable[..., Tensor]:
    """Return the `error` method of the critic's `ValueHead`, or an elementwise error if it has none.

    Args:
        critic: Writes `state_value`.
        clip_value: See `PPOLoss`.
        loss_type: The error of a critic without a `ValueHead`: `l2`, `l1` or `smooth_l1`.

    Raises:
        ConfigurationError: If the head does not support `clip_value` or `loss_type`.

    """
    heads = value_heads(critic)
    if not heads:
        loss = torch.square if loss_type == "l2" else partial(elementwise_loss, loss_type)
        return lambda predicted, *args: clipped_error(loss, predicted["state_value"], *args)
    name = type(heads[-1]).__name__
    if clip_value is not None and not heads[-1].supports_clipping:
        raise ConfigurationError(
            f"objective.clip_value={clip_value} is not supported by {name}; set it to null, or use critic=mse"
        )
    if loss_type != "l2":
        raise ConfigurationError(
            f"objective.loss_critic_type={loss_type} does not apply to {name}, which has its own loss; remove it and "
            "choose the loss with critic=mse, huber, ..."
        )
    return heads[-1].error


def value_heads(critic: nn.Module) -> list[ValueHead]:
    """Return the value heads of a critic; a critic of the user may have none."""
    return [module for module in critic.modules() if isinstance(module, ValueHead)]


def elementwise_loss(loss_type: str, error: Tensor) -> Tensor:
    """Apply one of TorchRL's distances to errors `[batch, 1]`."""
    distance: Tensor = distance_loss(error, torch.zeros_like(error), loss_type)
    return distance


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module and its submodules into evaluation mode and restore their modes at the end."""
    training = [one for one in module.modules() if one.training]
    module.eval()
    try:
        yield
    finally:
        for one in training:
            one.training = True
