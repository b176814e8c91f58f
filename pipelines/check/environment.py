"""Checks one Gymnasium environment by stepping it with random actions."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit

from ...envs.failures import is_from_environment
from ...envs.guards import time_limit
from ...envs.resume.plain_data import are_equal, layers_of
from ...envs.resume.resumability import resume_class
from ...envs.wrappers import random_action
from .data import check_action_space, check_observation_scale, check_observations, check_reward_scale
from .findings import Finding, error, note, ok, worst

MAX_STEPS, MAX_SECONDS = 2_000, 2.0
MAX_CALL_SECONDS = 60.0
"""Largest duration of a reset or a step, in seconds."""
NUM_COMPARED = 30
"""Steps that are repeated to compare them."""
SLOW = 500
"""Steps per second below which worker processes help."""
TOPICS = ("reset", "step", "spaces", "episodes", "observations", "rewards", "actions")
"""Topics that every environment without errors is checked for."""
STEP_VALUES = ("observation", "reward", "terminated", "truncated", "info")


class StepError(Exception):
    """An environment that cannot be stepped. The message is a finding."""


class Trace(NamedTuple):
    """Steps of one environment.

    Attributes:
        results: observation, reward, terminated and truncated of every step; the last three are `None` after a reset.
        lengths: length of every complete episode, and whether it ended terminated and truncated.
        seconds: total duration of the steps, without that of the resets.

    """

    results: list[tuple[Any, Any, Any, Any]]
    lengths: list[tuple[int, bool, bool]]
    seconds: float

    @property
    def observations(self) -> list[Any]:
        return [result[0] for result in self.results]

    @property
    def rewards(self) -> list[Any]:
        return [reward for _, reward, _, _ in self.results if reward is not None]


def examine(env_fn: Callable[[], gymnasium.Env[Any, Any]]) -> list[Finding]:
    """Check an environment. The checks end at the first error that makes further steps useless.

    Args:
        env_fn: returns a new environment.

    """
    env = env_fn()
    try:
        if findings := check_interface(env):
            return findings
        trace = play(env, 1, MAX_STEPS, MAX_SECONDS)
        spaces = check_observations(env.observation_space, trace.observations)
        findings = [*spaces, *check_ends(env, trace)]
        if not any(one.level == "error" for one in spaces):
            findings += check_observation_scale(env.observation_space, trace.observations)
        findings += [*check_reward_scale(trace.rewards), *check_action_space(env.action_space)]
        findings += check_repetition(env)
        if worst(findings) != "error":
            healthy = [topic for topic in TOPICS if topic not in {one.topic for one in findings}]
            findings.append(ok(", ".join(healthy), f"no problem in {len(trace.rewards):,} steps"))
        findings.append(check_speed(trace))
    except StepError as problem:
        return [error("steps", str(problem))]
    finally:
        with suppress(StepError):
            call(env.close)
    return [*findings, ok("resume", f"class {resume_class(env_fn, max_seconds=5.0)}")]


def check_interface(env: gymnasium.Env[Any, Any]) -> list[Finding]:
    """Check what `reset` and `step` of the environment itself return."""
    base = env.unwrapped
    try:
        result = call(lambda: base.reset(seed=1))
    except StepError as problem:
        if isinstance(problem.__cause__, TypeError) and any(name in str(problem) for name in ("seed", "options")):
            return [error("reset", "it does not accept seed; write def reset(self, *, seed=None, options=None)")]
        return [error("reset", f"it {problem}")]
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], dict)):
        return [error("reset", f"it returned {describe(result)}; return (observation, info), where info is a dict")]
    action = random_action(base.action_space, result[1])
    try:
        step = call(lambda: base.step(action))
    except StepError as problem:
        return [error("step", f"it {problem}")]
    if not (isinstance(step, tuple) and len(step) == 5):
        return [error("step", f"it returned {describe(step)}; return ({', '.join(STEP_VALUES)})")]
    return check_step(step)


def call(function: Callable[[], Any], seconds: float = 0.0) -> Any:
    """Call the environment's own code.

    Raises:
        StepError: if it raises an exception (also SystemExit), or takes more than `seconds` + `MAX_CALL_SECONDS`.

    """
    try:
        with time_limit(seconds + MAX_CALL_SECONDS):
            return function()
    except BaseException as problem:
        if not is_from_environment(problem):
            raise
        raise StepError(f"raised {problem!r}") from problem


def check_step(step: tuple[Any, ...]) -> list[Finding]:
    """Check the types of what a step returned, except for the observation."""
    _, reward, *flags, info = step
    findings = []
    for name, flag in zip(STEP_VALUES[2:4], flags, strict=True):
        if not isinstance(flag, bool | np.bool_):
            findings.append(error("step", f"{name}={flag!r} is a {type(flag).__name__}; return a bool"))
    try:
        number = float(reward)
    except (TypeError, ValueError):
        number = float("nan")
    if not np.isfinite(number):
        findings.append(error("step", f"reward={reward!r} is not a finite number"))
    if not isinstance(info, dict):
        findings.append(error("step", f"info is a {type(info).__name__}; return a dict"))
    return findings


def describe(result: Any) -> str:
    """Return what a method returned in words."""
    if isinstance(result, tuple):
        return f"{len(result)} values ({', '.join(type(value).__name__ for value in result)})"
    return f"a {type(result).__name__}"


def play(env: gymnasium.Env[Any, Any], seed: int, num_steps: int, seconds: float, action_seed: int = 0) -> Trace:
    """Step with random actions.

    Raises:
        StepError: if the environment raises an exception or hangs.

    """
    space = copy.deepcopy(env.action_space)
    space.seed(action_seed)
    results: list[tuple[Any, Any, Any, Any]] = []
    lengths: list[tuple[int, bool, bool]] = []
    length, start, duration = 0, time.perf_counter(), 0.0

    def run() -> None:
        nonlocal length, duration
        observation, info = env.reset(seed=seed)
        results.append((copy.deepcopy(observation), None, None, None))
        for _ in range(num_steps):
            action = random_action(space, info)
            before = time.perf_counter()
            observation, reward, terminated, truncated, info = env.step(action)
            duration += time.perf_counter() - before
            length += 1
            results.append((copy.deepcopy(observation), copy.deepcopy(reward), terminated, truncated))
            if terminated or truncated:
                lengths.append((length, bool(terminated), bool(truncated)))
                length = 0
                observation, info = env.reset()
                results.append((copy.deepcopy(observation), None, None, None))
            if time.perf_counter() > start + seconds:
                break

    try:
        call(run, seconds)
    except StepError as problem:
        raise StepError(f"step {len(results)} {problem}") from problem
    if wrong := [one for result in results if result[1] is not None for one in check_step((*result, {}))]:
        raise StepError(wrong[0].message)
    return Trace(results, lengths, duration)


def step_limit(env: gymnasium.Env[Any, Any]) -> int | None:
    """Return the number of steps after which an episode is cut, or `None` if it is unknown."""
    limits: list[int | None] = [layer._max_episode_steps for layer in layers_of(env) if isinstance(layer, TimeLimit)]
    limits += [env.spec.max_episode_steps] if env.spec is not None else []
    return next((limit for limit in limits if limit is not None), None)


def check_ends(env: gymnasium.Env[Any, Any], trace: Trace) -> list[Finding]:
    """Check that episodes end, and that a time limit truncates instead of terminating."""
    limit, steps = step_limit(env), len(trace.rewards)
    if not trace.lengths and limit is None:
        text = f"none ended in {steps:,} steps, and there is no time limit"
        return [note("episodes", text, "+env.max_episode_steps=1000")]
    longest = max((length for length, _, _ in trace.lengths), default=0)
    at_limit = [terminated and not truncated for length, terminated, truncated in trace.lengths if length == longest]
    is_frequent = len(at_limit) == len(trace.lengths) or (longest >= 20 and len(at_limit) >= len(trace.lengths) / 5)
    if len(at_limit) >= 3 and all(at_limit) and longest > 1 and is_frequent:
        some = "all" if len(at_limit) == len(trace.lengths) else f"{len(at_limit)} of"
        text = f"{some} {len(trace.lengths)} ended with terminated=True after {longest} steps; if this is a time limit"
        return [note("episodes", f"{text}, return truncated=True instead, so that the value of the last state counts")]
    return []


def check_repetition(env: gymnasium.Env[Any, Any]) -> list[Finding]:
    """Check that the seed and the actions determine the steps, and that other seeds and actions change them."""
    first, again = (play(env, 1, NUM_COMPARED, MAX_SECONDS).results for _ in range(2))
    if not are_equal(first[0][0], again[0][0]):
        return [note("seeding", "two resets with seed=1 differ; call super().reset(seed=seed), and use self.np_random")]
    if not are_equal(first, again):
        text = "the same seed and actions lead to different steps; use self.np_random for random numbers"
        return [note("determinism", f"{text}, and reset all attributes")]
    findings = []
    if are_equal(first, play(env, 1, NUM_COMPARED, MAX_SECONDS, action_seed=1).results):
        findings.append(
            note("actions", f"other actions change nothing in {NUM_COMPARED} steps; check that step uses them")
        )
    others = [play(env, seed, NUM_COMPARED, MAX_SECONDS).results for seed in (2, 3)]
    if all(are_equal(first, other) for other in others):
        findings.append(
            note("seeding", "all seeds begin the same episode; if this is not intended, use self.np_random")
        )
    starts = [copy.deepcopy(call(env.reset)[0]) for _ in range(5)]
    if not any(are_equal(first[0][0], other[0][0]) for other in others) and all(
        are_equal(starts[0], start) for start in starts
    ):
        text = "all resets without a seed begin alike, but resets with seeds differ; seed only if seed is not None"
        findings.append(note("seeding", text))
    return findings or [ok("seeding, determinism", f"{NUM_COMPARED} steps repeat with the same seed and actions")]


def check_speed(trace: Trace) -> Finding:
    """Return the steps per second."""
    speed = len(trace.rewards) / max(trace.seconds, 1e-9)
    text = f"{speed:,.0f} steps per second of one environment"
    return note("speed", text, "env.num_workers=auto") if speed < SLOW else ok("speed", text)
