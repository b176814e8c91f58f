"""A function of tensors as one traced graph.

Uses private APIs of PyTorch, tested with 2.13 and 2.14: `FakeTensorMode`, `make_fx`, `TorchDispatchMode`,
`_DisableAutocast`.
"""

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
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ...errors import GraphError
from .graph_passes import lift_casts, lift_constants, run_operations
from .inductor import CudaGraph, Kernel, compile_graph
from .torchrl_tracing import torchrl_traceable


class TracedFunction:
    """A function of tensors as one graph, traced at its first call and called directly afterwards.

    The first call runs Python code, TensorDict, hooks and the autograd engine, and records the operations on tensors:
    the arguments, and those that the function closes over. Everything else is constant afterwards: shapes, strides,
    modes and Python numbers must not change, and a closed-over tensor may only change in place. The operations are
    compiled into one kernel, which is recorded as a CUDA graph on CUDA. Without compilation, they run one by one, and
    the results are bitwise equal to those of the function.

    `torch.compile` checks guards, replays side effects of Python and wraps tensors at every call, which costs more than
    a small network. It also takes seconds to simulate the Python code that simply runs here.

    Args:
        function: from tensors and dictionaries of tensors to a tensor or a sequence of tensors; called under `no_grad`.
            It must not depend on the values of tensors.
        compile: whether to compile the graph.
        keep_casts: whether closed-over tensors stay the same until `refresh` is called. Casts of them to another
            precision are then computed once, not at every call.

    Raises:
        GraphError: at the first call, if the function depends on the values of tensors.

    """

    def __init__(
        self,
        function: Callable[..., Any],
        *,
        compile: bool = True,  # noqa: A002
        keep_casts: bool = False,
    ) -> None:
        self._function = function
        self._compile = compile
        self._keep_casts = keep_casts
        self._casts: list[tuple[Tensor, Tensor]] = []
        self._kernel: Kernel | None = None

    @property
    def is_built(self) -> bool:
        """Whether the first call has built the graph."""
        return self._kernel is not None

    def __call__(self, *arguments: Any) -> Any:
        if self._kernel is None:
            return self._build(arguments)
        outputs = self._kernel([*tensors_in(arguments), *self._closed_over])
        return outputs[0] if self._is_single else outputs

    def refresh(self) -> None:
        """Recompute the casts of closed-over tensors; trace again if the precision has changed."""
        if self._kernel is not None and self._precision != autocast_dtypes():
            self._kernel, self._casts = None, []
        for cast, source in self._casts:
            cast.copy_(source)

    def _build(self, arguments: tuple[Any, ...]) -> Any:
        """Trace with fake tensors, make the kernel, and call it."""
        self._precision = autocast_dtypes()
        inputs = [tensor.detach() for tensor in tensors_in(arguments)]  # distinct objects, also for equal arguments
        traced, constants = self._trace(arguments, inputs)
        graph, names = lift_constants(traced)
        self._closed_over = [constants.real(getattr(traced, name)) for name in names]
        if self._keep_casts:
            sources = [(self._closed_over[index], dtype) for index, dtype in lift_casts(graph, len(inputs))]
            self._casts = [(source.to(dtype), source) for source, dtype in sources]
            self._closed_over += [cast for cast, _ in self._casts]
        tensors = [*inputs, *self._closed_over]
        if self._compile:
            try:
                kernel, outputs = compile_graph(graph, tensors)
            except Exception as error:  # such as a missing C++ compiler
                message = str(error).strip().splitlines() or [type(error).__name__]
                raise GraphError(f"a graph cannot be compiled ({message[0][:200]}); use compile=false") from error
            if any(tensor.is_cuda for tensor in tensors):
                kernel = CudaGraph(kernel, tensors, len(inputs))
        else:
            kernel = run_operations(graph)
            outputs = kernel(tensors)
        self._kernel = kernel
        return outputs[0] if self._is_single else outputs

    def _trace(self, arguments: tuple[Any, ...], inputs: list[Tensor]) -> tuple[GraphModule, FakeConstants]:
        def flat_function(*tensors: Tensor) -> list[Tensor]:
            result = self._function(*with_tensors(arguments, iter(tensors)))
            self._is_single = isinstance(result, Tensor)
            results = [result] if isinstance(result, Tensor) else list(result)
            # A graph returns new tensors, so arguments and closed-over tensors are cloned.
            return [
                one.clone() if any(one is own for own in tensors) or not isinstance(one, FakeTensor) else one
                for one in results
            ]

        try:
            mode = FakeTensorMode(allow_non_fake_inputs=True)
            with torchrl_traceable(), mode, FakeConstants(mode) as constants:
                return make_fx(flat_function)(*(mode.from_tensor(tensor) for tensor in inputs)), constants
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise GraphError(
                f"a policy or objective depends on the values of tensors ({error}), which a graph does not support; "
                "use compile=false"
            ) from error
        except Exception as error:
            error.add_note("This happened while tracing a graph; compile=false runs without graphs.")
            raise


class FakeConstants(TorchDispatchMode):
    """Replaces the real tensors that a function closes over by fake tensors of `mode`.

    Without it, `mode` runs an operation on real tensors if no argument of the operation is fake.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._mode = mode
        self._fakes: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, self._fake, (args, kwargs or {}))
        return func(*args, **kwargs)

    def _fake(self, tensor: Tensor) -> Tensor:
        if isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in self._fakes:
            # `.data` is not a view. `from_tensor` would turn a view into a view of a second fake base.
            self._fakes[id(tensor)] = tensor, self._mode.from_tensor(tensor.data)
        return self._fakes[id(tensor)][1]

    def real(self, constant: Tensor) -> Tensor:
        """Return the real tensor of a constant of the graph: a fake tensor, or from PyTorch 2.14 a tensor itself."""
        for tensor, fake in self._fakes.values():
            if constant is fake or constant is tensor:
                return tensor
        raise GraphError(
            "a policy or objective computes a constant from its weights, which a graph would not update; "
            "use compile=false"
        )


def autocast_dtypes() -> list[torch.dtype | None]:
    """Return the autocast dtype on the CPU and on CUDA; `None` where autocast is disabled."""
    return [
        torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None for device in ("cpu", "cuda")
    ]


def tensors_in(arguments: Sequence[Any]) -> Iterator[Tensor]:
    """Yield the tensors of arguments that are tensors or dictionaries of tensors."""
    for argument in arguments:
        if isinstance(argument, Tensor):
            yield argument
        else:
            yield from argument.values()


def with_tensors(arguments: Sequence[Any], tensors: Iterator[Tensor]) -> list[Any]:
    """Return the arguments with other tensors in their places."""
    return [
        next(tensors) if isinstance(argument, Tensor) else {key: next(tensors) for key in argument}
        for argument in arguments
    ]
