"""Act with a trained policy in your own loop, in its training environment.

python examples/use_policy.py runs/cartpole/<run>/checkpoints/best.ckpt [own modules that the checkpoint may name]
"""

import sys

import torchppo

if len(sys.argv) < 2:
    sys.exit(__doc__)
policy = torchppo.load_policy(sys.argv[1], trust=sys.argv[2:])
env = policy.make_gymnasium_env()  # with the id, keyword arguments and wrappers of the training environment
observation, _ = env.reset(seed=0)
policy.reset()  # a new episode, for policies with a memory
episode_reward, done = 0.0, False
while not done:
    observation, reward, terminated, truncated, _ = env.step(policy(observation))
    episode_reward, done = episode_reward + float(reward), terminated or truncated
env.close()
print(f"return {episode_reward}")
