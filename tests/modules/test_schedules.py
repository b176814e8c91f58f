"""Tests of the schedules."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchppo.errors import ConfigurationError
from torchppo.modules.schedules import constant, cosine, linear, step

Schedule = Callable[[float], float]

SCHEDULES: dict[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "linear to 0.1": partial(linear, final=0.1),
    "cosine": cosine,
    "cosine to 0.1": partial(cosine, final=0.1),
    "step": step,
    "ten steps of 0.9": partial(step, gamma=0.9, num_steps=10),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@every_schedule
def test_starts_at_1(schedule: Schedule) -> None:
    assert schedule(0.0) == 1.0


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("constant", 1.0),
        ("linear", 0.0),
        ("linear to 0.1", 0.1),
        ("cosine", 0.0),
        ("cosine to 0.1", 0.1),
        ("step", 0.125),
        ("ten steps of 0.9", 0.387420489),
    ],
)
def test_ends_at_the_final_value(name: str, end: float) -> None:
    assert SCHEDULES[name](1.0) == pytest.approx(end, abs=1e-15)


@every_schedule
@given(progress=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=20))
def test_schedules_never_increase_and_stay_in_the_unit_interval(schedule: Schedule, progress: list[float]) -> None:
    factors = [schedule(point) for point in sorted(progress)]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert all(later <= earlier + 1e-15 for earlier, later in pairwise(factors))


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [
        (constant, 0.37, 1.0),
        (linear, 0.25, 0.75),
        (partial(linear, final=0.2), 0.5, 0.6),
        (cosine, 1 / 3, 0.75),  # (1 + cos 60 degrees) / 2
        (cosine, 0.5, 0.5),
        (cosine, 2 / 3, 0.25),
        (partial(cosine, final=0.5), 1 / 3, 0.875),
        (step, 0.2499, 1.0),
        (step, 0.25, 0.5),
        (step, 0.6, 0.25),
        (step, 0.75, 0.125),
        (step, 0.9999, 0.125),
        (partial(step, num_steps=100), 0.29, 0.5**29),
        (partial(step, num_steps=100), 0.57, 0.5**57),
        (partial(step, gamma=0.1, num_steps=2), 0.5, 0.1),
    ],
)
def test_values_equal_hand_computed_ones(schedule: Schedule, progress: float, factor: float) -> None:
    assert schedule(progress) == pytest.approx(factor, rel=1e-12)


def test_rejects_num_steps_below_1() -> None:
    with pytest.raises(ConfigurationError, match="num_steps=0"):
        step(0.5, num_steps=0)
