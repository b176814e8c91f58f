"""A custom network between the observation and the heads: residual blocks.

The network (the body) is built by a function from the shape of one observation to a module
`[*, *shape] -> [*, features]`.

    python examples/own_policy.py
"""

import math
import sys
from pathlib import Path

import torch
from torch import Tensor, nn

from torchppo.modules.features.bodies import orthogonal_
from torchppo.pipelines.cli.main import main


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.network(features)


def residual(shape: torch.Size, width: int = 64, depth: int = 2) -> nn.Module:
    blocks = [Block(width) for _ in range(depth)]
    network = nn.Sequential(nn.Linear(math.prod(shape), width), *blocks, nn.LayerNorm(width))
    return orthogonal_(network, math.sqrt(2))


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains policy/residual.yaml, which names the function residual
    sys.exit(main(["train", "experiment=cartpole", "policy=residual", "--config-dir", str(conf), *sys.argv[1:]]))
