"""Evaluates a policy over whole episodes, also during training."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Generator, Mapping
from numbers import Integral
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, Trainer
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from ..envs import VectorEnv
from ..envs.vector_env import vector_of
from ..errors import ConfigurationError
from ..modules.actor_critic import eval_mode, without_critic
from .collectors.rollout_buffer import require_finite
from .collectors.torchrl import TensorDictStep, steps
from .collectors.vector import VectorRollouts
from .distributed import on_rank_zero
from .metrics.episode_statistics import add_infos, ended_infos, mean_infos
from .saving.files import save_checkpoint
from .saving.last_checkpoint import LastCheckpoint
from .saving.state import has_same_end, load_collector, restore_random_state
from .step_factory import EVALUATION_STEPS, Compile

MAX_STEPS = 5_000
"""Default `max_steps` of an environment without a time limit."""
CUT_MESSAGE = """\
torchppo: %d of the %d episodes of the evaluation were cut after %d steps and count with their return so far; end \
episodes with +env.max_episode_steps=1000, or set eval.max_steps"""

logger = logging.getLogger("torchppo")


class Evaluation(NamedTuple):
    """Results of the episodes of an evaluation.

    Attributes:
        returns: undiscounted raw returns.
        lengths: numbers of steps.
        num_cut: number of episodes that were cut because they did not end.
        infos: values of the entries of `info` that the episodes reported, by key.

    """

    returns: list[float]
    lengths: list[int]
    num_cut: int = 0
    infos: Mapping[str, Collection[float]] = {}

    @property
    def mean(self) -> float:
        return float(np.mean(self.returns))

    @property
    def std(self) -> float:
        return float(np.std(self.returns))

    @property
    def metrics(self) -> dict[str, float]:
        own = {"mean_reward": self.mean, "std_reward": self.std, "mean_ep_len": float(np.mean(self.lengths))}
        return {f"eval/{name}": value for name, value in own.items()} | mean_infos("eval", self.infos)


def evaluate(
    actor: TensorDictModuleBase,
    env: EnvBase,
    episodes: int,
    *,
    max_steps: int | None = None,
    deterministic: bool = True,
    compile: Compile = False,  # noqa: A002
) -> Evaluation:
    """Evaluate a policy over whole episodes: the same number in every environment, so that short ones are not favored.

    An episode is cut after `max_steps` steps. It counts with its return so far and is the last one of its environment.

    Args:
        actor: the policy.
        env: a batched environment that writes `episode_reward` and `step_count`; not that of a collector in use.
        episodes: number of episodes.
        max_steps: maximum number of steps of an episode; `None` uses `default_max_steps`.
        deterministic: whether actions are the `deterministic_sample` (mode, mean or median) or random samples.
        compile: how the policy step runs.

    Raises:
        ConfigurationError: if `episodes` or `max_steps` is below 1.
        EnvironmentFailure: if an observation or reward is not finite.

    """
    for key, value in (("episodes", episodes), ("max_steps", max_steps)):
        if value is not None and (not isinstance(value, Integral) or value < 1):
            raise ConfigurationError(f"eval.{key}={value} must be a whole number of at least 1")
    ended: list[tuple[float, int, bool]] = []
    infos: dict[str, Any] = {}
    num_envs, limit = env.batch_size.numel(), max_steps or default_max_steps(env)
    missing = np.bincount(np.arange(episodes) % num_envs, minlength=num_envs)
    for index, step in enumerate(rollout_episodes(actor, env, deterministic=deterministic, compile=compile)):
        require_finite(step.unsqueeze(1), name="evaluation", first_step=index)
        done, rewards, lengths = (step["next", key].reshape(-1) for key in ("done", "episode_reward", "step_count"))
        is_over = (done | (lengths >= limit)) & (lengths > 0)  # 0: a skipped step
        for env_index in is_over.nonzero().flatten().tolist():
            if missing[env_index] > 0:
                is_cut = not done[env_index].item()
                missing[env_index] = 0 if is_cut else missing[env_index] - 1
                ended.append((rewards[env_index].item(), int(lengths[env_index]), is_cut))
                if "episode_info" in step["next"].keys():  # noqa: SIM118
                    add_infos(infos, ended_infos(step["next"], [env_index]))
        if not missing.any():
            break
    returns, steps_taken, cuts = map(list, zip(*ended, strict=True))
    if any(cuts):
        logger.warning(CUT_MESSAGE, sum(cuts), len(ended), max(steps_taken))
    return Evaluation(returns, steps_taken, sum(cuts), infos)


def default_max_steps(env: EnvBase) -> int:
    """Return the time limit of an environment, or `MAX_STEPS` if it has none."""
    vector = vector_of(env)
    return getattr(getattr(vector, "spec", None), "max_episode_steps", None) or MAX_STEPS


def rollout_episodes(
    actor: TensorDictModuleBase,
    env: EnvBase,
    *,
    deterministic: bool = True,
    compile: Compile = False,  # noqa: A002
) -> Generator[TensorDictBase, None, None]:
    """Step a policy endlessly; yield TensorDicts `[num_envs]` with their `next`.

    Closing the generator restores the modes of the policy and of PyTorch.
    """
    actor = without_critic(actor)
    exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
    with torch.no_grad(), set_exploration_type(exploration), eval_mode(actor):
        if isinstance(env, VectorEnv):
            rollouts = VectorRollouts(env, actor, 1, compile=compile, num_policy_steps=EVALUATION_STEPS)
            while True:
                yield rollouts()[:, 0]
        yield from steps(TensorDictStep(actor, env.device, compile=compile, num_steps=EVALUATION_STEPS), env)


class EvaluateAndSave(Callback):
    """Evaluates the policy every `every_frames` frames and at the end, and saves the last and the best checkpoint.

    Args:
        run_evaluation: function that evaluates a policy, or returns `None` if a signal interrupts it. If it is `None`,
            the mean training return is used instead of the mean return of evaluations.
        directory: folder of `best.ckpt` and `last.ckpt`.
        every_frames: frames between evaluations. `None` evaluates only at the end.
        stop_at: mean return of an evaluation that ends the training; `None` trains to the last frame.
        save_every_frames: see `LastCheckpoint`.
        save_every_seconds: see `LastCheckpoint`.

    """

    def __init__(
        self,
        run_evaluation: Callable[[Any], Evaluation | None] | None,
        directory: Path,
        every_frames: int | None,
        stop_at: float | None,
        *,
        save_every_frames: int | None = None,
        save_every_seconds: float | None = None,
    ) -> None:
        self.run_evaluation = run_evaluation
        self.directory = directory
        self.every_frames = every_frames
        self.stop_at = stop_at
        self.last_checkpoint = LastCheckpoint(directory, save_every_frames, save_every_seconds)
        self.best = float("-inf")
        self.last: Evaluation | None = None
        self.evaluated_at = 0

    def state_dict(self) -> dict[str, Any]:
        last = self.last and plain_evaluation(self.last)
        return {"best": self.best, "evaluated_at": self.evaluated_at, "last": last}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.evaluated_at = state_dict["best"], state_dict["evaluated_at"]
        self.last = state_dict["last"] and Evaluation(*state_dict["last"])

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Repeat the evaluation if it was interrupted after the checkpoint had been saved."""
        load_collector(trainer)  # `start_training` would do it only after the checkpoints are saved again
        restore_random_state(pl_module)  # environments may use it
        self.last_checkpoint.start(trainer, pl_module.frames)
        trainer.should_stop |= has_same_end(pl_module) and self.stop_at is not None and self.best >= self.stop_at
        self._evaluate_if_due(trainer, pl_module)

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not self._evaluate_if_due(trainer, pl_module):
            self.last_checkpoint.save_if_due(trainer, pl_module.frames)

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self.evaluated_at != pl_module.frames:
            self._evaluate(trainer, pl_module)

    def _evaluate_if_due(self, trainer: Trainer, ppo: Any) -> bool:
        if self.every_frames is None or ppo.frames - self.evaluated_at < self.every_frames:
            return False
        mean = self._evaluate(trainer, ppo)
        if mean is not None and self.stop_at is not None and mean >= self.stop_at:
            trainer.should_stop = True
        return True

    def _evaluate(self, trainer: Trainer, ppo: Any) -> float | None:
        """Save the last checkpoint, evaluate, and save the best checkpoint. Return the mean return, or `None`.

        The last checkpoint is saved before, so that it exists even if the evaluation fails, and after, with its result.
        """
        self.last_checkpoint.save(trainer, ppo.frames)
        mean = self._mean_return(trainer, ppo)
        if mean is None and self.run_evaluation is not None:
            return None  # a signal has interrupted the evaluation
        self.evaluated_at = ppo.frames
        if mean is not None and mean > self.best:
            self.best = mean
            save_checkpoint(trainer, self.directory / "best.ckpt")
        self.last_checkpoint.update(trainer)
        return mean

    def _mean_return(self, trainer: Trainer, ppo: Any) -> float | None:
        run = self.run_evaluation
        if run is None:
            mean = trainer.callback_metrics.get("rollout/ep_rew_mean")
            return None if mean is None else float(mean)
        if (evaluation := on_rank_zero(lambda: run(ppo.actor))) is None:
            return None
        self.last = evaluation
        ppo.publish(evaluation.metrics)
        for callback in trainer.checkpoint_callbacks:
            if getattr(callback, "monitor", None) in evaluation.metrics:
                callback.on_validation_end(trainer, ppo)
        return evaluation.mean


def plain_evaluation(one: Evaluation) -> list[Any]:
    """Return the fields of an evaluation as lists and dictionaries."""
    return [[*one.returns], [*one.lengths], one.num_cut, {name: [*values] for name, values in one.infos.items()}]
