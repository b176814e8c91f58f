"""How the episodes of an environment continue after a restart: the classes, and the test that finds them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import cycle
from typing import Any

import gymnasium

from ...errors import EnvironmentFailure
from ..failures import environment_failure, is_from_environment
from ..spaces.encoding import EncodeSpaces
from ..wrappers import random_action
from .parts import StateError
from .plain_data import are_equal, load_random_state, save_random_state
from .replay import Replay, box2d_worlds
from .snapshot import load_state, save_state

RESUME_CLASSES = ("snapshot", "replay", "reset", "inexact")
"""`snapshot`: the state is saved and restored. `replay`: the current episodes are repeated with the same random state
and actions. `reset`: new episodes start at fixed numbers of frames, with and without a restart, and only there a
training is saved. `inexact`: new episodes start after a restart."""
NUM_TEST_STEPS = 12
MORE_SECONDS, MAX_MORE_STEPS = 0.3, 200  # limits of additional steps, which test rare behavior
EnvFn = Callable[[], gymnasium.Env[Any, Any]]


def episode_state(env: Any, name: str) -> Any:
    """Return what the episode of an environment of class `name` continues from.

    Raises:
        EnvironmentFailure: if the state cannot be saved.

    """
    if name == "inexact":
        return None
    try:
        return save_state(env) if name == "snapshot" else (env if isinstance(env, Replay) else env.env).state()
    except StateError as error:
        raise EnvironmentFailure(f"the state of {env.unwrapped} cannot be saved: {error}") from error


def continue_episode(env: Any, name: str, state: Any) -> None:
    """Continue the episode of `episode_state`.

    Raises:
        EnvironmentFailure: if the environment differs from the one that was saved.

    """
    try:
        if name == "snapshot":
            restore_snapshot(env, state)
        elif name == "replay":
            (env if isinstance(env, Replay) else env.env).repeat(state)
    except Exception as error:  # noqa: BLE001 - the environment's own code may raise anything
        raise environment_failure("an environment cannot continue from the checkpoint", error) from None


def restore_snapshot(env: Any, state: Any) -> None:
    env.reset(seed=0)  # some environments make objects at the first reset
    load_state(env, state)


def resume_class(env_fn: EnvFn, max_seconds: float = 20.0, *, close: bool = True, seen: list[Any] | None = None) -> str:
    """Return the class of an environment, one of `RESUME_CLASSES`.

    Steps one environment, and another one after the state of the first was restored in it, with the same actions. The
    other one has had more episodes before, so that values which are not restored differ. An environment for which this
    takes too long is `inexact`. The global random generators stay as they are.

    Args:
        env_fn: returns an environment at every call.
        max_seconds: limit of the duration.
        close: whether to close the environments.
        seen: receives what some steps of the test returned.

    """
    before, start, envs = save_random_state(), time.monotonic(), list[gymnasium.Env[Any, Any]]()
    try:
        envs.append(first := Replay(env_fn()))
        end = start + max_seconds / (4 if time.monotonic() > start + max_seconds / 8 else 1)  # others take as long
        info, num_more = begin(first, 1, 1, end)
        random_state = save_random_state()
        restore: dict[str, Callable[[Replay], Any]] = {}
        with suppress(Exception):
            snapshot = save_state(first.env)
            restore["snapshot"] = lambda env: restore_snapshot(env.env, snapshot)
        with suppress(Exception):
            replay = first.state()
            restore["replay"] = lambda env: env.repeat(replay)
        worlds = box2d_worlds(first)
        expected = continued(first, info, end, num_more)
        if any(world is old for world in box2d_worlds(first) for old in worlds):
            restore.pop("replay", None)  # earlier episodes have effects that the test is too short to notice
        if seen is not None:
            seen += expected[: len(expected) - num_more]
        for name, load in restore.items():
            envs.append(second := Replay(env_fn()))
            with suppress(Exception):
                begin(second, 2, 3, end, num_more)
                load(second)
                load_random_state(random_state)
                if are_equal(continued(second, info, end, num_more), expected):
                    return name
    except BaseException as error:  # the training reports what an environment raises
        if not is_from_environment(error):
            raise
    finally:
        for env in envs if close else ():
            with suppress(Exception, SystemExit):
                env.close()
        load_random_state(before)
    return "inexact"


def resume_class_of(envs: Sequence[gymnasium.Env[Any, Any]], max_seconds: float, seen: list[Any] | None = None) -> str:
    """Return the class of existing environments. Up to three are stepped, and restored if possible."""
    used = [env.env if isinstance(env, EncodeSpaces) else env for env in envs[:3]]
    states = []
    for env in used:
        with suppress(StateError):
            states.append((env, save_state(env)))
    found = resume_class(cycle(used).__next__, max_seconds, close=False, seen=seen)
    for env, state in states:
        with suppress(StateError):
            load_state(env, state)
    return found


def begin(env: Replay, seed: int, num_episodes: int, end: float, num_more: int = 0) -> tuple[dict[str, Any], int]:
    """Take steps with random actions in `num_episodes` episodes after a seed, and in one more without a new seed.

    The last of the `num_episodes` episodes has `num_more` additional steps. Return the last `info`, and the number of
    steps that take `MORE_SECONDS`, at most `MAX_MORE_STEPS`.
    """
    start, results = time.monotonic(), list[Any]()
    _, info = env.reset(seed=seed)
    for more in (*[0] * (num_episodes - 1), num_more):
        take_steps(env, info, NUM_TEST_STEPS // 2 + more, end, results)
        _, info = env.reset()
    info = take_steps(env, info, NUM_TEST_STEPS, end, results)
    return info, int(min(MAX_MORE_STEPS, len(results) * MORE_SECONDS / (time.monotonic() - start)))


def continued(env: Replay, info: dict[str, Any], end: float, num_more: int) -> list[Any]:
    """Continue the episode and begin another one. Return all that the environment returns, except for `info`."""
    results = list[Any]()
    take_steps(env, info, NUM_TEST_STEPS, end, results)
    observation, info = env.reset()
    results.append(copy.deepcopy(observation))
    take_steps(env, info, NUM_TEST_STEPS + num_more, end, results)
    return results


def take_steps(env: Replay, info: dict[str, Any], num_steps: int, end: float, results: list[Any]) -> dict[str, Any]:
    """Take steps with reproducible random actions, and add the results of `step` without `info` to `results`."""
    space = copy.deepcopy(env.action_space)
    space.seed(num_steps)
    for _ in range(num_steps):
        if time.monotonic() > end:
            raise TimeoutError
        action = random_action(space, info)
        observation, reward, terminated, truncated, info = env.step(action)
        results.append(copy.deepcopy((observation, reward, terminated, truncated)))
        if terminated or truncated:
            observation, info = env.reset()
            results.append(copy.deepcopy(observation))
    return info
