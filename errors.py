"""What a person can be told in one line: each class carries the exit code of the command line."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class TorchPPOError(Exception):
    """A failure that is not a bug of torchppo; its message is one line that names the way out."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        """Make one line of a message that may quote several of a library's or a spec's."""
        super().__init__(" ".join(message.split()))


class ConfigurationError(TorchPPOError, ValueError):
    """A setting that cannot work: names the key, the value and what would."""

    exit_code = 2


class EnvironmentFailure(TorchPPOError):  # noqa: N818 - EnvironmentError is Python's own
    """An environment that does not exist, is not supported, or failed while it ran."""

    exit_code = 3


class NumericalError(TorchPPOError, ArithmeticError):
    """A number that is not finite, with the place where it appeared first."""

    exit_code = 4


class CheckpointError(TorchPPOError):
    """A file that is not a checkpoint of torchppo, or not of this model."""

    exit_code = 5


class RunLockedError(TorchPPOError):
    """A run directory in which another training is at work."""

    exit_code = 6


def did_you_mean(name: str, candidates: Iterable[str], cutoff: float = 0.5) -> str:
    """The nearest of the names that there are, to append to a message, or nothing; 1 is the same name."""
    matches = get_close_matches(name, list(candidates), n=1, cutoff=cutoff)
    return f" (did you mean {matches[0]!r}?)" if matches else ""
