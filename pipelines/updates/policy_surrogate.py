"""Losses, KL divergence and Fisher matrix of a policy as functions of its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from tensordict import TensorDictBase
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..advantages import kl_from_collection
from ..distributed import averaged
from .eager_step import total_loss
from .update import Learner


class PolicySurrogate:
    """Policy losses and KL divergence of a rollout as functions of the policy's parameters, averaged over all ranks.

    Args:
        learner: its objective and weights of the losses define the policy losses.
        rows: the rollout `[rows]`.
        params: parameters of the policy.

    """

    def __init__(self, learner: Learner, rows: TensorDictBase, params: list[nn.Parameter]) -> None:
        self._learner = learner
        self._rows = rows
        self._params = params

    def loss_and_gradient(self) -> tuple[float, Tensor]:
        """Return the policy losses and their gradient `[num_parameters]`."""
        loss = self._loss()
        gradients = torch.autograd.grad(loss, self._params, allow_unused=True, materialize_grads=True)
        loss, gradient = averaged([loss.detach(), flat(gradients)])
        return loss.item(), gradient

    @torch.no_grad()
    def loss_and_kl(self) -> tuple[float, float]:
        """Return the policy losses and the mean KL(old || new), where old is the policy at collection."""
        loss, kl = averaged([self._loss(), self._kl()])
        return loss.item(), kl.item()

    def fisher_product(self, damping: float) -> Callable[[Tensor], Tensor]:
        """Return a function v -> (F + damping I) v.

        The Fisher matrix F is the Hessian of KL(old || new) at new = old. Its product with v is the gradient of
        v^T dKL, so that the matrix is never computed (Schulman et al. 2015, appendix C.1). If the KL divergence is the
        estimate `kl_estimate`, F is the mean of (d log p)(d log p)^T over the actions taken.
        """
        slope = flat(torch.autograd.grad(self._kl(), self._params, create_graph=True, materialize_grads=True))

        def product(vector: Tensor) -> Tensor:
            gradients = torch.autograd.grad(
                torch.dot(slope, vector), self._params, retain_graph=True, allow_unused=True, materialize_grads=True
            )
            return averaged([flat(gradients)])[0] + damping * vector

        return product

    @torch.no_grad()
    def set_parameters(self, vector: Tensor) -> None:
        """Change all parameters in place, because optimizers and graphs refer to them."""
        for param, part in zip(self._params, split_like(vector, self._params), strict=True):
            param.copy_(part)

    def _loss(self) -> Tensor:
        return total_loss(self._learner.objective(self._rows), self._learner.loss_weights)

    def _kl(self) -> Tensor:
        return kl_from_collection(self._learner.objective.actor_network, self._rows).mean()


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenate tensors to one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def split_like(vector: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Split a vector into tensors of the shapes of others; the inverse of `flat`."""
    parts = vector.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


@contextmanager
def twice_differentiable() -> Iterator[None]:
    """Use implementations of attention and recurrent layers that PyTorch can differentiate twice."""
    with sdpa_kernel(SDPBackend.MATH), torch.backends.cudnn.flags(enabled=False):
        yield
