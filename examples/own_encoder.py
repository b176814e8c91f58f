"""A custom encoder for one entry of the observation: Fourier features (Tancik et al. 2020).

An encoder is built by a function from the shape of an entry to a module `[*, *shape] -> [*, features]`.
`policy.encoders` maps names of entries to such functions: `observation` if the observation is a single tensor, else the
path of the entry, such as `image` or `left/image`. Other entries keep their default encoders.

    python examples/own_encoder.py
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from torchppo.pipelines.cli.main import main


class Fourier(nn.Module):
    """Concatenates the input with sines and cosines of random projections."""

    directions: Tensor

    def __init__(self, size: int, num_features: int, frequency: float) -> None:
        super().__init__()
        self.register_buffer("directions", frequency * torch.randn(size, num_features))

    def forward(self, entry: Tensor) -> Tensor:
        angles = entry @ self.directions
        return torch.cat([entry, angles.sin(), angles.cos()], -1)


def fourier(shape: torch.Size, num_features: int = 32, frequency: float = 1.0) -> nn.Module:
    return nn.Sequential(nn.Flatten(-len(shape)), Fourier(math.prod(shape), num_features, frequency))


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains policy/fourier.yaml, which names the function fourier
    sys.exit(main(["train", "experiment=acrobot", "policy=fourier", "--config-dir", str(conf), *sys.argv[1:]]))
