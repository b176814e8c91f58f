"""A custom advantage estimator: upgoing returns (UPGO; Vinyals et al. 2019).

An estimator reads a rollout `[num_envs, time]` with `state_value` and `("next", "state_value")` and writes `advantage`
and `value_target`. At the end of an episode, `("next", "state_value")` is the value of the true final observation.

    python examples/own_estimator.py
"""

import sys
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.objectives.value import ValueEstimatorBase

from torchppo.pipelines.cli.main import main


class UpgoingReturn(ValueEstimatorBase):
    """Uses the observed return as long as the next action is better than expected, else bootstraps from the value."""

    def __init__(self, *, gamma: float) -> None:
        super().__init__(value_network=None)
        self.gamma = gamma

    def forward(self, tensordict: TensorDictBase, **_: Any) -> TensorDictBase:
        value, next_td = tensordict["state_value"], tensordict["next"]
        reward, next_value, done = next_td["reward"], next_td["state_value"], next_td["done"]
        one_step = reward + self.gamma * next_value * ~next_td["terminated"]
        is_better = one_step >= value
        returns, next_return = torch.empty_like(reward), one_step[:, -1]
        continues = torch.zeros_like(done[:, -1])  # the last step of the rollout must bootstrap
        for step in reversed(range(reward.shape[1])):
            longer = reward[:, step] + self.gamma * next_return
            next_return = returns[:, step] = torch.where(continues & ~done[:, step], longer, one_step[:, step])
            continues = is_better[:, step]
        return tensordict.update({"advantage": returns - value, "value_target": returns})


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains estimator/upgo.yaml, which names UpgoingReturn
    sys.exit(main(["train", "env=cartpole", "estimator=upgo", "--config-dir", str(conf), *sys.argv[1:]]))
