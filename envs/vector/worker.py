"""A worker process that steps a slice of the environments, and the class that controls it from the parent process."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from ...errors import EnvironmentFailure
from ..failures import environment_failure
from ..spaces.specs import StepArrays
from .forked_call import CRASH_HINT, acquire, init_subprocess, shared_zeros, start_forked
from .serial import EnvFn, SerialVectorEnv
from .worker_envs import WorkerEnvs, seed_python

STEP, RESET, CALL, CLOSE = range(4)
NO_SEED = -1
POLL_SECONDS = 1.0
"""Interval at which a process that waits checks whether the other one is alive."""


class SharedArrays(NamedTuple):
    """Arrays `[num_envs, ...]` in memory that all workers share."""

    step: StepArrays
    episode_info: NDArray[np.float64]
    actions: NDArray[Any]
    reset_mask: NDArray[np.bool_]
    seeds: NDArray[np.int64]


class Worker:
    """Starts one worker process and controls it from the parent process.

    Args:
        env_fns: one function per environment of the worker.
        env_slice: slice of the batch that the worker steps.
        shared: arrays of all environments.
        info_keys: see `SerialVectorEnv`.
        step_timeout: seconds after which a command fails.

    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        env_slice: slice,
        shared: SharedArrays,
        info_keys: Sequence[str],
        step_timeout: float,
    ) -> None:
        # A spawned process would import PyTorch again and would not know environments that a script registered.
        context = multiprocessing.get_context("fork")
        self.env_slice = env_slice
        self.step_timeout = step_timeout
        self.is_busy = False
        self._command, self._has_failed = shared_zeros((1,), np.int8), shared_zeros((1,), np.bool_)
        self._go, self._done = context.Semaphore(0), context.Semaphore(0)
        self._pipe, pipe = context.Pipe()
        signals = WorkerSignals(self._command, self._go, self._done, self._has_failed, pipe)
        arguments = (env_fns, env_slice, shared, info_keys, signals)
        self._process = context.Process(target=_run_worker, args=arguments, daemon=True)
        start_forked(self._process)
        pipe.close()

    def call(self, method: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return the results of a method of the worker's `SerialVectorEnv`."""
        if self.is_busy:
            self.finish()
        self.start(CALL)
        with suppress(BrokenPipeError):  # `finish` reports why the process died
            self._pipe.send_bytes(cloudpickle.dumps((method, args, kwargs)))
        self.finish()
        results, failure = cloudpickle.loads(self._pipe.recv_bytes())
        if failure is not None:
            raise failure
        return cast(tuple[Any, ...], results)

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
            raise self._pipe.recv()

    def pin_to_core(self, core: int) -> None:
        os.sched_setaffinity(cast(int, self._process.pid), {core})

    def close(self) -> None:
        """End the process; kill it if it does not end within two seconds."""
        self.start(CLOSE)
        self._process.join(timeout=2.0)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def close_all(workers: Sequence[Worker]) -> None:
    for worker in workers:
        worker.close()


class WorkerSignals(NamedTuple):
    """Objects with which the parent process starts commands of a worker and waits for them."""

    command: NDArray[np.int8]
    go: Any
    done: Any
    has_failed: NDArray[np.bool_]
    pipe: Any


def _run_worker(
    env_fns: Sequence[EnvFn], env_slice: slice, shared: SharedArrays, info_keys: Sequence[str], signals: WorkerSignals
) -> None:
    """Execute commands until `CLOSE`, or until the parent process is gone."""
    init_subprocess()
    seed_python(env_slice.start)
    parent_pid = os.getppid()
    command, go, done, has_failed, pipe = signals
    vector = None
    try:
        vector = WorkerEnvs(env_fns, shared.step.select(env_slice), info_keys, shared.episode_info[env_slice])
        while True:
            while not acquire(go, POLL_SECONDS):
                if os.getppid() != parent_pid:
                    return
            if command[0] == CLOSE:
                return
            if command[0] == STEP:
                vector.send(shared.actions[env_slice].copy())  # an environment may keep its last action
            elif command[0] == RESET:
                seeds = [None if seed == NO_SEED else int(seed) for seed in shared.seeds[env_slice]]
                vector.reset(seed=seeds, options={"reset_mask": shared.reset_mask[env_slice]})
            reply = _results_of_call(vector, pipe.recv_bytes()) if command[0] == CALL else None
            done.release()
            if reply is not None:
                pipe.send_bytes(reply)  # after the release, because long results block until the parent reads them
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the environment's own code may raise anything
        message = environment_failure(f"{_worker_name(env_slice)} failed", error)
        has_failed[0] = True
        done.release()
        pipe.send(message)  # after the release, because a long message blocks until the parent reads it
    finally:
        if vector is not None:
            vector.close()


def _results_of_call(vector: SerialVectorEnv, request: bytes) -> bytes:
    """Call a method of the vector environment; return its results or the failure."""
    method, args, kwargs = cloudpickle.loads(request)
    try:
        return cast(bytes, cloudpickle.dumps((getattr(vector, method)(*args, **kwargs), None)))
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the environment's own code may raise anything
        return cast(bytes, cloudpickle.dumps((None, environment_failure(f"{method} failed", error))))


def _worker_name(env_slice: slice) -> str:
    return f"the worker of environments {env_slice.start} to {env_slice.stop - 1}"
