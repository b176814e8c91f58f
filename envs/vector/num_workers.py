"""Chooses the number of worker processes."""

from __future__ import annotations

import math
import os
import time
from functools import partial

from ..guards import close
from ..wrappers import random_action
from .forked_call import can_fork, run_in_subprocess
from .serial import EnvFn

MEASURE_SECONDS = 0.2
"""How long `fastest_num_workers` measures an environment."""
WORKER_OVERHEAD_SECONDS = 30e-6
"""Time to send a step to one worker and to receive its result."""


def fastest_num_workers(env_fn: EnvFn, num_envs: int, step_timeout: float = 60.0) -> int:
    """Estimate the number of worker processes that steps `num_envs` environments fastest; 0 means this process.

    Measures a few steps of one environment in a forked process. Returns 0 unless workers are at least 20%
    faster, because they also occupy the cores that the update could use.
    """
    cores = min(num_cores(), num_envs)
    if cores < 2 or not can_fork():
        return 0
    seconds = run_in_subprocess(partial(_measure_step_seconds, env_fn), step_timeout)
    parallel_seconds = math.ceil(num_envs / cores) * seconds + cores * WORKER_OVERHEAD_SECONDS
    return cores if num_envs * seconds > 1.2 * parallel_seconds else 0


def _measure_step_seconds(env_fn: EnvFn) -> float:
    """Return the mean duration of a step with random actions."""
    env = env_fn()
    try:
        env.action_space.seed(0)
        _, info = env.reset(seed=0)
        num_steps, start = 0, time.perf_counter()
        while (seconds := time.perf_counter() - start) < MEASURE_SECONDS:
            _, _, terminated, truncated, info = env.step(random_action(env.action_space, info))
            if terminated or truncated:
                _, info = env.reset()
            num_steps += 1
    finally:
        close(env, 1.0)
    return seconds / num_steps


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
