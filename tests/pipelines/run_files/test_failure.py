"""A failed run leaves the reason in `summary.json`, and the last finite state."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from torchppo.pipelines.cli.main import main
from torchppo.pipelines.run_files import failure

SHORT = (
    *(
        "env.num_envs=1",
        "collector.frames_per_env=32",
        "update.minibatch_size=32",
        "update.epochs=2",
        "eval.episodes=0",
    ),
    *("total_frames=160", "logger=csv", "compile=false", "policy.body.num_cells=[8]", "trainer.accelerator=cpu"),
)


class Breaking(gymnasium.Env[Any, Any]):
    """Raises in step 70, or returns rewards that overflow from then on."""

    observation_space, action_space = spaces.Box(-1, 1, (2,)), spaces.Discrete(2)

    def __init__(self, how: str = "raise", render_mode: str | None = None) -> None:
        self.how, self.render_mode, self.num_steps = how, render_mode, 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        self.num_steps += 1
        if self.num_steps == 70 and self.how == "raise":
            raise ValueError("a broken joint")
        reward = 3e38 if self.num_steps >= 70 and self.how == "overflow" else 1.0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), reward, False, self.num_steps % 10 == 0, {}


@pytest.fixture(autouse=True)
def _breaking_id() -> Iterator[None]:
    gymnasium.register("Breaking-v0", entry_point=Breaking)  # type: ignore[arg-type]
    yield
    del gymnasium.registry["Breaking-v0"]


@pytest.mark.parametrize(
    ("how", "code", "frames", "reason"),
    [
        ("raise", 3, 64, "environment 0 at step 70 .*failed: ValueError: a broken joint"),
        ("overflow", 4, 128, r"4 optimizer steps in a row .*ppo\.max_skipped_steps=3"),
    ],
)
def test_the_summary_has_the_reason_and_the_last_checkpoint_is_finite(
    how: str, code: int, frames: int, reason: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["env.id=Breaking-v0", f"+env.how={how}", "ppo.max_skipped_steps=3", f"run_dir={tmp_path / 'run'}", *SHORT]
    assert main(["train", *words]) == code
    assert capfd.readouterr().err.splitlines()[-1].startswith("torchppo: ")
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["exit"], summary["exit_code"], summary["frames"]) == ("failed", code, frames)
    assert re.search(reason, summary["reason"])
    assert {*summary} >= {"wall_seconds", "frames_per_second", "train_episodes", "eval_return_mean", "time", "version"}
    assert (summary["eval_return_std"], summary["wall_seconds"] > 0) == (None, True)
    saved = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert saved["torchppo"]["frames"] == frames
    assert all(value.isfinite().all() for value in saved["state_dict"].values())


def test_a_state_with_nan_is_not_finite() -> None:
    class Module(torch.nn.Linear):
        @property
        def optimizer(self) -> torch.optim.Optimizer:
            return optimizer

    module = Module(1, 1)
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(1)).backward()
    optimizer.step()
    assert failure.has_finite_state(module)
    optimizer.state[module.weight]["exp_avg"].fill_(torch.inf)
    assert not failure.has_finite_state(module)


def test_signals_and_runs_that_have_not_started_leave_no_summary(tmp_path: Path) -> None:
    module = torch.nn.Linear(1, 1)
    module.optimizer = []  # type: ignore[assignment]
    trainer: dict[str, Any] = {"lightning_module": module, "callbacks": [], "is_global_zero": True}
    for error in (KeyboardInterrupt(), ValueError("too early")):
        failure.report_failure(tmp_path, error, SimpleNamespace(**trainer), dict)
    assert not [*tmp_path.iterdir()]
