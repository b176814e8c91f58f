"""How a function of tensors becomes one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.graph import CodeGen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ..errors import ConfigurationError

Kernel = Callable[[list[Tensor]], Sequence[Tensor]]
Compile = bool | Literal["trace"]
"""What becomes of a step: a compiled graph, no graph at all, or one whose operations are run as they are."""

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


class OneGraph:
    """A function of tensors as one graph, traced at its first call and then called directly.

    Python, TensorDict, hooks and autograd's engine take part in the first call alone, which records its operations
    on tensors: those of the arguments, and those that the function closes over. Everything else is fixed then:
    shapes, modes and Python numbers must not change afterwards, and a tensor closed over only in place.
    The operations are compiled into one kernel, which on CUDA is recorded once more and replayed; or run as they
    are, to the same bits as the function's own.

    `torch.compile` checks guards, replays Python's side effects and wraps tensors at every call, which costs more
    than a small network, and takes seconds to simulate the Python that is simply run here.

    Args:
        function: of tensors and dictionaries of tensors, to one new tensor or a sequence of them; called
            under `no_grad`. What it does may not depend on a tensor's value.
        compile: whether to compile.

    Raises:
        ConfigurationError: at the first call, if it does depend on a value.

    """

    def __init__(self, function: Callable[..., Any], *, compile: bool = True) -> None:  # noqa: A002
        """Nothing is traced yet."""
        self._function = function
        self._compile = compile
        self._kernel: Kernel | None = None

    def __call__(self, *arguments: Any) -> Any:
        """The function's value."""
        if self._kernel is None:
            return self._begin(arguments)
        outputs = self._kernel([*tensors_in(arguments), *self._closed_over])
        return outputs[0] if self._is_single else outputs

    def _begin(self, arguments: tuple[Any, ...]) -> Any:
        """Trace with tensors that have shapes but no values, make the kernel, and call it."""
        result: Any = None

        def of_tensors(*tensors: Tensor) -> list[Tensor]:
            nonlocal result
            result = self._function(*filled(arguments, iter(tensors)))
            return [result] if isinstance(result, Tensor) else list(result)

        given = [tensor.detach() for tensor in tensors_in(arguments)]  # apart, also where one was given twice
        try:
            with FakeTensorMode(allow_non_fake_inputs=True) as mode, Valueless(mode) as valueless:
                traced = make_fx(of_tensors)(*(mode.from_tensor(tensor) for tensor in given))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ConfigurationError(
                f"a policy or objective needs the values of tensors ({error}), which a graph does not have; "
                "compile=false runs it as it is"
            ) from error
        except Exception as error:
            error.add_note("while a graph was traced; compile=false runs the policy and the objective as they are")
            raise
        graph, constants = closed(traced)
        self._closed_over = [valueless.real(constant) for constant in constants]
        outputs: Any = graph.graph.output_node().args[0]
        if any(output.op == "placeholder" for output in outputs):
            raise RuntimeError(f"a result of {self._function} is not a new tensor of its own")
        self._is_single = isinstance(result, Tensor)
        inputs = [*given, *self._closed_over]
        if self._compile:
            self._kernel, outputs = compiled(graph, inputs)
            if any(tensor.is_cuda for tensor in inputs):
                self._kernel = CudaGraph(self._kernel, inputs, len(given))
        else:
            self._kernel = as_it_is(graph)
            outputs = self._kernel(inputs)
        return outputs[0] if self._is_single else outputs


class Valueless(TorchDispatchMode):
    """Stands in tensors of `mode`, which have no values, for those that a function closes over.

    By itself `mode` runs for real what none of its own tensors takes part in.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        """No tensor has been met."""
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = mode
        self._met: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation."""
        args, kwargs = tree_map_only(Tensor, self._stand_in, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _stand_in(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        return self._met.setdefault(id(tensor), (tensor, self._mode.from_tensor(tensor)))[1]

    def real(self, stand_in: Tensor) -> Tensor:
        """The tensor itself."""
        return next(tensor for tensor, other in self._met.values() if other is stand_in)


def closed(traced: GraphModule) -> tuple[GraphModule, list[Tensor]]:
    """A traced graph whose constants have become inputs after its own, and these constants."""
    graph = traced.graph
    graph.set_codegen(CodeGen())  # tensors come and go in lists
    graph.eliminate_dead_code()
    first = next(node for node in graph.nodes if node.op != "placeholder")
    constants = graph.find_nodes(op="get_attr")
    inputs: dict[str, Any] = {}
    for node in constants:
        if node.target not in inputs:
            with graph.inserting_before(first):
                inputs[node.target] = graph.placeholder(f"closed_over_{len(inputs)}")
        node.replace_all_uses_with(inputs[node.target])
    for node in constants:
        graph.erase_node(node)
    for node in graph.nodes:
        node.meta.clear()  # of shapes and types, each with a mode of its own, which the compiler does not mix
    return GraphModule({}, graph), [getattr(traced, name) for name in inputs]


def as_it_is(graph: GraphModule) -> Kernel:
    """The graph, operation by operation."""
    forward = graph.forward

    def kernel(inputs: list[Tensor]) -> Sequence[Tensor]:
        with torch._C._DisableAutocast():  # what it casts is in the graph
            return forward(*inputs)

    return kernel


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
        kernel: Any = compile_fx_inner(graph, examples, **options)

        def recorded(inputs: list[Tensor]) -> Sequence[Tensor]:
            kept = list(inputs)  # the kernel empties its list
            outputs = kernel(inputs)
            calls.append((kernel, kept, outputs))
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


def tensors_in(arguments: Sequence[Any]) -> Iterator[Tensor]:
    """The tensors of arguments that are tensors or dictionaries of tensors."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        else:
            yield from argument.values()


def filled(arguments: Sequence[Any], tensors: Iterator[Tensor]) -> list[Any]:
    """Such arguments with other tensors in them."""
    return [
        next(tensors) if isinstance(argument, Tensor) else {key: next(tensors) for key in argument}
        for argument in arguments
    ]


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
