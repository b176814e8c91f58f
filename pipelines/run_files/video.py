"""A film of one episode."""

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
from ..build import build_evaluation_env, traces_evaluation
from ..episodes import play


def try_to_film(cfg: DictConfig, actor: Any, path: Path, seed: int) -> Path | None:
    """Record a video, or say in one line why there is none: a machine without graphics still trains."""
    if "render_mode" not in cfg.env:
        Console(stderr=True).print("no video: only Gymnasium environments are filmed")
        return None
    if "DISPLAY" not in os.environ:  # draw without a screen
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        env = build_evaluation_env(cfg, seed=seed, num_envs=1, render_mode="rgb_array")
        record_video(actor, env, path, trace=traces_evaluation(cfg))
    except Exception as error:  # noqa: BLE001 - whatever a graphics driver raises must not cost a finished run
        Console(stderr=True, soft_wrap=True).print(f"no video: {type(error).__name__}: {error}", markup=False)
        return None
    return path


def require_writable(path: Path) -> None:
    """Raise an OSError where no film can be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryFile(dir=path.parent):
        pass
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "Is a directory", str(path))


def record_video(
    actor: TensorDictModuleBase, env: EnvBase, path: Path, max_steps: int = 5000, *, trace: bool = False
) -> None:
    """Film one episode of the deterministic policy as an mp4.

    Args:
        actor: the policy.
        env: one environment that renders `rgb_array`, or shows images; closed afterwards.
        path: of the video.
        max_steps: the film ends here if the episode does not.
        trace: whether to step with a graph of the policy.

    """
    with closing(env):
        frames = film(actor, env, max_steps, trace=trace)
        first = next(frames)
        path.parent.mkdir(parents=True, exist_ok=True)
        # Even sizes are what the codec takes; macro_block_size 2 scales odd ones.
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
                    raise EnvironmentFailure(f"a frame of {frame.shape} follows one of {first.shape}")
                writer.send(np.ascontiguousarray(frame))


def film(actor: TensorDictModuleBase, env: EnvBase, max_steps: int, *, trace: bool) -> Iterator[NDArray[np.uint8]]:
    """Frames `[height, width, 3]` of one episode, one after every step but the last, which shows the next episode."""
    for step, stepped in enumerate(play(actor, env, trace=trace)):
        is_over = bool(stepped["next", "done"].any())
        if step == 0 or not is_over:
            yield frame_of(env, stepped)
        if is_over or step + 1 >= max_steps:
            return


def frame_of(env: Any, stepped: TensorDictBase) -> NDArray[np.uint8]:
    """What the environment renders, or where it renders nothing the newest grey image of the observation, enlarged.

    Raises:
        EnvironmentFailure: if that is no picture.

    """
    if env.vector.render_mode == "rgb_array":
        frame = np.asarray(env.vector.render()[0])
    else:
        seen = stepped.get("observation")  # a TensorDict where it is nested
        if not (isinstance(seen, Tensor) and seen.dim() == 4):
            raise EnvironmentFailure("the environment renders no rgb_array")
        image = seen[0, -1].cpu().numpy()
        frame = np.repeat(np.kron(image, np.ones((4, 4), image.dtype))[..., None], 3, axis=-1)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[-1] != 3:
        raise EnvironmentFailure(f"the environment shows {frame.dtype} {frame.shape}, not uint8 [height, width, 3]")
    return frame
