"""The estimators of `conf/estimator` use the values in the rollout, and equal a loop in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase

from torchppo.pipelines.build import build_estimator
from torchppo.pipelines.cli.config import compose

SHAPE = (3, 14)


class Policy(torch.nn.Module):
    """A policy whose probabilities are those of the collection, so that V-trace makes no correction."""

    in_keys = ("action_log_prob",)
    dist_sample_keys = ("action",)

    def get_dist(self, data: TensorDictBase) -> Policy:
        self.collected = data["action_log_prob"]
        return self

    def log_prob(self, action: torch.Tensor) -> torch.Tensor:
        return self.collected


def make_rollout() -> TensorDictBase:
    torch.manual_seed(0)
    terminated, truncated = (torch.rand(*SHAPE, 1) < 0.15 for _ in range(2))
    done, value = terminated | truncated, torch.randn(*SHAPE, 1)
    is_last = done.clone()
    is_last[:, -1] = True
    following = torch.where(is_last, torch.randn(*SHAPE, 1), value.roll(-1, 1))
    step = {"reward": torch.randn(*SHAPE, 1), "done": done, "terminated": terminated, "state_value": following}
    own = {"state_value": value, "action": torch.zeros(SHAPE), "action_log_prob": torch.randn(SHAPE)}
    return TensorDict({**own, "next": step}, SHAPE)


def lambda_returns(rollout: TensorDictBase, gamma: float, lmbda: float) -> NDArray[np.float64]:
    """Return TD(lambda) targets, `[num_envs, time]`, which bootstrap wherever an episode is cut off."""
    data = {key: rollout["next", key].squeeze(-1).double().numpy() for key in ("reward", "terminated", "done")}
    next_value = rollout["next", "state_value"].squeeze(-1).double().numpy()
    targets = np.zeros(SHAPE)
    for env in range(SHAPE[0]):
        for step in reversed(range(SHAPE[1])):
            bootstrap = next_value[env, step] * (1 - data["terminated"][env, step])
            if not data["done"][env, step] and step + 1 < SHAPE[1]:
                bootstrap = (1 - lmbda) * bootstrap + lmbda * targets[env, step + 1]
            targets[env, step] = data["reward"][env, step] + gamma * bootstrap
    return targets


@pytest.mark.parametrize("gamma", [0.9, 1.0])
@pytest.mark.parametrize(
    ("words", "lmbda"),
    [
        (("estimator=gae", "estimator.lmbda=0.8"), 0.8),
        (("estimator=gae", "estimator.lmbda=0"), 0.0),
        (("estimator=td_lambda", "estimator.lmbda=0.8"), 0.8),
        (("estimator=td_lambda", "estimator.lmbda=0"), 0.0),
        (("estimator=td0",), 0.0),
        (("estimator=monte_carlo",), 1.0),
        (("estimator=vtrace",), 1.0),
    ],
)
def test_equals_a_loop(words: tuple[str, ...], lmbda: float, gamma: float) -> None:
    rollout = make_rollout()
    node = compose([*words, f"estimator.gamma={gamma}"]).estimator
    result = build_estimator(node, Policy(), critic=None)(rollout.copy())
    targets = lambda_returns(rollout, gamma, lmbda)
    np.testing.assert_allclose(result["value_target"].squeeze(-1), targets, rtol=1e-5, atol=1e-5)
    value = rollout["state_value"].squeeze(-1).double().numpy()
    np.testing.assert_allclose(result["advantage"].squeeze(-1), targets - value, rtol=1e-5, atol=1e-5)
