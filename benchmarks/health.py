"""Train every preset for a few rollouts, and list the findings of the health report, which should be empty.

    python benchmarks/health.py                        # all presets, 12 rollouts each
    python benchmarks/health.py cartpole hopper --rollouts 50
    python benchmarks/health.py --bad                  # runs that a rule must report

Writes no files. The learning rate follows the schedule of the preset over all of its frames.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from torchppo.errors import TorchPPOError
from torchppo.pipelines.build import build_training
from torchppo.pipelines.cli.config import compose

CONF = Path(__file__).parents[1] / "conf" / "experiment"
QUIET = ("eval.episodes=0", "logger=csv", "compile=auto")
BAD = {
    "kl_extreme": "env=cartpole collector.frames_per_env=128 update.minibatch_size=128 optimizer.lr=0.1",
    "value_loss_explodes": "env=cartpole policy.body.activation=relu +critic.optimizer.lr=10",
    "too_many_epochs": "env=cartpole update.epochs=100",
    "reward_scale": "env=cartpole transforms=[{_target_:torchrl.envs.RewardScaling,loc:0.0,scale:1e6}]",
    "return_collapse": "experiment=pendulum optimizer.lr=0.01 total_frames=65536",
}
"""Overrides of a bad run by the name of the rule that must report it."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("presets", nargs="*", default=sorted(path.stem for path in CONF.glob("*.yaml")))
    parser.add_argument("--rollouts", type=int, default=12, help="rollouts of each preset")
    parser.add_argument("--bad", action="store_true", help="train the runs that a rule must report instead")
    arguments = parser.parse_args()
    is_as_expected = True
    if arguments.bad:
        for rule, words in BAD.items():
            frames = () if "total_frames" in words else ("total_frames=10240",)
            found = findings(*words.split(), *frames)
            print(f"{rule}: {words}: {', '.join(found)}", flush=True)
            is_as_expected &= rule in found
        return not is_as_expected
    for name in arguments.presets:
        try:
            frames = frames_of(name) * arguments.rollouts
        except TorchPPOError as error:  # such as a missing package
            print(f"{name}: not trained: {error}", flush=True)
            continue
        found = findings(f"experiment={name}", f"total_frames={frames}")
        print(f"{name}: {frames:,} frames: {', '.join(found) or 'nothing'}", flush=True)
        is_as_expected &= not found
    return not is_as_expected


def frames_of(name: str) -> int:
    """Return the frames of a rollout of a preset."""
    training = build_training(compose([f"experiment={name}", "run_dir=unused", "logger=[]"], reserve=False), rank=0)
    frames: int = training.collector.frames_per_batch  # type: ignore[attr-defined]
    training.close()
    return frames


def findings(*overrides: str) -> list[str]:
    """Train, and return the names of the rules in summary.json."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "torchppo", "train", *overrides, *QUIET, f"run_dir={folder}/run"]
        subprocess.run(command, check=True, capture_output=True)
        summary = json.loads(Path(folder, "run", "summary.json").read_text())
    return [one["rule"] for one in summary["health"]]


if __name__ == "__main__":
    sys.exit(main())
