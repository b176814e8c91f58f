"""Steps environments in worker processes over shared memory."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import cycle, pairwise
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigurationError, EnvironmentFailure
from ..failures import environment_failure
from ..spaces.encoding import action_dtype
from ..spaces.specs import ALL_ENVS, StepArrays, step_arrays_for
from .forked_call import CRASH_HINT, acquire, init_subprocess, run_in_subprocess, shared_zeros, start_forked
from .serial import (
    EnvDescription,
    EnvFn,
    SerialVectorEnv,
    SlicedVectorEnv,
    close,
    describe_env,
    env_seeds,
    init_vector_env,
    reset_indices,
)

STEP, RESET, CLOSE = range(3)
NO_SEED = -1
POLL_SECONDS = 1.0
"""Interval at which a process that waits checks whether the other one is alive."""


class SubprocessVectorEnv(SlicedVectorEnv):
    """Steps its environments in worker processes; returns the same data as `SerialVectorEnv`, bit for bit.

    Every worker holds a slice of the environments and writes their results to memory that it shares with this
    process. A pair of semaphores per worker starts a step and signals its end. Gymnasium's `AsyncVectorEnv` sends
    `info` through pipes at every step and does not report that a worker died.

    Args:
        env_fns: one function per environment that makes it.
        num_workers: number of processes, at most one per environment.
        step_timeout: seconds after which a step or reset of a worker fails.

    Raises:
        ConfigurationError: if `num_workers` or `step_timeout` is out of range.
        EnvironmentFailure: if a space is not supported; while running, if a worker fails, dies or does not answer in
            time.

    """

    def __init__(self, env_fns: Sequence[EnvFn], num_workers: int, step_timeout: float = 60.0) -> None:
        if not 1 <= num_workers <= len(env_fns):
            raise ConfigurationError(
                f"env.num_workers={num_workers} must be between 1 and the number of environments ({len(env_fns)})"
            )
        if step_timeout <= 0:
            raise ConfigurationError(f"env.step_timeout={step_timeout} must be positive")
        init_vector_env(self, run_in_subprocess(partial(_make_and_describe, env_fns[0]), step_timeout), len(env_fns))
        self._shared = _SharedArrays(
            step_arrays_for(self.single_observation_space, self.num_envs, shared_zeros),
            shared_zeros((self.num_envs,), action_dtype(self.single_action_space)),
            shared_zeros((self.num_envs,), np.bool_),
            shared_zeros((self.num_envs,), np.int64),
        )
        self.arrays = self._shared.step
        bounds = np.linspace(0, self.num_envs, num_workers + 1).round().astype(int).tolist()
        self._workers: list[_Worker] = []
        # Runs before multiprocessing joins its daemons at exit, which would hang because workers ignore SIGTERM.
        self._close_workers = Finalize(self, _close_all, args=(self._workers,), exitpriority=0)
        for start, stop in pairwise(bounds):
            self._workers.append(_Worker(env_fns[start:stop], slice(start, stop), self._shared, step_timeout))
        self._pin_workers()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]` (bool, `[num_envs]`)."""
        _, _, mask, seeds = self._shared
        mask[:] = False
        mask[reset_indices(options, self.num_envs)] = True
        seeds[:] = [NO_SEED if one is None else one for one in env_seeds(seed, self.num_envs)]
        workers = [worker for worker in self._workers if mask[worker.env_slice].any()]
        for worker in workers:
            if worker.is_busy:  # the rollout was interrupted
                worker.finish()
            worker.start(RESET)
        for worker in workers:
            worker.finish()
        return self.arrays.observation, {}

    def send(self, actions: Any, env_slice: slice = ALL_ENVS) -> None:
        """Start a step of the environments in `env_slice`, the slice of one or more workers, without waiting."""
        self._shared.actions[env_slice] = actions
        for worker in self._workers_in(env_slice):
            worker.start(STEP)

    def receive(self, env_slice: slice = ALL_ENVS) -> StepArrays:
        for worker in self._workers_in(env_slice):
            worker.finish()
        return self.arrays.select(env_slice)

    def double_buffer_groups(self) -> list[slice]:
        if len(self._workers) < 2:
            return []
        middle = self._workers[len(self._workers) // 2].env_slice.start
        return [slice(0, middle), slice(middle, self.num_envs)]

    def close_extras(self, **kwargs: Any) -> None:
        self._close_workers()

    def _pin_workers(self) -> None:
        """Assign a core to every worker if there are at least as many workers as cores.

        A worker that spins looks busy to Linux, which would then schedule two workers that step on the same core.
        """
        if sys.platform != "linux":
            return
        cores = sorted(os.sched_getaffinity(0))
        if len(self._workers) >= len(cores):
            for worker, core in zip(self._workers, cycle(cores), strict=False):
                worker.pin_to_core(core)

    def _workers_in(self, env_slice: slice) -> Iterable[_Worker]:
        if env_slice is ALL_ENVS:
            return self._workers
        start, stop, _ = env_slice.indices(self.num_envs)
        return (worker for worker in self._workers if start <= worker.env_slice.start and worker.env_slice.stop <= stop)


class _SharedArrays(NamedTuple):
    """Arrays `[num_envs, ...]` in memory that all workers share."""

    step: StepArrays
    actions: NDArray[Any]
    reset_mask: NDArray[np.bool_]
    seeds: NDArray[np.int64]


class _Worker:
    """Starts one worker process and controls it from the parent process."""

    def __init__(self, env_fns: Sequence[EnvFn], env_slice: slice, shared: _SharedArrays, step_timeout: float) -> None:
        # A spawned process would import PyTorch again and would not know environments that a script registered.
        context = multiprocessing.get_context("fork")
        self.env_slice = env_slice
        self.step_timeout = step_timeout
        self.is_busy = False
        self._command, self._has_failed = shared_zeros((1,), np.int8), shared_zeros((1,), np.bool_)
        self._go, self._done = context.Semaphore(0), context.Semaphore(0)
        self._failure, failure = context.Pipe(duplex=False)
        arguments = (env_fns, env_slice, shared, self._command, self._go, self._done, self._has_failed, failure)
        self._process = context.Process(target=_run_worker, args=arguments, daemon=True)
        start_forked(self._process)
        failure.close()

    def start(self, command: int) -> None:
        self._command[0] = command
        self._go.release()
        self.is_busy = True

    def finish(self) -> None:
        """Wait until the command is done."""
        waited = 0.0
        while not acquire(self._done, min(POLL_SECONDS, self.step_timeout)):
            waited += POLL_SECONDS
            if not self._process.is_alive():
                code = self._process.exitcode
                raise EnvironmentFailure(f"{_worker_name(self.env_slice)} died with exit code {code}; {CRASH_HINT}")
            if waited >= self.step_timeout:
                raise EnvironmentFailure(
                    f"{_worker_name(self.env_slice)} did not answer within env.step_timeout={self.step_timeout:g} "
                    "seconds; increase it if the environment is slow"
                )
        self.is_busy = False
        if self._has_failed[0]:  # polling the pipe instead would take 6 us
            raise self._failure.recv()

    def pin_to_core(self, core: int) -> None:
        os.sched_setaffinity(cast(int, self._process.pid), {core})

    def close(self) -> None:
        """End the process; kill it if it does not end within two seconds."""
        self.start(CLOSE)
        self._process.join(timeout=2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _close_all(workers: Sequence[_Worker]) -> None:
    for worker in workers:
        worker.close()


def _run_worker(
    env_fns: Sequence[EnvFn],
    env_slice: slice,
    shared: _SharedArrays,
    command: NDArray[np.int8],
    go: Any,
    done: Any,
    has_failed: NDArray[np.bool_],
    failure: Any,
) -> None:
    """Execute commands until `CLOSE`, or until the parent process is gone."""
    init_subprocess()
    parent_pid = os.getppid()
    vector = None
    try:
        vector = SerialVectorEnv(env_fns, shared.step.select(env_slice))
        while True:
            while not acquire(go, POLL_SECONDS):
                if os.getppid() != parent_pid:
                    return
            if command[0] == CLOSE:
                return
            if command[0] == STEP:
                vector.send(shared.actions[env_slice].copy())  # an environment may keep its last action
            else:
                seeds = [None if seed == NO_SEED else int(seed) for seed in shared.seeds[env_slice]]
                vector.reset(seed=seeds, options={"reset_mask": shared.reset_mask[env_slice]})
            done.release()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the environment's own code may raise anything
        message = environment_failure(f"{_worker_name(env_slice)} failed", error)
        has_failed[0] = True
        done.release()
        failure.send(message)  # after the release, because a long message blocks until the parent reads it
    finally:
        if vector is not None:
            vector.close()


def _make_and_describe(env_fn: EnvFn) -> EnvDescription:
    env = env_fn()
    try:
        return describe_env(env)
    finally:
        close(env)


def _worker_name(env_slice: slice) -> str:
    return f"the worker of environments {env_slice.start} to {env_slice.stop - 1}"
