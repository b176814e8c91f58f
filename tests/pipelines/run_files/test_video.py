"""A video shows what an environment renders, with the episode, its step and its return."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import gymnasium
import imageio_ffmpeg
import numpy as np
import pytest
import torch
from gymnasium import spaces
from omegaconf import OmegaConf
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.envs import GymEnv, PendulumEnv, SerialEnv

from torchppo.envs import SerialVectorEnv, VectorEnv, batched, make_env
from torchppo.envs.native.vector import NativeVectorEnv
from torchppo.errors import EnvironmentFailure
from torchppo.pipelines.episodes import rollout_episodes
from torchppo.pipelines.run_files import video
from torchppo.pipelines.run_files.frames import TEXT_HEIGHT
from torchppo.pipelines.run_files.video import (
    build_rendering_env,
    collect_frames,
    episode_images,
    known_codec,
    record_video,
    try_to_record_video,
)

ACTOR = TensorDictModule(nn.Linear(2, 2), ["observation"], ["action"])


class Rendering(gymnasium.Env[Any, Any]):
    """Episodes of five steps with a reward of 2 that render `frame(step)`."""

    metadata = {"render_fps": 10, "render_modes": ["rgb_array"]}  # noqa: RUF012
    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,))

    def __init__(self, frame: Any, render_mode: str | None = "rgb_array", length: int = 5) -> None:
        self.frame, self.render_mode, self.length = frame, render_mode, length
        self.num_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.num_steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.num_steps += 1
        return np.zeros(2, np.float32), 2.0, self.num_steps == self.length, False, {}

    def render(self) -> Any:
        return self.frame(self.num_steps)


def record(frame: Callable[[int], Any] | None, path: Path, **options: Any) -> None:
    with closing(VectorEnv(SerialVectorEnv([lambda: Rendering(frame, "rgb_array" if frame else None)]))) as env:
        record_video(ACTOR, env, path, **options)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # imageio-ffmpeg leaves a broken pipe
@pytest.mark.parametrize("tests_encoders", [True, False])
def test_an_ffmpeg_that_hangs_is_killed(tests_encoders: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "ffmpeg"
    program.write_text("#!/bin/sh\nexec sleep 600\n")
    program.chmod(0o755)
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(program))
    monkeypatch.setattr(video, "FFMPEG_SECONDS", 0.5)
    if not tests_encoders:
        monkeypatch.setattr(imageio_ffmpeg._io, "get_first_available_h264_encoder", lambda: "libx264")
    start = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.5 seconds"):
        record(lambda _: np.zeros((256, 256, 3), np.uint8), tmp_path / "x.mp4", episodes=5)
    assert time.monotonic() - start < 20


def test_only_another_ffmpeg_is_asked_for_its_codecs(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Path(imageio_ffmpeg.__file__).parent / "binaries" / "ffmpeg"
    for program, codec in ((own, "libx264"), (Path("/usr/bin/ffmpeg"), None)):
        monkeypatch.setattr(imageio_ffmpeg, "get_ffmpeg_exe", lambda program=program: str(program))
        assert known_codec() == codec


def read(path: Path) -> tuple[dict[str, Any], list[Any]]:
    reader = imageio_ffmpeg.read_frames(str(path))
    meta = next(reader)
    width, height = meta["size"]
    return meta, [np.frombuffer(frame, np.uint8).reshape(height, width, 3)[TEXT_HEIGHT:] for frame in reader]


# The reader does not close its pipes.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
class TestVideo:
    def test_has_the_frames_of_the_episodes_below_a_line_of_text(self, tmp_path: Path) -> None:
        path = tmp_path / "videos" / "one.mp4"
        record(lambda step: np.full((32, 240, 3), 40 * step, np.uint8), path, episodes=2)
        meta, frames = read(path)
        assert (meta["size"], meta["fps"]) == ((240, 32 + TEXT_HEIGHT), 10.0)
        np.testing.assert_allclose([frame.mean() for frame in frames], [0, 40, 80, 120, 160, 200] * 2, atol=4)

    def test_skips_missing_frames_and_resizes_others_to_the_size_of_the_first(self, tmp_path: Path) -> None:
        frames = [None, None, np.full((20, 240, 3), 50, np.uint8), np.full((40, 240, 3), 150, np.uint8), None, None]
        record(lambda step: frames[step], tmp_path / "one.mp4")
        meta, shown = read(tmp_path / "one.mp4")
        assert meta["size"] == (240, 20 + TEXT_HEIGHT)
        np.testing.assert_allclose([frame.mean() for frame in shown], [50, 150], atol=4)


@pytest.mark.parametrize("length", [5, 1])
def test_every_episode_has_its_first_and_its_last_state(length: int) -> None:
    with closing(
        VectorEnv(SerialVectorEnv([lambda: Rendering(lambda step: np.full((8, 8), step), length=length)]))
    ) as env:
        collect_frames(env)
        images = list(episode_images(rollout_episodes(ACTOR, env), env, 2, 100))
    assert [text.split("   ") for _, text in images] == [
        [f"episode {episode}", f"step {step}", f"return {2 * step}"] for episode in (1, 2) for step in range(length + 1)
    ]
    assert [image.max() for image, _ in images] == [255 if step == 1 else step for step in range(length + 1)] * 2


def test_many_images_per_second_are_reduced_but_every_last_state_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(Rendering.metadata, "render_fps", 100)
    with closing(VectorEnv(SerialVectorEnv([lambda: Rendering(lambda step: np.full((8, 8), step))]))) as env:
        assert collect_frames(env) == 100 / 3
        images = list(episode_images(rollout_episodes(ACTOR, env), env, 2, 100))
    shown = [text.split("   ")[:2] for _, text in images]
    assert shown == [[f"episode {episode}", f"step {step}"] for episode in (1, 2) for step in (0, 3, 5)]
    assert [image.max() for image, _ in images] == [0, 3, 5] * 2
    with closing(VectorEnv(SerialVectorEnv([lambda: Rendering(lambda step: step, "rgb_array_list")]))) as env:
        assert collect_frames(env) == 100, "each list has the images of all steps"


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (None, "rgb_array"),
        (lambda _: None, "nothing"),
        (lambda _: "text", "str"),
        (lambda _: np.zeros(3), r"float64 \(3,\)"),
    ],
    ids=["no render mode", "nothing", "text", "a vector"],
)
def test_other_frames_are_an_environment_failure(frame: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFailure, match=message):
        record(frame, tmp_path / "one.mp4")


@pytest.mark.parametrize("fps", [None, "fast", 0])
def test_a_frame_rate_that_is_not_a_number_is_replaced(
    fps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(Rendering.metadata, "render_fps", fps)
    record(lambda _: np.zeros((32, 240, 3), np.uint8), tmp_path / "one.mp4")


class TestTorchRL:
    @pytest.fixture
    def env_id(self) -> Iterator[str]:
        def make(**options: Any) -> Rendering:
            return Rendering(lambda step: np.full((32, 240, 3), 40 * step, np.uint8), **options)

        gymnasium.register("Rendering-v0", entry_point=make)  # type: ignore[arg-type]
        yield "Rendering-v0"
        gymnasium.registry.pop("Rendering-v0")

    @pytest.mark.parametrize("options", [{}, {"from_pixels": True, "pixels_only": False}])
    def test_environment_is_recorded(self, options: dict[str, Any], env_id: str, tmp_path: Path) -> None:
        env = {"_target_": "torchrl.envs.GymEnv", "env_name": env_id, **options}
        cfg = OmegaConf.create({"env": env, "transforms": [], "eval": {"env": {}}, "compile": False})
        assert try_to_record_video(cfg, ACTOR, tmp_path / "one.mp4", 0, episodes=1) == tmp_path / "one.mp4"

    def test_the_first_of_a_fixed_number_of_environments_is_filmed(self, env_id: str, tmp_path: Path) -> None:
        with closing(batched(SerialEnv(3, lambda: GymEnv(env_id)))) as env:
            record_video(ACTOR, env, tmp_path / "one.mp4", episodes=2)
        assert (tmp_path / "one.mp4").stat().st_size > 0

    def test_environment_that_cannot_render_is_reported_in_one_line(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        env = {"_target_": "torchrl.envs.PendulumEnv"}
        cfg = OmegaConf.create({"env": env, "transforms": [], "eval": {"env": {}}, "compile": False})
        assert try_to_record_video(cfg, ACTOR, tmp_path / "one.mp4", 0, episodes=1) is None
        err = capsys.readouterr().err
        assert err.startswith("no video: ")
        assert err.count("\n") == 1

    @pytest.mark.parametrize("accepts_pixels", [True, False])
    def test_pixels_are_suggested_only_to_classes_that_accept_them(self, accepts_pixels: bool) -> None:
        class WithPixels(PendulumEnv):  # type: ignore[misc]
            def __init__(self, from_pixels: bool = False) -> None:
                super().__init__()

        env = batched(WithPixels() if accepts_pixels else PendulumEnv())
        steps = rollout_episodes(TensorDictModule(lambda th: th[..., None], ["th"], ["action"]), env)
        with closing(env), closing(steps), pytest.raises(EnvironmentFailure) as caught:
            list(episode_images(steps, env, 1, 1))
        assert ("+env.from_pixels=true" in str(caught.value)) is accepts_pixels


def test_our_own_errors_are_shown_without_their_class(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = {"_target_": "torchppo.envs.make_env", "id": "CartPol-v1", "render_mode": None}
    cfg = OmegaConf.create({"env": env, "transforms": [], "eval": {"env": {}}, "compile": False})
    assert try_to_record_video(cfg, ACTOR, tmp_path / "one.mp4", 0, episodes=1) is None
    err = capsys.readouterr().err
    assert "CartPol-v1" in err
    assert EnvironmentFailure.__name__ not in err


def test_atari_games_show_their_observations(tmp_path: Path) -> None:
    pytest.importorskip("ale_py.vector_env")
    env = {"_target_": "torchppo.envs.make_env", "id": "ALE/Pong-v5", "num_envs": 2, "num_workers": 0}
    env |= {"max_num_frames_per_episode": 40, "render_mode": None}
    cfg = OmegaConf.create({"env": env, "transforms": [], "eval": {"env": {}}, "compile": False})
    actor = TensorDictModule(lambda image: torch.zeros(len(image), dtype=torch.int64), ["observation"], ["action"])
    assert try_to_record_video(cfg, actor, tmp_path / "one.mp4", 0, episodes=1) == tmp_path / "one.mp4"


def test_only_environments_with_vector_wrappers_are_native_in_videos() -> None:
    wrapper = {"_target_": "gymnasium.wrappers.vector.ClipReward", "_partial_": True, "max_reward": 0.5}
    node = {"_target_": "torchppo.envs.make_env", "id": "CartPole-v1", "num_envs": 3, "vectorization": "native"}
    for wrappers in ([], [wrapper]):
        env = node | {"wrappers": wrappers, "render_mode": None}
        cfg = OmegaConf.create({"env": env, "transforms": [], "eval": {"env": {}}})
        with closing(build_rendering_env(cfg, 0)) as rendering:
            assert isinstance(rendering.vector, NativeVectorEnv) is bool(wrappers)


def test_native_environments_show_no_image_of_the_next_episode() -> None:
    env = make_env("CartPole-v1", 1, vectorization="native", max_episode_steps=3, render_mode="rgb_array")
    steps = rollout_episodes(TensorDictModule(lambda obs: obs[..., 0].long(), ["observation"], ["action"]), env)
    with closing(env), closing(steps):
        texts = [text for _, text in episode_images(steps, env, 2, 10)]
    assert [text.split("   ")[:2] for text in texts] == [[f"episode {n}", f"step {t}"] for n in (1, 2) for t in (1, 2)]


def test_a_render_mode_of_eval_env_is_used() -> None:
    env = {"_target_": "torchppo.envs.make_env", "id": "CartPole-v1", "num_envs": 3, "render_mode": "human"}
    for mode in ("rgb_array_list", None):
        cfg = OmegaConf.create({"env": env, "transforms": [], "eval": {"env": {"render_mode": mode}}})
        with closing(build_rendering_env(cfg, 0)) as rendering:
            assert (rendering.vector.render_mode, rendering.num_envs) == (mode or "rgb_array", 1)
