"""How a function of tensors becomes one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def one_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` without graph breaks and without guards.

    Guards cost more than a small network. Without them everything but tensors is fixed at the first call:
    shapes, modes and Python numbers must not change afterwards, and what does change must be a tensor.
    Random numbers come from the same generators, in the same order, as without compilation.
    """
    options = {"guard_filter_fn": lambda guards: [False] * len(guards), "fallback_random": True}
    return torch.compile(function, fullgraph=True, dynamic=False, options=options)  # type: ignore[no-any-return]
