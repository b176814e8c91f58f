"""A worker process that steps a slice of the environments, and the class that controls it from the parent process."""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from ...errors import EnvironmentFailure
from ..failures import environment_failure, place_of
from ..guards import IDLE
from ..spaces.specs import StepArrays
from .forked_call import CRASH_HINT, acquire, exit_text, init_subprocess, shared_zeros, start_forked
from .recovery import Restarts
from .serial import EnvFn, SerialVectorEnv
from .worker_envs import WorkerEnvs, seed_worker

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
    last_seeds: NDArray[np.int64]


class LostWorker(EnvironmentFailure):
    """A worker that died or did not answer in time."""


class Worker:
    """Controls one worker process from the parent process. `launch` starts it.

    Args:
        env_fns: one function per environment of the worker.
        env_slice: slice of the batch that the worker steps.
        shared: arrays of all environments.
        info_keys: see `SerialVectorEnv`.
        step_timeout: seconds after which a step or reset of one environment, or another command, fails.
        restarts: see `SerialVectorEnv`.

    Attributes:
        progress: see `SerialVectorEnv`.
        resume_class: the `resume_class` of the environments of the next process (see `SlicedVectorEnv`).

    """

    resume_class = "inexact"

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        env_slice: slice,
        shared: SharedArrays,
        info_keys: Sequence[str],
        step_timeout: float,
        restarts: Restarts | None = None,
    ) -> None:
        self.env_slice, self.step_timeout = env_slice, step_timeout
        self.progress: NDArray[np.int64] = shared_zeros((2,), np.int64)
        self._command, self._has_failed = shared_zeros((1,), np.int8), shared_zeros((1,), np.bool_)
        self._shared = shared
        self._arguments = (env_fns, env_slice, shared, info_keys, restarts, self.progress)
        self._make_process()

    def _make_process(self) -> None:
        # A spawned process would import PyTorch again and would not know environments that a script registered.
        context = multiprocessing.get_context("fork")
        self.is_busy = False
        self.progress[:] = IDLE, 0
        self._has_failed[0] = False
        self._go, self._done = context.Semaphore(0), context.Semaphore(0)
        self._pipe, pipe = context.Pipe()
        signals = WorkerSignals(self._command, self._go, self._done, self._has_failed, pipe)
        self._process = context.Process(
            target=_run_worker, args=(*self._arguments, self.resume_class, signals), daemon=True
        )
        self._pipe_of_worker = pipe

    def launch(self) -> None:
        """Start the process."""
        start_forked(self._process)
        self._pipe_of_worker.close()

    def restart(self) -> None:
        """Replace the process by a new one, with new environments that have not been reset."""
        self._kill()
        self._pipe.close()
        self._make_process()
        self.launch()

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
        """Wait until the command is done.

        Raises:
            LostWorker: if the process died, or no step or reset of an environment ended within `step_timeout`.
            TorchPPOError: if the process reports an error.

        """
        waited, progress = 0.0, (0, 0)
        poll_seconds = min(0.2 * POLL_SECONDS, self.step_timeout)
        while not acquire(self._done, poll_seconds):
            if not self._process.is_alive():
                if acquire(self._done, 0.0):  # it has ended after the command
                    break
                raise LostWorker(f"{self._place()} died with exit code {exit_text(self._process)}; {CRASH_HINT}")
            before, progress = progress, (int(self.progress[0]), int(self.progress[1]))
            waited = waited + poll_seconds if before in (progress, (0, 0)) else poll_seconds
            if waited >= self.step_timeout:
                raise LostWorker(
                    f"{self._place()} did not answer within env.step_timeout={self.step_timeout:g} seconds; increase "
                    "it if the environment is slow"
                )
        self.is_busy = False
        if self._has_failed[0]:  # polling the pipe instead would take 6 us
            try:
                failure = self._pipe.recv()
            except (EOFError, OSError):
                raise LostWorker(f"{self._place()} died after a failure; {CRASH_HINT}") from None
            raise failure

    def _place(self) -> str:
        """Return the text that names the environment that is being stepped, or else the worker."""
        index, num_steps = self.progress.tolist()
        if index == IDLE or num_steps < 0:
            return _worker_name(self.env_slice)
        env = self.env_slice.start + index
        seed = self._shared.last_seeds[env]
        action = self._shared.actions[env] if self._command[0] == STEP else None
        return f"the worker of {place_of(env, num_steps, None if seed == NO_SEED else seed, action)}"

    def pin_to_core(self, core: int) -> None:
        os.sched_setaffinity(cast(int, self._process.pid), {core})

    def _kill(self) -> None:
        self._process.kill()
        self._process.join()


def close_all(workers: Sequence[Worker], seconds: float = 2.0) -> None:
    """End the processes; kill those that do not end in time, for example because an environment does not close."""
    workers = [worker for worker in workers if worker._process.pid is not None]  # a signal may interrupt `launch`
    for worker in workers:
        worker.start(CLOSE)
    end = time.monotonic() + seconds
    for worker in workers:
        worker._process.join(timeout=max(0.0, end - time.monotonic()))
        if worker._process.is_alive():
            worker._kill()


class WorkerSignals(NamedTuple):
    """Objects with which the parent process starts commands of a worker and waits for them."""

    command: NDArray[np.int8]
    go: Any
    done: Any
    has_failed: NDArray[np.bool_]
    pipe: Any


def _run_worker(
    env_fns: Sequence[EnvFn],
    env_slice: slice,
    shared: SharedArrays,
    info_keys: Sequence[str],
    restarts: Restarts | None,
    progress: NDArray[np.int64],
    resume_class: str,
    signals: WorkerSignals,
) -> None:
    """Execute commands until `CLOSE`, or until the parent process is gone."""
    init_subprocess()
    seed_worker(env_slice.start)
    parent_pid = os.getppid()
    command, go, done, has_failed, pipe = signals
    vector = None
    try:
        outputs = (shared.step.select(env_slice), info_keys, shared.episode_info[env_slice])
        vector = WorkerEnvs(env_fns, *outputs, restarts=restarts, progress=progress, first_env=env_slice.start)
        vector.set_resume_class(resume_class)
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
    except BaseException as error:  # noqa: BLE001 - the environment's own code may raise anything
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
    except BaseException as error:  # noqa: BLE001 - the environment's own code may raise anything
        return cast(bytes, cloudpickle.dumps((None, environment_failure(f"{method} failed", error))))


def _worker_name(env_slice: slice) -> str:
    return f"the worker of environments {env_slice.start} to {env_slice.stop - 1}"
