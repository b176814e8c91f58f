"""The command `torchppo list`."""

from __future__ import annotations

from .keys.checks import Options

NOTES = {
    "env": "  (only the environment; use experiment= for tuned settings)",
    "experiment": "  (an environment with tuned settings)",
}
"""Notes after the names of groups."""


def print_options(options: Options) -> None:
    """Print the choices of every group with their descriptions."""
    for group, choices in options.items():
        print(f"{group}={NOTES.get(group, '')}")
        for name, description in choices.items():
            print(f"  {name:<26}{description}")
