"""Runs sweeps: one process for every combination of values."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Glob

from ...errors import ConfigurationError
from .config import compose, one_line_errors, options_by_group, parse
from .main import handle_signals


def run_sweep(overrides: Sequence[str], config_dir: Path | None, *, print_config: bool) -> int:
    """Run every combination of values in its own process, so that no run inherits another's state.

    Returns:
        The exit code of the first run that fails, or 0.

    """
    command = [sys.executable, "-m", "torchppo", "train"]
    if config_dir:
        command += ["--config-dir", str(config_dir)]
    if print_config:
        command += ["--cfg"]
    runs = combinations(overrides, config_dir)
    folders = [compose(run, config_dir).run_dir for run in runs]
    repeated = [folder for number, folder in enumerate(folders) if folder in folders[:number]]
    if repeated and any(word.startswith("run_dir=") for word in overrides):
        raise ConfigurationError(
            f"run_dir={repeated[0]} would be used by several runs; write one folder per swept key, "
            f"such as run_dir='{repeated[0]}/s${{seed}}'"
        )
    for number, run in enumerate(runs, 1):
        print(f"[{number}/{len(runs)}] torchppo train {' '.join(run)}", flush=True)
        code = run_to_end([*command, *run])
        if code:
            return code
    return 0


def run_to_end(command: Sequence[str]) -> int:
    """Run a process and return its exit code. The terminal also sends Ctrl-C to it; this process passes SIGTERM on."""
    received: list[int] = []

    def pass_on(number: int, _: Any) -> None:
        received.append(number)
        process.terminate()

    with (
        handle_signals(lambda number, _: received.append(number), signal.SIGINT, signal.SIGTERM),
        subprocess.Popen(command) as process,
        handle_signals(pass_on, signal.SIGTERM),
    ):
        if signal.SIGTERM in received:  # the signal arrived before the process existed
            process.terminate()
        code = process.wait()
    if code < 0:
        return 128 - code
    return code or (128 + received[0] if received else 0)


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
