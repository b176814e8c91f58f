"""Your own critic: critic=expectile leans to the better outcomes (Kostrikov et al. 2021, eq. 5).

A critic's head turns features into values, and says what error of theirs is minimised.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from torchppo.modules.heads.value_heads import ValueHead, last_layer
from torchppo.modules.normalizers import Reduce, alone
from torchppo.pipelines.cli.main import main


class ExpectileValue(ValueHead):
    out_keys: ClassVar[list[str]] = ["state_value"]

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

    def update(self, value_target: Tensor, reduce: Reduce = alone) -> None:
        """Nothing to learn from a whole rollout."""


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # critic/expectile.yaml names the class above
    sys.exit(main(["train", "experiment=cartpole", "critic=expectile", "--config-dir", str(conf), *sys.argv[1:]]))
