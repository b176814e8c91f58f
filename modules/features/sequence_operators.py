"""Defines functions of sequences as PyTorch operators. A graph contains one call of them instead of their operations.

The operations of an LSTM or GRU depend on where episodes begin, which a graph does not support.

Uses private APIs of PyTorch, tested with 2.13: `_ForceDispatchKeyGuard`, `_dispatch_tls_local_*`, `tree_map_only`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

LIBRARY = torch.library.Library("torchppo", "DEF")
OUTSIDE_GRAPHS = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
"""Dispatch keys when this file is imported. Recording a graph changes those of its thread."""


class SequenceOperator:
    """A function of sequences and its gradient, as two PyTorch operators for the CPU.

    Args:
        name: Name of the operator. The operator of the gradient is `<name>_backward`.
        forward: Maps `is_init` and the tensors that have gradients to a list of contiguous results.
        backward: Maps the gradients of the results that have gradients, `is_init`, the tensors and all results to the
            gradients of the tensors.
        shapes: Maps `is_init` and the tensors to the shapes of the results.
        num_gradients: Number of results that have gradients; they come first.

    """

    def __init__(
        self,
        name: str,
        forward: Callable[[Tensor, Sequence[Tensor]], list[Tensor]],
        backward: Callable[..., list[Tensor]],
        shapes: Callable[[Tensor, Sequence[Tensor]], list[tuple[int, ...]]],
        num_gradients: int,
    ) -> None:
        self.num_gradients = num_gradients
        self.forward = define(f"{name}(Tensor is_init, Tensor[] tensors)", forward, shapes)
        self.backward = define(
            f"{name}_backward(Tensor[] gradients, Tensor is_init, Tensor[] tensors, Tensor[] results)",
            lambda *arguments: [gradient.contiguous() for gradient in backward(*arguments)],
            lambda *arguments: [tensor.shape for tensor in arguments[2]],
        )

    def __call__(self, is_init: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """Compute the results. Second derivatives are not supported."""
        results: tuple[Tensor, ...] = OperatorFunction.apply(self, is_init, *tensors)  # type: ignore[no-untyped-call]
        return results


def define(schema: str, function: Callable[..., list[Tensor]], shapes: Callable[..., Sequence[Any]]) -> Any:
    """Define an operator that returns a list of tensors, and return it.

    Args:
        schema: Name and arguments.
        function: Computes the results.
        shapes: Computes the shapes of the results from the same arguments. Their dtype and device are those of the
            first tensor in the last argument.

    """

    def outside_graphs(*arguments: Any) -> list[Tensor]:
        # Not under `no_grad`, where the last bits of PyTorch's LSTM differ.
        with torch._C._ForceDispatchKeyGuard(*OUTSIDE_GRAPHS), torch.enable_grad():
            return function(*tree_map_only(Tensor, Tensor.detach, arguments))

    def fake(*arguments: Any) -> list[Tensor]:
        return [arguments[-1][0].new_empty(shape) for shape in shapes(*arguments)]

    name = schema.partition("(")[0]
    LIBRARY.define(f"{schema} -> Tensor[]")
    LIBRARY.impl(name, outside_graphs, "CPU")
    torch.library.register_fake(f"torchppo::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.torchppo, name).default


class OperatorFunction(torch.autograd.Function):
    """Connects the two operators, also under `torch.func`."""

    @staticmethod
    def forward(operator: SequenceOperator, is_init: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        return tuple(operator.forward(is_init, [*tensors]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.operator, *tensors = inputs
        ctx.mark_non_differentiable(*output[ctx.operator.num_gradients :])
        ctx.save_for_backward(*tensors, *output)
        ctx.num_results = len(output)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        is_init, *saved = ctx.saved_tensors
        tensors, results = saved[: -ctx.num_results], saved[-ctx.num_results :]
        of_results = [gradient.contiguous() for gradient in gradients[: ctx.operator.num_gradients]]
        return None, None, *ctx.operator.backward(of_results, is_init, tensors, results)
