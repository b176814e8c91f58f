"""How a function of tensors becomes one graph."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.graph import CodeGen
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ...errors import ConfigurationError
from .inductor import CudaGraph, Kernel, compiled


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
        function: of tensors and dictionaries of tensors, to one tensor or a sequence of them; called under `no_grad`.
            What it does may not depend on a tensor's value, nor an argument's strides change.
        compile: whether to compile.
        keep_casts: whether closed-over tensors stay as they are until `refresh` is called: what is only one of them
            in another precision is then computed once, and not at every call.

    Raises:
        ConfigurationError: at the first call, if it does depend on a value.

    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        compile: bool = True,  # noqa: A002
        keep_casts: bool = False,
    ) -> None:
        """Nothing is traced yet."""
        self._function = function
        self._compile = compile
        self._keep_casts = keep_casts
        self._casts: list[tuple[Tensor, Tensor]] = []
        self._kernel: Kernel | None = None

    def __call__(self, *arguments: Any) -> Any:
        """The function's value."""
        if self._kernel is None:
            return self._begin(arguments)
        outputs = self._kernel([*tensors_in(arguments), *self._closed_over])
        return outputs[0] if self._is_single else outputs

    def refresh(self) -> None:
        """Take note that closed-over tensors have changed, or the precision."""
        if self._kernel is not None and self._precision != precision():
            self._kernel, self._casts = None, []
        for cast, source in self._casts:
            cast.copy_(source)

    def _begin(self, arguments: tuple[Any, ...]) -> Any:
        """Trace with tensors that have shapes but no values, make the kernel, and call it."""
        result: Any = None
        self._precision = precision()

        def of_tensors(*tensors: Tensor) -> list[Tensor]:
            nonlocal result
            result = self._function(*filled(arguments, iter(tensors)))
            results = [result] if isinstance(result, Tensor) else list(result)
            # A graph's results are new tensors: what is given, or closed over, is copied.
            return [
                one.clone() if any(one is own for own in tensors) or not isinstance(one, FakeTensor) else one
                for one in results
            ]

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
        if self._keep_casts:
            sources = [(self._closed_over[index], dtype) for index, dtype in casts_as_inputs(graph, len(given))]
            self._casts = [(source.to(dtype), source) for source, dtype in sources]
            self._closed_over += [cast for cast, _ in self._casts]
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
        if id(tensor) not in self._met:
            # Its data is no view of anything: of a view, `from_tensor` would make a part of a base that it makes too.
            self._met[id(tensor)] = tensor, self._mode.from_tensor(tensor.data)
        return self._met[id(tensor)][1]

    def real(self, stand_in: Tensor) -> Tensor:
        """The tensor itself."""
        return next(tensor for tensor, other in self._met.values() if other is stand_in)


def precision() -> list[torch.dtype | None]:
    """In which one operations are run, on a CPU and on CUDA; none: in that of their arguments."""
    return [
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None for device in ("cpu", "cuda")
    ]


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


def casts_as_inputs(graph: GraphModule, num_given: int) -> list[tuple[int, torch.dtype]]:
    """Make inputs of what is only an input after the first `num_given` in another precision.

    Returns:
        Of which of these inputs, counted from 0, and in which precision.

    """
    inputs = graph.graph.find_nodes(op="placeholder")
    closed_over, last = inputs[num_given:], inputs[-1]
    changing = written_in(graph)
    casts: list[tuple[int, torch.dtype]] = []
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten._to_copy.default):
        if node.args[0] in closed_over and node.args[0] not in changing:
            with graph.graph.inserting_after(last):
                last = graph.graph.placeholder(f"cast_{len(casts)}")
            casts.append((closed_over.index(node.args[0]), node.kwargs["dtype"]))
            node.replace_all_uses_with(last)
            graph.graph.erase_node(node)
    graph.recompile()
    return casts


def written_in(graph: GraphModule) -> set[Node]:
    """The inputs that the graph itself changes, they or views of them."""
    written: set[Node] = set()
    for node in graph.graph.nodes:
        schema = getattr(node.target, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        for argument, value in zip(schema.arguments, node.args, strict=False):
            if argument.is_write:
                written.update(map(origin_of, value if isinstance(value, list | tuple) else [value]))
    return written


def origin_of(node: Node) -> Node:
    """What a chain of views is of."""
    while node.op == "call_function" and node.args and isinstance(node.args[0], Node):
        node = node.args[0]
    return node


def as_it_is(graph: GraphModule) -> Kernel:
    """The graph, operation by operation."""
    forward = graph.forward

    def kernel(inputs: list[Tensor]) -> Sequence[Tensor]:
        with torch._C._DisableAutocast():  # what it casts is in the graph
            return forward(*inputs)

    return kernel


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
