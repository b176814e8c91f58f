"""Compiles a graph into one kernel with Inductor, and records it as a CUDA graph on CUDA.

Uses private APIs of PyTorch, tested with 2.13: `torch._inductor.compile_fx`, `torch._guards`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ...envs.vector.forked_call import signals_blocked
from .cpu_kernels import DECOMPOSITIONS, CacheableDecompositions

Kernel = Callable[[list[Tensor]], Sequence[Tensor]]

OPTIONS: dict[str, Any] = {
    "fallback_random": True,  # the same random numbers as without compilation
    "size_asserts": False,  # shapes do not change
    "alignment_asserts": False,
    "assert_indirect_indexing": False,  # the indices are permutations
}


def compile_graph(graph: GraphModule, inputs: list[Tensor]) -> tuple[Kernel, Sequence[Tensor]]:
    """Compile a graph; return its kernel and the outputs for `inputs`."""
    from torch._inductor.exc import CppCompileError, InductorError

    try:
        return compile_with(OPTIONS, graph, inputs)
    except InductorError as error:
        if not isinstance(error.inner_exception, CppCompileError):
            raise
        # PyTorch 2.13 vectorizes some loops into invalid C++, such as the gradient of TorchRL's ClipPPOLoss.
        return compile_with(OPTIONS | {"cpp.simdlen": 1}, graph, inputs)


def compile_with(options: dict[str, Any], graph: GraphModule, inputs: list[Tensor]) -> tuple[Kernel, Sequence[Tensor]]:
    """Compile a graph with options of Inductor.

    The kernel is extracted from the first call, because Inductor's wrappers cost more time than a small network.
    """
    # Imported here, because the import takes a second, which runs without compilation do not need.
    from torch._guards import TracingContext, tracing
    from torch._inductor.compile_fx import compile_fx, compile_fx_inner
    from torch._inductor.decomposition import select_decomp_table

    calls: list[tuple[Kernel, list[Tensor], Sequence[Tensor]]] = []

    def inner_compile(graph: Any, examples: Any, **options: Any) -> Any:
        result: Any = compile_fx_inner(graph, examples, **options)

        def recorded(inputs: list[Tensor]) -> Sequence[Tensor]:
            kept = list(inputs)  # the kernel empties its list
            outputs = result(inputs)
            calls.append((result.current_callable, kept, outputs))
            return outputs

        recorded._boxed_call = True  # type: ignore[attr-defined] # it takes one list, which it may empty
        return recorded

    on_cuda = any(tensor.is_cuda for tensor in inputs)
    patches = options | {"cpp_wrapper": not on_cuda}  # on a CPU, kernels call each other in C++
    table = CacheableDecompositions({**select_decomp_table(), **DECOMPOSITIONS})
    context = TracingContext(FakeTensorMode(shape_env=ShapeEnv()))  # without it the cache on disk is not used
    # The graph contains its casts. Ctrl-C must not reach the C++ compilers, which would make compilation fail.
    with torch._C._DisableAutocast(), signals_blocked():
        with tracing(context):
            whole: Any = compile_fx(
                graph,
                inputs,
                inner_compile=inner_compile,
                config_patches=patches,
                decompositions=table,
                ignore_shape_env=True,
            )
        results = whole(*inputs)
    kernel, taken, outputs = calls.pop()
    sources = [find_alias(tensor, inputs) for tensor in taken]
    places = [find_alias(tensor, outputs) for tensor in results]

    def call_kernel(inputs: list[Tensor]) -> Sequence[Tensor]:
        outputs = kernel([inputs[source] for source in sources])
        return [outputs[place] for place in places]

    return call_kernel, results


class CudaGraph:
    """A kernel on CUDA, recorded once and replayed without launches from Python.

    Args:
        kernel: kernel that has been called once.
        inputs: the tensors of that call. The kernel is recorded again if one that is not an argument has moved.
        num_arguments: number of inputs at the start of the list that change between calls. They are copied to the
            memory that the recording reads, unless the object is the same as in the last call.

    """

    def __init__(self, kernel: Kernel, inputs: Sequence[Tensor], num_arguments: int) -> None:
        self._kernel = kernel
        self._latest = list(inputs[:num_arguments])
        self._static = [*(copy_with_strides(tensor) for tensor in self._latest), *inputs[num_arguments:]]
        self._record()

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        for place, latest in enumerate(self._latest):
            if inputs[place] is not latest:
                self._static[place].copy_(inputs[place], non_blocking=True)
                self._latest[place] = inputs[place]
        if [tensor.data_ptr() for tensor in self._static] != self._addresses:
            self._record()
        self._graph.replay()
        return [output.clone() for output in self._outputs]

    def _record(self) -> None:
        """Record the kernel, without running it."""
        self._graph, self._addresses = torch.cuda.CUDAGraph(), [tensor.data_ptr() for tensor in self._static]
        with torch.cuda.graph(self._graph):
            self._outputs = self._kernel(list(self._static))


def copy_with_strides(tensor: Tensor) -> Tensor:
    """Return a copy with the same strides, which a kernel relies on; `clone` may change them."""
    strides = tensor.stride()
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def find_alias(tensor: Tensor, candidates: Sequence[Tensor]) -> int:
    """Return the index of `tensor` among the candidates, or of one with the same memory, shape and strides."""
    aliases = [
        place
        for place, other in enumerate(candidates)
        if tensor.data_ptr() == other.data_ptr() and tensor.shape == other.shape and tensor.stride() == other.stride()
    ]
    if not aliases:
        raise RuntimeError("the kernel uses a tensor that is neither an input nor an output of the graph")
    return min(aliases, key=lambda place: candidates[place] is not tensor)
