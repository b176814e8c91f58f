"""Tests of the notes on unusual settings."""

from __future__ import annotations

import pytest
from omegaconf import OmegaConf

from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.health.ranges import RANGES, notes


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


def test_default_settings_are_within_the_ranges() -> None:
    assert notes(compose([]), [f"{key}=0" for key in RANGES]) == []
