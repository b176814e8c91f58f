"""How a graph becomes one kernel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

Kernel = Callable[[list[Tensor]], Sequence[Tensor]]

OPTIONS: dict[str, Any] = {
    "fallback_random": True,  # the same random numbers as without compilation
    "size_asserts": False,  # nothing changes its size
    "alignment_asserts": False,
    "assert_indirect_indexing": False,  # the indices are permutations
}

FEW_ROWS, SMALL_WEIGHT = 3, 16_384
"""Largest products that are sums: a policy of 17-64-64-6 takes 21 us either way for 4 rows, 35 against 22 for 8."""

# Of the rational function that Eigen takes for tanh: x p(x^2) / q(x^2), highest power first.
TANH_P: tuple[float, ...] = (-2.76076847742355e-16, 2.00018790482477e-13, -8.60467152213735e-11, 5.12229709037114e-08)
TANH_P += (1.48572235717979e-05, 6.37261928875436e-04, 4.89352455891786e-03)
TANH_Q = (1.19825839466702e-06, 1.18534705686654e-04, 2.26843463243900e-03, 4.89352518554385e-03)


def small_product(rows: Tensor, weight: Tensor) -> Tensor:
    """A product with few rows as sums, which fuse with what comes before and after; a library call costs more."""
    on_cpu_by_rows = rows.device.type == "cpu" and weight.stride(0) == 1
    if not on_cpu_by_rows or rows.shape[0] > FEW_ROWS or weight.numel() > SMALL_WEIGHT:
        return NotImplemented
    return (rows.unsqueeze(1) * weight.t().unsqueeze(0)).sum(-1)


def small_linear(bias: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """The same with a bias."""
    product = small_product(rows, weight)
    return product if product is NotImplemented else product + bias


def fast_tanh(x: Tensor) -> Tensor:
    """Within 4e-7 of tanh, at a fraction of what the library's costs, which is a third of a small network's time."""
    if x.device.type != "cpu" or x.dtype != torch.float32:
        return NotImplemented
    x = x.clamp(-7.905, 7.905)
    return x * polynomial(TANH_P, x * x) / polynomial(TANH_Q, x * x)


def polynomial(coefficients: Sequence[float], x: Tensor) -> Tensor:
    """The value at `x` by Horner's rule, highest power first."""
    value = torch.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        value = value * x + coefficient
    return value


REPLACEMENTS: dict[Any, Callable[..., Tensor]] = {
    torch.ops.aten.mm.default: small_product,
    torch.ops.aten.addmm.default: small_linear,
    torch.ops.aten.tanh.default: fast_tanh,
}


class Decompositions(dict[Any, Callable[..., Any]]):
    """What operators are replaced by, known by this file's content where a compiled graph is looked up on disk.

    Inductor cannot make a key of the functions themselves and would compile anew in every process.
    """

    def __reduce__(self) -> Any:
        """The file's digest, as a string."""
        return str, (sha256(Path(__file__).read_bytes()).hexdigest(),)


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
    with torch._C._DisableAutocast():  # what it casts is in the graph
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
        inputs: the tensors of that call; all but the arguments have to stay where they are.
        num_arguments: how many of the first differ from call to call. They are copied to where the recording
            reads them, unless it is the very tensor of the last call.

    """

    def __init__(self, kernel: Kernel, inputs: Sequence[Tensor], num_arguments: int) -> None:
        """Nothing is recorded yet."""
        self._kernel = kernel
        self._latest = list(inputs[:num_arguments])
        self._read = [*(tensor.clone() for tensor in self._latest), *inputs[num_arguments:]]
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """The kernel's outputs, copied out of the recording."""
        for place, latest in enumerate(self._latest):
            if inputs[place] is not latest:
                self._read[place].copy_(inputs[place], non_blocking=True)
                self._latest[place] = inputs[place]
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = self._kernel(list(self._read))
        self._graph.replay()
        return [output.clone() for output in self._outputs]


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
