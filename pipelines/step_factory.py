"""Eager or compiled steps."""

from __future__ import annotations

from typing import Any, Literal

import torch

from ..errors import ConfigurationError


def refuse_other_types(module: Any) -> None:
    """Raise a ConfigurationError where weights that learn are not of environments' type."""
    others = {param.dtype for param in module.parameters() if param.requires_grad} - {torch.float32}
    if others:
        raise ConfigurationError(
            f"trainer.precision={module.trainer.precision}: weights are {others.pop()}, which does not go with "
            "environments' float32; take 32-true, bf16-mixed or 16-mixed"
        )


Compile = bool | Literal["trace"]
"""What becomes of a step: a compiled graph, no graph at all, or one whose operations are run as they are."""


def checked_compile(value: Compile) -> Compile:
    """The value, if it is a `Compile`; else a ConfigurationError."""
    if value is not True and value is not False and value != "trace":
        raise ConfigurationError(f"compile={value!r} is none of True, False and 'trace'")
    return value
