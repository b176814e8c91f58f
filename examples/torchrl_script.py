"""Train in a plain TorchRL script without Lightning.

python examples/torchrl_script.py             # Collector and ClipPPOLoss of torchppo
python examples/torchrl_script.py --torchrl   # Collector and ClipPPOLoss of TorchRL
"""

import sys

import torch
import torchrl.collectors
import torchrl.objectives
from torchrl.data import LazyTensorStorage, ReplayBuffer, SamplerWithoutReplacement
from torchrl.objectives.value import GAE

from torchppo import ClipPPOLoss, Collector, make_actor_critic, make_env, mlp


def main(*, torchrl_only: bool = False, total_frames: int = 30_720) -> float:
    """Train on CartPole-v1 and return the mean return of the last training episodes."""
    torch.set_num_threads(1)  # small networks are slower with more threads
    torch.manual_seed(0)
    env = make_env("CartPole-v1", num_envs=8)
    actor, critic = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=mlp)
    make_collector = torchrl.collectors.Collector if torchrl_only else Collector
    make_loss = torchrl.objectives.ClipPPOLoss if torchrl_only else ClipPPOLoss
    loss_module = make_loss(actor, critic, clip_epsilon=0.2, entropy_coeff=0.0, critic_coeff=0.5)
    collector = make_collector(env, actor, frames_per_batch=256, total_frames=total_frames)
    collector.set_seed(0)
    estimator = GAE(gamma=0.98, lmbda=0.8, value_network=critic, average_gae=True)
    buffer = ReplayBuffer(storage=LazyTensorStorage(256), sampler=SamplerWithoutReplacement(), batch_size=64)
    optimizer = torch.optim.Adam(loss_module.parameters(), lr=1e-3)
    returns: list[float] = []
    for rollout in collector:
        with torch.no_grad():
            estimator(rollout)
        done = rollout["next", "done"]
        returns += rollout["next", "episode_reward"][done].tolist()
        for _ in range(10):
            buffer.empty()
            buffer.extend(rollout.exclude("collector").reshape(-1))
            for minibatch in buffer:
                losses = loss_module(minibatch)
                loss = losses["loss_objective"] + losses["loss_critic"]
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(loss_module.parameters(), 0.5)
                optimizer.step()
        collector.update_policy_weights_()
    collector.shutdown()
    return sum(returns[-20:]) / len(returns[-20:])


if __name__ == "__main__":
    print("mean return of the last training episodes:", main(torchrl_only="--torchrl" in sys.argv))
