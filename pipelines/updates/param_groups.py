"""Optimizer groups for policy and critic, used if one of them has its own options or is sometimes frozen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tensordict.nn import ProbabilisticTensorDictSequential, TensorDictModuleBase, TensorDictSequential
from torch import nn
from torch.optim import Optimizer

from ...errors import ConfigurationError


def make_param_groups(objective: Any, critic_options: Mapping[str, Any], models: nn.ModuleDict) -> list[dict[str, Any]]:
    """Split parameters into the groups `policy`, `critic`, `shared` (used by both), and one for each reward model.

    Args:
        objective: has an `actor_network` and a `critic_network`.
        critic_options: optimizer options of the group `critic`.
        models: reward models by name. Frozen parameters are left out.

    """
    parts = parameters_by_part(objective)
    parts |= {name: [param for param in model.parameters() if param.requires_grad] for name, model in models.items()}
    options: dict[str, Any] = {"critic": critic_options, **{name: model.optimizer for name, model in models.items()}}
    return [
        {"params": params, "part": part, "trainable": True, **options.get(part, {})} for part, params in parts.items()
    ]


def check_param_groups(optimizer: Optimizer, critic_options: Mapping[str, Any], models: nn.ModuleDict) -> None:
    """Raise a ConfigurationError if the optimizer replaced the groups or does not know an option of a group."""
    if not all("part" in group for group in optimizer.param_groups):
        raise ConfigurationError(
            f"optimizer={type(optimizer).__name__} makes its own parameter groups, but critic.optimizer, "
            "critic.epochs, ppo.value_pretraining and intrinsic need those of torchppo; remove these options or choose "
            "optimizer=adam"
        )
    options: dict[str, Any] = {"critic": critic_options}
    options |= {f"intrinsic.{name}": model.optimizer for name, model in models.items()}
    unknown = [f"{name}.optimizer.{key}" for name in options for key in options[name] if key not in optimizer.defaults]
    if unknown:
        raise ConfigurationError(
            f"{unknown[0]} is not an option of {type(optimizer).__name__}; use one of {', '.join(optimizer.defaults)}"
        )


def set_trainable(optimizer: Optimizer, *, policy: bool, critic: bool) -> None:
    """Freeze groups. A step leaves the parameters and the optimizer state of a frozen group unchanged.

    Reward models are trained with the critic.
    """
    for group in optimizer.param_groups:
        if "part" in group:  # groups without `part` were added by the user
            group["trainable"] = {"policy": policy, "shared": True}.get(group["part"], critic)


def parameters_by_part(objective: Any) -> dict[str, list[nn.Parameter]]:
    """Return the parameters that only the policy uses, only the critic, and both or neither (`shared`)."""
    policy, critic = policy_parameters(objective.actor_network), {*objective.critic_network.parameters()}
    parts: dict[str, list[nn.Parameter]] = {}
    for param in objective.parameters():
        is_shared = (param in policy) == (param in critic)
        parts.setdefault("shared" if is_shared else "policy" if param in policy else "critic", []).append(param)
    return parts


def policy_parameters(actor: ProbabilisticTensorDictSequential) -> set[nn.Parameter]:
    """Return the parameters that the action distribution depends on, without those of the actor's state value."""
    modules = [module for part in actor.module[:-1] for module in submodules(part)]
    needed, parameters = set(actor.dist_params_keys), set()
    for module in reversed(modules):
        if needed.intersection(module.out_keys):
            needed.update(module.in_keys)
            parameters.update(module.parameters())
    return parameters


def submodules(module: TensorDictModuleBase) -> list[TensorDictModuleBase]:
    """Return the modules of a sequence, or the module itself."""
    return list(module.module) if isinstance(module, TensorDictSequential) else [module]
