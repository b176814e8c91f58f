"""`python -m torchppo`, and the command `torchppo`."""

import gc
import importlib.util
import signal
import sys
from pathlib import Path

from .pipelines.stopping.processes import kill_children
from .pipelines.stopping.signals import SIGNALS, exit_at_once, exit_code


def main() -> int:
    """Run one command. Signals end it with their exit codes, also during the imports, and no process stays behind."""
    for number in SIGNALS:
        signal.signal(number, exit_at_once)
    hide_missing_mjx()
    from .pipelines.cli.main import main as run

    code = run()
    if code in map(exit_code, SIGNALS):
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the exit code is that of the first signal
        kill_children()
    gc.freeze()  # otherwise, the garbage collector examines all modules at exit, which takes a second
    return code


def hide_missing_mjx() -> None:
    """Mark `mujoco.mjx` as missing if it is not installed.

    Otherwise, TorchRL 0.14 imports MuJoCo to check this, which takes 0.3 s.
    """
    spec = importlib.util.find_spec("mujoco")  # does not import it
    if spec is not None and not any(Path(path, "mjx").exists() for path in spec.submodule_search_locations or ()):
        sys.modules.setdefault("mujoco.mjx", None)  # type: ignore[arg-type] # its import raises ModuleNotFoundError


if __name__ == "__main__":
    raise SystemExit(main())
