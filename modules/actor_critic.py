"""Actor and critic, built from the environment's specs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import torch
from tensordict import NestedKey
from tensordict.nn import InteractionType, TensorDictModule, TensorDictSequential, set_composite_lp_aggregate
from torch import nn
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded
from torchrl.modules import ProbabilisticActor

from ..errors import ConfigurationError
from .critics import SquaredErrorValue, ValueHead
from .distributions import Acting
from .encoders import Encoders, make_encoder
from .exploration import Exploring
from .heads import ContinuousHead, gaussian, make_head
from .memories import Memory, Remembering
from .normalizers import ObservationNormalizer

# One log-probability for a whole action, the convention of every PPO objective; read when a policy is built.
set_composite_lp_aggregate(False).set()

Body = Callable[[torch.Size], nn.Module]
MASK = "action_mask"


class ActorCritic(NamedTuple):
    """A policy and its value function.

    `actor` reads the observation, and with a memory `is_init` and what it remembers; it writes the action,
    `action_log_prob` and the parameters of the distribution. Where actor and critic share a trunk, or have
    memories, it writes `state_value` too. `critic` reads the same and writes `state_value` `[*, 1]`.
    """

    actor: ProbabilisticActor
    critic: TensorDictModule


class Trunk(NamedTuple):
    """Everything in front of a head: it writes features `[*, width]` under `key`."""

    modules: list[TensorDictModule]
    key: str
    width: int
    remembered: list[NestedKey]


def make_actor_critic(
    observation_spec: Composite,
    action_spec: TensorSpec,
    *,
    body: Body,
    shared: bool = False,
    encoders: Mapping[str, Body] | None = None,
    memory: Callable[[int], Memory] | None = None,
    head: ContinuousHead = gaussian,
    critic: Callable[[int], ValueHead] = SquaredErrorValue,
    normalize_observation: bool = False,
) -> ActorCritic:
    """An actor and a critic for an environment's specs.

    Args:
        observation_spec: of the batch, `[num_envs, ...]`; its entry `observation` is read, a tensor or nested.
            An entry of it called `action_mask` says which discrete choices are valid.
        action_spec: of the batch, `[num_envs, *action]`, a tensor or nested.
        body: makes the network in front of memory and heads from the shape of what it reads: one observation
            of numbers as it is, anything else encoded and concatenated.
        shared: one body and memory for both instead of one each.
        encoders: make the encoders of entries, by their names such as `image` or `left/image`, from their
            shapes; the others' are chosen by their specs.
        memory: makes what stands between body and heads, from the number of features.
        head: makes the heads of continuous actions.
        critic: makes the critic's head from the number of features.
        normalize_observation: put a running normaliser in front of every entry of real numbers.

    Raises:
        ConfigurationError: for a spec without an encoder or a head, or an option that does not fit it.

    """
    leaves, mask_key = observation_leaves(observation_spec)
    num_batch = len(observation_spec.shape)
    normalizers = {
        key: ObservationNormalizer(spec.shape[num_batch:], key=key)
        for key, spec in leaves.items()
        if normalize_observation and isinstance(spec, Bounded | Unbounded) and spec.dtype.is_floating_point
    }
    make_trunk = partial(_trunk, leaves, num_batch, normalizers, body, encoders or {}, memory)
    actor_trunk = make_trunk("actor")
    critic_trunk = actor_trunk if shared else make_trunk("critic")
    value = critic(critic_trunk.width)
    value_head = TensorDictModule(value, in_keys=[critic_trunk.key], out_keys=value.out_keys)
    policy = make_head(action_spec, num_batch, actor_trunk.width, head)
    masks = [mask_key] if mask_key else []
    remembered = [*actor_trunk.remembered, *(critic_trunk.remembered if not shared else [])]
    if policy.redraw is None:
        policy_head = TensorDictModule(policy.network, [actor_trunk.key, *masks], policy.param_keys)
    else:
        exploring = Exploring(policy, policy.redraw)
        remembered.append(("next", exploring.key))
        policy_head = TensorDictModule(
            exploring, [actor_trunk.key, "is_init", exploring.key, *masks], [*policy.param_keys, remembered[-1]]
        )
    # What a shared trunk or a memory does as it acts is the critic's work as well: the value costs nothing more.
    asides = [] if memory is None and not shared else [value_head]
    if asides and not shared:
        asides = [*critic_trunk.modules, value_head]
    samples = [policy.sample_key, *(policy.action_keys if policy.to_action else [])]
    actor = ProbabilisticActor(
        TensorDictSequential(*actor_trunk.modules, *asides, policy_head),
        in_keys=policy.param_keys,
        out_keys=samples,
        distribution_class=partial(Acting, policy) if policy.to_action else policy.distribution_class,
        return_log_prob=True,
        log_prob_keys=["action_log_prob"],
        default_interaction_type=InteractionType.RANDOM,
    )
    written = [*policy.param_keys, *(value.out_keys if asides else []), *remembered]
    actor.select_out_keys(*written, *samples, "action_log_prob")
    return ActorCritic(actor, TensorDictSequential(*critic_trunk.modules, value_head))


def observation_leaves(observation_spec: Composite) -> tuple[dict[NestedKey, TensorSpec], NestedKey | None]:
    """The entries of an observation that are encoded, and the key of the mask of valid actions, if there is one."""
    if "observation" not in observation_spec.keys():  # noqa: SIM118 - a Composite has no `in` of its own
        raise ConfigurationError(
            f"the environment has no entry 'observation', only {', '.join(map(str, observation_spec.keys()))}; "
            "transforms=[...] takes torchrl.envs.CatTensors to make one"
        )
    spec = observation_spec["observation"]
    if not isinstance(spec, Composite):
        return {"observation": spec}, None
    keys = [("observation", *key) if isinstance(key, tuple) else ("observation", key) for key in spec.keys(True, True)]
    masks = [key for key in keys if key[-1] == MASK]
    return {key: observation_spec[key] for key in keys if key not in masks}, masks[0] if masks else None


def _trunk(
    leaves: Mapping[NestedKey, TensorSpec],
    num_batch: int,
    normalizers: Mapping[NestedKey, nn.Module],
    body: Body,
    encoders: Mapping[str, Body],
    memory: Callable[[int], Memory] | None,
    name: str,
) -> Trunk:
    unknown = set(encoders) - {name_of(key) for key in leaves}
    if unknown:
        raise ConfigurationError(
            f"policy.encoders.{min(unknown)} is no entry of the observation; there is "
            f"{', '.join(name_of(key) for key in leaves)}"
        )
    key = f"{name}_features"
    spec = next(iter(leaves.values()))
    if list(leaves) == ["observation"] and isinstance(spec, Bounded | Unbounded) and not encoders:
        shape = spec.shape[num_batch:]
        parts = [normalizers["observation"]] if normalizers else []
        modules = [TensorDictModule(nn.Sequential(*parts, network := body(shape)), ["observation"], [key])]
    else:
        encode = encoder_of(leaves, num_batch, normalizers, encoders)
        with torch.no_grad():
            shape = encode(*(spec.zero() for spec in leaves.values())).shape[num_batch:]
        modules = [TensorDictModule(encode, list(leaves), [key]), TensorDictModule(network := body(shape), [key], [key])]
    with torch.no_grad():
        width = network(torch.zeros(1, *shape)).shape[-1]
    if memory is None:
        return Trunk(modules, key, width, [])
    remembering = Remembering(memory(width), f"{name}_memory")
    remembered = ("next", remembering.key)
    modules.append(TensorDictModule(remembering, [key, "is_init", remembering.key], [key, remembered]))
    return Trunk(modules, key, remembering.memory.num_features, [remembered])


def encoder_of(
    leaves: Mapping[NestedKey, TensorSpec],
    num_batch: int,
    normalizers: Mapping[NestedKey, nn.Module],
    encoders: Mapping[str, Body],
) -> Encoders:
    """One encoder for every entry, its normaliser in front."""
    parts: dict[str, nn.Module] = {}
    for key, spec in leaves.items():
        name = name_of(key)
        given = encoders.get(name)
        encoder = given(spec.shape[num_batch:]) if given else make_encoder(spec, num_batch, name)
        parts[name] = nn.Sequential(normalizers[key], encoder) if key in normalizers else encoder
    return Encoders(parts)


def name_of(key: NestedKey) -> str:
    """What a person calls an entry of the observation: `left/image` for `("observation", "left", "image")`."""
    return key if isinstance(key, str) else "/".join(key[1:])
