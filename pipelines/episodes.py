"""Evaluates a deterministic policy over whole episodes, also during training."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning import Callback, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type

from ..envs import VectorEnv
from ..errors import ConfigurationError, EnvironmentFailure
from ..modules.actor_critic import without_critic
from .collectors.rollout_buffer import require_finite
from .collectors.torchrl import TensorDictStep, steps
from .collectors.vector import VectorRollouts
from .distributed import on_rank_zero
from .metrics.episode_info import add_infos, ended_infos, mean_infos
from .step_factory import EVALUATION_STEPS, Compile

MAX_ENVS = 20
"""Maximum number of environments that an evaluation steps at once."""
MAX_STEPS = 100_000
"""Maximum length of an episode of an evaluation: three times the longest episodes of Gymnasium and Atari."""


class Evaluation(NamedTuple):
    """Undiscounted raw returns and lengths of whole episodes, and the entries of `info` that they reported."""

    returns: list[float]
    lengths: list[int]
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
        metrics = {f"eval/{name}": value for name, value in own.items()}
        return metrics | (mean_infos("eval", self.infos) if self.infos else {})


def evaluate(actor: TensorDictModuleBase, env: EnvBase, episodes: int, *, compile: Compile = False) -> Evaluation:  # noqa: A002
    """Roll out whole episodes with the distributions' `deterministic_sample`: mode, mean or median.

    Every environment contributes the same number of episodes, so that short episodes do not count more often.

    Args:
        actor: the policy.
        env: a batched environment that writes `episode_reward` and `step_count`.
        episodes: number of episodes.
        compile: how the policy step runs.

    Raises:
        ConfigurationError: if `episodes` is below 1.
        EnvironmentFailure: if an episode does not end.
        NumericalError: if an observation or reward is not finite.

    """
    if episodes < 1:
        raise ConfigurationError(f"eval.episodes={episodes} must be at least 1")
    num_envs = env.batch_size.numel()
    missing = np.full(num_envs, episodes // num_envs)
    missing[: episodes % num_envs] += 1
    returns: list[float] = []
    lengths: list[int] = []
    infos: dict[str, Any] = {}
    for index, step in enumerate(rollout_episodes(actor, env, compile=compile)):
        require_finite(step.unsqueeze(1), name="evaluation", first_step=index)
        data = step["next"]
        for env_index in data["done"].reshape(-1).nonzero().reshape(-1).tolist():
            if missing[env_index] > 0 and data["step_count"].reshape(-1)[env_index] > 0:  # 0: a skipped step
                missing[env_index] -= 1
                returns.append(data["episode_reward"].reshape(-1)[env_index].item())
                lengths.append(data["step_count"].reshape(-1)[env_index].item())
                if "episode_info" in data.keys():  # noqa: SIM118
                    add_infos(infos, ended_infos(data, [env_index]))
        if not missing.any():
            break
        if data["step_count"].max() >= MAX_STEPS:
            raise EnvironmentFailure(
                f"an episode of the evaluation has not ended after {MAX_STEPS} steps; set "
                "+env.max_episode_steps=1000, or for a TorchRL environment "
                "transforms=[{_target_: torchrl.envs.StepCounter, max_steps: 1000}]"
            )
    return Evaluation(returns, lengths, infos)


class EvaluationEpisodes:
    """A dataloader for `trainer.validate`, `trainer.test` and `val_dataloaders`. Its only batch is an `Evaluation`.

    Every evaluation has the same episodes and does not change the random state of the training. Only rank 0 runs it.

    Args:
        env: a batched environment, separate from the training environment. The caller closes it.
        actor: the policy.
        episodes: number of episodes.
        seed: seed of the environment in every evaluation.

    """

    def __init__(self, env: EnvBase, actor: TensorDictModuleBase, episodes: int = 20, *, seed: int = 0) -> None:
        self.env = env
        self.actor = actor
        self.episodes = episodes
        self.seed = seed

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[Evaluation]:
        with isolate_rng():
            evaluation = on_rank_zero(self._evaluate)
        yield evaluation

    def _evaluate(self) -> Evaluation:
        self.env.set_seed(self.seed)
        return evaluate(self.actor, self.env, self.episodes)


def num_envs_for(episodes: int) -> int:
    """Return the number of environments that evaluate `episodes` episodes."""
    return max(1, min(episodes, MAX_ENVS))


def rollout_episodes(
    actor: TensorDictModuleBase,
    env: EnvBase,
    *,
    compile: Compile = False,  # noqa: A002
) -> Iterator[TensorDictBase]:
    """Step a deterministic policy endlessly; yield TensorDicts `[num_envs]` with their `next`."""
    actor = without_critic(actor)
    with torch.no_grad(), set_exploration_type(ExplorationType.DETERMINISTIC), eval_mode(actor):
        if isinstance(env, VectorEnv):
            rollouts = VectorRollouts(env, actor, 1, compile=compile, num_policy_steps=EVALUATION_STEPS)
            while True:
                yield rollouts()[:, 0]
        yield from steps(TensorDictStep(actor, env.device, compile=compile, num_steps=EVALUATION_STEPS), env)


@contextmanager
def eval_mode(module: nn.Module) -> Iterator[None]:
    """Put a module and its submodules into evaluation mode, without dropout, and restore their modes at the end."""
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
        run_evaluation: function that evaluates a policy, or returns `None` if a signal interrupts it.
        directory: folder of `best.ckpt` and `last.ckpt`.
        every_frames: frames between evaluations. `None` evaluates only at the end.
        stop_at: mean return of an evaluation that ends the training; `None` trains to the last frame.

    Raises:
        ConfigurationError: if `every_frames` is below 1 or `stop_at` is not a number.

    """

    def __init__(
        self,
        run_evaluation: Callable[[Any], Evaluation | None],
        directory: Path,
        every_frames: int | None,
        stop_at: float | None,
    ) -> None:
        if every_frames is not None and every_frames < 1:
            raise ConfigurationError(
                f"eval.every_frames={every_frames} must be at least 1, or null to evaluate only at the end"
            )
        if not isinstance(stop_at, int | float | None):
            raise ConfigurationError(f"eval.stop_at={stop_at} is not a number")
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
            self._evaluate(trainer, pl_module)
            if self.last is not None and self.stop_at is not None and self.last.mean >= self.stop_at:
                trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        if self._evaluated_at != pl_module.frames:
            self._evaluate(trainer, pl_module)

    def _evaluate(self, trainer: Trainer, ppo: Any) -> None:
        """Save the last checkpoint, then evaluate, so that the checkpoint exists even if the evaluation fails."""
        self._evaluated_at = ppo.frames
        save_checkpoint(trainer, self.directory / "last.ckpt")
        self.last = evaluation = on_rank_zero(lambda: self.run_evaluation(ppo.actor))
        if evaluation is None:
            return
        ppo.publish(evaluation.metrics)
        for callback in trainer.checkpoint_callbacks:
            if getattr(callback, "monitor", None) in evaluation.metrics:
                callback.on_validation_end(trainer, ppo)
        if evaluation.mean > self.best:
            self.best = evaluation.mean
            save_checkpoint(trainer, self.directory / "best.ckpt")
            save_checkpoint(trainer, self.directory / "last.ckpt")  # with the new best return


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
