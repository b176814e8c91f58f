"""How a function of tensors becomes one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

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


class OneGraph:
    """A function of tensors, compiled as a whole at its first call and then called directly.

    `torch.compile` checks guards, replays Python's side effects and wraps tensors at every call, which costs
    more than a small network. Here the kernel is taken out of the first call and given its inputs itself:
    the arguments, and the tensors that the function closes over. Everything else is fixed at the first call:
    shapes, modes and Python numbers must not change afterwards, and a tensor closed over only in place.
    On CUDA the kernel is recorded once and replayed.

    Args:
        function: of tensors and dictionaries of tensors, to one new tensor or a sequence of them; called
            under `no_grad`.

    """

    def __init__(self, function: Callable[..., Any]) -> None:
        """Nothing is compiled yet."""
        self._function = function
        self._kernel: Kernel | None = None

    def __call__(self, *arguments: Any) -> Any:
        """The function's value."""
        if self._kernel is None:
            return self._compile(arguments)
        inputs: list[Any] = self._inputs.copy()
        for place, tensor in zip(self._places, tensors_in(arguments), strict=True):
            if place is not None:
                inputs[place] = tensor
        outputs = self._kernel(inputs)
        results = [outputs[place] for place in self._results]
        return results[0] if self._is_single else results

    def _compile(self, arguments: tuple[Any, ...]) -> Any:
        # Here, because they take a second that a run without compilation does not have to wait.
        from torch._inductor.compile_fx import compile_fx, compile_fx_inner
        from torch._inductor.decomposition import select_decomp_table

        calls: list[tuple[Kernel, list[Tensor], Sequence[Tensor]]] = []

        def inner_compile(graph: Any, examples: Any, **options: Any) -> Any:
            kernel: Any = compile_fx_inner(graph, examples, **options)

            def recorded(inputs: list[Tensor]) -> Sequence[Tensor]:
                kept = list(inputs)  # the kernel empties its list
                outputs = kernel(inputs)
                calls.append((kernel, kept, outputs))
                return outputs

            recorded._boxed_call = True  # type: ignore[attr-defined] # takes one list, which it may empty
            return recorded

        def backend(graph: Any, examples: Any) -> Any:
            on_cuda = any(tensor.is_cuda for tensor in tensors_in(arguments))
            patches = OPTIONS | {"cpp_wrapper": not on_cuda}  # on a CPU, kernels call one another in C++
            table = {**select_decomp_table(), **REPLACEMENTS}
            return compile_fx(
                graph, examples, inner_compile=inner_compile, config_patches=patches, decompositions=table
            )

        result = torch.compile(own_copy(self._function), fullgraph=True, dynamic=False, backend=backend)(*arguments)
        kernel, inputs, outputs = calls.pop()
        self._places = [place_of(tensor, inputs) for tensor in tensors_in(arguments)]
        self._is_single = isinstance(result, Tensor)
        found = [place_of(tensor, outputs) for tensor in ([result] if self._is_single else result)]
        self._results = [place for place in found if place is not None]
        if len(self._results) < len(found):
            raise RuntimeError(f"a result of {self._function} is not a new tensor of its own")
        given = [place for place in self._places if place is not None]
        self._kernel = CudaGraph(kernel, inputs, given) if any(tensor.is_cuda for tensor in inputs) else kernel
        # Only what is closed over is kept; a rollout would be large.
        self._inputs = [None if place in given else tensor for place, tensor in enumerate(inputs)]
        return result


class CudaGraph:
    """A kernel on CUDA, recorded at its first call and replayed from then on, without launches from Python.

    Args:
        kernel: has been called once before.
        inputs: the tensors of that call; all but the arguments have to stay where they are.
        arguments: the places of those that differ from call to call. They are copied to where the recording
            reads them, unless it is the very tensor of the last call.

    """

    def __init__(self, kernel: Kernel, inputs: Sequence[Tensor], arguments: Sequence[int]) -> None:
        """Nothing is recorded yet."""
        self._kernel = kernel
        self._arguments = arguments
        self._latest = list(inputs)
        self._read = [tensor.clone() if place in arguments else tensor for place, tensor in enumerate(inputs)]
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """The kernel's outputs, copied out of the recording."""
        for place in self._arguments:
            if inputs[place] is not self._latest[place]:
                self._read[place].copy_(inputs[place], non_blocking=True)
                self._latest[place] = inputs[place]
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self._outputs = self._kernel(list(self._read))
        self._graph.replay()
        return [output.clone() for output in self._outputs]


def own_copy(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a code object of its own: compiled graphs are counted, and kept, per code object."""

    def entry(*arguments: Any) -> Any:
        return function(*arguments)

    return FunctionType(entry.__code__.replace(), entry.__globals__, entry.__name__, None, entry.__closure__)


def tensors_in(arguments: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors of arguments that are tensors or dictionaries of tensors."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        else:
            yield from argument.values()


def place_of(tensor: Tensor, among: Sequence[Tensor]) -> int | None:
    """Where the same memory in the same layout stands; none: the graph does not use it."""
    for place, other in enumerate(among):
        if tensor.data_ptr() == other.data_ptr() and tensor.shape == other.shape and tensor.stride() == other.stride():
            return place
    return None
