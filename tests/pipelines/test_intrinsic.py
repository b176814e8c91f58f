"""Trainings with intrinsic rewards continue exactly after a restart, and are the same in graphs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from torchppo.modules.intrinsic.e3b import E3B
from torchppo.modules.intrinsic.visits import EpisodeVisits
from torchppo.pipelines.build import build_trainer, build_training
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.cli.main import main

SMALL = (
    *("env.num_envs=2", "collector.frames_per_env=16", "update.epochs=2", "update.minibatch_size=16", "logger=[]"),
    *("trainer.accelerator=cpu", "policy.body.num_cells=[8]", "optimizer.lr=0.003"),
)


@pytest.fixture(autouse=True)
def _run_in_tmp_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def verify(*words: str) -> int:
    return main(["verify-resume", *SMALL, "total_frames=64", "--rollouts", "1", *words])


@pytest.mark.parametrize(
    "words",
    [
        ("intrinsic=rnd", "env=pendulum", "compile=trace"),
        ("intrinsic=noveld", "compile=false"),
        ("intrinsic=e3b", "policy=gru", "policy.body.num_cells=[8]", "compile=false"),
    ],
    ids=lambda words: words[0],
)
def test_resumed_training_equals_an_uninterrupted_one(words: tuple[str, ...]) -> None:
    assert verify(*words) == 0


@pytest.mark.parametrize(("intrinsic", "owner"), [("noveld", EpisodeVisits), ("e3b", E3B)])
def test_resumed_training_differs_if_the_state_of_the_episodes_is_lost(
    intrinsic: str, owner: type[torch.nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, "set_extra_state", lambda *_: None)
    assert verify(f"intrinsic={intrinsic}", "compile=false") == 1


def weights(mode: str, *words: str) -> Tensor:
    """Train for two rollouts and return all weights."""
    torch.manual_seed(0)
    cfg = compose([*SMALL, "total_frames=64", f"compile={mode}", "run_dir=run", *words])
    training = build_training(cfg, rank=0)
    build_trainer(cfg, []).fit(training.ppo, train_dataloaders=training.collector)
    training.close()
    return torch.cat([param.detach().flatten() for param in training.ppo.parameters()])


@pytest.mark.parametrize("intrinsic", ["rnd", "e3b", "icm"])  # NovelD has the losses of RND
def test_traced_training_equals_eager_training(intrinsic: str) -> None:
    eager, traced = (weights(mode, f"intrinsic={intrinsic}") for mode in ("false", "trace"))
    torch.testing.assert_close(traced, eager, rtol=0, atol=1e-6)
