"""`python -m torchppo`, and the command `torchppo`."""

import signal

from .pipelines.stopping.processes import kill_children
from .pipelines.stopping.signals import SIGNALS, exit_at_once, exit_code


def main() -> int:
    """Run one command. Signals end it with their exit codes, also during the imports, and no process stays behind."""
    for number in SIGNALS:
        signal.signal(number, exit_at_once)
    from .pipelines.cli.main import main as run

    code = run()
    if code in map(exit_code, SIGNALS):
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)  # the exit code is that of the first signal
        kill_children()
    return code


if __name__ == "__main__":
    raise SystemExit(main())
