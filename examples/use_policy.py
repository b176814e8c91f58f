"""Act with a trained policy in a loop of your own: python use_policy.py runs/cartpole/<run>/checkpoints/best.ckpt.

For Gymnasium environments whose observation and action are one array each. Any others, Atari's among them, are played
as TensorDicts: `ppo, cfg, env = restore(...)`, then `torchppo.pipelines.episodes.evaluate(ppo.actor, env, episodes)`.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from tensordict import TensorDict
from torchrl.envs import ExplorationType, set_exploration_type

from torchppo.envs import make_env
from torchppo.envs.spaces.encoding import conversion
from torchppo.modules.features.extractor import recurrent_state_shapes
from torchppo.pipelines.checkpoint import restore


class Policy:
    """Actions for one environment; what a policy with a memory remembers is carried from step to step."""

    def __init__(self, actor: torch.nn.Module, how: ExplorationType = ExplorationType.DETERMINISTIC) -> None:
        self.actor = actor.eval()
        self.how = how  # RANDOM samples as training does
        self.carried = {key: torch.zeros(1, *shape) for key, shape in recurrent_state_shapes(actor).items()}

    @torch.no_grad()
    def __call__(self, observation: np.ndarray, *, is_init: bool) -> np.ndarray:
        """The action, unclipped; `is_init` says that an episode begins, where a memory forgets."""
        seen = torch.as_tensor(observation).unsqueeze(0)
        seen = seen.float() if seen.is_floating_point() else seen  # MuJoCo's are of double precision
        given = {"observation": seen, "is_init": torch.tensor([[is_init]])}
        with set_exploration_type(self.how):
            acted = self.actor(TensorDict(given | self.carried, [1]))
        self.carried = {key: acted["next", key] for key in self.carried}
        return acted["action"].numpy()


def main(checkpoint: Path) -> float:
    ppo, cfg, _ = restore(checkpoint, seed=0, num_envs=1)
    policy = Policy(ppo.actor)
    env = make_env(cfg.env.id, wrappers=[instantiate(wrapper) for wrapper in cfg.env.wrappers])
    to_environment = conversion(env.action_space)  # clips to the bounds, counts from the space's start
    observation, _ = env.reset(seed=0)
    total, is_init, is_over = 0.0, True, False
    while not is_over:
        (action,) = to_environment(policy(observation, is_init=is_init))
        observation, reward, terminated, truncated, _ = env.step(action)
        total, is_init, is_over = total + float(reward), False, terminated or truncated
    return total


if __name__ == "__main__":
    print(f"return {main(Path(sys.argv[1])):.1f}")
