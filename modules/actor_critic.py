"""Actor and critic, built from the environment's specs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from tensordict.nn import InteractionType, TensorDictModule, TensorDictSequential, set_composite_lp_aggregate
from torchrl.data import Composite, TensorSpec
from torchrl.modules import ProbabilisticActor

from .features.extractor import Body, TrunkMaker, normalizers_of, observation_of
from .features.recurrent import Memory
from .heads.action_heads import ContinuousHead, make_head
from .heads.continuous import gaussian
from .heads.exploration import Exploring
from .heads.sample_to_action import SampleToAction
from .heads.value_heads import SquaredErrorValue, ValueHead

# One log-probability for a whole action, the convention of every PPO objective; read when a policy is built.
set_composite_lp_aggregate(False).set()


class ActorCritic(NamedTuple):
    """A policy and its value function.

    `actor` reads the observation, and with a memory `is_init` and what it remembers; it writes the action,
    `action_log_prob` and the parameters of the distribution. Where actor and critic share a trunk, or have
    memories, it writes `state_value` too. `critic` reads the same and writes `state_value` `[*, 1]`.
    """

    actor: ProbabilisticActor
    critic: TensorDictModule


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
    observation, num_batch = observation_of(observation_spec), len(observation_spec.shape)
    normalizers = normalizers_of(observation, num_batch) if normalize_observation else {}
    make_trunk = TrunkMaker(observation.leaves, num_batch, normalizers, encoders or {}, body, memory)
    actor_trunk = make_trunk("actor")
    critic_trunk = actor_trunk if shared else make_trunk("critic")
    policy = make_head(action_spec, num_batch, actor_trunk.width, head)
    value = critic(critic_trunk.width)
    value_head = TensorDictModule(value, in_keys=[critic_trunk.key], out_keys=value.out_keys)
    masks = [observation.mask_key] if observation.mask_key else []
    remembered = [*dict.fromkeys([*actor_trunk.remembered, *critic_trunk.remembered])]
    if policy.redraw is None:
        policy_head = TensorDictModule(policy.network, [actor_trunk.key, *masks], policy.param_keys)
    else:
        exploring = Exploring(policy, policy.redraw)
        remembered.append(("next", exploring.key))
        policy_head = TensorDictModule(
            exploring, [actor_trunk.key, "is_init", exploring.key, *masks], [*policy.param_keys, remembered[-1]]
        )
    # A shared trunk, or memory, has done the critic's work as it acts: the policy values a state too.
    asides = [*([] if shared else critic_trunk.modules), value_head] if shared or memory is not None else []
    samples = [policy.sample_key, *(policy.action_keys if policy.to_action else [])]
    actor = ProbabilisticActor(
        TensorDictSequential(*actor_trunk.modules, *asides, policy_head),
        in_keys=policy.param_keys,
        out_keys=samples,
        distribution_class=partial(SampleToAction, policy) if policy.to_action else policy.distribution_class,
        return_log_prob=True,
        log_prob_keys=["action_log_prob"],
        default_interaction_type=InteractionType.RANDOM,
    )
    written = [*policy.param_keys, *(value.out_keys if asides else []), *remembered]
    actor.select_out_keys(*written, *samples, "action_log_prob")
    return ActorCritic(actor, TensorDictSequential(*critic_trunk.modules, value_head))
