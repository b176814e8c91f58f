"""One optimiser step from one minibatch: eager through Lightning, or one graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from lightning import Callback
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value

from ..errors import ConfigurationError
from .flat_adam import FlatAdam
from .graphs import OneGraph
from .ranks import num_ranks, summed


class Learner(Protocol):
    """What a step needs of the LightningModule."""

    objective: nn.Module
    policy_weight: Tensor
    critic_weight: Tensor
    grad_norm: Tensor
    max_grad_norm: float

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser itself."""

    def optimizers(self) -> Any:
        """The optimiser, wrapped by Lightning."""

    def manual_backward(self, loss: Tensor) -> None:
        """Backward through the strategy and the precision plugin."""


def total_loss(losses: TensorDictBase, policy_weight: Tensor, critic_weight: Tensor) -> Tensor:
    """The sum of all `loss_*`, the critic's and the others' each with a weight that is 0 where they do not learn."""
    policy = sum(loss for key, loss in losses.items() if key.startswith("loss_") and key != "loss_critic")
    critic = losses.get("loss_critic", 0.0)  # an objective may have none
    return critic_weight * critic + policy_weight * policy


class EagerStep:
    """Loss, backward and step through Lightning, so that every strategy, precision and hook takes part."""

    def __init__(self, ppo: Learner, kl_limit: float | None, *, is_scaled: bool) -> None:
        """Take no step of the policy where the KL is above `kl_limit`; a critic that learns alone changes none.

        With a loss scale gradients may overflow, after which it is smaller.
        """
        self.ppo = ppo
        self.kl_limit = kl_limit
        self.is_scaled = is_scaled
        self.names: list[str] = []
        self._last_norm = torch.zeros(())

    def __call__(self, data: dict[NestedKey, Tensor], indices: Tensor) -> Tensor | None:
        """Take one step.

        Args:
            data: a rollout, tensors `[rows, ...]`; a row is a frame, or a sequence of them.
            indices: the rows of the minibatch.

        Returns:
            The metrics called `names`, on the device; none if no step was taken.

        """
        ppo = self.ppo
        losses = ppo.objective(minibatch(data, indices))
        self.names = names_of(losses, self.kl_limit)
        if self.kl_limit is not None and exceeds(losses["kl_approx"] * ppo.policy_weight, self.kl_limit):
            return None
        optimizer: Any = ppo.optimizers()
        optimizer.zero_grad()
        ppo.manual_backward(total_loss(losses, ppo.policy_weight, ppo.critic_weight))
        for group in ppo.optimizer.param_groups:
            if not group.get("learns", True):
                for param in group["params"]:
                    param.grad = None  # zeros would wear the moments out
        optimizer.step()  # ppo.on_before_optimizer_step clips, after a loss scale is taken back
        return torch.cat([stacked(losses).detach(), self._norm().reshape(1)])

    def _norm(self) -> Tensor:
        """The gradients' norm; where a loss scale was too large, which takes no step, the one of the last step."""
        norm = self.ppo.grad_norm
        if self.is_scaled:
            self._last_norm = norm = torch.where(norm.isfinite(), norm, self._last_norm.to(norm.device))
        return norm


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


def refuse_other_types(module: Any) -> None:
    """Raise a ConfigurationError where weights that learn are not of environments' type."""
    others = {param.dtype for param in module.parameters() if param.requires_grad} - {torch.float32}
    if others:
        raise ConfigurationError(
            f"trainer.precision={module.trainer.precision}: weights are {others.pop()}, which does not go with "
            "environments' float32; take 32-true, bf16-mixed or 16-mixed"
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


def names_of(losses: TensorDictBase, kl_limit: float | None) -> list[str]:
    """What a step reports, in its order.

    Raises:
        ConfigurationError: if the objective has no loss, or there is a limit of the KL and it does not say it.

    """
    names: list[str] = [*losses.keys()]
    if not any(name.startswith("loss_") for name in names):
        raise ConfigurationError(f"the objective wrote no loss_*, but {', '.join(names)}")
    if kl_limit is not None and "kl_approx" not in names:
        raise ConfigurationError("update.target_kl needs an objective that reports kl_approx; set it to null for none")
    return [*names, "grad_norm"]


def minibatch(data: dict[NestedKey, Tensor], indices: Tensor) -> TensorDict:
    """The rows of a rollout that `indices` name."""
    return TensorDict({key: tensor[indices] for key, tensor in data.items()}, indices.shape)


def stacked(losses: TensorDictBase) -> Tensor:
    """Losses and metrics in one tensor, in their order; of one with several entries, as TorchRL's may be, the mean."""
    return torch.stack([value.float().mean() for value in losses.values()])


def exceeds(kl: Tensor, limit: float) -> bool:
    """Whether the KL is above its limit on average over all ranks, so that all of them decide alike."""
    return bool(summed(kl.detach()) / num_ranks() > limit)
