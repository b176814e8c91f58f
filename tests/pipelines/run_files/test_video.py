"""A video shows what an environment renders, and other frames are rejected."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
from gymnasium import spaces
from tensordict.nn import TensorDictModule
from torch import nn

from torchppo.envs import SerialVectorEnv, VectorEnv
from torchppo.errors import EnvironmentFailure
from torchppo.pipelines.run_files.video import record_video


class Rendering(gymnasium.Env[Any, Any]):
    """Episodes of five steps that render `frame(step)`."""

    metadata = {"render_fps": 10}  # noqa: RUF012
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,))

    def __init__(self, frame: Any) -> None:
        self.frame, self.render_mode = frame, None if frame is None else "rgb_array"
        self.num_steps, self.closed = 0, False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.num_steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        return np.zeros(2, np.float32), 0.0, self.num_steps == 5, False, {}

    def render(self) -> Any:
        return self.frame(self.num_steps)

    def close(self) -> None:
        self.closed = True


def record(env: Rendering, path: Path) -> None:
    actor = TensorDictModule(nn.Linear(2, 2), ["observation"], ["action"])
    record_video(actor, VectorEnv(SerialVectorEnv([lambda: env])), path)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the reader does not close its pipes
def test_video_has_the_size_and_the_frames_of_an_episode(tmp_path: Path) -> None:
    env = Rendering(lambda step: np.full((32, 48, 3), 40 * step, np.uint8))
    record(env, tmp_path / "videos" / "one.mp4")
    reader = imageio_ffmpeg.read_frames(str(tmp_path / "videos" / "one.mp4"))
    meta = next(reader)
    frames = [np.frombuffer(frame, np.uint8).reshape(32, 48, 3) for frame in reader]
    assert (meta["size"], meta["fps"]) == ((48, 32), 10.0)
    np.testing.assert_allclose([frame.mean() for frame in frames], [40, 80, 120, 160], atol=4)
    assert env.closed


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (None, "rgb_array"),
        (lambda _: np.zeros((32, 48, 3)), r"float64 \(32, 48, 3\)"),
        (lambda _: np.zeros((32, 48, 4), np.uint8), r"uint8 \(32, 48, 4\)"),
        (lambda _: np.zeros((32, 48), np.uint8), r"uint8 \(32, 48\)"),
        (lambda step: np.zeros((32 * step, 48, 3), np.uint8), r"\(32, 48, 3\).*\(64, 48, 3\)"),
    ],
    ids=["no render mode", "floats", "four channels", "no channels", "changing size"],
)
def test_other_frames_are_rejected_and_the_environment_is_closed(frame: Any, message: str, tmp_path: Path) -> None:
    env = Rendering(frame)
    with pytest.raises(EnvironmentFailure, match=message):
        record(env, tmp_path / "one.mp4")
    assert env.closed
