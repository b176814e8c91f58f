"""Act with a trained policy in a loop of your own: python use_policy.py runs/cartpole/<run>/checkpoints/best.ckpt."""

import sys
from pathlib import Path

import gymnasium
import numpy as np
import torch
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from torchppo.pipelines.checkpoint import restore


@torch.no_grad()
def act(actor: torch.nn.Module, observation: np.ndarray, how: ExplorationType = ExplorationType.DETERMINISTIC) -> int:
    """The action for one observation; a policy with a memory also wants `is_init` and what it remembers."""
    with set_exploration_type(how):  # RANDOM samples as training does
        stepped = actor(TensorDict({"observation": torch.from_numpy(observation).unsqueeze(0)}, [1]))
    return int(stepped["action"])


def main(checkpoint: Path) -> float:
    ppo, cfg, _ = restore(checkpoint, seed=0, num_envs=1)
    ppo.eval()
    env = gymnasium.make(cfg.env.id)
    observation, _ = env.reset(seed=0)
    total, is_over = 0.0, False
    while not is_over:
        observation, reward, terminated, truncated, _ = env.step(act(ppo.actor, observation))
        total, is_over = total + float(reward), terminated or truncated
    return total


if __name__ == "__main__":
    print(f"return {main(Path(sys.argv[1])):.1f}")
