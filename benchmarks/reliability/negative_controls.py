"""Removes one item of the saved state at a time, and checks that the continued run differs or is refused.

    python benchmarks/reliability/negative_controls.py --output benchmarks/reliability/negative_controls.csv

A run is killed in the middle. For every item, a copy of it is changed and continued. A control passes if the result
is not equal to that of a run without interruption. The unchanged copy must be equal.
"""

from __future__ import annotations

import argparse
import csv
import datetime
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torchppo.benchmarks.reliability.runs import (  # type: ignore[import-not-found, unused-ignore]
    configurations,
    differences,
    finish,
    kill_after,
    start,
)
from torchppo.pipelines.saving.files import add_checksum

FIELDS = ("date", "item", "configuration", "outcome", "passed", "differs")
ADAPTIVE = ("controller@controller.lr=kl_adaptive", "controller@controller.entropy_coeff=linear")
NOISE = ("env.id=torchppo.benchmarks.reliability.noise.Noise", "experiment=cartpole", "eval.stop_at=null")


def rollouts_of(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["loops"]["fit_loop"]["state_dict"]["combined_loader"][0]["rollouts"]
    return found


def random_of(content: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = content["torchppo"]["ranks"][0]["random"]
    return found


def zero(tensors: Any) -> None:
    for tensor in tensors:
        tensor.zero_()


def changed_generator(words: list[Any]) -> None:
    words[1][:10] = range(10)


ITEMS: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "nothing": ("gru-eager-workers", lambda _: None),
    "nothing (noise)": ("noise", lambda _: None),
    "nothing (noise, workers)": ("noise-workers", lambda _: None),
    "weights": (
        "gru-eager-workers",
        lambda c: zero(v for k, v in c["state_dict"].items() if k.endswith("weight")),
    ),
    "optimizer moments": ("gru-eager-workers", lambda c: c["optimizer_states"][0].update(state={})),
    "learning rate": ("adaptive", lambda c: c["optimizer_states"][0]["param_groups"][0].update(lr=1e-4)),
    "controllers and coefficients": ("adaptive", lambda c: c["torchppo"].update(coefficients={})),
    "moments of the reward normalizer": (
        "gru-eager-workers",
        lambda c: zero(v for k, v in c["state_dict"].items() if k.startswith("reward_normalizer.moments")),
    ),
    "returns of the reward normalizer": (
        "gru-eager-workers",
        lambda c: c["state_dict"]["reward_normalizer._extra_state"].zero_(),
    ),
    "moments of the observation normalizer": (
        "hopper-eager-workers",
        lambda c: zero(v for k, v in c["state_dict"].items() if k.endswith(("moments.mean", "moments.count"))),
    ),
    "torch's generator": ("gru-eager-workers", lambda c: random_of(c)["torch"][100:200].zero_()),
    "NumPy's generator": ("noise", lambda c: random_of(c)["numpy"]["state"]["key"][3].zero_()),
    "Python's generator": ("noise", lambda c: changed_generator(random_of(c)["python"])),
    "generators of workers": (
        "noise-workers",
        lambda c: changed_generator(rollouts_of(c)["envs"][0]["random"]["python"]),
    ),
    "state of the environments": ("gru-eager-workers", lambda c: rollouts_of(c)["envs"].reverse()),
    "actions of repeated episodes": ("lunarlander-eager-in_process", lambda c: rollouts_of(c)["envs"][0][1].clear()),
    "games of Atari": ("pong-eager-workers", lambda c: rollouts_of(c)["envs"].reverse()),
    "observations": ("gru-eager-workers", lambda c: rollouts_of(c)["arrays"][0][2].zero_()),
    "is_init": ("gru-eager-workers", lambda c: rollouts_of(c)["arrays"][1][2].fill_(1)),
    "returns of running episodes": ("cartpole-eager-in_process", lambda c: rollouts_of(c)["arrays"][2][2].zero_()),
    "lengths of running episodes": ("gru-eager-workers", lambda c: rollouts_of(c)["arrays"][3][2].zero_()),
    "recurrent states": ("gru-eager-workers", lambda c: zero(rollouts_of(c)["recurrent_states"].values())),
    "all rollouts": ("gru-eager-workers", lambda c: rollouts_of(c).clear()),
    "frames": ("gru-eager-workers", lambda c: c["torchppo"].update(frames=c["torchppo"]["frames"] - 128)),
    "frames of the collector": (
        "gru-eager-workers",
        lambda c: c["loops"]["fit_loop"]["state_dict"]["combined_loader"][0].update(frames=0),
    ),
    "number of rollouts": ("gru-eager-workers", lambda c: c["torchppo"].update(num_rollouts=0)),
    "last episodes": ("gru-eager-workers", lambda c: c["torchppo"].update(episodes=[])),
    "number of episodes": ("gru-eager-workers", lambda c: c["torchppo"].update(num_episodes=0)),
    "best evaluation": ("gru-eager-workers", lambda c: c["callbacks"]["EvaluateAndSave"].update(best=1e9)),
    "time of the last evaluation": (
        "gru-eager-workers",
        lambda c: c["callbacks"]["EvaluateAndSave"].update(evaluated_at=0),
    ),
}


def words_of(name: str) -> list[str]:
    """Return the overrides of a configuration of this script or of `kill_resume.py`."""
    known = configurations()
    if name == "adaptive":
        return [*known["cartpole-eager-in_process"], *ADAPTIVE, "objective.entropy_coeff=0.01"]
    if name.startswith("noise"):
        own = [word for word in known["cartpole-eager-in_process"] if not word.startswith(("experiment", "eval.stop"))]
        return [*own, *NOISE, *(["env.num_workers=2"] if name.endswith("workers") else [])]
    return list(known[name])


def make_runs(name: str, folder: Path) -> str:
    """Train a configuration without interruption, and another time with a kill in the middle. Return the problem."""
    train = ["train", *words_of(name)]
    if code := finish(start([*train, f"run_dir={folder / 'expected'}"], folder / "expected.log")):
        return f"the training ended with exit code {code}: {(folder / 'expected.log').read_text()[-500:]}"
    frames = 640 if name.startswith("pong") else 2500
    process = start([*train, f"run_dir={folder / 'killed'}"], folder / "killed.log")
    return "" if kill_after(process, folder / "killed", frames, 0.0) else "the run has ended before the kill"


def measure(item: str, folder: Path) -> dict[str, object]:
    """Continue a changed copy of a killed run and return a row of the results."""
    name, change = ITEMS[item]
    row = {"date": datetime.date.today(), "item": item, "configuration": name}
    if not (folder / "killed").exists():
        folder.mkdir()
        if problem := make_runs(name, folder):
            return {**row, "outcome": problem, "passed": False}
    with tempfile.TemporaryDirectory() as place:
        run_dir = Path(place) / "run"
        shutil.copytree(folder / "killed", run_dir)
        path = run_dir / "checkpoints" / "last.ckpt"
        content = torch.load(path, weights_only=True)
        change(content)
        torch.save(content, path)
        add_checksum(path)
        path.with_name("previous.ckpt").unlink(missing_ok=True)
        code = finish(start(["resume", str(run_dir)], Path(place) / "log"))
        found = list(differences(run_dir, folder / "expected")) if code == 0 else []
    outcome = f"exit code {code}" if code else "differs" if found else "equal"
    passed = (outcome == "equal") == item.startswith("nothing")
    return {**row, "outcome": outcome, "passed": passed, "differs": "; ".join(found[:3])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", nargs="*", default=list(ITEMS))
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("negative_controls.csv"))
    args = parser.parse_args()
    random.seed(0)
    with tempfile.TemporaryDirectory() as folder, args.output.open("a", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, lineterminator="\n")
        if not args.output.stat().st_size:
            writer.writeheader()
        for item in args.items:
            row = measure(item, Path(folder) / ITEMS[item][0])
            writer.writerow(row)
            file.flush()
            print(row, flush=True)


if __name__ == "__main__":
    main()
