"""The optimizer step as a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback, Trainer
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from ...errors import GraphError
from ..distributed import averaged, num_ranks, raise_on_all_ranks
from ..updates.eager_step import LossWeights, StoppingRule, check_connected, check_losses, scalars, total_loss
from ..updates.skipped import StepMetrics
from .flat_adam import FlatAdam
from .graph import TracedFunction
from .recorder import state_kept

HOOKS = (
    *("backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"),
    *("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad"),
)
"""Lightning's hooks around an optimizer step, which a graph does not call."""


class GraphStep:
    """The same step as `EagerStep`, without the autograd engine, Lightning's hooks, or Python between operations.

    `torch.func` computes the gradients, and `FlatAdam` takes the step. The step is one graph. It is two graphs if ranks
    average their gradients or the stopping rule can skip the step.

    Args:
        ppo: the LightningModule.
        rule: see `EagerStep`.
        compile: whether to compile the graphs; otherwise their operations run one by one.

    Raises:
        GraphError: if the optimizer, the objective or a hook does not allow a graph.

    """

    def __init__(self, ppo: Any, rule: StoppingRule | None, *, compile: bool) -> None:  # noqa: A002
        check_hooks(ppo)
        self.ppo = ppo
        self.rule = rule
        self.losses = ppo.losses
        self._adam = adam = FlatAdam(ppo.optimizer)
        self._num_ranks = num_ranks()
        self._names: list[str] = []
        self._is_built = False
        self._rows: TensorDictBase | None = None
        # Traced functions hold only what they compute with, because everything that they can reach is examined.
        gradient, max_norm = Gradient(self.losses, ppo.loss_weights, adam), ppo.max_grad_norm

        def step(vector: Tensor) -> Tensor:
            return adam.step(vector, max_norm)

        def gradient_and_step(rows: dict[Any, Tensor], indices: Tensor) -> Tensor:
            vector, metrics = gradient(rows, indices)
            return torch.cat([metrics, step(vector)])

        self._step: Callable[[dict[Any, Tensor], Tensor], Tensor | None]
        if rule is None and self._num_ranks == 1:
            self._step = TracedFunction(gradient_and_step, self.losses, compile=compile)
        else:
            self._gradient = TracedFunction(gradient, self.losses, compile=compile)
            self._apply = TracedFunction(step, compile=compile)
            self._step = self._step_in_two_graphs

    def __call__(self, batch: TensorDictBase, indices: Tensor) -> StepMetrics | None:
        """Take one step; see `EagerStep`."""
        if batch is not self._rows:  # once per epoch
            self._rows = batch
            self._tensors = dict(batch.items(include_nested=True, leaves_only=True))
        with torch.no_grad():
            if not self._names:
                self._names = self._find_names(batch, indices)
            self._adam.read_groups()
            values = self._step(self._tensors, indices) if self._is_built else self._first_step(indices)
        if values is None:
            return None
        count_step(self.ppo.trainer)
        return StepMetrics(self._names, values)

    def _first_step(self, indices: Tensor) -> Tensor | None:
        """Build the graphs. If that fails after a graph has run, undo its step, so that another way can take it."""
        state = self._adam.copy_state()
        try:
            values = self._step(self._tensors, indices)
        except Exception:
            self._adam.restore_state(state)
            raise
        self._is_built = values is not None
        return values

    def _find_names(self, batch: TensorDictBase, indices: Tensor) -> list[str]:
        """Run the losses once to find their metrics and to check that they depend on the parameters.

        The random state and the state of the losses are restored afterwards, so that this call has no effect.
        """
        parameters = [param for param in self.losses.parameters() if param.requires_grad]
        fork = torch.random.fork_rng([indices.device] if indices.is_cuda else [])
        with fork, state_kept(self.losses), torch.enable_grad():
            losses = self.losses(batch[indices])
            check_losses(losses, self.rule)
            total = total_loss(losses, self.ppo.loss_weights)
            gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        check_connected(self.ppo.objective, dict(zip(parameters, gradients, strict=True)))
        return [*losses.keys(), "grad_norm"]

    def _step_in_two_graphs(self, tensors: dict[Any, Tensor], indices: Tensor) -> Tensor | None:
        vector, metrics = self._on_all_ranks(self._gradient, tensors, indices)
        if self.rule is None:
            (vector,) = averaged([vector])
        else:
            value = metrics[self._names.index(self.rule.metric)] * self.ppo.loss_weights.policy
            vector, value = averaged([vector, value])
            if self.rule.forbids(value):
                return None
        norm = self._on_all_ranks(self._apply, vector)
        return torch.cat([metrics, norm])

    def _on_all_ranks(self, graph: TracedFunction, *arguments: Any) -> Any:
        """Call a graph. If it cannot be built on one rank, the first call fails on all of them."""
        if graph.is_built or self._num_ranks == 1:
            return graph(*arguments)

        def build() -> Any:
            try:
                return graph(*arguments)
            except GraphError:
                raise
            except Exception as error:
                raise GraphError(f"a graph cannot be built ({error!r}); use compile=false") from error

        return raise_on_all_ranks(build)


