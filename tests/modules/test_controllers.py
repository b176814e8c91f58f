"""Tests of the controllers."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchppo.errors import ConfigurationError
from torchppo.modules.controllers import Cosine, Linear, Schedule, Step, Warmup

SCHEDULES: dict[str, Schedule] = {
    "linear": Linear(),
    "linear to 0.1": Linear(final=0.1),
    "cosine": Cosine(),
    "cosine to 0.1": Cosine(final=0.1),
    "step": Step(),
    "ten steps of 0.9": Step(gamma=0.9, num_steps=10),
}
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES.keys())


@every_schedule
def test_starts_at_1(schedule: Schedule) -> None:
    assert schedule.factor(0.0) == 1.0


@pytest.mark.parametrize(
    ("name", "end"),
    [
        ("linear", 0.0),
        ("linear to 0.1", 0.1),
        ("cosine", 0.0),
        ("cosine to 0.1", 0.1),
        ("step", 0.125),
        ("ten steps of 0.9", 0.387420489),
    ],
)
def test_ends_at_the_final_value(name: str, end: float) -> None:
    assert SCHEDULES[name].factor(1.0) == pytest.approx(end, abs=1e-15)


@every_schedule
@given(progress=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=20))
def test_schedules_never_increase_and_stay_in_the_unit_interval(schedule: Schedule, progress: list[float]) -> None:
    factors = [schedule.factor(point) for point in sorted(progress)]
    assert all(0.0 <= factor <= 1.0 for factor in factors)
    assert all(later <= earlier + 1e-15 for earlier, later in pairwise(factors))


@pytest.mark.parametrize(
    ("schedule", "progress", "factor"),
    [
        (Linear(), 0.25, 0.75),
        (Linear(final=0.2), 0.5, 0.6),
        (Cosine(), 1 / 3, 0.75),  # (1 + cos 60 degrees) / 2
        (Cosine(), 0.5, 0.5),
        (Cosine(), 2 / 3, 0.25),
        (Cosine(final=0.5), 1 / 3, 0.875),
        (Step(), 0.2499, 1.0),
        (Step(), 0.25, 0.5),
        (Step(), 0.6, 0.25),
        (Step(), 0.75, 0.125),
        (Step(), 0.9999, 0.125),
        (Step(num_steps=100), 0.29, 0.5**29),
        (Step(num_steps=100), 0.57, 0.5**57),
        (Step(gamma=0.1, num_steps=2), 0.5, 0.1),
    ],
)
def test_values_equal_hand_computed_ones(schedule: Schedule, progress: float, factor: float) -> None:
    assert schedule.factor(progress) == pytest.approx(factor, rel=1e-12)


def test_rejects_num_steps_below_1() -> None:
    with pytest.raises(ConfigurationError, match="num_steps=0"):
        Step(num_steps=0)


def test_a_schedule_multiplies_the_first_value_it_sees_and_restores_it() -> None:
    schedule = Linear()
    assert [schedule(progress, {}, value) for progress, value in ((0.0, 3.0), (0.5, 100.0))] == [3.0, 1.5]
    restored = Linear()
    restored.load_state_dict(schedule.state_dict())
    assert restored(0.25, {}, 1.5) == 2.25


@pytest.mark.parametrize(("progress", "factor"), [(0.0, 0.1), (0.1, 0.55), (0.2, 1.0), (0.6, 0.75), (1.0, 0.5)])
def test_warmup_increases_to_1_and_then_changes_to_the_final_value(progress: float, factor: float) -> None:
    assert Warmup(0.2, start=0.1, final=0.5).factor(progress) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("fraction", [0.0, 1.0])
def test_rejects_a_warmup_of_no_or_the_whole_training(fraction: float) -> None:
    with pytest.raises(ConfigurationError, match=f"fraction={fraction}"):
        Warmup(fraction)
