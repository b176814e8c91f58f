"""Makes eager, traced or compiled steps of policy and optimizer.

This is the only file that imports `compiled/`, and it does so lazily: eager runs work without that folder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, Literal

import torch
from tensordict import NestedKey, TensorDict
from tensordict.nn import TensorDictModuleBase
from torch import Tensor, nn

from ..errors import ConfigurationError, GraphError
from ..modules.features.extractor import recurrent_modules, recurrent_state_shapes
from .distributed import num_ranks
from .updates.eager_step import EagerStep, StoppingRule

Compile = bool | Literal["auto", "trace"]
"""How steps run: `False` eagerly; `"trace"` as a traced graph, operation by operation; `True` as a compiled graph;
`"auto"` in the way that is fastest for the number of steps, and in another way if that fails."""

STEPS_TO_TRACE = 50
POLICY_STEPS_TO_COMPILE = 30_000
OPTIMIZER_STEPS_TO_COMPILE = 8_000
"""Numbers of steps above which a graph saves time. On CartPole-v1 (EPYC), tracing costs 0.01 s (policy) and 0.06 s
(optimizer) and saves 0.4 and 2.5 ms per step. Compiling both costs 27 s, or 4 s if cached, and saves 0.2 and 1.5 ms."""
STEPS_TO_TORCH_COMPILE = 20_000
"""Number of steps above which `torch.compile` saves time. It compiles more slowly than our graphs and saves less."""
EVALUATION_STEPS = 1_000  # typical policy steps of an evaluation: enough to trace, too few to compile

Step = Callable[..., Any]
logger = logging.getLogger("torchppo")


def check_compile(value: Any) -> Compile:
    """Return `value` if it is a valid `Compile`, else raise a ConfigurationError."""
    if value is not True and value is not False and value not in ("auto", "trace"):
        raise ConfigurationError(f"compile={value} is not valid; use auto, true, trace or false")
    return value


def choose(compile: Compile, num_steps: float, steps_to_compile: int) -> Compile:  # noqa: A002
    """Replace `"auto"` by the fastest way to run `num_steps` steps."""
    if compile != "auto":
        return compile
    if num_steps > steps_to_compile:
        return True
    return "trace" if num_steps > STEPS_TO_TRACE else False


class PolicyFunction:
    """A policy as a function of plain tensors.

    Args:
        policy: reads the observation, and for recurrent policies `is_init` and its recurrent states.
        compile: see `Compile`.
        num_steps: how often it will be called, for `compile="auto"`.

    Attributes:
        output_keys: keys of the outputs of a call, in order; the newest recurrent states follow them.
        state_shapes: `(context_length, state_size)` of every recurrent state.

    """

    def __init__(self, policy: TensorDictModuleBase, compile: Compile, num_steps: float) -> None:  # noqa: A002
        self.policy = policy
        self.state_shapes = recurrent_state_shapes(policy)
        next_states = [("next", key) for key in self.state_shapes]
        self.output_keys = [key for key in policy.out_keys if key not in next_states]
        self._call = make_policy_step(self._outputs, policy, compile, num_steps)
        self.refresh = getattr(self._call, "refresh", _nothing_to_refresh)

    @property
    def device(self) -> torch.device:
        return device_of(self.policy)

    def __call__(self, inputs: Mapping[NestedKey, Tensor]) -> Sequence[Tensor]:
        """Act on observations `[num_envs, ...]`; the outputs are new contiguous tensors."""
        outputs: Sequence[Tensor] = self._call(inputs)
        return outputs

    def _outputs(self, inputs: Mapping[NestedKey, Tensor]) -> list[Tensor]:
        acted = self.policy(TensorDict(dict(inputs), next(iter(inputs.values())).shape[:1]))
        states = [acted["next", key][:, -1] for key in self.state_shapes]
        return [*(acted[key].contiguous() for key in self.output_keys), *(state.contiguous() for state in states)]


def make_policy_step(function: Step, policy: nn.Module, compile: Compile, num_steps: float) -> Step:  # noqa: A002
    """Return a policy step as a function of a dictionary of tensors.

    Args:
        function: from a dictionary of tensors to a list of tensors.
        policy: the policy that it calls.
        compile: see `Compile`.
        num_steps: how often it will be called, for `compile="auto"`.

    Returns:
        The function itself, or a graph with a method `refresh`, to be called after the weights have changed.

    """
    chosen = choose(check_compile(compile), num_steps, POLICY_STEPS_TO_COMPILE)
    if chosen is False:
        return function

    def make_graph() -> Step:
        with graphs_required():
            from .compiled.graph import TracedFunction
        return TracedFunction(function, policy, compile=chosen is True, keep_casts=True)

    if compile != "auto":
        return make_graph()
    return FirstThatWorks("the policy", make_graph, lambda: torch.compile(function), function, num_steps)


def make_optimizer_step(ppo: Any, compile: Compile) -> Step:  # noqa: A002
    """Return the optimizer step of a LightningModule; see `EagerStep` for its arguments and results.

    Args:
        ppo: the LightningModule, once its optimizer, devices and precision are set up.
        compile: see `Compile`.

    Raises:
        ConfigurationError: if the weights are not float32.
        GraphError: if `compile` is true or `"trace"` and the optimizer or a hook does not allow a graph.

    """
    frames = getattr(ppo.trainer.train_dataloader, "frames_per_batch", None)
    frames = frames or max(1, int(ppo.total_frames / ppo.trainer.num_training_batches))
    num_steps = ppo.total_frames / (frames * num_ranks()) * ppo.update.num_steps(frames)
    check_dtypes(ppo)
    rule = StoppingRule.of(ppo.objective, ppo.update.stop_above)
    is_scaled = getattr(ppo.trainer.precision_plugin, "scaler", None) is not None
    eager = EagerStep(ppo, rule)
    chosen = choose(check_compile(compile), num_steps, OPTIMIZER_STEPS_TO_COMPILE)
    has_loop = not all(getattr(memory, "compiles_sequences", False) for memory in recurrent_modules(ppo.actor))
    if chosen is False or is_scaled or (compile == "auto" and has_loop):  # Lightning scales the losses
        return eager

    def make_graph() -> Step:
        with graphs_required():
            from .compiled.optimizer_step import GraphStep

        return GraphStep(ppo, rule, compile=chosen is True)

    def torch_compile() -> Step:
        return EagerStep(ppo, rule, losses=torch.compile(ppo.losses))

    if compile != "auto":
        return make_graph()
    return FirstThatWorks("the optimizer step", make_graph, torch_compile, eager, num_steps)


def check_dtypes(ppo: Any) -> None:
    """Raise a ConfigurationError if a trainable weight is not float32, the type of the observations."""
    others = {param.dtype for param in ppo.parameters() if param.requires_grad} - {torch.float32}
    if others:
        raise ConfigurationError(
            f"trainer.precision={ppo.trainer.precision} makes the weights {others.pop()}, but environments return "
            "float32; use 32-true, bf16-mixed or 16-mixed"
        )


class FirstThatWorks:
    """Runs a step as a graph, with `torch.compile` if the graph fails and the run is long, or else eagerly.

    The first call builds the graph. If that fails, a one-line warning names the reason. The eager step raises errors of
    the user's own code again.

    Args:
        name: name of the step in the message.
        make_graph: makes the graph.
        make_torch_compiled: makes the step with `torch.compile`.
        eager: the eager step.
        num_steps: expected number of calls.

    """

    def __init__(
        self,
        name: str,
        make_graph: Callable[[], Step],
        make_torch_compiled: Callable[[], Step],
        eager: Step,
        num_steps: float,
    ) -> None:
        self._name = name
        self._candidates = {"as a graph": make_graph}
        if num_steps > STEPS_TO_TORCH_COMPILE:
            self._candidates["with torch.compile"] = make_torch_compiled
        self._candidates["eagerly"] = lambda: eager
        self._step: Step | None = None

    def __call__(self, *arguments: Any) -> Any:
        return self._step(*arguments) if self._step is not None else self._first_call(*arguments)

    def _first_call(self, *arguments: Any) -> Any:
        reason = ""
        for way, make in self._candidates.items():
            random_state = torch.get_rng_state()
            try:
                step = make()
                result = step(*arguments)
            except Exception as error:  # private APIs of another PyTorch version may raise anything
                torch.set_rng_state(random_state)
                is_users_error = isinstance(error, ConfigurationError) and not isinstance(error, GraphError)
                if is_users_error or way == "eagerly":
                    raise
                reason = reason or f"{type(error).__name__}: {error}".splitlines()[0][:300]
            else:
                if result is not None:  # else the KL has forbidden the step before all of it was built
                    self._step = step
                if reason:
                    warn_once(f"torchppo: compile=auto runs {self._name} {way}; a graph failed: {reason}")
                return result
        raise AssertionError("the eager step returns or raises")

    def refresh(self) -> None:
        """Refresh the cached casts of a graph after an update."""
        getattr(self._step, "refresh", _nothing_to_refresh)()


@contextmanager
def graphs_required() -> Iterator[None]:
    """Raise a GraphError if `compiled/` is missing, or needs a private API that this version of PyTorch lacks."""
    try:
        yield
    except ImportError as error:
        raise GraphError(
            f"compile=true or trace: cannot import graphs ({error}; PyTorch {torch.__version__}); use compile=false"
        ) from error


@cache
def warn_once(message: str) -> None:
    """Log a warning once per process, because every evaluation makes its own policy step."""
    logger.warning(message)


def _nothing_to_refresh() -> None: ...


def device_of(module: nn.Module) -> torch.device:
    """Return the device of a module's parameters, or the CPU if it has no parameters."""
    return next((param.device for param in module.parameters()), torch.device("cpu"))
