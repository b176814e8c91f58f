"""What a person can be told in one line: each class carries the exit code of the command line."""


class TorchPPOError(Exception):
    """A failure that is not a bug of torchppo; its message is one line that names the way out."""

    exit_code = 1


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
