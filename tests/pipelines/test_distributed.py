"""Training with several processes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from torchppo.pipelines.distributed import normalized, num_ranks, summed

SCRIPT = Path(__file__).with_name("two_ranks.py")


def test_single_process_is_one_rank_and_sums_are_unchanged() -> None:
    assert num_ranks() == 1
    assert summed(torch.tensor([1.0, 2.0])).tolist() == [1.0, 2.0]


def test_normalized_equals_numpy() -> None:
    values = torch.randn(7, 3, generator=torch.Generator().manual_seed(0)) * 5 + 2
    expected = (values.double().numpy() - values.double().numpy().mean()) / values.double().numpy().std()
    np.testing.assert_allclose(normalized(values.unsqueeze(0))[0].numpy(), expected, rtol=1e-5, atol=1e-6)


def test_every_group_is_normalized_on_its_own() -> None:
    values = torch.randn(4, 5, 1, generator=torch.Generator().manual_seed(0)) * 5 + 2
    array = values.double().numpy()
    expected = (array - array.mean((1, 2), keepdims=True)) / array.std((1, 2), keepdims=True)
    np.testing.assert_allclose(normalized(values).numpy(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("value", "count"), [(100.7, 64), (33.3, 2048), (0.1, 64), (1000.1, 3), (0.0, 5), (7.0, 1)])
def test_equal_values_are_normalized_to_zero(value: float, count: int) -> None:
    assert normalized(torch.full((1, count), value)).abs().max() < 1e-4


@pytest.mark.parametrize(
    "arguments",
    [("eager", "0", "none"), ("compiled", "0.02", "none"), ("eager", "0", "gru"), ("eager", "0", "count")],
    ids=["eager", "compiled", "recurrent", "reward model and KL-adaptive learning rate"],
)
def test_two_ranks_have_equal_weights_and_statistics_after_every_step(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout.strip().splitlines()[-1])
    both = np.concatenate([np.arange(4.0), np.arange(4.0) + 10])
    expected = (both - both.mean()) / both.std()
    assert report["frames"] == 256, "frames are counted over all ranks"
    assert report["steps"] >= 2
    assert report["step"] == ("GraphStep" if arguments[0] == "compiled" else "EagerStep")
    assert report["largest_difference"] == 0.0
    assert report["same_data"] is False
    assert report["same_statistics"]
    assert report["same_coefficients"]
    assert report["same_episodes"]
    assert report["same_evaluation"]
    if arguments[-1] == "count":
        assert report["visits"] == 256
        assert report["lr"] > 3e-3
    else:
        assert 1 <= report["evaluation"]["eval/mean_reward"] <= 15
    assert report["episodes"] == report["all_own_episodes"] > report["own_episodes"], (
        "episodes are counted over all ranks"
    )
    np.testing.assert_allclose(report["normalized"], expected[:4], rtol=1e-5)


FAILING = """
import os
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Failing(CartPoleEnv):
    def step(self, action):
        if os.environ.get("LOCAL_RANK") == "1":
            raise ValueError("motor failure")
        return super().step(action)

gymnasium.register("Failing-v0", entry_point=Failing, max_episode_steps=20)
"""


def train_on_two_ranks(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    ranks = ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp"]
    return subprocess.run(
        [sys.executable, "-m", "torchppo", "train", *ranks, "compile=false", *overrides],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_two_ranks_write_one_run_directory_and_stop_together(tmp_path: Path) -> None:
    stop = (
        "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: eval/mean_reward, min_delta: 1e9, patience: 1}"
    )
    words = ["total_frames=4096", "eval.every_frames=512", "eval.episodes=1", "eval.video=false"]
    done = train_on_two_ranks(tmp_path, "experiment=cartpole", *words, f"+trainer.callbacks=[{stop}]")
    assert done.returncode == 0, done.stderr[-2000:]
    (run_dir,) = (tmp_path / "runs" / "cartpole").iterdir()
    files = {"config.yaml", "overrides.yaml", "hparams.yaml", "summary.json", "metrics.csv", "tensorboard"}
    assert files <= {path.name for path in run_dir.iterdir()}
    assert json.loads((run_dir / "summary.json").read_text())["frames"] == 1024


def test_failure_on_one_rank_ends_all_ranks_with_its_message(tmp_path: Path) -> None:
    (tmp_path / "failing_env.py").write_text(FAILING)
    done = train_on_two_ranks(tmp_path, "env.id=failing_env:Failing-v0", "run_dir=run", "logger=[]")
    assert done.returncode == 3, done.stderr[-2000:]
    assert re.search("torchppo: on rank 1: .*ValueError: motor failure", done.stderr)
    assert done.stderr.count("Traceback") == 1, "only the traceback of the environment"
