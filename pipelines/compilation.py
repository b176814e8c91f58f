"""How a function of tensors becomes one graph."""

from __future__ import annotations

from collections.abc import Callable
from types import FunctionType, MethodType
from typing import Any

import torch


def one_graph(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile `function` without graph breaks and without guards.

    Guards cost more than a small network. Without them everything but tensors is fixed at the first call:
    shapes, modes and Python numbers must not change afterwards, and what does change must be a tensor.
    Random numbers come from the same generators, in the same order, as without compilation.
    """
    method = function if isinstance(function, MethodType) else None
    plain: Any = function if method is None else method.__func__
    # Compiled graphs are kept per code object; without guards, two functions of one code would share a graph.
    fresh = FunctionType(
        plain.__code__.replace(), plain.__globals__, plain.__name__, plain.__defaults__, plain.__closure__
    )
    own: Callable[..., Any] = fresh if method is None else MethodType(fresh, method.__self__)
    options: dict[str, str | int | bool | Callable[..., Any]]
    options = {"guard_filter_fn": lambda guards: [False] * len(guards), "fallback_random": True}
    return torch.compile(own, fullgraph=True, dynamic=False, options=options)
