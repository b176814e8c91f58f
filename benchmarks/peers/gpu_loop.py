"""A minimal PPO loop for one GPU, in the style of LeanRL: compiled functions, each recorded as a CUDA graph."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from tensordict.nn import CudaGraphModule
from torch import Tensor, nn
from torch.distributions import Categorical, Normal

GAMMA, LAMBDA, CLIP, LEARNING_RATE, MAX_GRAD_NORM = 0.99, 0.95, 0.2, 3e-4, 0.5


class Agent(nn.Module):
    """Separate policy and critic of two layers, or a convolutional network that both share."""

    def __init__(self, observation: spaces.Box, action: spaces.Space[Any]) -> None:
        super().__init__()
        self.is_discrete = isinstance(action, spaces.Discrete)
        num = int(action.n) if isinstance(action, spaces.Discrete) else action.shape[0]  # type: ignore[index]
        self.is_image = len(observation.shape) == 3
        self.body: nn.Module = nn.Identity()
        self.policy: nn.Module
        self.critic: nn.Module
        if self.is_image:
            self.body = nn.Sequential(
                *(nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU()),
                *(nn.Conv2d(64, 64, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(3136, 512), nn.ReLU()),
            )
            self.policy, self.critic = nn.Linear(512, num), nn.Linear(512, 1)
        else:
            size = observation.shape[0]
            self.policy, self.critic = self._mlp(size, num), self._mlp(size, 1)
        self.log_std = nn.Parameter(torch.zeros(num))

    @staticmethod
    def _mlp(size: int, out: int) -> nn.Module:
        return nn.Sequential(nn.Linear(size, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, out))

    def forward(self, observation: Tensor) -> tuple[Any, Tensor]:
        """Return the distribution of actions and the values `[batch]`."""
        features = self.body(observation.float() / 255 if self.is_image else observation)
        out = self.policy(features)
        if self.is_discrete:
            return Categorical(logits=out, validate_args=False), self.critic(features)[:, 0]
        return Normal(out, self.log_std.exp(), validate_args=False), self.critic(features)[:, 0]

    def log_prob(self, distribution: Any, action: Tensor) -> Tensor:
        log_prob: Tensor = distribution.log_prob(action)
        return log_prob if self.is_discrete else log_prob.sum(-1)


def estimate(rewards: Any, values: Any, done: Any) -> Any:
    """Return advantages `[time, num_envs]`; `values` has one more step. NumPy is faster than one kernel per step."""
    advantages, advantage = np.zeros_like(rewards), np.zeros_like(rewards[0])
    for step in reversed(range(len(rewards))):
        goes_on = 1 - done[step]
        delta = rewards[step] + GAMMA * goes_on * values[step + 1] - values[step]
        advantages[step] = advantage = delta + GAMMA * LAMBDA * goes_on * advantage
    return advantages


def train(shape: Any, env: VectorEnv[Any, Any, Any], device: str, rollouts: int, tick: Callable[[], None]) -> None:
    """Train for a number of rollouts.

    Args:
        shape: sizes (see `gpu.Shape`).
        env: the environments, without automatic resets.
        device: `cuda` or `cpu`.
        rollouts: number of rollouts.
        tick: called after each rollout.

    """
    agent = Agent(shape.observation, shape.action).to(device)
    optimizer = torch.optim.Adam(
        agent.parameters(), lr=torch.tensor(LEARNING_RATE, device=device), eps=1e-5, capturable=device == "cuda"
    )

    @torch.no_grad()
    def act(observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        distribution, value = agent(observation)
        action = distribution.sample()
        return action, agent.log_prob(distribution, action), value

    def update(observation: Tensor, action: Tensor, old: Tensor, advantage: Tensor, target: Tensor) -> Tensor:
        optimizer.zero_grad()
        distribution, value = agent(observation)
        ratio = (agent.log_prob(distribution, action) - old).exp()
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        surrogate = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
        loss = 0.5 * (value - target).square().mean() - surrogate
        loss.backward()
        nn.utils.clip_grad_norm_(agent.parameters(), MAX_GRAD_NORM, foreach=True)
        optimizer.step()
        return loss.detach()

    act, update = (torch.compile(function) for function in (act, update))  # type: ignore[assignment]
    if device == "cuda":
        act, update = CudaGraphModule(act), CudaGraphModule(update)
    observation = torch.as_tensor(env.reset(seed=0)[0], device=device)
    for _ in range(rollouts):
        rows, rewards, dones = [], [], []
        for _ in range(shape.frames_per_env):
            action, log_prob, value = act(observation)
            state, reward, terminated, truncated, _ = env.step(action.cpu().numpy())
            if (done := terminated | truncated).any():
                state = env.reset(options={"reset_mask": done})[0]
            rows.append((observation, action, log_prob, value))
            rewards.append(reward.astype(np.float32))
            dones.append(done.astype(np.float32))
            observation = torch.as_tensor(state).to(device, non_blocking=True)
        observations, actions, log_probs, values = map(torch.stack, zip(*rows, strict=True))
        every_value = torch.cat([values, act(observation)[2][None]]).cpu().numpy()
        advantages = torch.as_tensor(estimate(np.stack(rewards), every_value, np.stack(dones)), device=device)
        data = (observations, actions, log_probs, advantages, advantages + values)
        flat = [tensor.flatten(0, 1) for tensor in data]
        for _ in range(shape.epochs):
            for indices in torch.randperm(len(flat[0]), device=device).split(shape.minibatch_size):
                update(*(tensor[indices] for tensor in flat))
        tick()
