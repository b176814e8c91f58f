"""Many environments in several processes, over shared memory."""

from __future__ import annotations

import mmap
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import cycle, pairwise
from multiprocessing.util import Finalize
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigurationError, EnvironmentFailure
from ..failures import environment_failure
from ..spaces.encoding import action_dtype
from ..spaces.specs import ALL_ENVS, StepArrays, step_arrays_for
from ..vector_env import Description, SlicedVectorEnv, describe, description_of, reset_indices, seeds_of
from .forked_call import init_subprocess, run_in_subprocess, start_forked
from .serial import Maker, SerialVectorEnv, close


def shared(shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
    """Zeros in memory that this process shares with those it forks."""
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.ndarray(shape, dtype, mmap.mmap(-1, max(size, 1)))


STEP, RESET, CLOSE = range(3)
NO_SEED = -1
LOOK_EVERY = 1.0
"""Seconds between two looks at whether the other process still lives."""
AWAKE = 1e-3
"""Seconds in which a wait gives its core to others but does not sleep: to wake up would cost 50 us and a cold core."""


class SubprocessVectorEnv(SlicedVectorEnv):
    """Steps its environments in worker processes: the same data as `SerialVectorEnv`, bit for bit.

    Every worker holds a run of environments and writes what they return into memory that it shares with
    this process; two semaphores hand a step over and back. Gymnasium's `AsyncVectorEnv` pickles
    observations' `info` through pipes and says nothing of a worker that died.

    Args:
        makers: one callable for every environment.
        num_workers: how many processes, at most one for every environment.
        step_timeout: seconds in which a step or reset of a worker's environments has to return.

    Raises:
        ConfigurationError: for numbers that cannot be.
        EnvironmentFailure: if a space has no spec; while stepping, if a worker fails, dies or does not answer
            in time.

    """

    def __init__(self, makers: Sequence[Maker], num_workers: int, step_timeout: float = 60.0) -> None:
        """Start the workers; their environments are made at once."""
        if not 1 <= num_workers <= len(makers):
            raise ConfigurationError(f"env.num_workers={num_workers} must lie between 1 and env.num_envs={len(makers)}")
        if step_timeout <= 0:
            raise ConfigurationError(f"env.step_timeout={step_timeout} must be positive")
        describe(self, run_in_subprocess(partial(described, makers[0]), step_timeout), len(makers))
        self.arrays = step_arrays_for(self.single_observation_space, self.num_envs, shared)
        self._actions = shared((self.num_envs,), action_dtype(self.single_action_space))
        self._mask = shared((self.num_envs,), np.bool_)
        self._seeds = shared((self.num_envs,), np.int64)
        bounds = np.linspace(0, self.num_envs, num_workers + 1).round().astype(int).tolist()
        self._workers: list[_Worker] = []
        # Before Python's own end of daemons, which would wait for ever for those that leave SIGTERM to their owner.
        self._end = Finalize(self, _close_all, args=(self._workers,), exitpriority=0)
        for start, stop in pairwise(bounds):
            self._workers.append(_Worker(makers[start:stop], slice(start, stop), self._tables, step_timeout))
        self._spread()

    @property
    def _tables(self) -> _Tables:
        return self.arrays, self._actions, self._mask, self._seeds

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]` (bool, `[num_envs]`)."""
        self._mask[:] = False
        self._mask[reset_indices(options, self.num_envs)] = True
        self._seeds[:] = [NO_SEED if one is None else one for one in seeds_of(seed, self.num_envs)]
        concerned = [worker for worker in self._workers if self._mask[worker.rows].any()]
        for worker in concerned:
            if worker.is_at_work:  # in a step of a rollout that was broken off
                worker.finish()
            worker.start(RESET)
        for worker in concerned:
            worker.finish()
        return self.arrays.observation, {}

    def send(self, actions: Any, rows: slice = ALL_ENVS) -> None:
        """Let the environments in `rows`, those of whole workers, take a step, and do not wait for it."""
        self._actions[rows] = actions
        for worker in self._inside(rows):
            worker.start(STEP)

    def receive(self, rows: slice = ALL_ENVS) -> StepArrays:
        """Wait for the steps in `rows` and return what they left behind."""
        for worker in self._inside(rows):
            worker.finish()
        return self.arrays.rows(rows)

    def double_buffer_groups(self) -> list[slice]:
        """Two runs of environments that can be stepped apart, or nothing where there is one worker."""
        if len(self._workers) < 2:
            return []
        middle = self._workers[len(self._workers) // 2].rows.start
        return [slice(0, middle), slice(middle, self.num_envs)]

    def close_extras(self, **kwargs: Any) -> None:
        """End the workers; one that does not end by itself is killed."""
        self._end()

    def _spread(self) -> None:
        """Give every worker a core where there are no more cores than workers.

        To Linux one that waits awake is as busy as one that steps, so it would let two that step share a core.
        """
        if sys.platform != "linux":
            return
        cores = sorted(os.sched_getaffinity(0))
        if len(self._workers) >= len(cores):
            for worker, core in zip(self._workers, cycle(cores), strict=False):
                worker.stay_on(core)

    def _inside(self, rows: slice) -> Iterable[_Worker]:
        if rows is ALL_ENVS:
            return self._workers
        start, stop, _ = rows.indices(self.num_envs)
        return (worker for worker in self._workers if start <= worker.rows.start and worker.rows.stop <= stop)


_Tables = tuple[StepArrays, NDArray[Any], NDArray[np.bool_], NDArray[np.int64]]


class _Worker:
    """One worker process, seen from the process that owns it."""

    def __init__(self, makers: Sequence[Maker], rows: slice, tables: _Tables, step_timeout: float) -> None:
        # Forked: a spawned process would import PyTorch anew and miss environments that a script has registered.
        context = multiprocessing.get_context("fork")
        self.rows = rows
        self.step_timeout = step_timeout
        self.is_at_work = False
        self._command, self._has_failed = shared((1,), np.int8), shared((1,), np.bool_)
        self._go, self._done = context.Semaphore(0), context.Semaphore(0)
        self._failure, failure = context.Pipe(duplex=False)
        arguments = (makers, rows, tables, self._command, self._go, self._done, self._has_failed, failure)
        self._process = context.Process(target=_work, args=arguments, daemon=True)
        start_forked(self._process)
        failure.close()

    def start(self, command: int) -> None:
        """Hand a command over."""
        self._command[0] = command
        self._go.release()
        self.is_at_work = True

    def finish(self) -> None:
        """Wait until the command is done."""
        waited = 0.0
        while not _acquired(self._done, min(LOOK_EVERY, self.step_timeout)):
            waited += LOOK_EVERY
            if not self._process.is_alive():
                raise EnvironmentFailure(f"{_named(self.rows)} died with exit code {self._process.exitcode}")
            if waited >= self.step_timeout:
                raise EnvironmentFailure(
                    f"{_named(self.rows)} did not answer within env.step_timeout={self.step_timeout:g} seconds"
                )
        self.is_at_work = False
        if self._has_failed[0]:  # to poll the pipe takes 6 us
            raise self._failure.recv()

    def stay_on(self, core: int) -> None:
        """Run on this core alone."""
        os.sched_setaffinity(cast(int, self._process.pid), {core})

    def close(self) -> None:
        """End the process."""
        self.start(CLOSE)
        self._process.join(timeout=2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _close_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.close()


def described(make: Maker) -> Description:
    """What an environment says of itself, which is made and closed."""
    env = make()
    try:
        return description_of(env)
    finally:
        close(env)


def _named(rows: slice) -> str:
    return f"the worker of environments {rows.start} to {rows.stop - 1}"


def _acquired(semaphore: Any, timeout: float) -> bool:
    """Whether the other process has released it within so many seconds."""
    asleep_at = time.perf_counter() + AWAKE
    while time.perf_counter() < asleep_at:
        if semaphore.acquire(False):
            return True
        os.sched_yield()
    return bool(semaphore.acquire(timeout=timeout))


def _work(
    makers: Sequence[Maker],
    rows: slice,
    tables: _Tables,
    command: NDArray[np.int8],
    go: Any,
    done: Any,
    has_failed: NDArray[np.bool_],
    failure: Any,
) -> None:
    """Serve commands until the last one, or until the owner is gone."""
    init_subprocess()
    owner = os.getppid()
    arrays, actions, mask, seeds = tables
    vector = None
    try:
        vector = SerialVectorEnv(makers, arrays.rows(rows))
        while True:
            while not _acquired(go, LOOK_EVERY):
                if os.getppid() != owner:
                    return
            if command[0] == CLOSE:
                return
            if command[0] == STEP:
                vector.send(actions[rows].copy())  # an environment may keep its last action
            else:
                given = [None if seed == NO_SEED else int(seed) for seed in seeds[rows]]
                vector.reset(seed=given, options={"reset_mask": mask[rows]})
            done.release()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever an environment raises is told to the owner
        told = environment_failure(f"{_named(rows)} failed", error)
        has_failed[0] = True
        done.release()
        failure.send(told)  # last: a long one waits until it is read
    finally:
        if vector is not None:
            vector.close()
