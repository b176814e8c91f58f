"""A function of tensors as one graph.

Uses a private API of PyTorch, tested with 2.13: `_DisableAutocast`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from ...errors import GraphError
from .graph_passes import lift_casts, run_operations
from .inductor import CudaGraph, Kernel, compile_graph
from .recorder import Attributes, Recorder, RefuseValues
from .torchrl_tracing import torchrl_traceable


class TracedFunction:
    """A function of tensors as one graph, recorded at its first call and called directly afterwards.

    The first call runs Python code, TensorDict, hooks and the autograd engine, and records the operations on tensors:
    the arguments, and those that the function closes over. Everything else is constant afterwards: shapes, strides,
    modes and Python numbers must not change, and a closed-over tensor may only change in place. The operations are
    compiled into one kernel, which is recorded as a CUDA graph on CUDA. Without compilation, they run one by one, and
    the results are bitwise equal to those of the function.

    The operations run on the real tensors while they are recorded. Recording an optimizer step of two small networks
    takes 0.06 s. `make_fx` with fake tensors takes 0.5 s.

    `torch.compile` checks guards, replays side effects of Python and wraps tensors at every call, which costs more than
    a small network. It also takes seconds to simulate the Python code that simply runs here.

    Args:
        function: from tensors and dictionaries of tensors to a tensor or a sequence of tensors; called under `no_grad`.
            It must not change its arguments, or depend on the values of tensors.
        module: module that the function calls. Its attributes must not be replaced.
        compile: whether to compile the graph.
        keep_casts: whether closed-over tensors stay the same until `refresh` is called. Casts of them to another
            precision are then computed once, not at every call.

    Raises:
        GraphError: at the first call, if the function depends on the values of tensors, or replaces an attribute.

    """

    def __init__(
        self,
        function: Callable[..., Any],
        module: nn.Module | None = None,
        *,
        compile: bool = True,  # noqa: A002
        keep_casts: bool = False,
    ) -> None:
        self._function, self._module = function, module
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
        """Record the function, make the kernel, and return the results of the first call."""
        self._precision = autocast_dtypes()
        inputs = [tensor.detach() for tensor in tensors_in(arguments)]  # distinct objects, also for equal arguments
        graph, self._closed_over, outputs = self._record(arguments, inputs)
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
        self._kernel = kernel
        return outputs[0] if self._is_single else outputs

    def _record(
        self, arguments: tuple[Any, ...], inputs: list[Tensor]
    ) -> tuple[GraphModule, list[Tensor], Sequence[Tensor]]:
        """Call the function; return its graph, the tensors that it closes over, and its results.

        Without compilation, this is the first call. With compilation, the changes that the function makes to tensors
        are undone, and the kernel runs next. They are also undone after an error, so that the function can run eagerly.
        """
        devices = [tensor.device for tensor in inputs if tensor.is_cuda][:1]
        recorder, attributes = Recorder(inputs), Attributes(self._module)
        torch.clear_autocast_cache()  # casts in the cache would not be recorded
        try:
            with torchrl_traceable(), torch.random.fork_rng(devices, enabled=self._compile), recorder, RefuseValues():
                result = self._function(*with_tensors(arguments, iter(inputs)))
                self._is_single = isinstance(result, Tensor)
                results = [result] if isinstance(result, Tensor) else list(result)
                # A graph returns new tensors, so arguments and closed-over tensors are cloned.
                results = [one if recorder.has_computed(one) else one.clone() for one in results]
            attributes.check(recorder)
            graph = recorder.finish(results)
        except Exception as error:
            recorder.restore()
            attributes.restore()
            if not isinstance(error, GraphError):
                error.add_note("This happened while tracing a graph; compile=false runs without graphs.")
            raise
        finally:
            torch.clear_autocast_cache()  # of weights that a graph changes
        if self._compile:
            recorder.restore()
        return graph, recorder.closed_over, results


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
