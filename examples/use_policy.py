"""Run a trained policy in your own loop over a Gymnasium environment.

    python examples/use_policy.py runs/cartpole/<run>/checkpoints/best.ckpt

The observation and the action must be one array each. For other environments, including Atari, use
`ppo, cfg, env = restore(...)` and `torchppo.pipelines.episodes.evaluate(ppo.actor, env, episodes)`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from torchppo.envs import make_gymnasium_env
from torchppo.envs.spaces.encoding import action_converter
from torchppo.modules.features.extractor import recurrent_state_shapes
from torchppo.pipelines.checkpoint import restore


class Policy:
    """Computes actions for one environment and keeps the recurrent state between steps."""

    def __init__(self, actor: torch.nn.Module, exploration: ExplorationType = ExplorationType.DETERMINISTIC) -> None:
        self.actor = actor.eval()
        self.exploration = exploration  # RANDOM samples actions, as in training
        self.state = {key: torch.zeros(1, *shape) for key, shape in recurrent_state_shapes(actor).items()}

    @torch.no_grad()
    def __call__(self, observation: np.ndarray, *, is_init: bool) -> np.ndarray:
        """The unclipped action; `is_init` marks the first step of an episode and resets the recurrent state."""
        obs = torch.as_tensor(observation).unsqueeze(0)
        obs = obs.float() if obs.is_floating_point() else obs  # MuJoCo observations are float64
        inputs = {"observation": obs, "is_init": torch.tensor([[is_init]])}
        with set_exploration_type(self.exploration):
            outputs = self.actor(TensorDict(inputs | self.state, [1]))
        self.state = {key: outputs["next", key] for key in self.state}
        return outputs["action"].numpy()


def main(checkpoint: Path) -> float:
    ppo, cfg, _ = restore(checkpoint, seed=0, num_envs=1)
    policy = Policy(ppo.actor)
    env = make_gymnasium_env(cfg.env.id, wrappers=[instantiate(wrapper) for wrapper in cfg.env.wrappers])
    to_env_action = action_converter(env.action_space)  # clips to the bounds and adds the start of a Discrete space
    observation, _ = env.reset(seed=0)
    episode_reward, is_init, done = 0.0, True, False
    while not done:
        (action,) = to_env_action(policy(observation, is_init=is_init))
        observation, reward, terminated, truncated, _ = env.step(action)
        episode_reward, is_init, done = episode_reward + float(reward), False, terminated or truncated
    return episode_reward


if __name__ == "__main__":
    print(f"return {main(Path(sys.argv[1])):.1f}")
