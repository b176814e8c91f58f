"""Tests of the notes on unusual settings."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.health.ranges import RANGES, notes
from torchppo.pipelines.health.rules import RULES


@pytest.mark.parametrize("key", RANGES)
def test_overrides_outside_of_a_range_are_noted_and_the_bounds_are_inside(key: str) -> None:
    usual = RANGES[key]
    for value, is_noted in ((usual.low, False), (usual.high, False), (usual.low / 2 - 0.01, True), (2e3, True)):
        cfg = OmegaConf.create({})
        OmegaConf.update(cfg, key, value)
        found = notes(cfg, [f"{key}={value}"])
        assert bool(found) == is_noted
        assert notes(cfg, []) == [], "presets are tested as they are"
        assert all(line.startswith(f"{key}={value:g} ") for line in found)


def test_advantages_that_are_not_normalized_are_noted() -> None:
    override = "ppo.normalize_advantage=null"
    (line,) = notes(compose([override]), [override])
    assert line.startswith(override)


@pytest.mark.parametrize(
    "overrides",
    [
        ["objective=a2c", "update.epochs=1"],
        ["objective=reinforce", "estimator=monte_carlo", "update.epochs=1"],
        ["update=ppg", "update.epochs=1"],
        ["update=natural_gradient", "update.epochs=20", "update.minibatch_size=512", "optimizer.lr=1e-3"],
    ],
)
def test_usual_settings_of_other_objectives_and_updates_are_not_noted(overrides: list[str]) -> None:
    cfg = compose(overrides)
    assert notes(cfg, overrides) == []
    cfg.estimator.lmbda = 0.0
    assert len(notes(cfg, ["estimator.lmbda=0"])) == 1


@pytest.mark.parametrize("words", [["objective=a2c"], ["objective=reinforce", "update.epochs=20"]])
def test_several_epochs_of_policy_gradients_are_noted(words: list[str]) -> None:
    overrides = [*words, "estimator=monte_carlo"]
    (line,) = notes(compose(overrides), overrides)
    assert line.startswith("update.epochs=")
    assert "use update.epochs=1" in line


@pytest.mark.parametrize(("size", "num_notes"), [(3072, 0), (4096, 1), (16, 1)])
def test_large_minibatches_are_noted_if_a_rollout_has_few(size: int, num_notes: int) -> None:
    overrides = ["experiment=robotics_parallel", "env.num_envs=512", f"update.minibatch_size={size}"]
    assert len(notes(compose(overrides), overrides)) == num_notes


def test_default_settings_are_within_the_ranges() -> None:
    assert notes(compose([]), [f"{key}=0" for key in RANGES]) == []


def test_the_health_report_suggests_no_unusual_settings() -> None:
    for override in [rule.override for rule in RULES]:
        words = [word for word in override.split() if "@" not in word]
        assert notes(OmegaConf.from_dotlist(words), words) == [], override
