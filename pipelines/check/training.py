"""Checks the invariants of PPO on a rollout of the real pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import gymnasium
import numpy as np
import torch
from lightning import Callback, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDictBase

from ...modules.features.extractor import is_recurrent
from ..build import build_trainer, build_training
from ..components.instantiate import build_env, build_evaluation_env, seed_for_rank
from ..episodes import evaluate
from ..run_files.progress import silence_lightning
from .findings import Finding, error, ok

NUM_ENVS, NUM_STEPS, TIME_LIMIT = 2, 32, 8
"""Size of the rollout, and the time limit that truncates episodes in it."""
MAX_KL, MAX_DIFFERENCE = 1e-4, 1e-3
"""Limits of rounding errors in float32."""
FINAL_OBSERVATIONS: list[Any] = []
"""The last observations of truncated episodes, in the order of the steps of both environments."""


class RecordFinalObservations(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Records the last observations of truncated episodes in `FINAL_OBSERVATIONS`."""

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        if truncated and not terminated:
            FINAL_OBSERVATIONS.append(np.array(observation, np.float32).ravel())
        return observation, reward, terminated, truncated, info


class CheckRollout(Callback):
    """Checks the first rollout before PPO learns from it, and ends the training after it."""

    def __init__(self, gamma: float) -> None:
        self.gamma = gamma
        self.findings: list[Finding] = []

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: TensorDictBase, batch_idx: int) -> None:
        if not pl_module.reward_models and not is_recurrent(pl_module.actor):
            self.findings += check_truncation(pl_module, batch.clone(), self.gamma)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        self.findings.append(check_ratio(trainer.callback_metrics))
        trainer.should_stop = True


