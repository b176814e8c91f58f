"""One optimizer step as a graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from lightning import Callback
from tensordict import NestedKey
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from ...errors import ConfigurationError
from ..distributed import num_ranks, summed
from ..updates.eager_step import Learner, exceeds, minibatch, names_of, stacked, total_loss
from .flat_adam import FlatAdam
from .graph import OneGraph


class GraphStep:
    """The same step as a graph: without autograd's engine, Lightning's hooks, or Python between the operations.

    Gradients come from `torch.func` and go into `FlatAdam`. One graph where nothing comes between gradient
    and step; two where ranks average their gradients or the KL may forbid the step.

    Raises:
        ConfigurationError: if the optimiser is not Adam or AdamW.

    """

    def __init__(self, ppo: Learner, kl_limit: float | None, *, compile: bool) -> None:  # noqa: A002
        """Nothing is traced before the first step."""
        self.ppo = ppo
        self.kl_limit = kl_limit
        self.names: list[str] = []
        self._adam = adam = FlatAdam(ppo.optimizer)
        self._num_ranks = num_ranks()
        # Graphs refer to what they compute with alone: whatever they reach is looked at when they are traced.
        gradient, max_norm = Gradient(ppo.objective, (ppo.policy_weight, ppo.critic_weight), adam), ppo.max_grad_norm

        def step(vector: Tensor) -> Tensor:
            return adam.step(vector, max_norm)

        def both(data: dict[NestedKey, Tensor], indices: Tensor) -> Tensor:
            vector, metrics = gradient(data, indices)
            return torch.cat([metrics, step(vector)])

        self._step: Callable[[dict[NestedKey, Tensor], Tensor], Tensor | None]
        if kl_limit is None and self._num_ranks == 1:
            self._step = OneGraph(both, compile=compile)
        else:
            self._gradient, self._apply = (OneGraph(one, compile=compile) for one in (gradient, step))
            self._step = self._step_in_two

    def __call__(self, data: dict[NestedKey, Tensor], indices: Tensor) -> Tensor | None:
        """Take one step; see `EagerStep`."""
        with torch.no_grad():
            if not self.names:
                with torch.random.fork_rng([indices.device] if indices.is_cuda else []):  # an entropy may be sampled
                    self.names = names_of(self.ppo.objective(minibatch(data, indices)), self.kl_limit)
            self._adam.follow()
            return self._step(data, indices)

    def _step_in_two(self, data: dict[NestedKey, Tensor], indices: Tensor) -> Tensor | None:
        vector, metrics = self._gradient(data, indices)
        if self.kl_limit is not None:
            kl = metrics[self.names.index("kl_approx")] * self.ppo.policy_weight
            if exceeds(kl, self.kl_limit):
                return None
        return torch.cat([metrics, self._apply(summed(vector) / self._num_ranks)])


HOOKS = (
    *("backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"),
    *("on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_before_zero_grad"),
)


def refuse_hooks(module: Any, parent: type) -> None:
    """Raise a ConfigurationError where Lightning's hooks around a step are a module's own, or one of its callbacks'.

    A graph would not call them; those of `parent` it makes up for.
    """
    for owner, above in [(module, parent), *((callback, Callback) for callback in module.trainer.callbacks)]:
        for hook in HOOKS:
            if hook in vars(owner) or getattr(type(owner), hook, None) is not getattr(above, hook, None):
                raise ConfigurationError(
                    f"compile=true or trace calls no {hook}, which {type(owner).__name__} has; compile=false does"
                )


class Gradient:
    """All gradients of an objective in one vector, and its metrics, without autograd's engine."""

    def __init__(self, objective: nn.Module, weights: tuple[Tensor, Tensor], adam: FlatAdam) -> None:
        """Weigh as `total_loss` does, and find every place in which a parameter stands."""
        self.objective = objective
        self.weights = weights
        self.adam = adam
        # Every place once: with ties, `functional_call` would not give a module under two names its parameters back.
        index_of = {param: index for index, param in enumerate(adam.params)}
        self.places = {
            f"{path}.{name}" if path else name: index_of[param]
            for path, module in objective.named_modules()
            for name, param in module.named_parameters(recurse=False)
            if param in index_of  # others are frozen, or not the optimiser's
        }

    def __call__(self, data: dict[NestedKey, Tensor], indices: Tensor) -> tuple[Tensor, Tensor]:
        """`[num_parameters]` and `[metrics]`."""

        def loss(point: list[Tensor]) -> tuple[Tensor, Tensor]:
            places = {name: point[index] for name, index in self.places.items()}
            losses = functional_call(self.objective, places, (minibatch(data, indices),), tie_weights=False)
            return total_loss(losses, *self.weights), stacked(losses)

        gradients, (_, metrics) = grad_and_value(loss, has_aux=True)(self.adam.point())
        return self.adam.flatten(gradients), metrics.detach()
