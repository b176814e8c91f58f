"""Train from Python with your own `lightning.Trainer`.

The seeds depend on the rank, so the program also works with several devices.

    python examples/train_from_python.py
"""

from functools import partial

import torch
from lightning import Trainer, seed_everything
from torchrl.objectives.value import GAE

from torchppo import PPO, ClipPPOLoss, Collector, MinibatchUpdate, make_actor_critic, make_env, mlp


def main(total_frames: int = 50_000) -> PPO:
    torch.set_num_threads(1)  # small networks are slower with more threads
    trainer = Trainer(max_epochs=-1, accelerator="cpu", logger=False, enable_checkpointing=False)
    seed_everything(trainer.global_rank)
    env = make_env("CartPole-v1", num_envs=8)
    env.set_seed(trainer.global_rank)
    actor, critic = make_actor_critic(env.observation_spec, env.full_action_spec["action"], body=mlp)
    ppo = PPO(
        objective=ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_coeff=0.0),
        estimator=GAE(gamma=0.98, lmbda=0.8, value_network=None, vectorized=True),
        update=MinibatchUpdate(epochs=20, minibatch_size=256),
        optimizer=partial(torch.optim.Adam, lr=1e-3, eps=1e-5),
        total_frames=total_frames,
    )
    collector = Collector(env, actor, frames_per_env=32, total_frames=total_frames)
    trainer.fit(ppo, train_dataloaders=collector)
    return ppo


if __name__ == "__main__":
    trained = main()
    print("mean return of the last training episodes:", float(trained.trainer.callback_metrics["rollout/ep_rew_mean"]))
