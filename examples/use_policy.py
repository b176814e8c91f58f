"""Evaluate a trained policy in the environment of its training, and act with it in your own loop.

python examples/use_policy.py runs/cartpole/<run>/checkpoints/best.ckpt CartPole-v1
"""

import sys

import gymnasium

import torchppo

policy = torchppo.load_policy(sys.argv[1])
evaluation = torchppo.evaluate(policy.actor, policy.make_env(num_envs=5, seed=0), episodes=5)
print(f"return {evaluation.mean:.1f} +- {evaluation.std:.1f}")

env = gymnasium.make(sys.argv[2])  # the spaces must equal those of the training
observation, _ = env.reset(seed=0)
policy.reset()  # a new episode, for policies with a memory
episode_reward, done = 0.0, False
while not done:
    observation, reward, terminated, truncated, _ = env.step(policy(observation))
    episode_reward, done = episode_reward + float(reward), terminated or truncated
print(f"return {episode_reward:.1f} in your own loop")
