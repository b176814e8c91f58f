"""Plants harmful targets in the configuration of a checkpoint, and loads it in every way.

Each payload creates a file when it runs or is imported. It is planted in several places, and loaded with `eval`,
`resume`, `load_policy` and `PPO.load_from_checkpoint`. As a control, it is also loaded with the trust that the message
names: if it then creates the file, it is able to do harm.

    python benchmarks/reliability/harmful_targets.py --output harmful_targets.json
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from datetime import date
from pathlib import Path
from typing import Any

import torch

import torchppo
from torchppo.errors import TorchPPOError
from torchppo.pipelines.cli.main import main as command_line

TRAINING = (
    *("train", "experiment=cartpole", "total_frames=256", "collector.frames_per_env=32", "eval.video=false"),
    *("eval.episodes=1", "compile=false", "logger=csv", "trainer.accelerator=cpu", "run_dir=run"),
)
MODULE = "open('MARKER', 'w').close()\ndef function(*args, **kwargs): open('MARKER', 'w').close()\n"
"""The module `beside`, which is in the working directory and in `code_dirs`."""
TOUCH = "open('MARKER', 'w').close()"
PATH = {"_target_": "pathlib.Path", "_args_": ["MARKER"]}
PAYLOADS: dict[str, dict[str, Any]] = {
    "setuptools._distutils.spawn.spawn": {"cmd": ["touch", "MARKER"]},
    "builtins.open": {"file": "MARKER", "mode": "w"},
    "builtins.exec": {"_args_": [TOUCH]},
    "builtins.eval": {"_args_": [TOUCH]},
    "pathlib.Path.touch": {"_args_": [PATH]},
    "pathlib.Path.mkdir": {"_args_": [PATH]},
    "pathlib.Path.write_text": {"_args_": [PATH, "x"]},
    "shutil.copyfile": {"src": "beside.py", "dst": "MARKER"},
    "shutil.copytree": {"src": "run", "dst": "MARKER"},
    "torch.load": {"f": "evil.pt", "weights_only": False},
    "torch.save": {"obj": 1, "f": "MARKER"},
    "torch.nn.modules.module.torch.save": {"obj": 1, "f": "MARKER"},
    "torch.hub.load": {"repo_or_dir": ".", "model": "entry", "source": "local"},
    "torch.serialization.load": {"f": "evil.pt", "weights_only": False},
    "numpy.load": {"file": "evil.npy", "allow_pickle": True},
    "numpy.save": {"file": "MARKER", "arr": 1},
    "numpy.savetxt": {"fname": "MARKER", "X": [1]},
    "pandas.read_pickle": {"filepath_or_buffer": "evil.pkl"},
    "joblib.load": {"filename": "evil.pkl"},
    "pickle.loads": {"_args_": [{"_target_": "pathlib.Path.read_bytes", "_args_": [{**PATH, "_args_": ["evil.pkl"]}]}]},
    "cloudpickle.load": {"_args_": [{"_target_": "builtins.open", "file": "evil.pkl", "mode": "rb"}]},
    "lightning.fabric.utilities.cloud_io._load": {"path_or_url": "evil.pt", "weights_only": False},
    "lightning.pytorch.loggers.csv_logs.os.mkdir": {"_args_": ["MARKER"]},
    "gymnasium.make": {"id": "beside:Id-v0"},
    "gymnasium.make_vec": {"id": "beside:Id-v0"},
    "gymnasium.envs.registration.load_env_creator": {"name": "beside:function"},
    "gymnasium.wrappers.rendering.os.mkdir": {"_args_": ["MARKER"]},
    "torchrl.envs.libs.gym.importlib.import_module": {"name": "beside"},
    "torchrl.envs.gym_like.os.system": {"_args_": ["touch MARKER"]},
    "os.system": {"command": "touch MARKER"},
    "os.mkdir": {"path": "MARKER"},
    "os.symlink": {"src": "beside.py", "dst": "MARKER"},
    "posix.system": {"command": "touch MARKER"},
    "logging.os.system": {"command": "touch MARKER"},
    "logging.FileHandler": {"filename": "MARKER"},
    "subprocess.run": {"args": ["touch", "MARKER"]},
    "subprocess.check_output": {"_args_": [["touch", "MARKER"]]},
    "subprocess.Popen": {"args": ["touch", "MARKER"]},
    "pty.spawn": {"argv": ["touch", "MARKER"]},
    "timeit.timeit": {"stmt": TOUCH, "number": 1},
    "runpy.run_path": {"path_name": "beside.py"},
    "runpy.run_module": {"mod_name": "beside"},
    "cProfile.run": {"statement": TOUCH},
    "code.InteractiveInterpreter.runsource": {"_args_": [{"_target_": "code.InteractiveInterpreter"}, TOUCH]},
    "importlib.import_module": {"name": "beside"},
    "hydra.utils.get_object": {"path": "beside.function"},
    "hydra.utils.call": {"_args_": [{"_target_": "builtins.dict", "_args_": [{"x": "beside.function"}]}]},
    "omegaconf.OmegaConf.save": {"config": {"a": 1}, "f": "MARKER"},
    "functools.reduce": {"_args_": [{"_target_": "builtins.open", "_partial_": True}, ["MARKER", "w"]]},
    "tempfile.mkdtemp": {"prefix": "MARKER", "dir": "."},
    "sqlite3.connect": {"database": "MARKER"},
    "zipfile.ZipFile": {"file": "MARKER", "mode": "w"},
    "torchppo.envs.entry_points.importlib.import_module": {"name": "beside"},
    "torchppo.envs.make.make_gymnasium_env": {"id": "beside.function"},
    "beside.function": {},
    "beside": {},
}
NAMES: dict[str, tuple[str, Any]] = {
    "env.id=beside:Id-v0": ("env.id", "beside:Id-v0"),
    "env.id=beside:": ("env.id", "beside:"),
    "env.id=beside.function": ("env.id", "beside.function"),
    "env.id=beside:function": ("env.id", "beside:function"),
    "eval.env.id=beside:Id-v0": ("eval.env", {"id": "beside:Id-v0"}),
    "GymEnv(env_name=beside:Id-v0)": ("env", {"_target_": "torchrl.envs.GymEnv", "env_name": "beside:Id-v0"}),
    "GymEnv(backend=beside)": (
        "env",
        {"_target_": "torchrl.envs.GymEnv", "env_name": "Pendulum-v1", "backend": "beside"},
    ),
    "logger.csv.save_dir=MARKER": ("logger.csv.save_dir", "MARKER"),
    "logger.csv.name=../../MARKER": ("logger.csv.name", "../MARKER"),
    "${oc.env:HOME}": ("env.id", "${oc.env:HOME}"),
    "${oc.decode:x}": ("policy.body.activation", "${oc.decode:x}"),
}
"""Harmful values that are not targets."""
PLACES = (
    "env",
    "policy.body",
    "optimizer",
    "critic.head",
    "env.wrappers",
    "transforms",
    "logger.csv",
    "trainer.callbacks",
)
WAYS: dict[str, Callable[..., Any]] = {
    "load_policy": torchppo.load_policy,
    "load_from_checkpoint": torchppo.PPO.load_from_checkpoint,
    "eval": lambda path, trust=(): run_command("eval", str(path), "--no-video", "--episodes", "1", *flags(trust)),
    "resume": lambda path, trust=(): run_command("resume", str(path.parents[1]), "total_frames=512", *flags(trust)),
}


class Marks:
    """Creates the file when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("MARKER",)


