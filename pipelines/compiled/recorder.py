"""Records the operations of a function of tensors while they run.

Uses private APIs of PyTorch, tested with 2.13: `TorchDispatchMode`, `tree_map_only`, `DisableTorchFunction`.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ...errors import GraphError

VALUE_READERS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
VALUE_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Methods of tensors and tags of operators whose results would be constants of a graph."""


class Recorder(TorchDispatchMode):
    """Runs operations on tensors and records them as a graph.

    Args:
        inputs: the first inputs of the graph. Tensors that are neither inputs nor results become further inputs.
        keep_copies: whether to keep copies of these tensors for `restore`.

    Raises:
        GraphError: if an operation returns values of tensors to Python, or a tensor whose shape depends on values.

    """

    def __init__(self, inputs: Sequence[Tensor], *, keep_copies: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = Graph()
        self._graph.set_codegen(CodeGen())  # inputs and outputs are lists
        self._nodes: dict[int, tuple[Tensor, Node]] = {}  # the tensors stay alive, so no other one has the same id
        self._last_input: Node | None = None
        for tensor in inputs:
            self._add_input(tensor)
        self._num_arguments = len(inputs)
        self._keep_copies, self._copies = keep_copies, dict[Node, tuple[Tensor, Tensor]]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if is_mask or (func is not torch.ops.aten.index.Tensor and VALUE_TAGS & {*getattr(func, "tags", ())}):
            refuse(func)
        node = self._graph.call_function(func, *tree_map_only(Tensor, self._node_of, (args, kwargs)))
        with torch._C.DisableTorchFunction():  # an operator of ours may read the values of tensors
            result = func(*args, **kwargs)
        if isinstance(result, Tensor):
            self._nodes.setdefault(id(result), (result, node))  # an operation in place returns a known tensor
        elif isinstance(result, list | tuple):
            for index, one in enumerate(result):
                if isinstance(one, Tensor):
                    part = self._graph.call_function(operator.getitem, (node, index))
                    self._nodes.setdefault(id(one), (one, part))
        return result

    def _node_of(self, tensor: Tensor) -> Node:
        if id(tensor) not in self._nodes:
            node = self._add_input(tensor)
            if self._keep_copies:
                self._copies[node] = tensor, tensor.clone()
        return self._nodes[id(tensor)][1]

    def _add_input(self, tensor: Tensor) -> Node:
        with self._graph.inserting_after(self._last_input):
            self._last_input = self._graph.placeholder(f"input_{len(self._nodes)}")
        self._nodes[id(tensor)] = tensor, self._last_input
        return self._last_input

    def has_computed(self, tensor: Tensor) -> bool:
        """Return whether a tensor is the result of an operation and not an input."""
        return id(tensor) in self._nodes and self._nodes[id(tensor)][1].op != "placeholder"

    @property
    def closed_over(self) -> list[Tensor]:
        """The inputs after the arguments, in the order of the graph."""
        tensors = [tensor for tensor, node in self._nodes.values() if node.op == "placeholder"]
        return tensors[self._num_arguments :]

    def finish(self, results: Sequence[Tensor]) -> GraphModule:
        """Return the graph of the operations that results and changes of inputs need."""
        self._graph.output([self._nodes[id(one)][1] for one in results])
        self._graph.eliminate_dead_code()
        return GraphModule({}, self._graph)

    def restore(self, written: set[Node]) -> None:
        """Undo the changes of closed-over tensors, the latest first because they may share memory."""
        for node, (tensor, copy) in reversed(self._copies.items()):
            if node in written:
                tensor.copy_(copy)


class RefuseValues(TorchFunctionMode):
    """Raises a GraphError if a function reads the values of a tensor without an operation that can be recorded."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in VALUE_READERS:
            refuse(func)
        if func is torch.nn.functional.one_hot:
            return one_hot(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """Compute `torch.nn.functional.one_hot`, which reads the values to check them, or to find `num_classes`."""
    if num_classes < 0:
        refuse(torch.nn.functional.one_hot)
    return (tensor.unsqueeze(-1) == torch.arange(num_classes, device=tensor.device)).long()


def refuse(func: Any) -> None:
    """Raise a GraphError for a function that reads the values of tensors."""
    raise GraphError(
        f"a policy or objective depends on the values of tensors ({getattr(func, '__name__', func)}), which a graph "
        "does not support; use compile=false"
    )
