"""Tests of the metrics of critic, policy and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import nn

from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.objectives.kl_penalty import KLPENPPOLoss
from torchppo.pipelines.advantages import RolloutBatch
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.metrics.learning import (
    critic_metrics,
    gradient_metrics,
    improvement_bound,
    learning_metrics,
    policy_metrics,
    sample_of,
)
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.updates.minibatch import MinibatchUpdate, means

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


def updated(make: Make, env_id: str, **options: Any) -> tuple[PPO, RolloutBatch]:
    """Return a module after its first rollout, with other weights than at collection, and the batch."""
    ppo, collector = make(env_id, frames_per_env=40, **options)
    batch = ppo.make_batch(next(iter(collector)))
    batch.estimate()
    ppo.num_rollouts = 1
    with torch.no_grad():
        for param in ppo.actor.parameters():
            param.add_(0.1 * torch.randn_like(param))
    return ppo, batch


@pytest.mark.parametrize("normalize", ["rollout", None])
def test_metrics_of_the_critic_equal_numpy(make: Make, normalize: Any) -> None:
    _, batch = updated(make, "CartPole-v1", normalize_advantage=normalize)
    target, value, advantage = (
        array.double().numpy()
        for array in (batch.rollout["value_target"], batch.rollout["state_value"], batch.raw_advantage)
    )
    assert critic_metrics(batch) == pytest.approx(
        {
            "explained_variance": 1 - (target - value).var() / target.var(),
            "value_bias": (value - target).mean(),
            "return_mean": target.mean(),
            "return_std": target.std(),
            "advantage_mean": advantage.mean(),
            "advantage_std": advantage.std(),
        }
    )
    assert advantage.std() != pytest.approx(1, abs=0.1)
    batch.rollout["value_target"] = torch.full_like(batch.rollout["value_target"], 3.0)
    assert critic_metrics(batch)["explained_variance"] == 0.0


@pytest.mark.parametrize("normalize", ["rollout", None])
@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
def test_metrics_of_the_policy_equal_numpy(make: Make, env_id: str, normalize: Any) -> None:
    ppo, batch = updated(make, env_id, normalize_advantage=normalize)
    rows, raw = batch.rows, batch.raw_advantage.transpose(0, 1).reshape(-1).double().numpy()
    with torch.no_grad():
        new = ppo.actor.get_dist_params(rows.copy())
    is_discrete = env_id == "CartPole-v1"
    keys, action = ("logits",) if is_discrete else ("loc", "scale"), rows["action"].double().numpy()
    p, q = ([data[key].double().numpy() for key in keys] for data in (rows, new))
    if is_discrete:
        old_log, new_log = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for (x,) in (p, q))
        kl = (np.exp(old_log) * (old_log - new_log)).sum(-1)
        entropy = -(np.exp(new_log) * new_log).sum(-1).mean()
        taken = np.arange(len(rows)), action.astype(int)
        log_ratio, std = new_log[taken] - old_log[taken], {}
    else:
        (m, s), (n, t) = p, q
        kl = (np.log(t / s) + (s**2 + (m - n) ** 2) / (2 * t**2) - 0.5).sum(-1)
        entropy = (0.5 + 0.5 * math.log(2 * math.pi) + np.log(t)).sum(-1).mean()
        log_ratio = (((action - m) / s) ** 2 / 2 - ((action - n) / t) ** 2 / 2 + np.log(s / t)).sum(-1)
        std = {"std": t.mean()}
    ratio = np.exp(log_ratio)
    expected = {
        "kl": kl.mean(),
        "max_kl": kl.max(),
        "max_advantage": np.abs(raw).max(),
        "surrogate_improvement": ((ratio - 1) * (raw - raw.mean())).mean(),
        "max_ratio": ratio.max(),
        "mean_ratio": ratio.mean(),
        "ESS": ratio.sum() ** 2 / (ratio**2).sum() / len(ratio),
        "clip_fraction": (np.abs(ratio - 1) > 0.05).mean(),
        "entropy": entropy,
        **std,
    }
    results = {**critic_metrics(batch), "clip_epsilon": 0.05}
    found = policy_metrics(ppo, batch, results)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert 0 < found["clip_fraction"] < 1
    pair = {**results, "clip_epsilon_low": 0.05, "clip_epsilon_high": 1e3, "entropy": 9.0}
    changed = policy_metrics(ppo, batch, pair)
    assert changed["clip_fraction"] == pytest.approx((ratio < 0.95).mean())
    assert "entropy" not in changed, "the objective returned it"
    assert batch.mean_kl() == pytest.approx(kl.mean(), rel=1e-4)


def test_a_sample_has_1024_frames_and_leaves_the_random_state(make: Make) -> None:
    ppo, collector = make("CartPole-v1", num_envs=4, frames_per_env=300)
    batch = ppo.make_batch(next(iter(collector)))
    batch.estimate()
    assert len(sample_of(1200, 1024).unique()) == 1024
    sizes: list[int] = []
    first = next(module for module in ppo.actor.modules() if isinstance(module, nn.Linear))
    first.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    state = torch.get_rng_state()
    ppo.num_rollouts = 1
    assert policy_metrics(ppo, batch, critic_metrics(batch))["kl"] == pytest.approx(0, abs=1e-7)
    assert torch.equal(torch.get_rng_state(), state)
    assert sizes == [1024]


def test_small_rollouts_are_sampled_once_per_2048_frames_and_not_in_value_pretraining(make: Make) -> None:
    ppo, batch = updated(make, "CartPole-v1", num_envs=8, value_pretraining=2)  # rollouts of 320 frames
    sampled = []
    for number in range(1, 17):
        ppo.num_rollouts = number
        if policy_metrics(ppo, batch, critic_metrics(batch)):
            sampled.append(number)
    assert sampled == [3, 9, 15]


def test_gradients_that_are_not_finite_are_left_out() -> None:
    norms = torch.tensor([1.0, math.nan, 3.0, 5.0, math.inf])
    assert gradient_metrics(norms, 2.0) == {"grad_norm_max": 5.0, "grad_clip_fraction": pytest.approx(2 / 3)}
    assert gradient_metrics(norms[1:2], 2.0) == {}


def test_means_keep_the_first_kl_and_the_largest_ratio() -> None:
    steps = [
        {name: torch.tensor(value) for name, value in zip(("kl_approx", "max_ratio", "grad_norm"), row, strict=True)}
        for row in ((0.25, 2.0, 1.0), (0.75, 4.0, 1.0), (9.0, 9.0, math.nan))
    ]
    expected = {"kl_approx": 0.5, "max_ratio": 4.0, "grad_norm": 1.0, "first_kl": 0.25, "num_steps": 2.0}
    assert means(steps) == expected
    assert means([]) == means(steps[2:]) == {"num_steps": 0.0}


def test_improvement_bound_equals_trpo_by_hand() -> None:
    assert improvement_bound(0.1, 2.0, 0.01, 0.5) == pytest.approx(0.2 - 4 * 2 * 0.5 / 0.25 * 0.01)
    assert improvement_bound(0.1, 2.0, 0.01, 1.0) == -math.inf


def test_metrics_of_the_sample_that_are_not_finite_have_no_value(make: Make) -> None:
    ppo, batch = updated(make, "CartPole-v1")
    with torch.no_grad():
        [*ppo.actor.parameters()][-1].fill_(math.nan)
    found = learning_metrics(ppo, batch, {**critic_metrics(batch), "loss_critic": math.nan})
    assert "kl" not in found
    assert math.isnan(found["loss_critic"]), "it stops the training"


@pytest.mark.parametrize("objective", [ClipPPOLoss, KLPENPPOLoss])
def test_every_training_logs_the_same_metrics_of_the_policy(objective: Any, make: Make, fit: Fit) -> None:
    update = MinibatchUpdate(epochs=3, minibatch_size=8)
    ppo, collector = make("Pendulum-v1", objective=objective, rollouts=1, update=update, max_grad_norm=1e-3)
    found = {name: float(value) for name, value in fit(ppo, collector).callback_metrics.items()}
    names = ["kl", "max_kl", "ESS", "max_ratio", "mean_ratio", "clip_fraction", "entropy", "std", "approx_kl"]
    names += ["surrogate_improvement", "improvement_bound", "value_bias", "return_std", "advantage_std"]
    names += ["grad_norm_max", "first_kl", "entropy_coeff", "beta" if objective is KLPENPPOLoss else "clip_epsilon"]
    assert {f"train/{name}" for name in names} <= found.keys()
    assert found["train/grad_clip_fraction"] == 1.0
    assert found["train/num_epochs"] == 3.0
    assert found["train/first_kl"] == pytest.approx(0, abs=1e-7)
    assert found["train/kl"] > found["train/approx_kl"], "the mean over the steps begins with 0"
