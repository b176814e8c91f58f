"""Your own estimator: estimator=upgo follows what went better than expected (Vinyals et al. 2019, "upgoing" returns).

An estimator reads a rollout `[num_envs, time]` with `state_value` and `("next", "state_value")`, which is that of the
true final observation where an episode ends, and writes `advantage` and `value_target`.
"""

import sys
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.objectives.value import ValueEstimatorBase

from torchppo.pipelines.cli.main import main


class UpgoingReturn(ValueEstimatorBase):
    """The return goes on as it was where the next action was better than the critic thought, else with its value."""

    def __init__(self, *, gamma: float) -> None:
        super().__init__(value_network=None)
        self.gamma = gamma

    def forward(self, tensordict: TensorDictBase, **_: Any) -> TensorDictBase:
        value, following = tensordict["state_value"], tensordict["next"]
        reward, next_value, done = following["reward"], following["state_value"], following["done"]
        one_step = reward + self.gamma * next_value * ~following["terminated"]
        better = one_step >= value
        returns, running = torch.empty_like(reward), one_step[:, -1]
        goes_on = torch.zeros_like(done[:, -1])  # after the rollout's last step nothing is known but values
        for step in reversed(range(reward.shape[1])):
            longer = reward[:, step] + self.gamma * running
            running = returns[:, step] = torch.where(goes_on & ~done[:, step], longer, one_step[:, step])
            goes_on = better[:, step]
        return tensordict.update({"advantage": returns - value, "value_target": returns})


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # estimator/upgo.yaml names the class above
    sys.exit(main(["train", "env=cartpole", "estimator=upgo", "--config-dir", str(conf), *sys.argv[1:]]))
