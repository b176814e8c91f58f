"""Atari games in ale-py's native vector environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ...errors import EnvironmentFailure, did_you_mean
from ..spaces.specs import ALL_ENVS, StepArrays, step_arrays_for
from .interface import SlicedVectorEnv
from .serial import EnvDescription, env_seeds, init_vector_env


class SplitAtariVectorEnv(SlicedVectorEnv):
    """Splits a batch over two of ale-py's vector environments, so that one steps while the policy acts for the other.

    Without double buffering, it is still faster than a single vector environment with as many threads: Linux often
    schedules both threads of a single one on the same core after the policy has kept its own core busy.

    Args:
        make_half: makes an ale-py vector environment (with `send` and `recv`) from its number of environments.
        num_envs: number of environments in both halves. A single environment is not split.

    """

    def __init__(self, make_half: Callable[[int], Any], num_envs: int) -> None:
        middle = num_envs // 2
        slices = [slice(0, middle), slice(middle, num_envs)] if middle else [slice(0, num_envs)]
        self._halves = [(make_half(half_slice.stop - half_slice.start), half_slice) for half_slice in slices]
        half, _ = self._halves[0]
        # A half resets automatically in the step after an episode, unless it has been reset before that step.
        single = EnvDescription(half.single_observation_space, half.single_action_space, None, half.metadata)
        init_vector_env(self, single, num_envs)
        self.arrays = step_arrays_for(half.single_observation_space, num_envs)
        self._stepping: set[Any] = set()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]` (bool, `[num_envs]`)."""
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        seeds = np.array([-1 if one is None else one for one in env_seeds(seed, self.num_envs)])
        for half, half_slice in self._halves:
            half_mask = mask[half_slice]
            if half_mask.any():
                if half in self._stepping:  # the rollout was interrupted
                    self._receive_half(half)
                observation, _ = half.reset(seed=seeds[half_slice][half_mask], options={"reset_mask": half_mask})
                self.arrays.observation[half_slice] = observation
        return self.arrays.observation, {}

    def send(self, actions: Any, env_slice: slice = ALL_ENVS) -> None:
        """Start a step of all environments or of one half, without waiting for it."""
        for half, half_slice in self._halves_in(env_slice):
            half.send(actions[half_slice] if env_slice is ALL_ENVS else actions)
            self._stepping.add(half)

    def receive(self, env_slice: slice = ALL_ENVS) -> StepArrays:
        for half, half_slice in self._halves_in(env_slice):
            observation, reward, terminated, truncated, _ = self._receive_half(half)
            self.arrays.observation[half_slice] = observation
            self.arrays.reward[half_slice] = reward
            self.arrays.terminated[half_slice] = terminated
            self.arrays.truncated[half_slice] = truncated
        return self.arrays.select(env_slice)

    def double_buffer_groups(self) -> list[slice]:
        return [half_slice for _, half_slice in self._halves] if len(self._halves) > 1 else []

    def close_extras(self, **kwargs: Any) -> None:
        for half, _ in self._halves:
            half.close()

    def _receive_half(self, half: Any) -> Any:
        received = half.recv()
        self._stepping.discard(half)
        return received

    def _halves_in(self, env_slice: slice) -> Iterable[tuple[Any, slice]]:
        return self._halves if env_slice is ALL_ENVS else (half for half in self._halves if half[1] == env_slice)


def make_atari_vector(id: str, num_envs: int, **kwargs: Any) -> SplitAtariVectorEnv:  # noqa: A002
    """Make a batch of Atari games in ale-py's native vector environment.

    Observations are grayscale 84x84 with 4 stacked frames; 4 frames are skipped per step.

    Args:
        id: `ALE/<Game>-v5`. Only the game is read from it; all options are keyword arguments.
        num_envs: number of environments.
        kwargs: passed to each of the two `ale_py.vector_env.AtariVectorEnv`. Defaults that differ: rewards are not
            clipped, and each of the two has one thread for every second core.

    Raises:
        EnvironmentFailure: if ale-py or the game is missing, or an option is unknown.

    """
    try:
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise EnvironmentFailure(f"environment {id!r} needs ale-py: pip install 'torchppo[atari]'") from error
    spec = gymnasium.registry.get(id)
    if spec is None or "game" not in spec.kwargs:
        games = [name for name in gymnasium.registry if name.startswith("ALE/")]
        raise EnvironmentFailure(f"environment {id!r} is not an Atari game{did_you_mean(id, games)}")
    options = {"reward_clipping": False, "num_threads": max(1, num_cores() // 2), **kwargs}
    try:
        return SplitAtariVectorEnv(lambda num: AtariVectorEnv(spec.kwargs["game"], num, **options), num_envs)
    except (gymnasium.error.Error, TypeError) as error:
        raise EnvironmentFailure(f"environment {id!r} cannot be made: {error}") from error


def num_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
