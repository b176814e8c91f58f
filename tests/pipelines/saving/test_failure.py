"""A failure leaves a checkpoint of the last finite state."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from torchppo.pipelines.checkpoint import load_checkpoint
from torchppo.pipelines.cli.main import main


class Breaks(gymnasium.Env[Any, Any]):
    """Fails or returns NaN in the third rollout."""

    observation_space = gymnasium.spaces.Box(-1, 1, (2,))
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, reward: float | None) -> None:
        self.reward, self.steps = reward, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.steps > 300 and self.reward is None:
            raise RuntimeError("broken")
        reward = self.reward if self.steps > 300 else 1.0
        return np.full(2, np.sin(self.steps), np.float32), reward, self.steps % 9 == 0, False, {}


@pytest.mark.parametrize(("reward", "code"), [(None, 3), (float("nan"), 4)])
def test_a_failing_environment_leaves_a_checkpoint_that_continues(
    reward: float | None, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = gymnasium.envs.registration.EnvSpec("Breaks-v0", Breaks, kwargs={"reward": reward}, max_episode_steps=50)
    monkeypatch.setitem(gymnasium.registry, "Breaks-v0", spec)
    run_dir = tmp_path / "run"
    options = ("env.num_envs=1", "collector.frames_per_env=128", "update.minibatch_size=64", "eval.episodes=0")
    words = ["train", "env.id=Breaks-v0", *options, "compile=false", "total_frames=512", "logger=csv"]
    assert main([*words, f"run_dir={run_dir}"]) == code
    checkpoint = load_checkpoint(run_dir / "checkpoints" / "last.ckpt")
    assert checkpoint["torchppo"]["frames"] == 256
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values() if isinstance(value, torch.Tensor))
    monkeypatch.setattr(Breaks, "step", lambda *_: (np.zeros(2, np.float32), 1.0, True, False, {}))
    assert main(["resume", str(run_dir)]) == 0
    assert json.loads((run_dir / "summary.json").read_text())["frames"] == 512
