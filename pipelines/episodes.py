"""How good a policy is: deterministic, with frozen statistics, on environments of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from ..envs import VectorEnv
from ..errors import ConfigurationError, EnvironmentFailure
from .collectors.collector import ArrayRollouts
from .collectors.policy_step import PolicyStep
from .collectors.rollout_buffer import require_finite
from .collectors.torchrl import TensorDictStep, steps
from .step_factory import Compile

MAX_ENVS = 20
"""Environments that an evaluation plays in at once."""

MAX_STEPS = 100_000
"""Steps in which an episode has to end; the longest of Gymnasium and Atari take a third of it."""


class Evaluation(NamedTuple):
    """Raw returns and lengths of whole episodes."""

    returns: list[float]
    lengths: list[int]

    @property
    def mean(self) -> float:
        """Mean return."""
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        """Standard deviation of the returns over episodes."""
        return float(np.std(self.returns))


def evaluate(actor: TensorDictModuleBase, env: EnvBase, episodes: int, *, trace: bool = False) -> Evaluation:
    """Play whole episodes with the distributions' `deterministic_sample`: the mode, mean or median.

    Every environment plays the same number of episodes, so that short ones do not count more often.

    Args:
        actor: the policy.
        env: a batched environment that writes `episode_reward` and `step_count`.
        episodes: how many, at least 1.
        trace: whether to act with a graph of the policy.

    Raises:
        ConfigurationError: if `episodes` is below 1.
        EnvironmentFailure: if no episode ends.
        NumericalError: at the first observation or reward that is not finite.

    """
    if episodes < 1:
        raise ConfigurationError(f"eval.episodes={episodes} must be at least 1")
    quota = np.full(env.batch_size.numel(), episodes // env.batch_size.numel())
    quota[: episodes % env.batch_size.numel()] += 1
    returns: list[float] = []
    lengths: list[int] = []
    for step, stepped in enumerate(play(actor, env, trace=trace)):
        require_finite(stepped.unsqueeze(1), of="evaluation", first_step=step)
        following = stepped["next"]
        for index in following["done"].reshape(-1).nonzero().reshape(-1).tolist():
            if quota[index] > 0:
                quota[index] -= 1
                returns.append(following["episode_reward"].reshape(-1)[index].item())
                lengths.append(following["step_count"].reshape(-1)[index].item())
        if not quota.any():
            break
        if following["step_count"].max() >= MAX_STEPS:
            raise EnvironmentFailure(
                f"an episode of the evaluation has not ended after {MAX_STEPS} steps; limit it with "
                "+env.max_episode_steps=1000, or where it is TorchRL's with "
                "transforms=[{_target_: torchrl.envs.StepCounter, max_steps: 1000}]"
            )
    return Evaluation(returns, lengths)


def envs_for(episodes: int) -> int:
    """How many environments to play so many episodes in."""
    return max(1, min(episodes, MAX_ENVS))


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Without dropout, for as long as it lasts."""
    training = [one for one in module.modules() if one.training]
    module.eval()
    try:
        yield
    finally:
        for one in training:
            one.training = True


def play(actor: TensorDictModuleBase, env: EnvBase, *, trace: bool = False) -> Iterator[TensorDictBase]:
    """Steps of a deterministic policy, without end: each a TensorDict `[num_envs]` with its `next`."""
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC), eval_mode(actor):
        way: Compile = "trace" if trace else False
        if isinstance(env, VectorEnv):
            rollouts = ArrayRollouts(env, PolicyStep(actor, compile=way), 1, double_buffer=False)
            while True:
                yield rollouts()[:, 0]
        yield from steps(TensorDictStep(actor, compile=way, home=env.device), env)
