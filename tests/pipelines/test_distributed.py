"""Training with several processes, and the signals that end it."""

from __future__ import annotations

import json
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer

from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.distributed import normalized, num_ranks, summed
from torchppo.pipelines.ppo import PPO

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]
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


TRAININGS = [  # compile, target KL, and what differs
    *(("eager", 0, "none"), ("compiled", 0.02, "none"), ("eager", 0, "gru"), ("eager", 0, "intrinsic")),
    *(("eager", 0.005, "natural_gradient"), ("eager", 0, "ppg")),
]


def test_two_ranks_have_equal_weights_and_statistics_after_every_step() -> None:
    command = [sys.executable, str(SCRIPT), json.dumps(TRAININGS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    reports = json.loads(done.stdout.strip().splitlines()[-1])
    for (mode, _, variant), report in zip(TRAININGS, reports, strict=True):
        require_equal_ranks(mode, variant, report)


def require_equal_ranks(mode: str, variant: str, report: dict[str, Any]) -> None:
    both = np.concatenate([np.arange(4.0), np.arange(4.0) + 10])
    expected = (both - both.mean()) / both.std()
    assert report["frames"] == 256, "frames are counted over all ranks"
    assert report["steps"] >= 2
    assert report["step"] == ("GraphStep" if mode == "compiled" else "EagerStep")
    assert report["largest_difference"] == 0.0
    assert report["gloo_sums"] == 0 or platform.machine() != "x86_64", "the ranks share memory"
    assert report["same_data"] is False
    assert report["same_statistics"]
    assert report["same_coefficients"]
    assert report["same_episodes"]
    assert report["same_metrics"]
    assert report["same_evaluation"]
    assert (report["step_fraction"] > 0) == (variant == "natural_gradient")
    if variant == "intrinsic":
        assert report["visits"] == 256
        assert report["own_episodic_state"]
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


LISTENERS = """
import os
import socket
from pathlib import Path

from lightning import Callback


class Listeners(Callback):
    def on_train_end(self, trainer, pl_module):
        links = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink() and path.exists()]
        tables = [Path("/proc/net", name).read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
        rows = [line.split() for table in tables for line in table]
        found = [row[1] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in links]
        Path(f"listeners{trainer.global_rank}").write_text("\\n".join(found))
"""


def test_two_ranks_write_one_run_directory_stop_together_and_listen_on_loopback(tmp_path: Path) -> None:
    (tmp_path / "listeners.py").write_text(LISTENERS)
    stop = (
        "{_target_: lightning.pytorch.callbacks.EarlyStopping, monitor: eval/mean_reward, min_delta: 1e9, patience: 1}"
    )
    words = ["total_frames=4096", "eval.every_frames=512", "eval.episodes=1", "eval.video=false"]
    done = train_on_two_ranks(
        tmp_path, "experiment=cartpole", *words, f"+trainer.callbacks=[{stop}, {{_target_: listeners.Listeners}}]"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    (run_dir,) = (tmp_path / "runs" / "cartpole").iterdir()
    files = {"config.yaml", "overrides.yaml", "hparams.yaml", "summary.json", "metrics.csv", "tensorboard"}
    assert files <= {path.name for path in run_dir.iterdir()}
    assert json.loads((run_dir / "summary.json").read_text())["frames"] == 1024
    listeners = [address for rank in (0, 1) for address in (tmp_path / f"listeners{rank}").read_text().split()]
    assert len(listeners) > 1
    assert {address.split(":")[0] for address in listeners} == {"0100007F"}, "127.0.0.1"


def test_failure_on_one_rank_ends_all_ranks_with_its_message(tmp_path: Path) -> None:
    (tmp_path / "failing_env.py").write_text(FAILING)
    done = train_on_two_ranks(tmp_path, "env.id=failing_env:Failing-v0", "run_dir=run", "logger=[]")
    assert done.returncode == 3, done.stderr[-2000:]
    assert re.search("torchppo: on rank 1: .*ValueError: motor failure", done.stderr)
    assert done.stderr.count("Traceback") == 1, "only the traceback of the environment"
