"""Train Stable-Baselines3 with the settings of our MuJoCo presets, and keep the figures of the final policies.

    pip install 'torchppo[bench]'
    python benchmarks/learning_sb3.py HalfCheetah-v5 Hopper-v5 Walker2d-v5 --seeds 0 1 2

Adds a line to mujoco_sb3.csv for every training of 1,000,000 frames, a quarter of an hour each.
"""

from __future__ import annotations

import argparse
import csv
from datetime import date
from itertools import product
from pathlib import Path

import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

FIGURES = Path(__file__).parent / "mujoco_sb3.csv"
FRAMES = 1_000_000
EVALUATION_SEED = 1000
"""Added to a training's for its evaluation."""


def train(env_id: str, seed: int) -> dict[str, str | float]:
    """The figures of one training, named as ours are."""
    env = VecNormalize(make_vec_env(env_id, 1, seed=seed), gamma=0.99)
    model = PPO(
        "MlpPolicy",
        env,
        n_steps=2048,
        batch_size=64,
        n_epochs=10,
        learning_rate=lambda remaining: 3e-4 * remaining,
        clip_range=0.2,
        ent_coef=0.0,
        vf_coef=0.5,
        device="cpu",
        seed=seed,
    )
    model.learn(FRAMES)
    fresh = VecNormalize(make_vec_env(env_id, 1, seed=EVALUATION_SEED + seed), training=False, norm_reward=False)
    fresh.obs_rms = env.obs_rms
    returns, _ = evaluate_policy(model, fresh, n_eval_episodes=20, deterministic=True, return_episode_rewards=True)
    return {
        "date": date.today().isoformat(),
        "env": env_id,
        "seed": seed,
        "frames": FRAMES,
        "eval_return_mean": float(np.mean(returns)),
        "eval_return_std": float(np.std(returns)),
        "train_return_mean": float(np.mean([episode["r"] for episode in model.ep_info_buffer or ()])),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env_ids", nargs="+")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for seed, env_id in product(arguments.seeds, arguments.env_ids):
        figures = train(env_id, seed)
        with FIGURES.open("a", newline="") as file:
            csv.DictWriter(file, list(figures), lineterminator="\n").writerow(figures)
        print(figures, flush=True)


if __name__ == "__main__":
    main()
