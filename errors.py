"""User-facing errors, each with an exit code of the command line."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from difflib import get_close_matches


class TorchPPOError(Exception):
    """An error whose message is one line that says how to fix it.

    Line breaks in the message are replaced by spaces, because messages may quote other libraries.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class ConfigurationError(TorchPPOError, ValueError):
    """A setting that cannot work. The message names the key, the value and what to do."""

    exit_code = 2


class GraphError(ConfigurationError):
    """A step that cannot be traced or compiled. With `compile=auto` it runs in another way instead."""


class EnvironmentFailure(TorchPPOError):  # noqa: N818 - EnvironmentError is a builtin
    """An environment that does not exist, is not supported, or failed while running."""

    exit_code = 3


class NumericalError(TorchPPOError, ArithmeticError):
    """A loss, gradient, metric or action that is not finite. The message says where it appeared first."""

    exit_code = 4


class CheckpointError(TorchPPOError):
    """A file that is not a checkpoint of torchppo, or not of this model."""

    exit_code = 5


class RunLockedError(TorchPPOError):
    """A run directory that another process is using."""

    exit_code = 6


def did_you_mean(name: str, candidates: Iterable[str], cutoff: float = 0.5) -> str:
    """Return ` (did you mean ...?)` with the most similar candidate, or an empty string.

    Args:
        name: what the user wrote.
        candidates: valid names. Names that start with an underscore are suggested only if `name` starts with one.
        cutoff: minimum similarity between 0 and 1 (1 means equal).

    """
    allowed = [candidate for candidate in candidates if _is_private(name) or not _is_private(candidate)]
    matches = get_close_matches(name, allowed, n=1, cutoff=cutoff)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _is_private(key: str) -> bool:
    return key.rpartition(".")[2].startswith("_")


def fail(message: str, code: int) -> int:
    """Print an error in one line and return its exit code."""
    print(f"torchppo: {' '.join(message.split())}", file=sys.stderr)
    return code
