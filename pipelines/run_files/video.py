"""Records videos of one episode."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import imageio_ffmpeg
import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from rich.console import Console
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from ...errors import EnvironmentFailure
from ..build import evaluation_compile
from ..components.instantiate import build_evaluation_env
from ..episodes import rollout_episodes
from ..step_factory import Compile


def try_to_record_video(cfg: DictConfig, actor: Any, path: Path, seed: int) -> Path | None:
    """Record a video. If that fails, print one line: training also works on a machine without graphics."""
    if "render_mode" not in cfg.env:
        Console(stderr=True).print("no video: only Gymnasium environments can be recorded")
        return None
    if "DISPLAY" not in os.environ:  # render without a screen
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        env = build_evaluation_env(cfg, seed=seed, num_envs=1, render_mode="rgb_array")
        record_video(actor, env, path, compile=evaluation_compile(cfg))
    except Exception as error:  # noqa: BLE001 - a graphics driver may raise anything, and the run is already complete
        Console(stderr=True, soft_wrap=True).print(f"no video: {type(error).__name__}: {error}", markup=False)
        return None
    return path


def require_writable(path: Path) -> None:
    """Raise an OSError if a video cannot be written to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=path.parent):
        pass
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))


def record_video(
    actor: TensorDictModuleBase,
    env: EnvBase,
    path: Path,
    max_steps: int = 5000,
    *,
    compile: Compile = False,  # noqa: A002
) -> None:
    """Record one episode of the deterministic policy as an mp4.

    Args:
        actor: the policy.
        env: one environment that renders `rgb_array` or has image observations; it is closed afterwards.
        path: path of the video.
        max_steps: maximum number of steps in the video.
        compile: how the policy step runs.

    """
    with closing(env):
        frames = episode_frames(actor, env, max_steps, compile=compile)
        first = next(frames)
        path.parent.mkdir(parents=True, exist_ok=True)
        # The codec needs even sizes; macro_block_size=2 scales odd ones.
        writer = imageio_ffmpeg.write_frames(
            str(path),
            first.shape[1::-1],
            fps=env.vector.metadata.get("render_fps", 30),
            macro_block_size=2,
            ffmpeg_log_level="error",
            output_params=["-preset", "veryfast"],
        )
        with closing(writer):
            writer.send(None)
            for frame in chain([first], frames):
                if frame.shape != first.shape:
                    raise EnvironmentFailure(f"the size of the frames changes from {first.shape} to {frame.shape}")
                writer.send(np.ascontiguousarray(frame))


def episode_frames(
    actor: TensorDictModuleBase,
    env: EnvBase,
    max_steps: int,
    *,
    compile: Compile,  # noqa: A002
) -> Iterator[NDArray[np.uint8]]:
    """Yield frames `[height, width, 3]` of one episode.

    There is one frame after every step but the last, after which the environment shows the next episode.
    """
    for index, step in enumerate(rollout_episodes(actor, env, compile=compile)):
        is_over = bool(step["next", "done"].any())
        if index == 0 or not is_over:
            yield render(env, step)
        if is_over or index + 1 >= max_steps:
            return


def render(env: Any, step: TensorDictBase) -> NDArray[np.uint8]:
    """Return what the environment renders, or the newest grey image of the observation, enlarged.

    Raises:
        EnvironmentFailure: if the result is not an image.

    """
    if env.vector.render_mode == "rgb_array":
        frame = np.asarray(env.vector.render()[0])
    else:
        observation = step.get("observation")  # a TensorDict for nested observations
        if not (isinstance(observation, Tensor) and observation.dim() == 4):
            raise EnvironmentFailure("the environment does not render rgb_array")
        image = observation[0, -1].cpu().numpy()
        frame = np.repeat(np.kron(image, np.ones((4, 4), image.dtype))[..., None], 3, axis=-1)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise EnvironmentFailure(f"the environment renders {frame.dtype} {frame.shape}, not uint8 [height, width, 3]")
    return frame