def small(cfg: DictConfig, *, has_time_limit: bool) -> DictConfig:
    """Return the configuration of a training with one rollout and one optimizer step, in this process."""
    cfg = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))  # type: ignore[assignment]
    sizes = {"num_envs": NUM_ENVS, "num_workers": 0}
    env: dict[str, Any] = {name: value for name, value in sizes.items() if name in cfg.env}
    if has_time_limit:
        recorder = {"_target_": f"{__name__}.RecordFinalObservations", "_partial_": True}
        env |= {"max_episode_steps": TIME_LIMIT, "wrappers": [*cfg.env.wrappers, recorder], "vectorization": "auto"}
    length = cfg["update"].get("sequence_length") or NUM_STEPS
    num_steps = length * max(1, NUM_STEPS // length)
    num_envs = env.get("num_envs", cfg.env.get("num_envs", 1))
    changes = {
        "env": env,
        "collector": {"frames_per_env": num_steps, "double_buffer": False},
        "ppo": {"value_pretraining": 0},
        "trainer": {"accelerator": "cpu", "devices": 1, "strategy": "auto", "precision": "32-true"},
        "eval": {"env": {}},
    }
    for group, values in changes.items():
        known = cfg[group] if group in ("collector", "ppo") else values
        cfg[group].update({name: value for name, value in values.items() if name in known})
    update = {"epochs": 1, "minibatch_size": num_envs * num_steps, "sequence_length": length}
    cfg["update"] = {"_target_": "torchppo.pipelines.updates.minibatch.MinibatchUpdate", **update}
    cfg.update({"total_frames": 10**6, "logger": {}, "compile": False})
    return cfg


def check_training(cfg: DictConfig, *, has_time_limit: bool) -> list[Finding]:
    """Train on one small rollout, and check the result.

    Args:
        cfg: the configuration.
        has_time_limit: whether the environment accepts `max_episode_steps` and `wrappers`, so that episodes can be cut.

    """
    cfg = small(cfg, has_time_limit=has_time_limit)
    silence_lightning()
    FINAL_OBSERVATIONS.clear()
    check = CheckRollout(cfg.estimator.get("gamma", 0.99))
    trainer = build_trainer(cfg, [check])
    seed_everything(seed_for_rank(cfg.seed, 0), verbose=False)
    with closing(build_training(cfg, rank=0)) as training:
        trainer.fit(training.ppo, train_dataloaders=training.collector)
        findings = [*check.findings, check_evaluation(cfg, training.ppo)]
    return [*findings, check_ranks(cfg)]


def check_ratio(metrics: Mapping[str, Any]) -> Finding:
    """Check that the policy of the first optimizer step is the one that collected the rollout."""
    kl = abs(float(metrics.get("train/approx_kl", 0.0)))
    fraction = float(metrics.get("train/clip_fraction", 0.0))
    if kl > MAX_KL or fraction > 0:
        text = f"the first step has a KL of {kl:.2g} and a clip fraction of {fraction:.2g} instead of 0"
        return error("ratio", f"{text}; the policy must give the same log-probabilities in training as in collection")
    return ok("ratio", "1 in the first step; log-probabilities are reproduced")


def check_truncation(ppo: Any, rollout: TensorDictBase, gamma: float) -> list[Finding]:
    """Check that the target of a truncated step contains the value of the true final observation."""
    following = rollout["next"]
    if following.get("truncated", None) is None:
        return []
    cut = (following["truncated"] & ~following["terminated"]).squeeze(-1)
    if not cut.any():
        return []
    batch = ppo.make_batch(rollout)
    batch.estimate()
    with torch.no_grad():
        final = ppo.critic(following.select(*ppo.critic.in_keys, strict=False).clone())["state_value"]
    expected = following["reward"] + gamma * final
    difference = (rollout["value_target"] - expected).abs()[cut] / (1 + expected.abs()[cut])
    if difference.max() > MAX_DIFFERENCE:
        text = "a truncated step has a target that does not contain the value of the next observation"
        return [error("truncation", f"{text}; use an estimator that reads terminated, such as estimator=gae")]
    observations = [following[key] for key in ppo.critic.in_keys if key in following.keys(include_nested=True)]
    if len(observations) == 1 and FINAL_OBSERVATIONS:
        seen = observations[0].transpose(0, 1)[cut.transpose(0, 1)].reshape(int(cut.sum()), -1).float()
        true = torch.from_numpy(np.array(FINAL_OBSERVATIONS[-len(seen) :]))  # tests before the rollout add others
        if seen.shape == true.shape and not torch.allclose(seen, true, atol=1e-5):
            return [error("truncation", "the final observation in the rollout is not that of the environment")]
    return [ok("truncation", "its target contains the value of the true final observation")]


def check_evaluation(cfg: DictConfig, ppo: Any) -> Finding:
    """Check that an evaluation does not change the module or the random state."""
    before = {name: value.clone() for name, value in ppo.state_dict().items() if isinstance(value, torch.Tensor)}
    random_state = torch.get_rng_state()
    with isolate_rng(), closing(build_evaluation_env(cfg, seed=1)) as env:
        evaluate(ppo.actor, env, 1, max_steps=TIME_LIMIT)
    after = ppo.state_dict()
    changed = [name for name, value in before.items() if not torch.equal(value, after[name])]
    if changed or not torch.equal(random_state, torch.get_rng_state()):
        return error(
            "evaluation", f"it changes {', '.join(changed[:3]) or 'the random state'}; change only in training"
        )
    return ok("evaluation", "changes no state")


def check_ranks(cfg: DictConfig) -> Finding:
    """Check that two ranks have different seeds, and whether they begin with different observations."""
    if seed_for_rank(cfg.seed, 0) == seed_for_rank(cfg.seed, 1):
        return error("ranks", "two ranks have the same seed, and would collect the same steps")
    first, second = (first_observations(cfg, rank) for rank in range(2))
    is_same = all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    return ok("ranks", f"have different seeds and begin with {'the same' if is_same else 'different'} observations")


def first_observations(cfg: DictConfig, rank: int) -> list[torch.Tensor]:
    """Return the observations with which a rank begins."""
    with closing(build_env(cfg, seed=seed_for_rank(cfg.seed, rank))) as env:
        reset = env.reset()
        return [value.clone() for value in reset.values(include_nested=True, leaves_only=True)]
