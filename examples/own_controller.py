"""A custom controller: a learning rate that decays with the inverse square root of the progress.

A controller returns the value of a coefficient for the next rollout. Derive from `Schedule` if the value depends only
on the progress, from `AdaptiveController` if it depends on a metric, and from `Controller` otherwise.

    python examples/own_controller.py
"""

import math
import sys
from pathlib import Path

from torchppo.modules.controllers import Schedule
from torchppo.pipelines.cli.main import main


class InverseSqrt(Schedule):
    """Keeps the initial value until the progress is `constant`, then multiplies it by sqrt(constant / progress)."""

    def __init__(self, constant: float = 0.1) -> None:
        super().__init__()
        self.constant = constant

    def factor(self, progress: float) -> float:
        return math.sqrt(self.constant / max(self.constant, progress))


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains controller/inverse_sqrt.yaml, which names InverseSqrt
    words = ["experiment=cartpole", "controller@controller.lr=inverse_sqrt", "--config-dir", str(conf)]
    sys.exit(main(["train", *words, *sys.argv[1:]]))
