"""Tests of the worker processes of TorchRL's collectors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from torchppo.pipelines.build import build_training
from torchppo.pipelines.cli.config import compose

SMALL = (
    *("collector=torchrl_multi", "env.num_envs=4", "total_frames=128", "collector.frames_per_env=16"),
    *("update.epochs=1", "update.minibatch_size=64", "trainer.accelerator=cpu", "compile=false", "logger=[csv]"),
    *("eval.episodes=1", "eval.video=false"),
)


def test_workers_share_the_environments_act_with_new_weights_and_end(tmp_path: Path) -> None:
    cfg = compose([*SMALL, f"run_dir={tmp_path}", "env.id=Pendulum-v1", "policy.normalize_observation=true"])
    training = build_training(cfg, rank=0)
    processes = training.collector.collector.procs  # type: ignore[attr-defined]
    assert [process.is_alive() for process in processes] == [True, True]
    actor = training.ppo.actor
    for rollout in training.collector:
        assert rollout.shape == (4, 16)
        assert rollout["is_init"].shape == (4, 16, 1)
        assert len(rollout["action"][:, 0].unique()) == 4, "workers draw different noise"
        assert len(rollout["observation"][:, 0, 0].unique()) == 4, "workers start in different states"
        again = actor.get_dist(rollout.copy()).log_prob(rollout[actor.dist_sample_keys[0]])
        torch.testing.assert_close(again, rollout["action_log_prob"], rtol=1e-5, atol=1e-5)
        with torch.no_grad():
            for param in actor.parameters():
                param.mul_(1.5).add_(0.1)
            for module in actor.modules():  # the workers also receive the statistics of the normalizer
                if hasattr(module, "mean"):
                    module.mean.add_(0.5)
    assert not any(process.is_alive() for process in processes)
    training.close()


def children(pid: int) -> list[int]:
    """Return the processes that a process has started, and those that they have started."""
    direct = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [child for one in direct for child in (int(one), *children(int(one)))]


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(("number", "group", "code"), [(signal.SIGINT, True, 130), (signal.SIGKILL, False, -9)])
def test_no_worker_outlives_the_training(number: signal.Signals, group: bool, code: int, tmp_path: Path) -> None:
    """Ctrl-C also reaches the workers. After SIGKILL, the training cannot end them."""
    words = ["collector.num_workers=1", "total_frames=10_000_000", f"run_dir={tmp_path}/run"]
    command = [sys.executable, "-m", "torchppo", "train", *SMALL, *words]
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        metrics = tmp_path / "run" / "metrics.csv"
        deadline = time.monotonic() + 120
        while not metrics.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        workers = children(process.pid)
        assert len(workers) >= 2, "the worker, and the resource tracker of multiprocessing"
        (os.killpg if group else os.kill)(process.pid, number)
        assert process.wait(60) == code, process.stderr.read() if process.stderr else ""
    deadline = time.monotonic() + 20
    while any(map(is_running, workers)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not any(map(is_running, workers))
