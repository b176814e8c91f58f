"""Rollouts of any TorchRL environment, stepped through TensorDicts."""

from __future__ import annotations

from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.envs import EnvBase, InitTracker, TransformedEnv


class SteppedRollouts:
    """Steps an environment with a policy.

    Without what TorchRL's own collectors do at every step for cases that do not arise here (devices, trajectory
    identities, resets in mid-episode), which doubles the cost.

    Args:
        env: a batched environment.
        policy: reads observations, writes `action`.
        num_steps: length of a rollout.

    """

    def __init__(self, env: EnvBase, policy: TensorDictModuleBase, num_steps: int) -> None:
        """Nothing is stepped yet."""
        self.env = env
        self.policy = policy
        self.num_steps = num_steps
        self.seconds: dict[str, float] = {}
        self._carrier: Any = None

    def __call__(self) -> TensorDictBase:
        """The next rollout, `[num_envs, time]`."""
        carrier = self.env.reset() if self._carrier is None else self._carrier
        if "is_init" not in carrier:
            carrier["is_init"] = torch.ones_like(carrier["done"])
        device = next(self.policy.parameters()).device
        steps = []
        for _ in range(self.num_steps):
            acted = self.policy(carrier.to(device)).to(self.env.device or "cpu")
            stepped, carrier = self.env.step_and_maybe_reset(acted)
            carrier["is_init"] = stepped["next", "done"]
            steps.append(stepped)
        self._carrier = carrier
        return torch.stack(steps, dim=-1)


class CollectedRollouts:
    """TorchRL's own collector, in this process.

    Args:
        env: a batched environment.
        policy: reads observations, writes `action`.
        num_steps: length of a rollout.
        options: further ones for `torchrl.collectors.Collector`.

    """

    def __init__(self, env: EnvBase, policy: TensorDictModuleBase, num_steps: int, **options: Any) -> None:
        """Nothing is stepped yet."""
        from torchrl.collectors import Collector

        self.seconds: dict[str, float] = {}
        frames = env.batch_size.numel() * num_steps
        tracked = TransformedEnv(env, InitTracker())
        collector = Collector(tracked, policy, frames_per_batch=frames, total_frames=-1, trust_policy=True, **options)
        self._rollouts = iter(collector)

    def __call__(self) -> TensorDictBase:
        """The next rollout, `[num_envs, time]`."""
        rollout: TensorDictBase = next(self._rollouts)
        return rollout
