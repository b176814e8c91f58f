"""Records videos of episodes."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import chain
from pathlib import Path
from tempfile import TemporaryFile
from threading import Timer
from typing import Any, cast

import imageio_ffmpeg
import numpy as np
from hydra.utils import get_object
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, TransformedEnv
from torchrl.envs.batched_envs import BatchedEnvBase
from torchrl.envs.gym_like import GymLikeEnv

from ...envs import SerialVectorEnv
from ...envs.entry_points import accepts
from ...envs.guards import time_limit
from ...envs.vector.forked_call import signals_blocked
from ...envs.vector_env import vector_of
from ...errors import EnvironmentFailure, TorchPPOError
from ..build import evaluation_compile
from ..components.instantiate import build_evaluation_env, evaluation_config
from ..components.single_env import is_single_env
from ..episodes import rollout_episodes
from ..step_factory import Compile
from ..stopping.signals import Stopped
from .frames import Canvas, CollectFrames, images_of, newest_image

MAX_SECONDS = 30.0
"""A video ends after this many seconds of recording, so that slow rendering does not delay the results."""

MAX_FPS = 30.0
"""Approximate limit of the images per second. More images take longer to render and to encode."""

FFMPEG_SECONDS = 30.0
"""How long ffmpeg may take for one image, or to finish a video."""


def try_to_record_video(
    cfg: DictConfig, actor: Any, path: Path, seed: int, *, episodes: int, deterministic: bool = True
) -> Path | None:
    """Record a video. If that fails, print one line: training also works on a machine without graphics."""
    console = Console(stderr=True, soft_wrap=True)
    if "DISPLAY" not in os.environ:  # render without a screen
        os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
        os.environ.setdefault("MUJOCO_GL", "egl")
    try:
        with console.status("recording a video"), isolate_rng(), closing(build_rendering_env(cfg, seed)) as env:
            options: dict[str, Any] = {"deterministic": deterministic, "compile": evaluation_compile(cfg)}
            record_video(actor, env, path, episodes=episodes, **options)
    except Stopped:
        path.unlink(missing_ok=True)  # the file is incomplete
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - rendering may raise anything, and the run is complete
        path.unlink(missing_ok=True)
        reason = error if isinstance(error, TorchPPOError) else f"{type(error).__name__}: {error}"
        console.print(f"no video: {reason}", markup=False)
        return None
    return path


def build_rendering_env(cfg: DictConfig, seed: int) -> EnvBase:
    """Build one evaluation environment that renders, or that has pixels in its observations."""
    node = evaluation_config(cfg).env
    options: dict[str, Any] = {"seed": seed, "num_envs": 1, "num_workers": 0}
    if is_single_env(node):
        options["vectorization"] = "auto"  # a single environment renders all states
    if "render_mode" in node:
        mode = node.render_mode if str(node.render_mode).startswith("rgb_array") else "rgb_array"
        return build_evaluation_env(cfg, render_mode=mode, **options)
    target = get_object(node._target_)
    if isinstance(target, type) and issubclass(target, GymLikeEnv) and not node.get("from_pixels"):
        pixels = {"eval": {"env": {"from_pixels": True, "pixels_only": False}}}
        return build_evaluation_env(cast(DictConfig, OmegaConf.merge(cfg, pixels)), **options)
    return build_evaluation_env(cfg, **options)


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
    *,
    episodes: int = 1,
    max_steps: int = 5000,
    deterministic: bool = True,
    compile: Compile = False,  # noqa: A002
) -> None:
    """Record episodes as an mp4. A line above the image shows the episode, its step and its return so far.

    Args:
        actor: the policy.
        env: one environment that renders or has image observations. The caller closes it.
        path: path of the video.
        episodes: number of episodes.
        max_steps: maximum number of steps in the video.
        deterministic: see `evaluate`.
        compile: how the policy step runs.

    Raises:
        EnvironmentFailure: if the environment renders nothing.

    """
    fps = collect_frames(env)
    with closing(rollout_episodes(actor, env, deterministic=deterministic, compile=compile)) as steps:
        write_video(episode_images(steps, env, episodes, max_steps), path, fps)


def write_video(images: Iterator[tuple[NDArray[np.uint8], str]], path: Path, fps: float) -> None:
    """Write images, each with its line of text, as an mp4.

    Raises:
        EnvironmentFailure: if there are no images.

    """
    first = next(images, None)
    if first is None:
        raise EnvironmentFailure("the environment renders nothing; return an image from render()")
    canvas = Canvas(first[0])
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = imageio_ffmpeg.write_frames(
        str(path),
        canvas.size,
        fps=fps,
        codec=known_codec(),
        macro_block_size=2,
        ffmpeg_log_level="error",
        ffmpeg_timeout=FFMPEG_SECONDS,
        output_params=["-preset", "veryfast"],
    )
    with closing(writer):
        with signals_blocked(), time_limit(FFMPEG_SECONDS):  # Ctrl-C does not reach ffmpeg, which may test encoders
            writer.send(None)
        for image, text in chain([first], images):
            send(writer, canvas(image, text))


def known_codec() -> str | None:
    """Return the codec of the ffmpeg in imageio-ffmpeg. With `None`, imageio-ffmpeg tests codecs, which takes 0.3 s."""
    with signals_blocked(), time_limit(FFMPEG_SECONDS):
        program = Path(imageio_ffmpeg.get_ffmpeg_exe())
    return "libx264" if program.is_relative_to(Path(imageio_ffmpeg.__file__).parent) else None


def send(writer: Any, image: NDArray[np.uint8]) -> None:
    """Send an image to ffmpeg; kill it if it does not read. Reads the process of imageio-ffmpeg 0.6."""
    timer = Timer(FFMPEG_SECONDS, writer.gi_frame.f_locals["p"].kill)
    timer.start()
    try:
        writer.send(image)
    except OSError as error:
        if timer.finished.is_set():
            raise TimeoutError(f"ffmpeg did not read an image within {FFMPEG_SECONDS:g} seconds") from error
        raise
    finally:
        timer.cancel()


def frames_per_second(env: EnvBase) -> float:
    """Return `metadata["render_fps"]` of a Gymnasium environment if it is a positive number, else 30."""
    fps = (getattr(vector_of(env), "metadata", None) or {}).get("render_fps")
    return float(fps) if isinstance(fps, int | float | np.number) and fps > 0 else 30.0


def collect_frames(env: EnvBase) -> float:
    """Wrap Gymnasium environments that render in `CollectFrames`; return the images per second of the video.

    If the environment has more than `MAX_FPS`, its rate is divided by a whole number, to a rate near `MAX_FPS`.
    """
    vector, fps = vector_of(env), frames_per_second(env)
    if not isinstance(vector, SerialVectorEnv) or vector.render_mode is None:
        return fps
    steps = max(1, round(fps / MAX_FPS)) if vector.render_mode == "rgb_array" else 1  # lists have all images
    vector.envs = [CollectFrames(one, steps) for one in vector.envs]
    return fps / steps


def episode_images(
    steps: Iterator[TensorDictBase], env: EnvBase, episodes: int, max_steps: int
) -> Iterator[tuple[NDArray[np.uint8], str]]:
    """Yield images and their text: the first state of every episode, and the state after every step."""
    episode, is_first, start = 1, True, time.monotonic()
    for index, step in enumerate(steps):
        one = step["next"].reshape(-1)[0]  # TorchRL environments may have several
        is_over = bool(one["done"].any())
        before, after = views(env, step, is_first, is_over)
        values = int(one["step_count"]), float(one["episode_reward"])
        for view, (count, reward) in ((before, (0, 0.0)), (after, values)):
            for image in images_of(view):
                yield image, f"episode {episode}   step {count}   return {reward:.5g}"
        episode, is_first = episode + is_over, is_over
        is_late = time.monotonic() - start > MAX_SECONDS
        if episode > episodes or index + 1 >= max_steps or is_late:
            return


def views(env: EnvBase, step: TensorDictBase, is_first: bool, is_over: bool) -> tuple[Any, Any]:
    """Return what the environment shows before a step, if the step is the first of an episode, and after it.

    It is the result of `render()`, the pixels of a TorchRL environment, or the newest image of the observation.
    """
    vector = vector_of(env)
    if vector is not None and vector.render_mode is not None:
        collected = vector.envs[0] if isinstance(vector, SerialVectorEnv) else None
        if not isinstance(collected, CollectFrames):
            return None, None if is_over else vector.render()[0]  # the environment has been reset
        return collected.starts.popleft() if is_first else None, collected.last
    if vector is not None:
        before, after = step.get("observation"), step["next"].get("observation")
        return newest_image(before) if is_first else None, newest_image(after)
    if "pixels" in step["next"].keys():  # noqa: SIM118 - TensorDict does not implement `in`
        return step["pixels"][0] if is_first else None, step["next", "pixels"][0]
    while isinstance(env, TransformedEnv | BatchedEnvBase):
        env = env.base_env if isinstance(env, TransformedEnv) else env._envs[0]
    if not callable(getattr(env, "render", None)):
        hint = "add +env.from_pixels=true" if accepts(type(env).__init__, "from_pixels") else "set eval.video=false"
        raise EnvironmentFailure(f"{type(env).__name__} has no pixels and no render(); {hint}")
    return None, None if is_over else env.render()  # the environment has been reset
