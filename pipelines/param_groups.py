"""Policy and critic, where they have optimiser options of their own or do not learn at the same time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torch.optim import Optimizer

from ..errors import ConfigurationError


def by_side(objective: Any) -> dict[str, list[nn.Parameter]]:
    """The parameters that only the `policy` depends on, only the `critic`, and those of both or neither (`shared`)."""
    of_policy, of_critic = policy_parameters(objective.actor_network), {*objective.critic_network.parameters()}
    sides: dict[str, list[nn.Parameter]] = {}
    for one in objective.parameters():
        is_shared = (one in of_policy) == (one in of_critic)
        sides.setdefault("shared" if is_shared else "policy" if one in of_policy else "critic", []).append(one)
    return sides


def policy_parameters(actor: ProbabilisticTensorDictSequential) -> set[nn.Parameter]:
    """The parameters that the distribution of actions depends on: not those of values an actor writes besides."""
    modules = [module for part in actor.module[:-1] for module in parts_of(part)]
    needed, parameters = set(actor.dist_params_keys), set()
    for module in reversed(modules):
        if needed.intersection(module.out_keys):
            needed.update(module.in_keys)
            parameters.update(module.parameters())
    return parameters


def parts_of(module: TensorDictModuleBase) -> list[TensorDictModuleBase]:
    """The modules of a sequence, or the only one."""
    return list(module.module) if isinstance(module, TensorDictSequential) else [module]


def optimizer_of(
    objective: nn.Module,
    make: Callable[[Any], Optimizer],
    critic_options: Mapping[str, Any],
    *,
    takes_turns: bool,
) -> Optimizer:
    """One optimiser over all parameters of an objective, in groups by side where anything tells the sides apart.

    Args:
        objective: has an `actor_network` and a `critic_network`.
        make: makes the optimiser from parameters or groups.
        critic_options: of the optimiser, for what only the critic depends on, where they differ.
        takes_turns: whether one side may learn while the other does not (see `let_learn`).

    Raises:
        ConfigurationError: for options that the optimiser refuses, or groups of its own where there are sides.

    """
    has_sides = bool(critic_options) or takes_turns
    params: list[Any] = list(objective.parameters())
    if has_sides:
        params = [
            {"params": params, "side": side, "learns": True, **(critic_options if side == "critic" else {})}
            for side, params in by_side(objective).items()
        ]
    try:
        optimizer = make(params)
    except ValueError as error:
        raise ConfigurationError(f"optimizer: {error}") from error
    if has_sides and not all("side" in group for group in optimizer.param_groups):
        raise ConfigurationError(
            "the optimizer makes groups of its own, but critic.optimizer, critic.epochs and ppo.value_pretraining need "
            "those that it is given"
        )
    unknown = [key for key in critic_options if key not in optimizer.defaults]
    if unknown:
        raise ConfigurationError(
            f"critic.optimizer.{unknown[0]} is no option of {type(optimizer).__name__}; "
            f"there is {', '.join(optimizer.defaults)}"
        )
    return optimizer


def let_learn(optimizer: Optimizer, *, policy: bool, critic: bool) -> None:
    """Mark the groups that learn; a step leaves the others alone, moments and all."""
    for group in optimizer.param_groups:
        if "side" in group:
            group["learns"] = {"policy": policy, "critic": critic}.get(group["side"], True)
