"""A minimal PPO loop with EnvPool, `torch.compile` and one thread, in the style of CleanRL and LeanRL.

    python benchmarks/peers/envpool_loop.py    # trains on CartPole-v1 and prints the mean training return

Policy step, GAE, loss and optimizer step are compiled. As in CleanRL, truncated episodes are not bootstrapped, and the
steps in which EnvPool resets an environment are part of the training data.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import envpool
import numpy as np
import torch
from torch import Tensor, nn

GAMMA, LAMBDA, CLIP, CRITIC_COEFF, MAX_NORM = 0.99, 0.95, 0.2, 0.5, 0.5


def orthogonal(inputs: int, outputs: int, gain: float) -> nn.Linear:
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def mlp(inputs: int, outputs: int, gain: float) -> nn.Sequential:
    first, second = orthogonal(inputs, 64, 2**0.5), orthogonal(64, 64, 2**0.5)
    return nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), orthogonal(64, outputs, gain))


def gae(rewards: Tensor, values: Tensor, dones: Tensor, last_value: Tensor) -> tuple[Tensor, Tensor]:
    """Return advantages and value targets, `[time, num_envs]`."""
    advantages, advantage, next_value = [], torch.zeros_like(last_value), last_value
    for reward, value, done in zip(reversed(rewards), reversed(values), reversed(dones), strict=True):
        delta = reward + GAMMA * next_value * (1 - done) - value
        advantage = delta + GAMMA * LAMBDA * (1 - done) * advantage
        advantages.append(advantage)
        next_value = value
    result = torch.stack(advantages[::-1])
    return result, result + values


class Loop:
    """PPO with separate networks of two layers of 64 units.

    Args:
        env_id: an environment of EnvPool with discrete actions.
        num_envs: number of environments.
        num_steps: steps of each environment in a rollout.
        minibatch_size: frames of a minibatch.
        epochs: passes over each rollout.

    """

    def __init__(self, env_id: str, num_envs: int, num_steps: int, minibatch_size: int, epochs: int) -> None:
        self.num_envs, self.num_steps, self.minibatch_size, self.epochs = num_envs, num_steps, minibatch_size, epochs
        self.envs: Any = envpool.make_gymnasium(env_id, num_envs=num_envs, num_threads=1, seed=0)
        inputs, outputs = self.envs.observation_space.shape[0], self.envs.action_space.n
        self.actor, self.critic = mlp(inputs, outputs, 0.01), mlp(inputs, 1, 1.0)
        self.params = [*self.actor.parameters(), *self.critic.parameters()]
        self.optimizer = torch.optim.Adam(self.params, lr=3e-4, eps=1e-5, fused=True)
        self.returns: deque[float] = deque(maxlen=100)
        self._running = np.zeros(num_envs)
        self._act, self._update = torch.compile(self.act), torch.compile(self.update)
        self._estimate = torch.compile(gae)

    @torch.no_grad()
    def act(self, observation: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        log_probs = self.actor(observation).log_softmax(-1)
        noise = -torch.empty_like(log_probs).exponential_().log()  # Gumbel: argmax of the sum is a sample
        action = (log_probs + noise).argmax(-1)
        return action, log_probs.gather(-1, action[:, None])[:, 0], self.critic(observation)[:, 0]

    def update(self, observation: Tensor, action: Tensor, old: Tensor, advantage: Tensor, target: Tensor) -> None:
        self.optimizer.zero_grad()
        log_prob = self.actor(observation).log_softmax(-1).gather(-1, action[:, None])[:, 0]
        ratio = (log_prob - old).exp()
        surrogate = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
        error = self.critic(observation)[:, 0] - target
        (CRITIC_COEFF * error.square().mean() - surrogate.mean()).backward()
        nn.utils.clip_grad_norm_(self.params, MAX_NORM)
        self.optimizer.step()

    def rollouts(self) -> Iterator[None]:
        """Collect rollouts and train on each of them, without end."""
        observation, _ = self.envs.reset()
        shape = self.num_steps, self.num_envs
        observations = np.empty((*shape, *observation.shape[1:]), np.float32)
        rewards, dones = np.empty(shape, np.float32), np.empty(shape, np.float32)
        while True:
            outputs = []
            for step in range(self.num_steps):
                observations[step] = observation
                outputs.append(self._act(torch.from_numpy(observations[step])))
                observation, reward, terminated, truncated, _ = self.envs.step(outputs[-1][0].numpy())
                rewards[step], dones[step] = reward, terminated | truncated
                self._count(reward, dones[step] > 0)
            actions, log_probs, values = (torch.stack(parts) for parts in zip(*outputs, strict=True))
            last_value = self._act(torch.from_numpy(np.asarray(observation, np.float32)))[2]
            advantages, targets = self._estimate(torch.from_numpy(rewards), values, torch.from_numpy(dones), last_value)
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
            rows = [
                tensor.flatten(0, 1)
                for tensor in (torch.from_numpy(observations), actions, log_probs, advantages, targets)
            ]
            for _ in range(self.epochs):
                for indices in torch.randperm(len(rows[0])).split(self.minibatch_size):
                    self._update(*(tensor[indices] for tensor in rows))
            yield

    def _count(self, reward: Any, done: Any) -> None:
        self._running += reward
        if done.any():
            self.returns.extend(self._running[done])
            self._running[done] = 0.0


def train(loop: Loop, rollouts: int, tick: Callable[[], None]) -> float:
    """Train on `rollouts` rollouts; call `tick` after each. Return the mean return of the last 100 episodes."""
    for _, _ in zip(range(rollouts), loop.rollouts(), strict=False):
        tick()
    return float(np.mean(loop.returns))


if __name__ == "__main__":
    torch.set_num_threads(1)
    torch.manual_seed(0)
    start = time.perf_counter()
    print("mean return", train(Loop("CartPole-v1", 8, 128, 256, 4), 300, lambda: None))
    print("seconds", time.perf_counter() - start)
