"""Ends a training on all ranks after a signal."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Self, TypeVar

from lightning import Callback, Trainer

from ..distributed import num_ranks, rank
from .processes import kill_children
from .rank_store import RankStore
from .signals import SIGNALS, Stopped, discard_closed_output, exit_code, write_or_skip

T = TypeVar("T")

LAUNCHER = "TORCHPPO_LAUNCHER"
"""Environment variable with the id of the process that launches the other ranks on this machine."""
FORWARDED = getattr(signal, "SIGRTMIN", 0)
"""Offset of the number of a signal that another rank has received."""
ROLLOUT_SECONDS, SAVE_SECONDS = 5.0, 30.0
"""Time after a signal in which the rollout must end, and the results must be saved."""
READ_SECONDS = 0.5
"""Interval at which a rank that rank 0 has not launched reads the signals of other ranks."""
REPEAT_SECONDS = 0.2
"""Within this time, a repeated signal counts once: `timeout` and sweeps signal both the process and its group."""

if hasattr(os, "register_at_fork"):  # forked processes have copies of the pipe of `StopOnSignal`
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


class StopOnSignal(Callback):
    """A context of the main thread in which `SIGNALS` end the process. In other threads, it does nothing.

    A signal raises `Stopped`. While Lightning trains, it ends the training of all ranks after the rollout instead. A
    thread ends the process at once after a second signal, or if the rollout takes more than `ROLLOUT_SECONDS`.

    Attributes:
        received: the first signal, or `None`.
        before_exit: function that is called before the process ends at once; receives the signal.

    """

    def __init__(self, before_exit: Callable[[int], object] = lambda _: None) -> None:
        self.received: int | None = None
        self.before_exit = before_exit
        self._raises = True
        self._seconds = ROLLOUT_SECONDS
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}
        self._launcher: int | None = None  # the process of rank 0, if it has launched this one
        self._pipe: tuple[int, int] | None = None
        self._store: RankStore | None = None

    @property
    def is_launched(self) -> bool:
        """Whether rank 0 has started this process."""
        return self._launcher is not None

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._launcher = os.getppid() if os.environ.get(LAUNCHER) == str(os.getppid()) else None
            os.environ[LAUNCHER] = str(os.getpid())
            for number in {*SIGNALS, *(number + FORWARDED for number in SIGNALS)}:
                self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pipe is not None:
            signal.set_wakeup_fd(-1)
            os.close(self._pipe[1])  # ends the thread, which may still send a signal or write to the store
            self._thread.join(timeout=15.0)  # a request to the store at exit would abort the process (std::terminate)
            self._pipe = None
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._previous:
            os.environ.pop(LAUNCHER, None)
        self._previous = {}

    def watch(self) -> None:
        """Start the thread. Processes that are forked before do not inherit it."""
        if self._previous and self._pipe is None and os.name == "posix":
            self._pipe = os.pipe()
            os.set_blocking(self._pipe[1], False)
            signal.set_wakeup_fd(self._pipe[1], warn_on_full_buffer=False)
            self._thread = threading.Thread(target=self._watch, args=(self._pipe[0],), daemon=True)
            self._thread.start()

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Finish rollouts from now on. Replace Lightning's handlers, which exit with code 0 or 1."""
        self._raises = False
        pl_module.exchange.numbers["signal"] = lambda: self.received or 0
        for number in self._previous:
            signal.signal(number, self._receive)
        if num_ranks() > 1 and not self.is_launched and self._pipe is not None:
            self._store = RankStore()
            os.write(self._pipe[1], bytes([0]))  # the thread reads the store from now on

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Stop all ranks after the same rollout."""
        number = self.received or 0 if num_ranks() == 1 else int(max(pl_module.exchange.of_ranks["signal"]))
        if number:
            discard_closed_output()
            self.received, self._seconds, trainer.should_stop = number, SAVE_SECONDS, True

    def teardown(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        self._raises, self._store = True, None

    def interruptible(self, work: Callable[[], T]) -> T | None:
        """Return the result of `work`, or `None` if a signal arrived earlier or interrupts it."""
        before, self._raises = self._raises, True
        try:
            return None if self.received is not None else work()
        except Stopped:
            self._seconds = SAVE_SECONDS
            return None
        finally:
            self._raises = before

    def _receive(self, number: int, _: object) -> None:
        """Handle a signal in the main thread."""
        if os.getpid() != self._pid:  # an environment has forked a process; only SIGTERM ends it
            if number == signal.SIGTERM:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            return
        if self.received is not None:
            return
        self.received = number if number in SIGNALS else number - FORWARDED
        if self._pipe is None:
            self.watch()
            if self._pipe is not None:
                os.write(self._pipe[1], bytes([number]))
        discard_closed_output()
        if rank() == 0:
            when = "" if self._raises else " after this rollout"
            again = "press Ctrl-C again" if self.received == signal.SIGINT else "send another signal"
            write_or_skip(2, f"\ntorchppo: stopping{when}; {again} to stop at once\n")
        if self._raises:
            raise Stopped(self.received)

    def _watch(self, pipe: int) -> None:
        """Read signals, also while the main thread executes C code, and end the process at once when necessary."""
        first, start = 0, 0.0
        with os.fdopen(pipe, "rb", buffering=0) as file:
            while not first or time.monotonic() - start <= self._seconds:
                store = None if first else self._store
                seconds = 0.05 if first else READ_SECONDS if store else None
                if not select.select([file], [], [], seconds)[0]:
                    if store is not None and (number := store.read_signal()) and self._store is not None:
                        os.kill(self._pid, number + FORWARDED)
                else:
                    content = file.read(1)
                    if not content:
                        return
                    number, is_direct = content[0], content[0] in SIGNALS
                    if not first and (is_direct or number - FORWARDED in SIGNALS):
                        first, start = number if is_direct else number - FORWARDED, time.monotonic()
                        self._tell_others(first)
                    elif is_direct and (number != first or time.monotonic() - start > REPEAT_SECONDS):
                        break
        if time.monotonic() - start <= self._seconds:
            reason = "a second signal arrived"
        elif self._seconds == SAVE_SECONDS:
            reason = f"the results were not saved within {SAVE_SECONDS:g} s"
        else:
            reason = f"the rollout did not end within {ROLLOUT_SECONDS:g} s"
        self._end(first, reason)

    def _tell_others(self, number: int) -> None:
        """Tell the other ranks to stop, even if they do not finish their rollouts."""
        if self._launcher is not None:
            with suppress(OSError):
                os.kill(self._launcher, number + FORWARDED)
        elif self._store is not None:
            self._store.write_signal(number)

    def _end(self, number: int, reason: str) -> None:
        """End this process and its children. Other ranks end after rank 0, which ends those that it has launched."""
        end = time.monotonic() + SAVE_SECONDS
        if self._store is not None and rank() > 0:
            self._store.wait_until_saved(SAVE_SECONDS)
        while os.getppid() == self._launcher and time.monotonic() < end:
            time.sleep(0.05)
        state = "the last checkpoint is the state before the last rollout"
        write_or_skip(2, f"\ntorchppo: stopping at once, because {reason}; {state}\n")
        with suppress(Exception):
            self.before_exit(number)
        if self._store is not None and rank() == 0:
            self._store.write_saved()
        kill_children()
        os._exit(exit_code(number))
