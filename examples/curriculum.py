"""A curriculum: a Lightning callback makes the environments harder as the return increases.

`env.get_attr`, `env.set_attr` and `env.call` apply to the training environments and their wrappers, also in worker
processes. The callback does not change the evaluation environments.

    python examples/curriculum.py
"""

import sys
from typing import Any

import gymnasium
import numpy as np
from lightning import Callback, LightningModule
from numpy.typing import NDArray

from torchppo.pipelines.cli.main import main


class Walk(gymnasium.Env[NDArray[np.float32], np.int64]):
    """Walk to a goal that is `distance` steps to the left or right. The observation is the direction of the goal."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)  # left, right

    def __init__(self, distance: int = 16) -> None:
        self.distance = distance

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.goal, self.num_steps = int(self.np_random.choice([-1, 1])) * self.distance, 0
        return np.array([np.sign(self.goal)], np.float32), {}

    def step(self, action: np.int64) -> Any:
        self.goal, self.num_steps = self.goal - (1 if action else -1), self.num_steps + 1
        is_over = self.goal == 0
        observation, info = np.array([np.sign(self.goal)], np.float32), {"is_success": is_over}
        return observation, float(is_over), is_over, self.num_steps >= 32, info


class Curriculum(Callback):
    """Starts with a distance of 2 and doubles it if the mean return of the last episodes exceeds 0.8."""

    def on_train_start(self, trainer: Any, ppo: LightningModule) -> None:
        trainer.train_dataloader.env.set_attr("distance", 2)

    def on_train_batch_end(self, trainer: Any, ppo: LightningModule, *_: Any) -> None:
        env, mean_return = trainer.train_dataloader.env, trainer.callback_metrics.get("rollout/ep_rew_mean", 0.0)
        distance = env.get_attr("distance")[0]
        if mean_return > 0.8 and distance < 16:
            env.set_attr("distance", 2 * distance)
            print(f"distance {2 * distance}")


gymnasium.register("Walk-v0", entry_point=Walk)  # type: ignore[arg-type]

if __name__ == "__main__":
    env = ["env=gymnasium", "env.id=Walk-v0", "+trainer.callbacks=[{_target_: __main__.Curriculum}]"]
    sys.exit(main(["train", *env, "eval.video=false", "total_frames=50000", *sys.argv[1:]]))
