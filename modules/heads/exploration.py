"""Noise that goes on from step to step."""

from __future__ import annotations

from math import prod

from torch import Tensor, nn

from ..features.extractor import RecurrentModule
from .action_heads import Head
from .networks import Parameters


class Exploring(RecurrentModule):
    """A head's network with the noise that it carries (see `Head`); learning does without."""

    key = "gsde_noise"

    def __init__(self, head: Head, redraw: nn.Module) -> None:
        """Carry the noise of `head`."""
        super().__init__()
        self.network = head.network
        self.redraw = redraw
        self.noise_shape = head.noise_shape
        self.state_shape = (1, prod(self.noise_shape))

    def forward(self, features: Tensor, is_init: Tensor, noise: Tensor | None, *mask: Tensor) -> Parameters:
        """The parameters of the distribution, and the noise for the next step.

        Shapes: `features [batch, width], is_init [batch, 1], noise [batch, 1, *]`; where no noise is given, any
        number of dimensions, and the parameters say that there is none.
        """
        if noise is None:
            return (*self.network(features, *mask), features.new_zeros(features.shape[:-1]))
        drawn = self.redraw(noise.unflatten(-1, self.noise_shape).squeeze(-3), is_init)
        return (*self.network(features, *mask, noise=drawn), drawn.flatten(-2).unsqueeze(-2))
