"""Shares a signal that one rank has received with all ranks of a training."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from datetime import timedelta
from typing import Any

from torch import distributed


class RankStore:
    """The signal of a training, in the `TCPStore` of `torch.distributed`.

    It opens its own connection, because another thread may wait on the connection of `torch.distributed`. Without a
    connection, it does nothing.
    """

    def __init__(self) -> None:
        # torchrun keeps the store when it starts the ranks again after a failure.
        prefix = f"torchppo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._signal, self._saved = f"{prefix}/signal", f"{prefix}/saved"
        self._store: Any = None
        with suppress(KeyError, ValueError, RuntimeError):  # another kind of store, or a closed store
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store: Any = distributed.TCPStore  # type: ignore[attr-defined, unused-ignore] # it is in C++
            self._store = store(address, port, timeout=timedelta(seconds=10), wait_for_workers=False)

    def write_signal(self, number: int) -> None:
        """Tell all ranks which signal this rank has received."""
        self._write(self._signal, str(number))

    def read_signal(self) -> int:
        """Return the signal that a rank has received, or 0."""
        return int(self._read(self._signal) or 0)

    def write_saved(self) -> None:
        """Tell all ranks that rank 0 has saved the training."""
        self._write(self._saved, "1")

    def wait_until_saved(self, seconds: float) -> None:
        """Wait until rank 0 has saved the training or has ended, because rank 0 fails if this rank ends before."""
        end = time.monotonic() + seconds
        while self._store is not None and not self._read(self._saved) and time.monotonic() < end:
            time.sleep(0.05)

    def _write(self, key: str, value: str) -> None:
        with suppress(RuntimeError):
            if self._store is not None:
                self._store.set(key, value)

    def _read(self, key: str) -> str:
        try:
            return self._store.get(key).decode() if self._store is not None and self._store.check([key]) else ""
        except RuntimeError:  # rank 0, or torchrun, has ended
            self._store = None
            return ""
