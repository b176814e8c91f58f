"""Records the operations of a function of tensors while they run.

Uses private APIs of PyTorch, tested with 2.13: `TorchDispatchMode`, `tree_map`, `DisableTorchFunction`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.graph import CodeGen
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from ...errors import GraphError
from .graph_passes import written_by

VALUE_READERS = {Tensor.tolist, Tensor.numpy, Tensor.__array__, Tensor.__dlpack__}
VALUE_TAGS = {torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape}
"""Methods of tensors and tags of operators whose results would be constants of a graph."""


class Recorder(TorchDispatchMode):
    """Runs operations on tensors and records them as a graph.

    Args:
        inputs: the first inputs of the graph. Tensors that are neither inputs nor results become further inputs.

    Raises:
        GraphError: if an operation returns values of tensors to Python, or a tensor whose shape depends on values, or
            has an argument that a graph cannot contain.

    """

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._graph = Graph()
        self._graph.set_codegen(CodeGen())  # inputs and outputs are lists
        self._nodes: dict[int, tuple[Tensor, Node]] = {}  # the tensors stay alive, so no other one has the same id
        self._inputs: dict[Node, tuple[Tensor, int]] = {}  # with their addresses
        self._last_input: Node | None = None
        for tensor in inputs:
            self._add_input(tensor)
        self._num_arguments = len(inputs)
        self._copies: dict[Node, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if is_mask or (func is not torch.ops.aten.index.Tensor and VALUE_TAGS & {*getattr(func, "tags", ())}):
            refuse(func)
        if func is torch.ops.aten.lift_fresh.default:  # from `torch.tensor`, which makes a new tensor in every call
            func = torch.ops.aten.clone.default
        elif func is torch.ops.aten.native_batch_norm.default and args[3] is not None:
            func = torch.ops.aten._native_batch_norm_legit.default  # declares that it changes the statistics
        node = self._graph.call_function(func, *tree_map(self._recorded, (args, kwargs)))
        for changed in written_by(node):
            if changed in self._inputs and changed not in self._copies:
                self._copies[changed] = self._inputs[changed][0].clone()
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

    def _recorded(self, argument: Any) -> Any:
        if isinstance(argument, torch.Generator | torch.UntypedStorage):
            raise GraphError(
                f"a policy or objective calls an operation with a {type(argument).__name__}, which a graph does not "
                "support; use compile=false"
            )
        if not isinstance(argument, Tensor):
            return argument
        return self._nodes[id(argument)][1] if id(argument) in self._nodes else self._add_input(argument)

    def _add_input(self, tensor: Tensor) -> Node:
        with self._graph.inserting_after(self._last_input):
            self._last_input = self._graph.placeholder(f"input_{len(self._nodes)}")
        self._nodes[id(tensor)] = tensor, self._last_input
        self._inputs[self._last_input] = tensor, tensor.data_ptr()
        return self._last_input

    def has_computed(self, tensor: Tensor) -> bool:
        """Return whether a tensor is the result of an operation and not an input."""
        return id(tensor) in self._nodes and self._nodes[id(tensor)][1] not in self._inputs

    def has_read(self, tensor: Tensor) -> bool:
        """Return whether a tensor is an input."""
        return id(tensor) in self._nodes and self._nodes[id(tensor)][1] in self._inputs

    @property
    def closed_over(self) -> list[Tensor]:
        """The inputs after the arguments, in the order of the graph."""
        return [tensor for tensor, _ in self._inputs.values()][self._num_arguments :]

    def finish(self, results: Sequence[Tensor]) -> GraphModule:
        """Return the graph of the operations that results and changes of inputs need.

        Raises:
            GraphError: if the memory of an input was replaced, because the graph would not read the new memory.

        """
        if any(tensor.data_ptr() != address for tensor, address in self._inputs.values()):
            refuse_replacement("the data of a tensor")
        self._graph.output([self._nodes[id(one)][1] for one in results])
        self._graph.eliminate_dead_code()
        return GraphModule({}, self._graph)

    def restore(self) -> None:
        """Undo the changes of inputs, the last one first, because inputs may share memory."""
        for node, copy in reversed(self._copies.items()):
            self._inputs[node][0].copy_(copy)


class Attributes:
    """The tensors and numbers that are attributes of a module and its submodules.

    Args:
        module: the module; `None` has no attributes.

    """

    def __init__(self, module: nn.Module | None) -> None:
        self._values = [
            (part, attributes, name, value)
            for part in (module.modules() if module is not None else ())
            for attributes in (vars(part), part._buffers)
            for name, value in attributes.items()
            if isinstance(value, Tensor) or type(value) in (int, float)
        ]

    def check(self, recorder: Recorder) -> None:
        """Check that no attribute was replaced while the operations were recorded.

        A graph would not replace it again. A tensor that no operation has read is no state, so it may be replaced.

        Raises:
            GraphError: if an attribute was replaced.

        """
        for part, attributes, name, value in self._values:
            new = attributes.get(name)
            if new is not value and (recorder.has_read(value) if isinstance(value, Tensor) else new != value):
                refuse_replacement(f"{type(part).__name__}.{name}")

    def restore(self) -> None:
        """Undo the changes."""
        for _, attributes, name, value in self._values:
            attributes[name] = value


@contextmanager
def state_kept(module: nn.Module) -> Iterator[None]:
    """Undo all changes of buffers, and of tensors and numbers that are attributes of a module."""
    attributes, buffers = Attributes(module), [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        attributes.restore()
        for buffer, copy in buffers:
            buffer.copy_(copy)


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


def refuse_replacement(name: str) -> None:
    """Raise a GraphError for a state that is replaced instead of changed in place."""
    raise GraphError(
        f"a policy or objective replaces {name} when it is called, which a graph does not repeat; register a buffer "
        "and change it in place (copy_, add_), or use compile=false"
    )
