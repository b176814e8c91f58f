"""A custom environment with a Gymnasium wrapper for each copy and a TorchRL transform for the batch.

    python examples/own_environment.py

If this file is on the Python path, the command line finds the environment as `env.id=own_environment:Reach-v0`.
"""

import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from torchppo.pipelines.cli.main import main


class Reach(gymnasium.Env[NDArray[np.float32], NDArray[np.float32]]):
    """Move a point on a line to a target; the action is the velocity."""

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


if "Reach-v0" not in gymnasium.registry:  # env.id imports this file a second time
    gymnasium.register("Reach-v0", entry_point=Reach, max_episode_steps=50)  # type: ignore[arg-type]

if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains env/reach.yaml, which adds the wrapper
    env_id = "env.id=own_environment:Reach-v0"  # with the module, so that `torchppo eval` can import it
    transforms = "transforms=[{_target_: torchrl.envs.RewardClipping, clamp_min: -1.0, clamp_max: 0.0}]"
    overrides = ["env=reach", env_id, transforms, "eval.video=false", "--config-dir", str(conf)]
    sys.exit(main(["train", *overrides, *sys.argv[1:]]))
