"""Sums in shared memory, with threads as ranks."""

from __future__ import annotations

import errno
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch

from torchppo.errors import TorchPPOError
from torchppo.pipelines.distributed import shared_memory
from torchppo.pipelines.distributed.shared_memory import LINE, SharedSum, connect, open_processes

T = TypeVar("T")

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64", reason="shared memory needs Linux on x86"
)


def on_ranks(num_ranks: int, work: Callable[[int, Callable[[Any], list[Any]]], T]) -> list[T]:
    """Run `work(rank, gather)` on one thread per rank."""
    barrier, objects = threading.Barrier(num_ranks, timeout=20), [None] * num_ranks

    def gather(rank: int, own: Any) -> list[Any]:
        objects[rank] = own
        barrier.wait()
        found = [*objects]
        barrier.wait()
        return found

    with ThreadPoolExecutor(num_ranks) as pool:
        return [*pool.map(lambda rank: work(rank, lambda own: gather(rank, own)), range(num_ranks))]


def num_open_files() -> int:
    return len([*Path("/proc/self/fd").iterdir()])


def test_every_rank_gets_the_sums_of_tensors_of_all_sizes_and_types() -> None:
    generator = np.random.default_rng(0)
    arrays = [generator.normal(size=(3, 7, 5)).astype(np.float32), generator.normal(size=(3, 2)), np.ones((3, 0))]
    arrays += [generator.integers(0, 9, (3, 4)), generator.normal(size=(3, 33000)), generator.normal(size=(3,))]
    before = num_open_files()

    def work(rank: int, gather: Callable[[Any], list[Any]]) -> list[np.ndarray]:
        shared_sum = connect(33000 * 8, rank, 3, gather)
        assert shared_sum is not None
        sums = [shared_sum(torch.from_numpy(array[rank : rank + 1])[0]).numpy() for array in arrays]
        shared_sum.close()
        return sums

    for sums in on_ranks(3, work):
        for found, array in zip(sums, arrays, strict=True):
            assert found.dtype == array.dtype
            np.testing.assert_array_equal(found, array[0] + array[1] + array[2])
    assert num_open_files() == before


def sum_of_two_ranks(other: int) -> SharedSum:
    """Return the sum of rank 0, where rank 1 is the process `other`."""
    memory: Any = shared_memory.mmap.mmap(-1, 2 * (LINE + 2 * 64))
    return SharedSum(memory, 64, 0, open_processes([("", os.getpid(), -1), ("", other, -1)]))


def test_error_names_a_rank_that_has_ended() -> None:
    with subprocess.Popen(["sleep", "60"]) as process:
        shared_sum = sum_of_two_ranks(process.pid)
        process.kill()  # a zombie until `wait`, as a rank that rank 0 has started
        with pytest.raises(TorchPPOError, match="rank 1 has ended before the others; see its messages"):
            shared_sum(torch.ones(2))
        shared_sum.close()


def test_error_names_a_rank_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_memory, "CHECK_SECONDS", 0.0)
    monkeypatch.setattr(shared_memory, "TIMEOUT_SECONDS", 0.01)
    shared_sum = sum_of_two_ranks(os.getpid())
    with pytest.raises(TorchPPOError, match="rank 1 has not answered for 0 seconds"):
        shared_sum(torch.ones(2))
    shared_sum.close()


def no_memory(*_: int) -> None:
    raise OSError(errno.ENOSPC, "no space left")


@pytest.mark.parametrize(
    ("name", "replacement"),
    [
        ("platform.machine", lambda: "aarch64"),
        ("os.posix_fallocate", no_memory),
        ("os.pidfd_open", no_memory),
        ("os.readlink", lambda *_: str(threading.get_ident())),
    ],
    ids=["another processor", "no memory", "old kernel", "several containers"],
)
def test_without_shared_memory_no_rank_connects_and_no_file_remains_open(
    name: str, replacement: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(name, replacement)
    before = num_open_files()
    assert on_ranks(2, lambda rank, gather: connect(100, rank, 2, gather)) == [None, None]
    assert num_open_files() == before


def test_one_rank_that_cannot_map_the_memory_keeps_all_ranks_from_it(monkeypatch: pytest.MonkeyPatch) -> None:
    before = num_open_files()
    ranks = threading.local()

    def open_memory(*arguments: Any) -> Any:
        if ranks.own == 1:
            raise PermissionError
        return shared_memory.mmap.mmap(-1, arguments[-1])

    def work(rank: int, gather: Callable[[Any], list[Any]]) -> SharedSum | None:
        ranks.own = rank
        return connect(100, rank, 2, gather)

    monkeypatch.setattr(shared_memory, "open_memory", open_memory)
    assert on_ranks(2, work) == [None, None]
    assert num_open_files() == before
