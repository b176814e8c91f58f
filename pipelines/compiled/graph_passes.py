"""Transformations of a recorded graph: casts become inputs, and operations become Python code."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from .inductor import Kernel


def lift_casts(graph: GraphModule, num_arguments: int) -> list[tuple[int, torch.dtype]]:
    """Turn casts of closed-over inputs to another precision into inputs.

    Args:
        graph: graph whose first inputs are the arguments; the other inputs are closed over.
        num_arguments: number of arguments.

    Returns:
        For each new input, the index of the closed-over input that it is a cast of, and its precision.

    """
    inputs = graph.graph.find_nodes(op="placeholder")
    closed_over, last = inputs[num_arguments:], inputs[-1]
    changing = inputs_written_by(graph)
    casts: list[tuple[int, torch.dtype]] = []
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten._to_copy.default):
        source = node.args[0]
        while source.target is torch.ops.aten.alias.default:  # PyTorch 2.14 reads parameters through an alias
            source = source.args[0]
        if source in closed_over and source not in changing:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"cast_{len(casts)}")
            casts.append((closed_over.index(source), node.kwargs["dtype"]))
            node.replace_all_uses_with(last)
            graph.graph.erase_node(node)
    graph.graph.eliminate_dead_code()
    graph.recompile()
    return casts


def inputs_written_by(graph: GraphModule) -> set[Node]:
    """Return the inputs that a graph changes in place, directly or through a view."""
    return {node for one in graph.graph.nodes for node in written_by(one)}


def written_by(node: Node) -> Iterator[Node]:
    """Yield the tensors that an operation changes in place; for a view, the tensor that it views."""
    schema = getattr(node.target, "_schema", None)
    if schema is None or not schema.is_mutable:
        return
    for index, argument in enumerate(schema.arguments):
        if argument.is_write:
            value: Any = node.args[index] if index < len(node.args) else node.kwargs.get(argument.name)
            yield from (
                base_of(one) for one in (value if isinstance(value, list | tuple) else [value]) if one is not None
            )


def base_of(node: Node) -> Node:
    """Return the first node of a chain of views."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def run_operations(graph: GraphModule) -> Kernel:
    """Return a kernel that runs the operations of a graph one by one.

    Its code calls the operators directly. The code of `GraphModule` looks them up and is 20 % slower. `_op` is a
    private attribute, tested with PyTorch 2.13.
    """
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    inputs = [node.name for node in graph.graph.find_nodes(op="placeholder")]
    last_use = {value: node for node in nodes for value in node.all_input_nodes}
    names: dict[str, Any] = {"torch": torch, "device": torch.device, "inf": math.inf, "nan": math.nan}
    results: Any = graph.graph.output_node().args[0]
    lines = [f"def run({', '.join(inputs)}):"]
    for node in nodes:
        names[f"call_{node.name}"] = getattr(node.target, "_op", node.target)
        arguments = [*map(repr, node.args), *(f"{key}={value!r}" for key, value in node.kwargs.items())]
        unused = [value.name for value in node.all_input_nodes if last_use[value] is node and value not in results]
        lines.append(f"    {node.name} = call_{node.name}({', '.join(arguments)})")
        lines += [f"    del {', '.join(unused)}"] if unused else []
    exec("\n".join([*lines, f"    return {results!r}"]), names)  # as `GraphModule` does
    run = names["run"]

    def kernel(inputs: list[Tensor]) -> Sequence[Tensor]:
        with torch._C._DisableAutocast():  # the graph contains the casts
            outputs: Sequence[Tensor] = run(*inputs)
            return outputs

    return kernel
