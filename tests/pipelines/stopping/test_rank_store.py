"""Ranks tell each other about signals through the store of a training."""

from __future__ import annotations

import threading
import time
from datetime import timedelta

import pytest
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from torchppo.pipelines.stopping.rank_store import RankStore


@pytest.fixture
def master(monkeypatch: pytest.MonkeyPatch) -> list[TCPStore]:
    """The store of rank 0, in a list that can be emptied."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=10))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    return [store]


def test_every_rank_reads_the_signal_that_one_has_written(master: list[TCPStore]) -> None:
    ranks = [RankStore() for _ in range(3)]
    assert [one.read_signal() for one in ranks] == [0, 0, 0]
    ranks[1].write_signal(15)
    assert [one.read_signal() for one in ranks] == [15, 15, 15]


def test_ranks_that_torchrun_starts_again_do_not_see_earlier_signals(
    master: list[TCPStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    RankStore().write_signal(15)
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert RankStore().read_signal() == 0


def test_a_rank_waits_until_rank_0_has_saved(master: list[TCPStore]) -> None:
    first, second = RankStore(), RankStore()
    start = time.monotonic()
    threading.Timer(0.2, first.write_saved).start()
    second.wait_until_saved(30.0)
    assert 0.2 <= time.monotonic() - start < 20


def test_without_a_store_nothing_is_read_and_nobody_waits(
    master: list[TCPStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected = RankStore()
    master.clear()  # rank 0 has ended
    connected.wait_until_saved(30.0)
    connected.write_signal(15)
    assert connected.read_signal() == 0
    monkeypatch.delenv("MASTER_ADDR")
    assert RankStore().read_signal() == 0
