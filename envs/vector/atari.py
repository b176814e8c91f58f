"""A native vector environment in two halves."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ...errors import EnvironmentFailure, did_you_mean
from ..spaces.specs import ALL_ENVS, StepArrays, step_arrays_for
from ..vector_env import Description, SlicedVectorEnv, describe, seeds_of


class SplitAtariVectorEnv(SlicedVectorEnv):
    """Two of ale-py's vector environments as one: the policy can act for one while the other steps in its threads.

    Also where it acts for both at once they are faster than one with as many threads: Linux often sends both threads
    of one to the same core, when the policy's has been busy.

    Args:
        make: makes a half from its number of environments; it has `send` and `recv`.
        num_envs: how many in both halves.

    """

    def __init__(self, make: Callable[[int], Any], num_envs: int) -> None:
        """Make the halves; there is only one of a single environment."""
        middle = num_envs // 2
        parts = [slice(0, middle), slice(middle, num_envs)] if middle else [slice(0, num_envs)]
        self._halves = [(make(rows.stop - rows.start), rows) for rows in parts]
        half, _ = self._halves[0]
        # A half would reset in the step after the last one, and does not where it has been told to before.
        single = Description(half.single_observation_space, half.single_action_space, None, half.metadata)
        describe(self, single, num_envs)
        self.arrays = step_arrays_for(half.single_observation_space, num_envs)
        self._at_work: set[Any] = set()

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[Any], dict[str, Any]]:
        """Reset all environments, or those of `options["reset_mask"]` (bool, `[num_envs]`)."""
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        seeds = np.array([-1 if one is None else one for one in seeds_of(seed, self.num_envs)])
        for half, rows in self._halves:
            if mask[rows].any():
                if half in self._at_work:  # in a step of a rollout that was broken off
                    self._receive(half)
                observation, _ = half.reset(seed=seeds[rows][mask[rows]], options={"reset_mask": mask[rows]})
                self.arrays.observation[rows] = observation
        return self.arrays.observation, {}

    def send(self, actions: Any, rows: slice = ALL_ENVS) -> None:
        """Let the environments in `rows`, those of whole halves, take a step, and do not wait for it."""
        for half, own in self._inside(rows):
            half.send(actions[own] if rows is ALL_ENVS else actions)
            self._at_work.add(half)

    def receive(self, rows: slice = ALL_ENVS) -> StepArrays:
        """Wait for the steps in `rows` and return what they left behind."""
        for half, own in self._inside(rows):
            observation, reward, terminated, truncated, _ = self._receive(half)
            self.arrays.observation[own] = observation
            self.arrays.reward[own] = reward
            self.arrays.terminated[own] = terminated
            self.arrays.truncated[own] = truncated
        return self.arrays.rows(rows)

    def _receive(self, half: Any) -> Any:
        received = half.recv()
        self._at_work.discard(half)
        return received

    def double_buffer_groups(self) -> list[slice]:
        """Two runs of environments that can be stepped apart, or nothing where there is one environment."""
        return [rows for _, rows in self._halves] if len(self._halves) > 1 else []

    def close_extras(self, **kwargs: Any) -> None:
        """End the threads."""
        for half, _ in self._halves:
            half.close()

    def _inside(self, rows: slice) -> Iterable[tuple[Any, slice]]:
        return self._halves if rows is ALL_ENVS else (pair for pair in self._halves if pair[1] == rows)


def make_atari_vector(id: str, num_envs: int, **kwargs: Any) -> SplitAtariVectorEnv:  # noqa: A002
    """A batch of Atari games in ale-py's native vector environment: grey 84x84, 4 frames stacked, 4 skipped.

    Args:
        id: `ALE/<Game>-v5`; only the game is taken from it, every option is a keyword.
        num_envs: how many.
        kwargs: for `ale_py.vector_env.AtariVectorEnv`, of which there are two; rewards are not clipped unless asked
            for, and each has a thread for every second core.

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
        raise EnvironmentFailure(f"there is no Atari game {id!r}{did_you_mean(id, games)}")
    options = {"reward_clipping": False, "num_threads": max(1, num_cores() // 2), **kwargs}
    try:
        return SplitAtariVectorEnv(lambda num: AtariVectorEnv(spec.kwargs["game"], num, **options), num_envs)
    except (gymnasium.error.Error, TypeError) as error:
        raise EnvironmentFailure(f"environment {id!r} cannot be made: {error}") from error


def num_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
