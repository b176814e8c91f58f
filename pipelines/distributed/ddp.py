"""Gradients and buffers in PyTorch's DistributedDataParallel (DDP)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel

from . import averaged


def prepare_ddp(model: nn.Module | None) -> None:
    """Let eager steps on a CPU average gradients with `averaged`, and keep DDP from broadcasting buffers.

    Buffers are equal on all ranks, except running statistics of BatchNorm. On a GPU, DDP averages gradients during the
    backward pass. Other modules do not change. Tested with PyTorch 2.13.
    """
    if isinstance(model, DistributedDataParallel):
        model.forward_sync_buffers = any(isinstance(one, nn.modules.batchnorm._BatchNorm) for one in model.modules())
        if next(model.parameters()).device.type == "cpu":
            model.register_comm_hook(None, lambda _, bucket: average(bucket.buffer()))


def average(gradients: Tensor) -> Future[Tensor]:
    """Return the average of gradients `[n]` over all ranks."""
    future: Future[Tensor] = Future()
    future.set_result(averaged([gradients])[0])
    return future
