"""Tests of the networks of action heads."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchppo.modules.heads.networks import ResampleNoise
from torchppo.modules.heads.to_action import ScaleToBounds, TanhToUnitInterval


@settings(max_examples=40)
@given(st.floats(-1e3, 1e3, width=32), st.floats(2**-10, 1e3, width=32), st.floats(-50, 50, width=32))
def test_rounding_never_exceeds_the_bounds(low: float, distance: float, value: float) -> None:
    bounds = torch.tensor([low]), torch.tensor([low]) + distance
    action = nn.Sequential(TanhToUnitInterval(), ScaleToBounds(*bounds))(torch.tensor([value]))
    assert bounds[0] <= action <= bounds[1]


def test_resample_noise_draws_when_an_episode_begins() -> None:
    torch.manual_seed(0)
    noise, is_init = torch.randn(4, 5, 2), torch.tensor([[True], [False], [True], [False]])
    after = ResampleNoise(0.0)(noise, is_init)
    assert (after == noise).all((-2, -1)).tolist() == [False, True, False, True]
