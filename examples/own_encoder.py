"""Your own encoder for an entry of the observation: policy=fourier tells fine differences apart (Tancik et al. 2020).

An encoder is a function from an entry's shape to a module `[*, *shape] -> [*, features]`; it is named for the entry,
`observation` where there is but one, or `image`, `left/image` and so on of a nested one. The others keep theirs.
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from torchppo.pipelines.cli.main import main


class Fourier(nn.Module):
    """Sines and cosines of random projections, beside the numbers themselves."""

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
    conf = Path(__file__).parent / "conf"  # policy/fourier.yaml names the function above
    sys.exit(main(["train", "experiment=acrobot", "policy=fourier", "--config-dir", str(conf), *sys.argv[1:]]))
