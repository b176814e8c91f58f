"""Adam over one flat vector of parameters."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...errors import ConfigurationError, GraphError

MOMENTS = ("exp_avg", "exp_avg_sq")


class FlatAdam:
    """The step of a `torch.optim.Adam` or `AdamW` on one vector instead of many parameters.

    The parameters and the optimizer's moments become views of vectors. A graph then has three inputs and one loop
    instead of dozens, and checkpoints have the same format. Parameters without a gradient do not change. A
    group whose `trainable` is false keeps its parameters and moments.

    Args:
        optimizer: the optimizer, after its parameters were moved to their final device; may have taken steps before.

    Raises:
        GraphError: if the optimizer or one of its options is not supported.
        ConfigurationError: if no parameter requires a gradient.

    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        check_optimizer(optimizer)
        trained = [[param for param in group["params"] if param.requires_grad] for group in optimizer.param_groups]
        self.groups = [group for group, params in zip(optimizer.param_groups, trained, strict=True) if params]
        self.params: list[nn.Parameter] = [param for params in trained for param in params]
        if not self.params:
            raise ConfigurationError("the optimizer has no parameter that requires a gradient")
        self._sizes = [sum(param.numel() for param in params) for params in trained if params]
        self._counts = [len(params) for params in trained if params]
        self._is_adamw = isinstance(optimizer, torch.optim.AdamW)
        device = self.params[0].device
        # Dimensions in the order of memory, so that channels-last weights stay channels last.
        self._orders = [sorted(range(p.dim()), key=lambda d, p=p: -p.stride(d)) for p in self.params]  # type: ignore[misc]
        self._lr = torch.zeros(len(self.groups), device=device)
        self._trainable = torch.ones(len(self.groups), device=device)
        self._group_values = [*zip(self.groups, self._lr.unbind(), self._trainable.unbind(), strict=True)]
        self._read: list[tuple[float, bool]] = []  # by the last `read_groups`
        self._take_over(optimizer, device)

    def _take_over(self, optimizer: torch.optim.Optimizer, device: torch.device) -> None:
        """Move parameters and optimizer state into vectors, and replace them by views."""
        states = [optimizer.state[param] for param in self.params]
        self._vector = self.flatten([param.data for param in self.params])
        self._moments = {
            key: self.flatten([s.get(key, torch.zeros_like(p)) for s, p in zip(states, self.params, strict=True)])
            for key in MOMENTS
        }
        # One counter per parameter, because checkpoints have one.
        self._steps = torch.stack([torch.as_tensor(s.get("step", 0.0), device=device).float() for s in states])
        # A parameter that had no gradient before has taken fewer steps, so the group uses its largest counter.
        self._leading = [int(steps.argmax()) for steps in split_by_group(self._steps, self._counts)]
        for index, (param, view) in enumerate(zip(self.params, self.views(self._vector), strict=True)):
            param.data = view
            moments = {key: self.views(vector)[index] for key, vector in self._moments.items()}
            optimizer.state[param] = {"step": self._steps[index], **moments}

    def views(self, vector: Tensor) -> list[Tensor]:
        """Return the part of a vector that belongs to each parameter, in its shape."""
        parts = vector.split([param.numel() for param in self.params])
        return [
            permuted(part.view([param.shape[d] for d in order]), [order.index(d) for d in range(param.dim())])
            for part, param, order in zip(parts, self.params, self._orders, strict=True)
        ]

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """Concatenate tensors in the parameters' shapes to one vector; the inverse of `views`."""
        return torch.cat(
            [permuted(tensor, order).reshape(-1) for tensor, order in zip(tensors, self._orders, strict=True)]
        )

    def parameters(self) -> list[Tensor]:
        """Return the parameters as plain tensors, for `torch.func`."""
        return self.views(self._vector)

    def copy_state(self) -> list[Tensor]:
        """Return copies of parameters, moments and counters."""
        return [tensor.clone() for tensor in self._state]

    def restore_state(self, state: list[Tensor]) -> None:
        """Restore a copy of `copy_state` in place."""
        for tensor, copy in zip(self._state, state, strict=True):
            tensor.copy_(copy)

    @property
    def _state(self) -> list[Tensor]:
        return [self._vector, *self._moments.values(), self._steps]

    def read_groups(self) -> None:
        """Copy learning rates and `trainable` from the optimizer's groups into tensors that a graph reads."""
        read = [(float(group["lr"]), bool(group.get("trainable", True))) for group in self.groups]
        if read == self._read:
            return
        self._read = read
        for group, lr, trainable in self._group_values:
            lr.fill_(group["lr"])
            trainable.fill_(group.get("trainable", True))

    @torch.no_grad()
    def step(self, gradient: Tensor, max_norm: float) -> Tensor:
        """Clip the gradient by its norm and take a step, or change nothing if the norm is not finite.

        Source: Kingma and Ba 2015, algorithm 1; Loshchilov and Hutter 2019 for decoupled weight decay.

        Args:
            gradient: gradient of all parameters, `[num_parameters]`.
            max_norm: limit of the norm of the gradient.

        Returns:
            The norm before clipping, `[1]`.

        """
        norm = gradient.norm()
        is_finite = norm.isfinite()
        clip = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        vectors = self._vector, gradient, *(self._moments[key] for key in MOMENTS)
        parts = zip(*(split_by_group(vector, self._sizes) for vector in vectors), strict=True)
        for index, part in enumerate(parts):
            self._step_group(index, clip, is_finite, *part)
        return norm.reshape(1)

    def _step_group(
        self,
        index: int,
        clip: Tensor,
        is_finite: Tensor,
        vector: Tensor,
        gradient: Tensor,
        mean: Tensor,
        square: Tensor,
    ) -> None:
        group, lr, trainable = self.groups[index], self._lr[index], self._trainable[index]
        (beta1, beta2), eps, decay = group["betas"], group["eps"], group["weight_decay"]
        active = is_finite.to(lr.dtype)  # 1, or 0 for a step that changes nothing
        if "trainable" in group:
            active, is_finite = active * trainable, is_finite & (trainable > 0)
        steps = split_by_group(self._steps, self._counts)[index]
        steps.add_(active)
        num_steps = steps[self._leading[index]].clamp(min=1.0)
        lr = lr * active
        # In one small tensor; otherwise the compiler recomputes the powers and roots for every parameter.
        scale, step_size, root, keep = torch.stack(
            [
                clip,
                lr / bias_correction(beta1, num_steps),
                bias_correction(beta2, num_steps).rsqrt(),
                1.0 - lr * decay,
            ]
        ).unbind()
        gradient = gradient * scale
        if decay and (self._is_adamw or group["decoupled_weight_decay"]):
            vector.mul_(keep)
        elif decay:
            gradient = gradient + decay * vector
        gradient = gradient.where(is_finite, mean)  # leaves the mean as it is
        mean.lerp_(gradient, 1 - beta1)
        moved = (square * beta2).addcmul_(gradient, gradient, value=1 - beta2)
        square.copy_(moved.where(is_finite, square))
        vector.sub_(step_size * mean / (square.sqrt() * root + eps))


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """Raise a GraphError if `FlatAdam` does not implement the optimizer."""
    name = type(optimizer).__name__
    if type(optimizer) not in (torch.optim.Adam, torch.optim.AdamW):
        raise GraphError(f"a graph needs optimizer=adam or adamw, not {name}; use compile=false")
    for group in optimizer.param_groups:
        for option in ("amsgrad", "maximize"):
            if group.get(option):
                raise GraphError(f"a graph does not support optimizer.{option}=true; use compile=false")


def permuted(tensor: Tensor, order: list[int]) -> Tensor:
    """Permute the dimensions of a tensor, unless they are in order, because a traced graph keeps the operation."""
    return tensor if order == sorted(order) else tensor.permute(order)


def split_by_group(vector: Tensor, sizes: list[int]) -> Sequence[Tensor]:
    """Return the part of a vector that belongs to each group."""
    return [vector] if len(sizes) == 1 else vector.split(sizes)


def bias_correction(beta: float, num_steps: Tensor) -> Tensor:
    """Return 1 - beta^num_steps, accurate for beta near 1: `[] -> []`."""
    return -torch.expm1(num_steps * (math.log(beta) if beta else -math.inf))