def flags(trust: Any) -> list[str]:
    return [word for name in trust for word in ("--trust", name)]


def run_command(*words: str) -> None:
    """Run a command; raise its error as Python would."""
    err = io.StringIO()
    with redirect_stderr(err):
        code = command_line([*words])
    if code:
        raise TorchPPOError(f"exit {code}: {err.getvalue()}")


def planted(config: dict[str, Any], place: str, value: Any) -> dict[str, Any]:
    """Return a configuration with a value at a place."""
    config = copy.deepcopy(config)
    *parents, last = place.split(".")
    node = config
    for name in parents:
        node = node[name]
    node[last] = [value] if last in ("wrappers", "transforms", "callbacks") else value
    return config


def attempt(way: str, path: Path, trust: tuple[str, ...] = ()) -> str:
    """Load a checkpoint; return its message, or `executed`."""
    try:
        with redirect_stdout(io.StringIO()):
            WAYS[way](path, trust=trust)
        message = "accepted"
    except TorchPPOError as error:
        message = str(error)
    except BaseException as error:  # noqa: BLE001
        message = f"{type(error).__name__}: {error}"
    return "executed" if remove_marks() or "beside" in sys.modules else message


def attempt_in_child(path: Path, trust: tuple[str, ...]) -> str:
    """Load a trusted checkpoint in a subprocess, because the payload may end it."""
    if (child := os.fork()) == 0:
        signal.alarm(60)
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        os.dup2(1, 2)
        with suppress(BaseException):
            torchppo.load_policy(path, trust=trust)
        os._exit(0)
    os.waitpid(child, 0)
    return "executed" if remove_marks() else "nothing"


