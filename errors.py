"""What a person can be told in one line: each class carries the exit code of the command line."""

from __future__ import annotations

import traceback


class TorchPPOError(Exception):
    """A failure that is not a bug of torchppo; its message is one line that names the way out."""

    exit_code = 1


class ConfigurationError(TorchPPOError, ValueError):
    """A setting that cannot work: names the key, the value and what would."""

    exit_code = 2


class EnvironmentFailure(TorchPPOError):  # noqa: N818 - EnvironmentError is Python's own
    """An environment that does not exist, is not supported, or failed while it ran."""

    exit_code = 3


def environment_failure(what: str, error: Exception) -> TorchPPOError:
    """What an environment's own code raised, which its traceback tells best; itself if it is one line already."""
    if isinstance(error, TorchPPOError):
        return error
    traceback.print_exception(error)
    return EnvironmentFailure(f"{what}: {type(error).__name__}: {error}; its traceback stands above")


class NumericalError(TorchPPOError, ArithmeticError):
    """A number that is not finite, with the place where it appeared first."""

    exit_code = 4


class CheckpointError(TorchPPOError):
    """A file that is not a checkpoint of torchppo, or not of this model."""

    exit_code = 5


class RunLockedError(TorchPPOError):
    """A run directory in which another training is at work."""

    exit_code = 6
