"""Action masking: the environment reports the valid actions, and the policy samples only from them.

torchppo adds the mask in `info["action_mask"]`, or the result of a method `action_masks()`, to the observation. The
policy masks its logits with it. Masks work for Discrete and MultiDiscrete actions.

    python examples/masked_actions.py
"""

import sys
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from torchppo.pipelines.cli.main import main

SIZE = 5


class Storeroom(gymnasium.Env[NDArray[np.float32], NDArray[np.int64]]):
    """Put each waiting box on a free shelf; the reward is 1 if their numbers are equal, and falls with the distance."""

    observation_space = gymnasium.spaces.Box(0.0, 1.0, (2 * SIZE,), np.float32)  # waiting boxes, free shelves
    action_space = gymnasium.spaces.MultiDiscrete([SIZE, SIZE])

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.waiting = self.np_random.permutation(SIZE) < 3
        self.free = self.waiting | (self.np_random.random(SIZE) < 0.5)
        return self._observe()

    def step(self, action: NDArray[np.int64]) -> Any:
        box, shelf = action
        if not (self.waiting[box] and self.free[shelf]):
            raise ValueError(f"invalid action: box={box}, shelf={shelf}")
        self.waiting[box] = self.free[shelf] = False
        observation, info = self._observe()
        return observation, 1.0 - abs(int(box) - int(shelf)) / SIZE, not self.waiting.any(), False, info

    def _observe(self) -> tuple[NDArray[np.float32], dict[str, Any]]:
        flags = np.concatenate([self.waiting, self.free])
        return flags.astype(np.float32), {"action_mask": flags.astype(np.int8)}


gymnasium.register("Storeroom-v0", entry_point=Storeroom)  # type: ignore[arg-type]

if __name__ == "__main__":
    env = ["env=gymnasium", "env.id=Storeroom-v0", "eval.video=false"]
    sys.exit(main(["train", *env, "total_frames=20000", *sys.argv[1:]]))