def remove_marks() -> bool:
    """Remove the files that payloads create; return whether there were any."""
    found = [*Path().rglob("MARKER*"), *Path().glob("../MARKER*")]
    for one in found:
        if one.is_dir() and not one.is_symlink():
            shutil.rmtree(one)
        else:
            one.unlink(missing_ok=True)
    return bool(found)


def write_evil_files() -> None:
    Path("beside.py").write_text(MODULE)
    Path("hubconf.py").write_text(f"{TOUCH}\ndef entry(): pass\n")
    import pickle

    import numpy as np

    torch.save(Marks(), "evil.pt")
    Path("evil.pkl").write_bytes(pickle.dumps(Marks()))
    np.save("evil.npy", np.array([Marks()], dtype=object), allow_pickle=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("harmful_targets.json"))
    output = parser.parse_args().output.resolve()
    os.chdir(tempfile.mkdtemp())
    Path("work").mkdir()
    os.chdir("work")
    with redirect_stdout(io.StringIO()):
        assert command_line([*TRAINING]) == 0
    write_evil_files()
    path = Path("run/checkpoints/last.ckpt").resolve()
    checkpoint = torch.load(path, weights_only=True)
    config = {**checkpoint["torchppo"]["config"], "code_dirs": [".", str(Path.cwd())]}
    cases = [(name, place, {"_target_": name, **node}) for name, node in PAYLOADS.items() for place in PLACES]
    cases += [(name, place, value) for name, (place, value) in NAMES.items()]
    rows = []
    for name, place, value in cases:
        harmful = {**checkpoint["torchppo"], "config": planted(config, place, value)}
        torch.save({**checkpoint, "torchppo": harmful}, path)
        row = {"payload": name, "place": place}
        for way in WAYS:
            message = attempt(way, path)
            is_refused = "--trust" in message or "no fixed value" in message
            row[way] = "refused" if is_refused else message[:80].replace("\n", " ")
        trust = tuple(re.findall(r"--trust '?([\w.]+)", message))
        row["control"] = attempt_in_child(path, trust) if place in ("policy.body", "env", "env.id") else ""
        rows.append(row)
    results = [row[way] for row in rows for way in WAYS]
    counts = {"attempts": len(results), "refused": results.count("refused"), "executed": results.count("executed")}
    payloads = {}
    for name in dict.fromkeys(row["payload"] for row in rows):
        own = [row for row in rows if row["payload"] == name]
        own_results = [row[way] for row in own for way in WAYS]
        payloads[name] = {
            "attempts": len(own_results),
            "refused": own_results.count("refused"),
            "executes if trusted": any(row["control"] == "executed" for row in own),
        }
    live = sum(one["executes if trusted"] for one in payloads.values())
    report = {"date": f"{date.today()}", **counts, "payloads that execute if trusted": live, "payloads": payloads}
    output.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{counts}; {live} of {len(payloads)} payloads execute if they are trusted")


if __name__ == "__main__":
    main()
