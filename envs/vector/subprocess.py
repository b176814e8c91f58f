"""Steps environments in worker processes over shared memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from itertools import cycle, pairwise
from multiprocessing.util import Finalize
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ConfigurationError
from ..guards import close
from ..spaces.encoding import action_dtype
from ..spaces.specs import ALL_ENVS, StepArrays, all_info_keys, episode_info_for, step_arrays_for
from .forked_call import require_fork, run_in_subprocess, shared_zeros
from .interface import EnvDescription, SlicedVectorEnv, describe_env, env_seeds, init_vector_env, reset_indices
from .recovery import MAX_RESTARTS, STEP_TIMEOUT, restarts_for
from .serial import EnvFn
from .worker import NO_SEED, RESET, STEP, LostWorker, SharedArrays, Worker, close_all


class SubprocessVectorEnv(SlicedVectorEnv):
    """Steps its environments in worker processes; returns the same data as `SerialVectorEnv`, bit for bit.

    This holds for environments that do not use the global random generators, which every worker seeds differently.
    Every worker holds a slice of the environments and writes their results to memory that it shares with this
    process. A pair of semaphores per worker starts a step and signals its end. Gymnasium's `AsyncVectorEnv` sends
    `info` through pipes at every step and does not report that a worker died.

    Args:
        env_fns: one function per environment that makes it.
        num_workers: number of processes, at most one per environment.
        step_timeout: seconds after which a step or reset of an environment fails.
        info_keys: see `SerialVectorEnv`.
        on_failure: `raise` or `restart` (see `make_env`).
        max_restarts: see `make_env`.

    Raises:
        ConfigurationError: if `num_workers` or `step_timeout` is out of range, or the system does not support fork.
        EnvironmentFailure: if a space is not supported; while running, if a worker fails, dies or does not answer in
            time.

    """

    def __init__(
        self,
        env_fns: Sequence[EnvFn],
        num_workers: int,
        step_timeout: float = STEP_TIMEOUT,
        info_keys: Sequence[str] = (),
        *,
        on_failure: str = "raise",
        max_restarts: int = MAX_RESTARTS,
    ) -> None:
        require_fork(num_workers)
        if not 1 <= num_workers <= len(env_fns):
            raise ConfigurationError(
                f"env.num_workers={num_workers} must be between 1 and the number of environments ({len(env_fns)})"
            )
        if step_timeout <= 0:
            raise ConfigurationError(f"env.step_timeout={step_timeout} must be positive")
        init_vector_env(self, run_in_subprocess(partial(_make_and_describe, env_fns[0]), step_timeout), len(env_fns))
        self.info_keys, self.listed_info_keys = all_info_keys(info_keys), tuple(info_keys)
        self._shared = SharedArrays(
            step_arrays_for(self.single_observation_space, self.num_envs, shared_zeros),
            episode_info_for(self.info_keys, self.num_envs, shared_zeros),
            shared_zeros((self.num_envs,), action_dtype(self.single_action_space)),
            shared_zeros((self.num_envs,), np.bool_),
            shared_zeros((self.num_envs,), np.int64),
            np.full(self.num_envs, NO_SEED),
        )
        self._restarts = restarts_for(on_failure, max_restarts, self.num_envs, shared_zeros)
        self.num_restarts = None if self._restarts is None else self._restarts.counts
        self._lost = np.zeros(self.num_envs, np.bool_)  # a worker has died after their last step
        self.last_seeds = self._shared.last_seeds
        self.arrays, self.episode_info = self._shared.step, self._shared.episode_info
        bounds = np.linspace(0, self.num_envs, num_workers + 1).round().astype(int).tolist()
        self._workers: list[Worker] = []
        # Runs before multiprocessing joins its daemons at exit, which would hang because workers ignore SIGTERM.
        self._close_workers = Finalize(self, close_all, args=(self._workers,), exitpriority=0)
        for start, stop in pairwise(bounds):
            env_slice = slice(start, stop)
            options = (self._shared, info_keys, step_timeout, self._restarts)
            self._workers.append(Worker(env_fns[env_slice], env_slice, *options))
            self._workers[-1].launch()  # after it is in the list, so that it is closed if a signal arrives
        self._pin_workers()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]` (bool, `[num_envs]`)."""
        mask, seeds = self._shared.reset_mask, self._shared.seeds
        mask[:] = False
        mask[reset_indices(options, self.num_envs)] = True
        seeds[:] = [NO_SEED if one is None else one for one in env_seeds(seed, self.num_envs)]
        self._set_last_seeds()
        workers = [worker for worker in self._workers if mask[worker.env_slice].any()]
        for worker in workers:
            if worker.is_busy:  # the rollout was interrupted
                worker.finish()
            worker.start(RESET)
        for worker in workers:
            self._finish(worker, RESET)
        return self.arrays.observation, {}

    def _set_last_seeds(self) -> None:
        """Use and keep the seeds of the environments that are reset."""
        mask, seeds = self._shared.reset_mask, self._shared.seeds
        for env in [*(self._restarts.pending if self._restarts else ())]:
            if mask[env]:
                new = self._restarts.pending.pop(env)  # type: ignore[union-attr]
                seeds[env] = new if seeds[env] == NO_SEED else seeds[env]
        used = mask & (seeds != NO_SEED)
        self._shared.last_seeds[used] = seeds[used]

    def send(self, actions: Any, env_slice: slice = ALL_ENVS) -> None:
        """Start a step of all environments, without waiting for it. `env_slice` must be `ALL_ENVS`."""
        self._shared.actions[env_slice] = actions
        for worker in self._workers:
            worker.start(STEP)

    def receive(self, env_slice: slice = ALL_ENVS) -> StepArrays:
        for worker in self._workers:
            self._finish(worker, STEP)
        return self.arrays.select(env_slice)

    def _finish(self, worker: Worker, command: int) -> None:
        """Wait for a worker. If it is lost, replace it and truncate the episodes of its environments, or raise."""
        own = worker.env_slice
        try:
            before = None if self._restarts is None else self.arrays.observation[own].copy()
            worker.finish()
            if command == STEP and self._restarts is not None and self._lost[own].any():
                self._truncate(self._lost & in_slice(own, self.num_envs), observation=self._kept)
        except LostWorker as failure:
            if self._restarts is None or before is None:
                raise
            self._restarts.count(failure)
            for env in range(own.start, own.stop):
                self._restarts.set_seed(env, int(self._shared.last_seeds[env]) & 0xFFFFFFFF)
            first = own.start + max(0, int(worker.progress[0]))
            worker.restart()
            if command == STEP:
                stepped = slice(own.start, first)
                is_cut = ~(self.arrays.terminated[stepped] | self.arrays.truncated[stepped])
                self.arrays.truncated[stepped] |= is_cut
                self.num_restarts[stepped] += is_cut  # type: ignore[index]
                self._truncate(in_slice(slice(first, own.stop), self.num_envs))
            else:
                self._reset_all(worker, before)

    def _truncate(self, mask: NDArray[np.bool_], observation: NDArray[Any] | None = None) -> None:
        """Replace the last step of some environments by one with the reward 0 that truncates the episode."""
        if observation is not None:
            self.arrays.observation[mask] = observation[mask]
        self.arrays.reward[mask] = 0.0
        self.arrays.terminated[mask], self.arrays.truncated[mask] = False, True
        self.num_restarts[mask] += 1  # type: ignore[index]
        self._lost[mask] = False

    def _reset_all(self, worker: Worker, before: NDArray[Any]) -> None:
        """Reset a worker that died in a reset. Episodes that continued are truncated in the next step."""
        own, mask = worker.env_slice, self._shared.reset_mask
        continued = in_slice(own, self.num_envs) & ~mask & ~self._lost
        self._kept = self.arrays.observation.copy()
        self._kept[own] = before
        self._lost |= continued
        asked = mask.copy()
        mask[own], self._shared.seeds[own] = True, NO_SEED
        self._set_last_seeds()
        worker.start(RESET)
        self._finish(worker, RESET)
        mask[:] = asked
        self.arrays.observation[self._lost] = self._kept[self._lost]

    def read_episode_info(self, mask: NDArray[np.bool_]) -> None:
        for worker in self._workers:
            if mask[worker.env_slice].any():
                worker.call("read_episode_info", mask[worker.env_slice])

    def call_envs(self, method: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        results: list[Any] = []
        for worker in self._workers:
            own = args if method != "set_attr" else (args[0], args[1][worker.env_slice])
            results += worker.call("call_envs", method, *own, **kwargs)
        return tuple(results)

    def set_resume_class(self, name: str | None = None, max_seconds: float = 20.0) -> str:
        for worker in self._workers:  # the first one tests
            name = str(worker.call("set_resume_class", name, min(max_seconds, worker.step_timeout / 2)))
            self.resume_class = worker.resume_class = name
        return self.resume_class

    def own_resume_class(self, max_seconds: float = 20.0) -> str:
        worker = self._workers[0]
        return str(worker.call("own_resume_class", min(max_seconds, worker.step_timeout / 2)))

    def env_states(self) -> list[Any]:
        return [state for worker in self._workers for state in worker.call("env_states")]

    def load_env_states(self, states: Sequence[Any]) -> None:
        for worker in self._workers:
            worker.call("load_env_states", states[worker.env_slice])

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


def in_slice(env_slice: slice, num_envs: int) -> NDArray[np.bool_]:
    """Return the mask `[num_envs]` of the environments in a slice."""
    mask = np.zeros(num_envs, np.bool_)
    mask[env_slice] = True
    return mask


def _make_and_describe(env_fn: EnvFn) -> EnvDescription:
    env = env_fn()
    try:
        return describe_env(env)
    finally:
        close(env, 1.0)
