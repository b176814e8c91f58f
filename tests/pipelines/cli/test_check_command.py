"""The command `torchppo check` and the advice at the start of a training."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from torchppo.pipelines.check.advice import print_advice
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.cli.main import main


class Large(gymnasium.Env[Any, Any]):
    """Observations and rewards are large, and episodes have 20 steps."""

    observation_space = spaces.Box(-1e9, 1e9, (2,), np.float32)
    action_space = spaces.Discrete(2)
    num_made = 0

    def __init__(self) -> None:
        type(self).num_made += 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observation(), {}

    def observation(self) -> Any:
        return self.np_random.normal(size=2).astype(np.float32) * 1000

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observation() + action, 5000.0, bool(self.np_random.random() < 0.2), self.steps == 20, {}


class Broken(Large):
    def step(self, action: Any) -> Any:
        return (*super().step(action)[:4], None)


SMALL = ["policy.body.num_cells=[8]", "env.num_envs=2"]


def test_ends_with_overrides_to_paste(capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"env.id={__name__}.Large", *SMALL]
    assert main(["check", *words]) == 0
    out = capsys.readouterr().out
    added = ["policy.normalize_observation=true", "reward=normalized"]
    assert out.splitlines()[-1] == " ".join(["torchppo train", *words, *added])
    assert main(["check", *words, *added]) == 0
    assert "note" not in capsys.readouterr().out


def test_a_broken_environment_has_the_exit_code_3_and_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", f"env.id={__name__}.Broken", *SMALL, "--json"]) == 3
    report = json.loads(capsys.readouterr().out)
    (finding,) = report["findings"]
    assert (finding["level"], finding["topic"]) == ("error", "step")
    assert report["overrides"] == []


def test_vector_wrappers_are_checked(capsys: pytest.CaptureFixture[str]) -> None:
    wrapper = "env.wrappers=[{_target_: gymnasium.wrappers.vector.ClipReward, _partial_: true, max_reward: 0.5}]"
    assert main(["check", "env.vectorization=native", wrapper, *SMALL]) == 0
    assert "error" not in capsys.readouterr().out


def test_a_training_prints_advice_without_other_environments(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Large, "num_made", 0)
    words = [f"env.id={__name__}.Large", *SMALL, "total_frames=32", "collector.frames_per_env=16", "compile=false"]
    words += ["update.minibatch_size=32", "eval.episodes=2", "eval.video=false", "logger=[]"]
    assert main(["train", *words]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("torchppo: note")]
    assert [line.split("; ")[-1] for line in lines] == ["policy.normalize_observation=true", "reward=normalized"]
    assert Large.num_made <= 5  # 2 that train, 2 that are evaluated, 1 of the test of the resume class


def test_advice_needs_no_steps_of_an_environment() -> None:
    print_advice(SimpleNamespace(envs=[Large()]), [], compose([]))
