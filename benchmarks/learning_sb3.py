"""Train Stable-Baselines3 with the settings of the MuJoCo preset and record the results of the final policies.

    pip install 'torchppo[bench]'
    python benchmarks/learning_sb3.py HalfCheetah-v5 Hopper-v5 Walker2d-v5 --seeds 0 1 2

Appends a line to mujoco_sb3.csv for each training run of 1,000,000 frames, about 15 minutes each.
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

RESULTS = Path(__file__).parent / "mujoco_sb3.csv"
FRAMES = 1_000_000
EVALUATION_SEED = 1000
"""Added to the seed of a training run to seed its evaluation."""


def train(env_id: str, seed: int) -> dict[str, str | float]:
    """Train and evaluate once; the result has the keys of `learning.py`."""
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
    eval_env = VecNormalize(make_vec_env(env_id, 1, seed=EVALUATION_SEED + seed), training=False, norm_reward=False)
    eval_env.obs_rms = env.obs_rms
    returns, _ = evaluate_policy(model, eval_env, n_eval_episodes=20, deterministic=True, return_episode_rewards=True)
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
        result = train(env_id, seed)
        with RESULTS.open("a", newline="") as file:
            csv.DictWriter(file, list(result), lineterminator="\n").writerow(result)
        print(result, flush=True)


if __name__ == "__main__":
    main()
