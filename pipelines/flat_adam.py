"""Adam over one vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigurationError

MOMENTS = ("exp_avg", "exp_avg_sq")


def lacking(kind: Any, options: Mapping[str, Any]) -> str:
    """What `FlatAdam` lacks for an optimiser, as the end of a sentence; nothing if it has all of it."""
    if kind not in (torch.optim.Adam, torch.optim.AdamW):
        return f"needs Adam or AdamW, not {kind.__name__}"
    unknown = [key for key in ("amsgrad", "maximize") if options.get(key)]
    return f"does not know optimizer.{unknown[0]}=true" if unknown else ""


class FlatAdam:
    """The step of a `torch.optim.Adam` or `AdamW`, over one vector instead of over many parameters.

    The parameters and the optimiser's own moments become views of vectors: a graph then has three inputs
    and one loop instead of dozens, and checkpoints see everything where they expect it.

    Args:
        optimizer: its parameters are where they will stay, its state may hold earlier steps.

    Raises:
        ConfigurationError: if it is another optimiser, or has an option that is not known here.

    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Move parameters and state into vectors."""
        self.groups = optimizer.param_groups
        for group in self.groups:
            if missing := lacking(type(optimizer), group):
                raise ConfigurationError(f"compile=true or trace {missing}; compile=false takes any optimiser")
        self.params: list[nn.Parameter] = [param for group in self.groups for param in group["params"]]
        self._sizes = [sum(param.numel() for param in group["params"]) for group in self.groups]
        self._is_adamw = isinstance(optimizer, torch.optim.AdamW)
        states = [optimizer.state[param] for param in self.params]
        device = self.params[0].device
        # As they lie in memory, so that images' weights stay channels last.
        self._orders = [sorted(range(p.dim()), key=lambda d, p=p: -p.stride(d)) for p in self.params]  # type: ignore[misc]
        self._vector = self.flatten([param.data for param in self.params])
        self._moments = {
            key: self.flatten([s.get(key, torch.zeros_like(p)) for s, p in zip(states, self.params, strict=True)])
            for key in MOMENTS
        }
        # One for every parameter, because a checkpoint has them; they are always equal.
        self._steps = torch.stack([torch.as_tensor(s.get("step", 0.0), device=device).float() for s in states])
        self._lr = torch.zeros(len(self.groups), device=device)
        self._lr_of = self._lr.unbind()
        for index, (param, view) in enumerate(zip(self.params, self.views(self._vector), strict=True)):
            param.data = view
            moments = {key: self.views(vector)[index] for key, vector in self._moments.items()}
            optimizer.state[param] = {"step": self._steps[index], **moments}

    def views(self, vector: Tensor) -> list[Tensor]:
        """What of a vector belongs to every parameter, in its shape."""
        parts = vector.split([param.numel() for param in self.params])
        return [
            part.view([param.shape[d] for d in order]).permute([order.index(d) for d in range(param.dim())])
            for part, param, order in zip(parts, self.params, self._orders, strict=True)
        ]

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """One vector of tensors in the parameters' shapes: the inverse of `views`."""
        return torch.cat(
            [tensor.permute(order).reshape(-1) for tensor, order in zip(tensors, self._orders, strict=True)]
        )

    def point(self) -> list[Tensor]:
        """The parameters as plain tensors, for `torch.func`."""
        return self.views(self._vector)

    def follow_lr(self) -> None:
        """Let the graph see the learning rates that a schedule has set."""
        for lr, group in zip(self._lr_of, self.groups, strict=True):
            lr.fill_(group["lr"])

    @torch.no_grad()
    def step(self, gradient: Tensor, max_norm: float) -> Tensor:
        """Clip the gradient by its norm and take a step.

        Source: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019 for the decoupled decay.

        Args:
            gradient: of all parameters, `[num_parameters]`.
            max_norm: limit of the gradient's norm.

        Returns:
            The norm before clipping, `[1]`.

        """
        norm = gradient.norm()
        self._steps.add_(1.0)
        clip = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        parts = [self._parts(vector) for vector in (self._vector, gradient, *(self._moments[key] for key in MOMENTS))]
        for group, lr, part in zip(self.groups, self._lr.unbind(), zip(*parts, strict=True), strict=True):
            self._step_group(group, lr, clip, *part)
        return norm.reshape(1)

    def _parts(self, vector: Tensor) -> Sequence[Tensor]:
        """A vector's part for every group."""
        return [vector] if len(self.groups) == 1 else vector.split(self._sizes)

    def _step_group(
        self, group: dict[str, Any], lr: Tensor, clip: Tensor, vector: Tensor, gradient: Tensor, *moments: Tensor
    ) -> None:
        (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
        steps = self._steps[0]
        # In one small tensor, or the compiler would work out the powers and roots anew for every parameter.
        scale, step_size, root, keep = torch.stack(
            [
                clip,
                lr / -torch.expm1(steps * math.log(beta1)),
                (-torch.expm1(steps * math.log(beta2))).rsqrt(),
                1.0 - lr * decay,
            ]
        ).unbind()
        gradient = gradient * scale
        if decay and (self._is_adamw or group["decoupled_weight_decay"]):
            vector.mul_(keep)
        elif decay:
            gradient = gradient + decay * vector
        mean, square = moments
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        vector.sub_(step_size * mean / (square.sqrt() * root + eps))
