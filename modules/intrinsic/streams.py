"""Writes the rewards of reward models, and adds their advantages to those of the environment."""

from __future__ import annotations

from collections.abc import Callable, Collection

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.objectives.value import GAE

from ...errors import ConfigurationError
from ..normalizers import Reduce
from .networks import update_normalizers
from .reward_model import RewardModel


@torch.no_grad()
def write_rewards(rollout: TensorDictBase, models: Collection[RewardModel], reduce: Reduce) -> dict[str, float]:
    """Write `("next", "reward_<name>")` of every model, and return the mean rewards before normalization as metrics.

    Args:
        rollout: `[num_envs, time]`.
        models: The reward models.
        reduce: Calls a function with the tensors of all ranks, at once.

    """
    metrics = {}
    for model in models:
        update_normalizers(model.critic, rollout, reduce)
        model.update(rollout, reduce)
        with torch.autocast(rollout["next", "done"].device.type, enabled=False):  # prediction errors may be small
            reward = model.reward(rollout)
        if reward.shape != rollout["next", "done"].shape:
            raise ConfigurationError(
                f"intrinsic.{model.name}: reward returned the shape {tuple(reward.shape)}; return "
                f"{tuple(rollout['next', 'done'].shape)}"
            )
        metrics[f"rollout/reward_{model.name}"] = reward.mean().item()
        if model.normalizer is not None:
            done = rollout["next", "done"]
            model.normalizer.update(reward, episode_starts(rollout) if model.is_episodic else done & False, reduce)
            reward = model.normalizer(reward)
        rollout["next", f"reward_{model.name}"] = reward
    return metrics


def episode_starts(rollout: TensorDictBase) -> Tensor:
    """Return whether an episode begins with each step, bool `[num_envs, time, 1]`.

    Raises:
        ConfigurationError: If the rollout has no `is_init`.

    """
    starts: Tensor | None = rollout.get("is_init")
    if starts is None:
        raise ConfigurationError(
            "the rollout has no is_init, which this intrinsic reward needs; add the transform "
            "torchrl.envs.InitTracker to the environment"
        )
    return starts


@torch.no_grad()
def add_advantages(rollout: TensorDictBase, models: Collection[RewardModel]) -> None:
    """Add the weighted advantages of every model to `advantage`, and write `value_target_<name>`.

    Args:
        rollout: `[num_envs, time]` with the rewards of the models, `advantage` and `next`.
        models: The reward models.

    """
    for model in models:
        write_values(rollout, model)
        is_vectorized = model.gamma * model.lmbda > 0  # TorchRL's vectorized GAE fails with 0
        estimator = GAE(gamma=model.gamma, lmbda=model.lmbda, value_network=None, vectorized=is_vectorized)
        keys = {name: f"{name}_{model.name}" for name in ("reward", "advantage", "value_target")}
        estimator.set_keys(
            value=f"state_value_{model.name}", done="stream_done", terminated="stream_terminated", **keys
        )
        estimator(rollout)
        rollout["advantage"] = rollout["advantage"] + model.weight * rollout[f"advantage_{model.name}"]


def write_values(rollout: TensorDictBase, model: RewardModel) -> None:
    """Write the values of all states and next states of a stream, and the steps at which the stream ends.

    In a non-episodic stream, the next state of a final step is the first state of the next episode.
    """
    next_data, key = rollout["next"], f"state_value_{model.name}"
    ends = next_data["done"] if model.is_episodic else torch.zeros_like(next_data["done"])
    next_data["stream_done"] = ends
    next_data["stream_terminated"] = next_data["terminated"] & ends
    rollout[key], next_data[key] = with_next(rollout, ends, lambda data: critic_values(data, model))


def with_next(
    rollout: TensorDictBase, ends: Tensor, function: Callable[[TensorDictBase], Tensor]
) -> tuple[Tensor, Tensor]:
    """Apply a function to all states and all next states, only once to a next state that is the following state.

    Args:
        rollout: `[num_envs, time]`.
        ends: Whether the next state is not the state of the following step, bool `[num_envs, time, 1]`.
        function: From data `[*]` to `[*, n]`.

    Returns:
        The results of all states and of all next states, `[num_envs, time, n]`.

    """
    results = function(rollout)
    next_results = results.roll(-1, dims=1)
    is_separate = ends.squeeze(-1).clone()
    is_separate[:, -1] = True
    next_results[is_separate] = function(rollout["next"][is_separate])
    return results, next_results


def critic_values(data: TensorDictBase, model: RewardModel) -> Tensor:
    """Return the values of a stream's critic, `[*, 1]`."""
    values: Tensor = model.critic(data.select(*model.critic.in_keys))[f"state_value_{model.name}"]
    return values
