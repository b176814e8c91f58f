"""One optimiser step from one minibatch: eager through Lightning, or compiled into one graph."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from tensordict import TensorDict, TensorDictBase
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value
from torch.optim.adam import adam

from ..errors import ConfigurationError
from .compilation import one_graph
from .ranks import num_ranks, summed


class Learner(Protocol):
    """What a step needs of the LightningModule."""

    objective: nn.Module
    policy_weight: Tensor
    grad_norm: Tensor
    max_grad_norm: float

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser itself."""

    def optimizers(self) -> Any:
        """The optimiser, wrapped by Lightning."""

    def manual_backward(self, loss: Tensor) -> None:
        """Backward through the strategy and the precision plugin."""


def total_loss(losses: TensorDictBase, policy_weight: Tensor) -> Tensor:
    """The sum of all `loss_*`; a `policy_weight` of 0 leaves only the critic's (value pretraining)."""
    policy = sum(loss for key, loss in losses.items() if key.startswith("loss_") and key != "loss_critic")
    return losses["loss_critic"] + policy_weight * policy


class EagerStep:
    """Loss, backward and step through Lightning, so that every strategy, precision and hook takes part."""

    def __init__(self, ppo: Learner, kl_limit: float | None) -> None:
        """Take no step where the KL is above `kl_limit`."""
        self.ppo = ppo
        self.kl_limit = kl_limit
        self.names: list[str] = []

    def __call__(self, minibatch: dict[str, Tensor]) -> Tensor | None:
        """Take one step.

        Args:
            minibatch: tensors `[minibatch_size, ...]`.

        Returns:
            The metrics called `names`, on the device; none if no step was taken.

        """
        ppo = self.ppo
        losses = ppo.objective(TensorDict(minibatch, minibatch["advantage"].shape[:1]))
        if self.kl_limit is not None and exceeds(losses["kl_approx"], self.kl_limit):
            return None
        optimizer: Any = ppo.optimizers()
        optimizer.zero_grad()
        ppo.manual_backward(total_loss(losses, ppo.policy_weight))
        optimizer.step()  # ppo.on_before_optimizer_step clips, after a loss scale is taken back
        self.names = [*losses.keys(), "grad_norm"]
        return torch.stack([*(value.detach().float().reshape(()) for value in losses.values()), ppo.grad_norm])


class CompiledStep:
    """The same step without autograd's engine, Lightning's hooks, or Python between the operations.

    Gradients come from `torch.func`, Adam is PyTorch's functional one on the optimiser's own state, so
    that checkpoints see it. One graph where nothing comes between gradient and step; two where ranks
    average their gradients or the KL may forbid the step.

    Raises:
        ConfigurationError: if the optimiser is not Adam or AdamW with one parameter group.

    """

    def __init__(self, ppo: Learner, kl_limit: float | None) -> None:
        """Allocate the optimiser's state where it has none yet."""
        optimizer = ppo.optimizer
        if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW) or len(optimizer.param_groups) != 1:
            raise ConfigurationError(f"compile=true needs Adam or AdamW with one parameter group, not {optimizer}")
        unknown = [key for key in ("amsgrad", "maximize") if optimizer.param_groups[0][key]]
        if unknown:
            raise ConfigurationError(f"compile=true does not know optimizer.{unknown[0]}=true; compile=false does")
        self.ppo = ppo
        self.kl_limit = kl_limit
        self.names: list[str] = []
        self._group = optimizer.param_groups[0]
        self._params: list[nn.Parameter] = self._group["params"]
        for param in self._params:
            if not optimizer.state[param]:
                moments = {key: torch.zeros_like(param) for key in ("exp_avg", "exp_avg_sq")}
                optimizer.state[param] = {"step": torch.zeros((), device=param.device), **moments}
        self._state = {
            key: [optimizer.state[param][key] for param in self._params] for key in ("exp_avg", "exp_avg_sq", "step")
        }
        # Every place once: with ties, `functional_call` would not give a module under two names its parameters back.
        index_of = {param: index for index, param in enumerate(self._params)}
        self._places = {
            f"{path}.{name}" if path else name: index_of[param]
            for path, module in ppo.objective.named_modules()
            for name, param in module.named_parameters(recurse=False)
        }
        self._decoupled = isinstance(optimizer, torch.optim.AdamW)
        self._lr = torch.tensor(0.0, device=self._params[0].device)
        self._num_ranks = num_ranks()
        if kl_limit is None and self._num_ranks == 1:
            self._whole = one_graph(self._step)
        else:
            self._gradients, self._apply = one_graph(self._gradients), one_graph(self._apply)  # type: ignore[method-assign]
            self._whole = self._step_in_two

    def __call__(self, minibatch: dict[str, Tensor]) -> Tensor | None:
        """Take one step; see `EagerStep`."""
        if not self.names:
            with torch.no_grad():
                losses = self.ppo.objective(TensorDict(minibatch, minibatch["advantage"].shape[:1]))
            self.names = [*losses.keys(), "grad_norm"]
        self._lr.fill_(self._group["lr"])
        return self._whole(minibatch)

    def _step(self, minibatch: dict[str, Tensor]) -> Tensor:
        gradients, metrics = self._gradients(minibatch)
        return torch.cat([metrics, self._apply(gradients)])

    def _step_in_two(self, minibatch: dict[str, Tensor]) -> Tensor | None:
        gradients, metrics = self._gradients(minibatch)
        if self.kl_limit is not None and exceeds(metrics[self.names.index("kl_approx")], self.kl_limit):
            return None
        return torch.cat([metrics, self._apply(summed(gradients) / self._num_ranks)])

    def _gradients(self, minibatch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """All gradients in one flat tensor, and the metrics."""
        ppo = self.ppo

        def loss(point: list[Tensor]) -> tuple[Tensor, Tensor]:
            data = TensorDict(minibatch, minibatch["advantage"].shape[:1])
            places = {name: point[index] for name, index in self._places.items()}
            losses = functional_call(ppo.objective, places, (data,), tie_weights=False)
            return total_loss(losses, ppo.policy_weight), torch.stack(
                [value.float().reshape(()) for value in losses.values()]
            )

        gradients, (_, metrics) = grad_and_value(loss, has_aux=True)([param.detach() for param in self._params])
        return torch.cat([gradient.reshape(-1) for gradient in gradients]), metrics.detach()

    @torch.no_grad()
    def _apply(self, flat: Tensor) -> Tensor:
        """Clip the flat gradients by their norm, step, and return the norm `[1]`."""
        norm = flat.norm()
        flat = flat * (self.ppo.max_grad_norm / (norm + 1e-6)).clamp(max=1.0)
        sizes = [param.numel() for param in self._params]
        gradients = [part.view_as(param) for part, param in zip(flat.split(sizes), self._params, strict=True)]
        group, state = self._group, self._state
        adam(
            [param.detach() for param in self._params],
            gradients,
            state["exp_avg"],
            state["exp_avg_sq"],
            [],
            state["step"],
            foreach=False,
            capturable=True,
            decoupled_weight_decay=self._decoupled,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=self._lr,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        return norm.reshape(1)


def exceeds(kl: Tensor, limit: float) -> bool:
    """Whether the KL is above its limit on average over all ranks, so that all of them decide alike."""
    return bool(summed(kl.detach()) / num_ranks() > limit)
