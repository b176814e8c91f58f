"""Your own environment, a Gymnasium wrapper for each copy of it, and a TorchRL transform over the batch.

The same from the command line, with this file on the Python path: env.id=own_environment:Reach-v0.
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from torchppo.pipelines.cli.main import main


class Reach(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """A point on a line that is to reach another; the action is its velocity."""

    observation_space = gymnasium.spaces.Box(-2.0, 2.0, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-0.2, 0.2, (1,), np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.state = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)  # position, target
        return self.state.copy(), {}

    def step(self, action: NDArray[np.float32]) -> Any:
        self.state[0] = np.clip(self.state[0] + action[0], -2.0, 2.0)
        distance = float(abs(self.state[0] - self.state[1]))
        return self.state.copy(), -distance, distance < 0.01, False, {}


if "Reach-v0" not in gymnasium.registry:  # this file may be run and, for env.id, imported
    gymnasium.register("Reach-v0", entry_point=Reach, max_episode_steps=50)  # type: ignore[arg-type]

if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # env/reach.yaml lists the wrapper
    clip = "transforms=[{_target_: torchrl.envs.RewardClipping, clamp_min: -1.0, clamp_max: 0.0}]"
    sys.exit(
        main(
            [
                "train",
                "env=reach",
                "env.id=own_environment:Reach-v0",  # with its module, for an evaluation to find it
                clip,
                "eval.video=false",
                "--config-dir",
                str(conf),
                *sys.argv[1:],
            ]
        )
    )
