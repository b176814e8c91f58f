"""Runs sweeps: one process for every combination of values."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob

from ...errors import ConfigurationError, fail
from ..stopping.signals import REQUEUE, SIGNALS, exit_code, handle_signals
from .config import compose, one_line_errors, parse
from .keys.checks import options_by_group
from .run_dir import SWEPT

SIGNALLED = 128
"""The exit codes of processes that a signal ended are larger, except for `REQUEUE`."""


def run_sweep(overrides: Sequence[str], config_dir: Path | None, *, print_config: bool) -> int:
    """Run every combination of values in its own process, so that no run inherits another's state.

    If a run fails or its configuration is refused, the sweep continues. If a signal ends a run, the sweep ends.

    Returns:
        The exit code of the first run that fails, or 0.

    Raises:
        ConfigurationError: if the configurations of all runs are refused, or several runs have the same folder.

    """
    runs = combinations(overrides, config_dir)
    folders, refused = [], {}
    for number, run in enumerate(runs, 1):
        try:
            folders.append(compose(run, config_dir).run_dir)
        except ConfigurationError as error:
            refused[number] = error
    if len(refused) == len(runs):
        raise refused[1]
    repeated = [folder for number, folder in enumerate(folders) if folder in folders[:number]]
    if repeated and any(word.startswith("run_dir=") for word in overrides):
        raise ConfigurationError(
            f"run_dir={repeated[0]} would be used by several runs; write one folder per swept key, "
            f"such as run_dir='{repeated[0]}/s${{seed}}'"
        )
    command = train_command(config_dir, print_config=print_config)
    fixed = set.intersection(*map(set, runs))
    failed: dict[str, int] = {}
    for number, run in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] torchppo train {' '.join(run)}", flush=True)
        if number in refused:
            failed[" ".join(run)] = fail(str(refused[number]), refused[number].exit_code)
            continue
        with swept([word for word in run if word not in fixed]):
            code = run_to_end([*command, *run])
        if code:
            failed[" ".join(run)] = code
        if code > SIGNALLED or code == REQUEUE:
            break
    return print_failures(failed, len(runs))


def print_failures(failed: Mapping[str, int], num_runs: int) -> int:
    """Print the failed runs of a sweep. Return the exit code of the first one, or 0."""
    failed = {run: code for run, code in failed.items() if code}
    if failed and num_runs > 1:
        listed = "; ".join(f"{run} (exit {code})" for run, code in failed.items())
        print(f"torchppo: {len(failed)} of {num_runs} runs failed: {listed}", file=sys.stderr)
    return next(iter(failed.values()), 0)


def train_command(config_dir: Path | None, *, print_config: bool = False) -> list[str]:
    """Return the command that trains once."""
    options = ["--config-dir", str(config_dir)] if config_dir else []
    return [sys.executable, "-m", "torchppo", "train", *options, *(["--cfg"] if print_config else [])]


@contextmanager
def swept(overrides: Sequence[str]) -> Iterator[None]:
    """Set the environment variable `SWEPT` to the overrides that differ between runs."""
    before = os.environ.get(SWEPT)
    os.environ[SWEPT] = json.dumps(list(overrides))
    try:
        yield
    finally:
        os.environ.pop(SWEPT)
        if before is not None:
            os.environ[SWEPT] = before


def run_to_end(command: Sequence[str]) -> int:
    """Run a process and return its exit code. Signals are passed on to it."""
    received: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        received.append(number)
        process.send_signal(number)

    with (
        handle_signals(lambda number, _: received.append(number), *SIGNALS),
        subprocess.Popen(command) as process,
        handle_signals(pass_on, *SIGNALS),
    ):
        for number in received[:1]:  # the signal arrived before the process existed
            process.send_signal(number)
        code = process.wait()
    if code < 0:
        return exit_code(-code) if -code in SIGNALS else 128 - code
    return code or (exit_code(received[0]) if received else 0)


def combinations(overrides: Sequence[str], config_dir: Path | None = None) -> list[list[str]]:
    """Return one list of overrides for every combination of swept values; the last override of a key counts.

    Raises:
        ConfigurationError: if values cannot be swept.

    """
    values: dict[str, list[str]] = {}
    options = options_by_group(config_dir)
    for override in parse(overrides):
        key, swept = override.get_key_element(), override.value()
        if isinstance(swept, Glob):
            group = override.key_or_group.split("@", maxsplit=1)[0]
            values[key] = [f"{key}={name}" for name in swept.filter([*options.get(group, {})])]
        elif override.is_sweep_override():
            with one_line_errors():
                values[key] = [f"{key}={value}" for value in override.sweep_string_iterator()]
        else:
            values[key] = [str(override.input_line)]
    return [list(combination) for combination in product(*values.values())]
