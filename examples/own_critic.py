"""A custom critic: expectile regression (Kostrikov et al. 2021, eq. 5).

A value head maps features to `state_value` and defines the error that the critic minimizes. An expectile above 0.5
weights returns above the value more than returns below it.

    python examples/own_critic.py
"""

import sys
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from torchppo.modules.heads.value_heads import ValueHead, last_layer
from torchppo.pipelines.cli.main import main


class ExpectileValue(ValueHead):
    def __init__(self, width: int, *, expectile: float) -> None:
        super().__init__()
        self.expectile = expectile
        self.layer = last_layer(width, 1)

    def forward(self, features: Tensor) -> Tensor:
        value: Tensor = self.layer(features)
        return value

    def error(
        self, predicted: Mapping[str, Tensor], target: Tensor, old_value: Tensor, clip_value: float | None
    ) -> Tensor:
        difference = target - predicted["state_value"]
        return (self.expectile - (difference < 0).float()).abs() * difference.square()


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains critic/expectile.yaml, which names ExpectileValue
    sys.exit(main(["train", "experiment=cartpole", "critic=expectile", "--config-dir", str(conf), *sys.argv[1:]]))
