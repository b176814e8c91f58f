"""`torchppo check` finds broken invariants of PPO in the real pipeline."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torchrl.objectives.value import GAE

from torchppo.pipelines.check.training import check_ratio, check_training
from torchppo.pipelines.cli.config import compose


class IgnoresTruncation(GAE):
    """Treats truncated episodes as terminated ones."""

    def forward(self, tensordict: Any, *args: Any, **kwargs: Any) -> Any:
        tensordict["next", "terminated"] = tensordict["next", "done"].clone()
        return super().forward(tensordict, *args, **kwargs)


def levels(*overrides: str, has_time_limit: bool = True) -> dict[str, str]:
    """Return the level of every finding by topic."""
    found = check_training(compose([*overrides, "policy.body.num_cells=[8]"]), has_time_limit=has_time_limit)
    return {finding.topic: finding.level for finding in found}


@pytest.mark.parametrize("overrides", [["env=pendulum", "objective=kl_penalty"], ["env.id=FrozenLake-v1"]], ids=str)
def test_the_invariants_hold(overrides: list[str]) -> None:
    expected = dict.fromkeys(("truncation", "ratio", "evaluation", "ranks"), "ok")
    assert levels(*overrides) == expected


def test_recurrent_policies_and_torchrl_environments_are_checked() -> None:
    assert levels("policy=gru") == dict.fromkeys(("ratio", "evaluation", "ranks"), "ok")
    pendulum = ["env=torchrl", "env._target_=torchrl.envs.GymEnv", "+env.env_name=Pendulum-v1"]
    assert set(levels(*pendulum, has_time_limit=False).values()) == {"ok"}


def test_an_estimator_that_ignores_truncation_is_found() -> None:
    found = levels(f"estimator._target_={__name__}.IgnoresTruncation")
    assert found["truncation"] == "error"


def test_a_ratio_that_differs_from_1_is_found() -> None:
    assert check_ratio({"train/approx_kl": torch.tensor(0.02)}).level == "error"
    assert check_ratio({"train/approx_kl": torch.tensor(1e-9), "train/clip_fraction": torch.tensor(0.0)}).level == "ok"
