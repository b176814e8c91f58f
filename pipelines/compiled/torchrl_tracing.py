"""Makes TorchRL's losses and distributions traceable.

Uses private names, tested with PyTorch 2.13 and TorchRL 0.14.1: `torch.compiler._is_compiling_flag` and
`PPOLoss._get_entropy`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torchrl.modules.distributions.utils import has_analytic_entropy
from torchrl.objectives import PPOLoss


@contextmanager
def torchrl_traceable() -> Iterator[None]:
    """Make TorchRL skip checks of the values of tensors, as it does under `torch.compile`.

    TorchRL's distributions call `torch.compiler.is_compiling()`. Its PPO losses call `torch._dynamo` instead, and would
    then also sample an entropy. This context uses only the closed form, as an eager step does.
    """
    was_compiling, get_entropy = torch.compiler._is_compiling_flag, PPOLoss._get_entropy

    def entropy_without_check(loss: Any, dist: Any, adv_shape: torch.Size) -> Any:
        return dist.entropy().unsqueeze(-1) if has_analytic_entropy(dist) else get_entropy(loss, dist, adv_shape)

    torch.compiler._is_compiling_flag = True
    PPOLoss._get_entropy = entropy_without_check
    try:
        yield
    finally:
        torch.compiler._is_compiling_flag = was_compiling
        PPOLoss._get_entropy = get_entropy
