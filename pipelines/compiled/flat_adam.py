"""Adam over one vector."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError

MOMENTS = ("exp_avg", "exp_avg_sq")


def why_no_graph(kind: Any, options: Mapping[str, Any]) -> str:
    """What `FlatAdam` lacks for an optimiser, as the end of a sentence; nothing if it has all of it."""
    if kind not in (torch.optim.Adam, torch.optim.AdamW):
        return f"needs Adam or AdamW, not {kind.__name__}"
    unknown = [key for key in ("amsgrad", "maximize") if options.get(key)]
    return f"does not know optimizer.{unknown[0]}=true" if unknown else ""


class FlatAdam:
    """The step of a `torch.optim.Adam` or `AdamW`, over one vector instead of over many parameters.

    The parameters and the optimiser's own moments become views of vectors: a graph then has three inputs
    and one loop instead of dozens, and checkpoints see everything where they expect it. Frozen parameters stay as
    they are. A group that says whether it `learns` is left alone, moments and all, while it does not.

    Args:
        optimizer: its parameters are where they will stay, its state may hold earlier steps.

    Raises:
        ConfigurationError: if it is another optimiser, has an option that is not known here, or nothing to move.

    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Move parameters and state into vectors."""
        for group in optimizer.param_groups:
            if missing := why_no_graph(type(optimizer), group):
                raise ConfigurationError(f"compile=true or trace {missing}; compile=false takes any optimiser")
        trained = [[param for param in group["params"] if param.requires_grad] for group in optimizer.param_groups]
        self.groups = [group for group, params in zip(optimizer.param_groups, trained, strict=True) if params]
        self.params: list[nn.Parameter] = [param for params in trained for param in params]
        if not self.params:
            raise ConfigurationError("the optimizer has no parameter that requires a gradient")
        self._sizes = [sum(param.numel() for param in params) for params in trained if params]
        self._counts = [len(params) for params in trained if params]
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
        # One for every parameter, because a checkpoint has them.
        self._steps = torch.stack([torch.as_tensor(s.get("step", 0.0), device=device).float() for s in states])
        # Where it is most: a parameter that had no gradient before has taken fewer.
        self._leading = [int(steps.argmax()) for steps in by_group(self._steps, self._counts)]
        self._lr = torch.zeros(len(self.groups), device=device)
        self._learns = torch.ones(len(self.groups), device=device)
        self._given = [*zip(self.groups, self._lr.unbind(), self._learns.unbind(), strict=True)]
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

    def follow(self) -> None:
        """Let the graph see the learning rates that a schedule has set, and which groups learn."""
        for group, lr, learns in self._given:
            lr.fill_(group["lr"])
            learns.fill_(group.get("learns", True))

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
        clip = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        vectors = self._vector, gradient, *(self._moments[key] for key in MOMENTS)
        parts = zip(*(by_group(vector, self._sizes) for vector in vectors), strict=True)
        for index, part in enumerate(parts):
            self._step_group(index, clip, *part)
        return norm.reshape(1)

    def _step_group(
        self, index: int, clip: Tensor, vector: Tensor, gradient: Tensor, mean: Tensor, square: Tensor
    ) -> None:
        group, lr, learns = self.groups[index], self._lr[index], self._learns[index]
        (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
        steps, may_idle = by_group(self._steps, self._counts)[index], "learns" in group
        steps.add_(learns if may_idle else 1.0)
        taken = steps[self._leading[index]]
        if may_idle:
            lr, taken = lr * learns, taken.clamp(min=1.0)
        # In one small tensor, or the compiler would work out the powers and roots anew for every parameter.
        scale, step_size, root, keep = torch.stack(
            [
                clip,
                lr / forgotten(beta1, taken),
                forgotten(beta2, taken).rsqrt(),
                1.0 - lr * decay,
            ]
        ).unbind()
        gradient = gradient * scale
        if decay and (self._is_adamw or group["decoupled_weight_decay"]):
            vector.mul_(keep)
        elif decay:
            gradient = gradient + decay * vector
        kept = (mean.clone(), square.clone()) if may_idle else ()
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        for moment, old in zip((mean, square), kept, strict=False):
            moment.copy_(moment.where(learns > 0, old))
        vector.sub_(step_size * mean / (square.sqrt() * root + eps))


def by_group(vector: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """A vector's part for every group."""
    return [vector] if len(sizes) == 1 else vector.split(sizes)


def forgotten(beta: float, steps: Tensor) -> Tensor:
    """1 - beta^steps, in full precision where beta is near 1: `[] -> []`."""
    return -torch.expm1(steps * (math.log(beta) if beta else -math.inf))
