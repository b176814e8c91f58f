"""Exploration noise that persists over several steps."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from ..features.recurrent import RecurrentModule
from .action_heads import Head
from .networks import Parameters


class PersistentNoiseHead(RecurrentModule):
    """Adds persistent exploration noise to the network of a head.

    The noise is a recurrent state during collection. Learning does not need it.

    Args:
        head: Head with a `noise_shape`.
        resample_noise: The head's `resample_noise`.

    """

    key = "gsde_noise"

    def __init__(self, head: Head, resample_noise: nn.Module) -> None:
        super().__init__()
        self.network = head.network
        self.resample_noise = resample_noise
        self.noise_shape = head.noise_shape
        self.state_shape = (1, prod(self.noise_shape))

    def forward(self, features: Tensor, is_init: Tensor, noise: Tensor | None, *mask: Tensor) -> Parameters:
        """Compute the distribution parameters and the noise for the next step.

        Args:
            features: `[batch, width]`, or any number of batch dimensions if `noise` is `None`.
            is_init: Whether an episode begins with this step, bool `[batch, 1]`.
            noise: Noise of the previous step, `[batch, 1, noise size]`. `None` means that there is no perturbation.
            mask: Optional action mask.

        Returns:
            The parameters, followed by the noise, which is a placeholder of zeros if `noise` is `None`.

        """
        if noise is None:
            return (*self.network(features, *mask), features.new_zeros(features.shape[:-1]))
        noise = self.resample_noise(noise.unflatten(-1, self.noise_shape).squeeze(-3), is_init)
        return (*self.network(features, *mask, noise=noise), noise.flatten(-2).unsqueeze(-2))