class Gradient:
    """The gradient of all losses as one vector, and their metrics, without the autograd engine.

    Args:
        losses: the module that computes the losses of a minibatch.
        weights: their weights (see `total_loss`).
        adam: optimizer that holds the parameters.

    Raises:
        GraphError: if an objective is functional.

    """

    def __init__(self, losses: nn.Module, weights: LossWeights, adam: FlatAdam) -> None:
        for module in losses.modules():
            if getattr(module, "functional", False) is True:
                raise GraphError(
                    f"objective={type(module).__name__}: a graph cannot train the parameters of a functional loss; "
                    "set objective.functional=false, or compile=false"
                )
        self.losses = losses
        self.weights = weights
        self.adam = adam
        # Every name of a shared parameter, because `functional_call` does not restore tied weights correctly.
        index_of = {param: index for index, param in enumerate(adam.params)}
        self.names = {
            f"{path}.{name}" if path else name: index_of[param]
            for path, module in losses.named_modules()
            for name, param in module.named_parameters(recurse=False)
            if param in index_of  # the other parameters are frozen or do not belong to the optimizer
        }

    def __call__(self, tensors: dict[Any, Tensor], indices: Tensor) -> tuple[Tensor, Tensor]:
        """Return the gradient `[num_parameters]` and the metrics `[num_metrics]`."""

        def loss(parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
            named = {name: parameters[index] for name, index in self.names.items()}
            minibatch = TensorDict({key: tensor[indices] for key, tensor in tensors.items()}, indices.shape)
            losses = functional_call(self.losses, named, (minibatch,), tie_weights=False)
            return total_loss(losses, self.weights), torch.stack([*scalars(losses).values()])

        gradients, (_, metrics) = grad_and_value(loss, has_aux=True)(self.adam.parameters())
        return self.adam.flatten(gradients), metrics.detach()


def check_hooks(module: Any) -> None:
    """Raise a GraphError if the module or a callback overrides one of Lightning's hooks around a step.

    `PPO.on_before_optimizer_step` only clips the gradients, as the graph does.
    """
    ours = next(one for one in type(module).__mro__ if one.__module__.startswith(__name__.partition(".")[0]))
    for owner, parent in [(module, ours), *((callback, Callback) for callback in module.trainer.callbacks)]:
        for hook in HOOKS:
            if hook in vars(owner) or getattr(type(owner), hook, None) is not getattr(parent, hook, None):
                raise GraphError(
                    f"compile=true or trace does not call {type(owner).__name__}.{hook}; use compile=false"
                )


def count_step(trainer: Trainer) -> None:
    """Count an optimizer step for `trainer.global_step`. Uses private attributes of Lightning 2.6."""
    progress = trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
    progress.ready += 1
    progress.completed += 1
