"""Evaluates a policy over whole episodes, also during training."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, Trainer
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from ..envs import VectorEnv
from ..envs.vector.atari import SplitAtariVectorEnv
from ..envs.vector_env import vector_of
from ..errors import ConfigurationError
from .collectors.rollout_buffer import require_finite
from .collectors.torchrl import TensorDictStep, steps
from .collectors.vector import VectorRollouts
from .distributed import on_rank_zero
from .step_factory import EVALUATION_STEPS, Compile

MAX_STEPS, SLOW_MAX_STEPS, SLOW_SECONDS = 10_000, 2_000, 15.0
"""Default `max_steps` of environments without a time limit, and from when on it is `SLOW_MAX_STEPS`."""
ATARI_MAX_STEPS, ATARI_SLOW_MAX_STEPS = 27_000, 5_000

CUT_MESSAGE = """\
torchppo: %d of the %d episodes of the evaluation were cut after %d steps and count with their return so far; end \
episodes with +env.max_episode_steps=1000, or set eval.max_steps"""

logger = logging.getLogger("torchppo")


class Evaluation(NamedTuple):
    """Undiscounted raw returns and lengths of episodes, and how many of them were cut because they did not end."""

    returns: list[float]
    lengths: list[int]
    num_cut: int = 0

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        return float(np.std(self.returns))

    @property
    def metrics(self) -> dict[str, float]:
        lengths = float(np.mean(self.lengths))
        return {"eval/mean_reward": self.mean, "eval/std_reward": self.std, "eval/mean_ep_len": lengths}


def evaluate(
    actor: TensorDictModuleBase,
    env: EnvBase,
    episodes: int,
    *,
    max_steps: int | None = None,
    deterministic: bool = True,
    compile: Compile = False,  # noqa: A002
) -> Evaluation:
    """Roll out whole episodes. Every environment contributes the same number, so that short episodes do not count more.

    An episode of `max_steps` steps is cut: it counts with its return so far, and is the last one of its environment.

    Args:
        actor: the policy.
        env: a batched environment that writes `episode_reward` and `step_count`.
        episodes: number of episodes.
        max_steps: limit of an episode; `None`: see `default_max_steps`.
        deterministic: whether to use `deterministic_sample` (mode, mean or median) instead of random samples.
        compile: how the policy step runs.

    Raises:
        ConfigurationError: if `episodes` or `max_steps` is below 1.
        NumericalError: if an observation or reward is not finite.

    """
    for key, value in (("episodes", episodes), ("max_steps", max_steps)):
        if value is not None and value < 1:
            raise ConfigurationError(f"eval.{key}={value} must be at least 1")
    returns: list[float] = []
    lengths: list[int] = []
    num_envs, num_cut, start = env.batch_size.numel(), 0, time.monotonic()
    missing = np.full(num_envs, episodes // num_envs)
    missing[: episodes % num_envs] += 1
    for index, step in enumerate(rollout_episodes(actor, env, deterministic=deterministic, compile=compile)):
        require_finite(step.unsqueeze(1), name="evaluation", first_step=index)
        done, step_count = step["next", "done"].reshape(-1), step["next", "step_count"].reshape(-1)
        limit = max_steps or default_max_steps(env, time.monotonic() - start)
        for env_index in (done | (step_count >= limit)).nonzero().reshape(-1).tolist():
            if missing[env_index] > 0:
                is_cut = not done[env_index].item()
                missing[env_index] = 0 if is_cut else missing[env_index] - 1
                num_cut += is_cut
                returns.append(step["next", "episode_reward"].reshape(-1)[env_index].item())
                lengths.append(int(step_count[env_index]))
        if not missing.any():
            break
    if num_cut:
        logger.warning(CUT_MESSAGE, num_cut, len(returns), max(lengths))
    return Evaluation(returns, lengths, num_cut)


def default_max_steps(env: EnvBase, seconds: float) -> int:
    """Return the steps after which an episode is cut in an evaluation that has taken `seconds`.

    It is the time limit of the environment. Without one, it is 10,000, or 2,000 after 15 seconds. In Atari games, it is
    27,000, or 5,000 after 15 seconds.
    """
    vector = vector_of(env)
    is_slow = seconds > SLOW_SECONDS
    if isinstance(vector, SplitAtariVectorEnv):
        return ATARI_SLOW_MAX_STEPS if is_slow else ATARI_MAX_STEPS
    own_limit = getattr(getattr(vector, "spec", None), "max_episode_steps", None)
    return own_limit or (SLOW_MAX_STEPS if is_slow else MAX_STEPS)


def rollout_episodes(
    actor: TensorDictModuleBase,
    env: EnvBase,
    *,
    deterministic: bool = True,
    compile: Compile = False,  # noqa: A002
) -> Iterator[TensorDictBase]:
    """Step a policy endlessly; yield TensorDicts `[num_envs]` with their `next`."""
    exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    with torch.no_grad(), set_exploration_type(exploration), eval_mode(actor):
        if isinstance(env, VectorEnv):
            rollouts = VectorRollouts(env, actor, 1, compile=compile, num_policy_steps=EVALUATION_STEPS)
            while True:
                yield rollouts()[:, 0]
        yield from steps(TensorDictStep(actor, env.device, compile=compile, num_steps=EVALUATION_STEPS), env)


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


class EvaluateAndSave(Callback):
    """Evaluates the policy every `every_frames` frames and at the end, and saves the last and the best checkpoint.

    Args:
        run_evaluation: function that evaluates a policy, or returns `None` if a signal interrupts it. Without it, the
            mean return of the training takes the place of that of evaluations.
        directory: folder of `best.ckpt` and `last.ckpt`.
        every_frames: frames between evaluations. `None` evaluates only at the end.
        stop_at: mean return of an evaluation that ends the training; `None` trains to the last frame.

    """

    def __init__(
        self,
        run_evaluation: Callable[[Any], Evaluation | None] | None,
        directory: Path,
        every_frames: int | None,
        stop_at: float | None,
    ) -> None:
        self.run_evaluation = run_evaluation
        self.directory = directory
        self.every_frames = every_frames
        self.stop_at = stop_at
        self.best = float("-inf")
        self.last: Evaluation | None = None
        self._evaluated_at = 0

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "evaluated_at": self._evaluated_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self._evaluated_at = state_dict["best"], state_dict["evaluated_at"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.every_frames is not None and pl_module.frames - self._evaluated_at >= self.every_frames:
            mean = self._evaluate(trainer, pl_module)
            if mean is not None and self.stop_at is not None and mean >= self.stop_at:
                trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._evaluated_at != pl_module.frames:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, ppo: Any) -> float | None:
        """Save the last checkpoint, evaluate, and save the best one. Return the mean return if there is one.

        The last checkpoint is saved first, so that it exists even if the evaluation fails.
        """
        self._evaluated_at = ppo.frames
        save_checkpoint(trainer, self.directory / "last.ckpt")
        mean = self._mean_return(trainer, ppo)
        if mean is not None and mean > self.best:
            self.best = mean
            save_checkpoint(trainer, self.directory / "best.ckpt")
            save_checkpoint(trainer, self.directory / "last.ckpt")  # with the new best return
        return mean

    def _mean_return(self, trainer: Trainer, ppo: Any) -> float | None:
        run = self.run_evaluation
        if run is None:
            mean = trainer.callback_metrics.get("rollout/ep_rew_mean")
            return None if mean is None else float(mean)
        self.last = evaluation = on_rank_zero(lambda: run(ppo.actor))
        if evaluation is None:
            return None
        ppo.publish(evaluation.metrics)
        for callback in trainer.checkpoint_callbacks:
            if getattr(callback, "monitor", None) in evaluation.metrics:
                callback.on_validation_end(trainer, ppo)
        return evaluation.mean


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write a checkpoint under a temporary name and rename it.

    Lightning overwrites the file in place, so that a full disk would destroy the previous checkpoint too.

    Raises:
        OSError: if the file cannot be written; the error names `path`.

    """
    part = path.with_name(f".{path.name}.part")
    try:
        trainer.save_checkpoint(part)
        if trainer.is_global_zero:
            part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OSError(error.errno, error.strerror, str(path)) from error
