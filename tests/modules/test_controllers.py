"""Tests of the controllers."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchrl.objectives import KLAdaptiveLR

from torchppo.errors import ConfigurationError
from torchppo.modules.controllers import AdaptiveBeta, Cosine, KLAdaptive, Linear, Schedule, Step

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


class TestKLAdaptive:
    @given(kls=st.lists(st.floats(0, 0.1), min_size=1, max_size=30))
    def test_follows_torchrl(self, kls: list[float]) -> None:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1e-3)
        theirs, ours, lr = KLAdaptiveLR(optimizer, target_kl=0.01), KLAdaptive(0.01), 1e-3
        for kl in kls:
            theirs.step(kl)
            lr = ours(0.5, {"kl": kl}, lr)
            assert lr == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)

    def test_keeps_a_value_set_by_others_without_a_kl(self) -> None:
        assert KLAdaptive()(0.0, {}, 1.0) == 1.0

    @pytest.mark.parametrize("options", [{"target_kl": 0.0}, {"factor": 1.0}, {"minimum": 0.0}, {"minimum": 1.0}])
    def test_rejects_options_out_of_range(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigurationError):
            KLAdaptive(**options)


class TestAdaptiveBeta:
    @pytest.mark.parametrize(
        ("kl", "factor"),
        [
            (0.1, 2.0),
            (0.0151, 2.0),  # just above 1.5 x 0.01
            (0.0149, 1.0),
            (0.01, 1.0),
            (0.0067, 1.0),
            (0.0066, 0.5),  # just below 0.01 / 1.5
            (0.0, 0.5),
        ],
    )
    def test_doubles_above_the_target_and_halves_below(self, kl: float, factor: float) -> None:
        assert AdaptiveBeta(0.01)(0.0, {"kl": kl}, 3.0) == 3.0 * factor

    def test_keeps_the_value_without_a_kl(self) -> None:
        assert AdaptiveBeta()(0.0, {}, 3.0) == 3.0

    def test_factors_of_1_keep_the_value(self) -> None:
        controller = AdaptiveBeta(increment=1.0, decrement=1.0)
        assert [controller(0.0, {"kl": kl}, 3.0) for kl in (0.0, 1.0)] == [3.0, 3.0]

    @given(kls=st.lists(st.floats(0, 10), min_size=1, max_size=30))
    def test_stays_within_its_bounds_and_recovers(self, kls: list[float]) -> None:
        controller, value = AdaptiveBeta(minimum=0.25, maximum=8.0), 1.0
        for kl in kls:
            value = controller(0.0, {"kl": kl}, value)
            assert 0.25 <= value <= 8.0
        assert controller(0.0, {"kl": 1.0}, 0.25) == 0.5

    @pytest.mark.parametrize(
        "options", [{"dtarg": 0.0}, {"increment": 0.9}, {"decrement": 1.1}, {"decrement": 0.0}, {"minimum": 0.0}]
    )
    def test_rejects_options_out_of_range(self, options: dict[str, float]) -> None:
        with pytest.raises(ConfigurationError):
            AdaptiveBeta(**options)
