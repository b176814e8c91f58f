"""Runs sweeps with Hydra's launchers (joblib, submitit) and sweepers (Optuna)."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Collection, Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from ...errors import ConfigurationError
from .config import compose, compose_with_hydra, parse, quoted
from .run_dir import file_name
from .sweep import print_failures, train_command

PACKAGES = {
    "joblib": "hydra_joblib_launcher",
    "submitit_local": "hydra_submitit_launcher",
    "submitit_slurm": "hydra_submitit_launcher",
    "optuna": "hydra_optuna_sweeper",
}
"""Packages of the plugins that `torchppo[sweep]` installs."""
EXIT_CODE, OUTPUT = "exit_code", "output.txt"
"""Files that are written for every run to the folder of Hydra's job."""


def run_hydra_sweep(overrides: Sequence[str], config_dir: Path | None) -> int:
    """Run a sweep with the plugins that `hydra/launcher=` and `hydra/sweeper=` name.

    Every run has its own process, on the machine that the launcher chooses. Its result is the mean return of its last
    evaluation, which Optuna maximizes. The result of a failed run is NaN.

    Returns:
        The exit code of the first run that fails, or 0.

    Raises:
        ConfigurationError: if a plugin is not installed or a value is wrong.

    """
    plugins = [word for word in overrides if word.lstrip("+").startswith("hydra")]
    check_installed(plugins)
    compose_with_hydra(plugins)
    fixed = [word for word in overrides if is_single_value(word)]
    first = compose(fixed, config_dir)  # raises for mistakes before the first run
    if any(word.startswith("run_dir=") for word in overrides):
        raise ConfigurationError(f"run_dir={first.run_dir} would be used by several runs; write hydra.sweep.dir=...")
    folder = Path(first.run_dir).parent / f"{datetime.now():%Y%m%d-%H%M%S}-sweep"
    own = [f"hydra.sweep.dir={quoted(str(folder))}", "hydra.sweep.subdir=jobs/${hydra.job.num}"]
    if any("sweeper=optuna" in word for word in plugins):
        own.append("hydra.sweeper.direction=maximize")
    own = [word for word in own if not any(plugin.startswith(word.split("=")[0]) for plugin in plugins)]
    if config_dir:
        own.append(f"hydra.searchpath=[{quoted(f'file://{config_dir.resolve()}')}]")
    command = train_command(config_dir.resolve() if config_dir else None)

    def task(_: DictConfig) -> float:
        return train_once([*HydraConfig.get().overrides.task], {word.split("=")[0] for word in fixed}, command)

    arguments, sys.argv = sys.argv, ["torchppo", "--multirun", *own, *overrides]
    try:
        hydra.main(version_base="1.3", config_path="pkg://torchppo.conf", config_name="train")(task)()
    finally:
        sys.argv = arguments
    given = [word.partition("=")[2] for word in plugins if word.startswith("hydra.sweep.dir=")]
    jobs = (Path(given[-1]) if given else folder) / "jobs"
    codes = {path.parent: int(path.read_text()) for path in sorted(jobs.glob(f"*/{EXIT_CODE}"))}
    return print_failures({str(path / OUTPUT): code for path, code in codes.items()}, len(codes))


def train_once(run: Sequence[str], fixed: Collection[str], command: Sequence[str]) -> float:
    """Train with one combination of values in a process and return its result.

    Args:
        run: overrides of the run.
        fixed: keys that have the same value in all runs.
        command: the command that trains.

    """
    number, job = HydraConfig.get().job.num, Path(HydraConfig.get().runtime.output_dir)
    changed = [word for word in run if word.split("=")[0] not in fixed]
    run_dir = job.parents[1] / "-".join([str(number), *(file_name(word)[:50] for word in changed)])[:200]
    words = [*run, f"run_dir={quoted(str(run_dir))}"]
    with (job / OUTPUT).open("w") as output:
        code = subprocess.run([*command, *words], check=False, stdout=output, stderr=subprocess.STDOUT).returncode
    (job / EXIT_CODE).write_text(str(code))
    if code:
        return math.nan
    result = json.loads((run_dir / "summary.json").read_text())["eval_return_mean"]
    print(f"[{number}] {' '.join(changed)}: {result}", flush=True)
    return math.nan if result is None else float(result)


def check_installed(plugins: Sequence[str]) -> None:
    """Raise a ConfigurationError if the package of a plugin is not installed."""
    for word in plugins:
        package = PACKAGES.get(word.partition("=")[2])
        try:
            is_missing = package is not None and find_spec(f"hydra_plugins.{package}") is None
        except ModuleNotFoundError:  # no plugin is installed
            is_missing = True
        if is_missing:
            raise ConfigurationError(f"{word} needs pip install 'torchppo[sweep]'")


def is_single_value(word: str) -> bool:
    """Return whether an override has one value and is not an option of Hydra."""
    (override,) = parse([word])
    return not override.is_sweep_override() and not re.match(r"hydra\b", override.key_or_group)
