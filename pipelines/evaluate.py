"""Evaluates a checkpoint (`torchppo eval`), or a policy in Lightning's validation loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import torch
from hydra.core.override_parser.types import Override
from lightning.pytorch.utilities.seed import isolate_rng
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase

from ..envs.vector_env import vector_of
from ..errors import ConfigurationError
from .build import env_name, evaluation_compile
from .checkpoint import restore
from .components.instantiate import evaluation_config
from .distributed import on_rank_zero
from .episodes import Evaluation, evaluate
from .run_files.summary import Summary, evaluation_figures
from .run_files.video import try_to_record_video


def evaluate_checkpoint(
    path: Path,
    *,
    episodes: int,
    seed: int,
    video: Path | None,
    video_episodes: int = 3,
    deterministic: bool = True,
    render_mode: str | None = None,
    overrides: Iterable[Override] = (),
    trust: Iterable[str] = (),
) -> Summary:
    """Evaluate the policy of a checkpoint over whole episodes, and record a video.

    Args:
        path: path of the checkpoint.
        episodes: number of episodes.
        seed: seed of the environments and of random actions.
        video: path of the video; `None` disables it.
        video_episodes: number of episodes in the video.
        deterministic: see `evaluate`.
        render_mode: `human` shows the episodes in a window, one after the other.
        overrides: overrides of Hydra for keys of `env` or `eval`.
        trust: packages that the checkpoint may name, see `trusted_config`.

    Raises:
        TorchPPOError: if the checkpoint cannot be used or its environment cannot be made.

    """
    for name, value, minimum in (("episodes", episodes, 1), ("video-episodes", video_episodes, 1), ("seed", seed, 0)):
        if value < minimum:
            raise ConfigurationError(f"--{name} {value} must be at least {minimum}")
    options = {} if render_mode is None else {"num_envs": 1, "num_workers": 0, "render_mode": render_mode}
    ppo, cfg, env = restore(path, seed=seed, episodes=episodes, overrides=overrides, trust=trust, **options)
    with closing(env), isolate_rng():
        if render_mode is not None and getattr(vector_of(env), "render_mode", None) != render_mode:
            raise ConfigurationError(
                f"--render {render_mode} does not apply to {env_name(cfg)}; record a video instead"
            )
        torch.manual_seed(seed)
        limits = {"max_steps": cfg.eval.get("max_steps"), "compile": evaluation_compile(cfg)}
        result = evaluate(ppo.actor, env, episodes, deterministic=deterministic, **limits)
    if video:
        video = try_to_record_video(cfg, ppo.actor, video, seed, episodes=video_episodes, deterministic=deterministic)
    files = {"checkpoint": str(path), "video": str(video) if video else None}
    length = {"eval_length_mean": sum(result.lengths) / len(result.lengths)}
    return {"env": env_name(evaluation_config(cfg)), **files, **length, **evaluation_figures(result)}


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
