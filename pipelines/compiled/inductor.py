"""How a graph becomes one kernel."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from ..callbacks.stop_on_signal import SIGNALS
from .cpu_kernels import REPLACEMENTS, Decompositions


@contextmanager
def sparing_children() -> Iterator[None]:
    """Processes started meanwhile do not get the Ctrl-C that a terminal sends them too; what comes here waits."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


Kernel = Callable[[list[Tensor]], Sequence[Tensor]]

OPTIONS: dict[str, Any] = {
    "fallback_random": True,  # the same random numbers as without compilation
    "size_asserts": False,  # nothing changes its size
    "alignment_asserts": False,
    "assert_indirect_indexing": False,  # the indices are permutations
}


def compiled(graph: GraphModule, inputs: list[Tensor]) -> tuple[Kernel, Sequence[Tensor]]:
    """The graph as one kernel, and what it has computed from `inputs`.

    The kernel is taken out of its first call, to be given its inputs without what wraps it.
    """
    # Here, because they take a second that a run without compilation does not have to wait.
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

        recorded._boxed_call = True  # type: ignore[attr-defined] # takes one list, which it may empty
        return recorded

    on_cuda = any(tensor.is_cuda for tensor in inputs)
    patches = OPTIONS | {"cpp_wrapper": not on_cuda}  # on a CPU, kernels call one another in C++
    table = Decompositions({**select_decomp_table(), **REPLACEMENTS})
    context = TracingContext(FakeTensorMode(shape_env=ShapeEnv()))  # without one, nothing is looked up on disk
    # Autocast: what it casts is in the graph. Children: C++ compilers, which Ctrl-C would make fail.
    with torch._C._DisableAutocast(), sparing_children():
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
    sources = [place_of(tensor, inputs) for tensor in taken]
    places = [place_of(tensor, outputs) for tensor in results]

    def direct(inputs: list[Tensor]) -> Sequence[Tensor]:
        outputs = kernel([inputs[source] for source in sources])
        return [outputs[place] for place in places]

    return direct, results


class CudaGraph:
    """A kernel on CUDA, recorded at its first call and replayed from then on, without launches from Python.

    Args:
        kernel: has been called once before.
        inputs: the tensors of that call; where one that is no argument has moved, it is recorded anew.
        num_arguments: how many of the first differ from call to call. They are copied to where the recording
            reads them, unless it is the very tensor of the last call.

    """

    def __init__(self, kernel: Kernel, inputs: Sequence[Tensor], num_arguments: int) -> None:
        """Nothing is recorded yet."""
        self._kernel = kernel
        self._latest = list(inputs[:num_arguments])
        self._read = [*(same_layout(tensor) for tensor in self._latest), *inputs[num_arguments:]]
        self._graph: torch.cuda.CUDAGraph | None = None
        self._addresses: list[int] = []

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """The kernel's outputs, copied out of the recording."""
        for place, latest in enumerate(self._latest):
            if inputs[place] is not latest:
                self._read[place].copy_(inputs[place], non_blocking=True)
                self._latest[place] = inputs[place]
        addresses = [tensor.data_ptr() for tensor in self._read]
        if self._graph is None or addresses != self._addresses:
            self._graph, self._addresses = torch.cuda.CUDAGraph(), addresses
            with torch.cuda.graph(self._graph):
                self._outputs = self._kernel(list(self._read))
        self._graph.replay()
        return [output.clone() for output in self._outputs]


def same_layout(tensor: Tensor) -> Tensor:
    """A copy with the same strides, which a kernel relies on; `clone` would close gaps."""
    strides = tensor.stride()
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype, device=tensor.device).copy_(tensor)


def place_of(tensor: Tensor, among: Sequence[Tensor]) -> int:
    """Where a tensor stands, or else one with the same memory in the same layout."""
    alike = [
        place
        for place, other in enumerate(among)
        if tensor.data_ptr() == other.data_ptr() and tensor.shape == other.shape and tensor.stride() == other.stride()
    ]
    if not alike:
        raise RuntimeError("a kernel takes or makes a tensor that is none of the graph's")
    return min(alike, key=lambda place: among[place] is not tensor)
