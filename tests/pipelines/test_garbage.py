"""The garbage collector passes over what stays, for as long as a training runs and no longer."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from typing import Any

import pytest

from torchppo.pipelines.garbage import SpareGarbageCollector


@pytest.fixture(autouse=True)
def nothing_is_frozen() -> Iterator[None]:
    gc.unfreeze()
    yield
    gc.unfreeze()


def rollout(callback: SpareGarbageCollector) -> None:
    anything: Any = None
    callback.on_train_batch_end(anything, anything, anything, anything, 0)


@pytest.mark.parametrize("how", ["on_train_end", "on_exception"])
def test_passes_over_what_there_is_after_the_first_rollout_until_the_end(how: str) -> None:
    callback = SpareGarbageCollector()
    assert gc.get_freeze_count() == 0
    rollout(callback)
    frozen = gc.get_freeze_count()
    assert frozen > 1000
    more = [[object()] for _ in range(1000)]
    rollout(callback)
    assert gc.get_freeze_count() <= frozen, "what comes later is looked at"
    anything: Any = None
    getattr(callback, how)(*[anything] * (2 if how == "on_train_end" else 3))
    assert gc.get_freeze_count() == 0
    assert more


def test_what_somebody_else_has_frozen_stays_so_if_no_rollout_was_made() -> None:
    gc.freeze()
    anything: Any = None
    SpareGarbageCollector().on_train_end(anything, anything)
    assert gc.get_freeze_count() > 0
