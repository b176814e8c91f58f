"""Atari games in ale-py's native vector environment."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from ...errors import EnvironmentFailure, did_you_mean
from ..resume.plain_data import load_array, save_array
from ..spaces.specs import ALL_ENVS, StepArrays, step_arrays_for
from ..vector.interface import EnvDescription, SlicedVectorEnv, env_seeds, init_vector_env
from ..vector.num_workers import num_cores

MAX_STEPS = 27_000
"""The time limit of Atari games, 108,000 frames of the console."""


class SplitAtariVectorEnv(SlicedVectorEnv):
    """Splits a batch over two of ale-py's vector environments, so that one steps while the policy acts for the other.

    Without double buffering, it is still faster than a single vector environment with as many threads: Linux often
    schedules both threads of a single one on the same core after the policy has kept its own core busy.

    Args:
        make_half: makes an ale-py vector environment (with `send` and `recv`) from its number of environments.
        num_envs: number of environments in both halves. A single environment is not split.
        spec: id and time limit of the game.
        is_deterministic: whether seeds and actions determine a game.

    """

    def __init__(
        self, make_half: Callable[[int], Any], num_envs: int, *, spec: EnvSpec, is_deterministic: bool = True
    ) -> None:
        self._is_deterministic = is_deterministic
        middle = num_envs // 2
        slices = [slice(0, middle), slice(middle, num_envs)] if middle else [slice(0, num_envs)]
        self._halves = [(make_half(half_slice.stop - half_slice.start), half_slice) for half_slice in slices]
        half, _ = self._halves[0]
        # A half resets automatically in the step after an episode, unless it has been reset before that step.
        single = EnvDescription(half.single_observation_space, half.single_action_space, None, half.metadata, spec)
        init_vector_env(self, single, num_envs)
        self.arrays = step_arrays_for(half.single_observation_space, num_envs)
        self._stepping: set[Any] = set()
        self._records: dict[Any, GameRecord] = {}

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
                if half in self._records:
                    self._records[half].reset(half_mask, seeds[half_slice])
                self.arrays.observation[half_slice] = observation
        return self.arrays.observation, {}

    def send(self, actions: Any, env_slice: slice = ALL_ENVS) -> None:
        """Start a step of all environments or of one half, without waiting for it."""
        for half, half_slice in self._halves_in(env_slice):
            own = actions[half_slice] if env_slice is ALL_ENVS else actions
            half.send(own)
            if half in self._records:
                self._records[half].actions.append(np.array(own))
            self._stepping.add(half)

    def receive(self, env_slice: slice = ALL_ENVS) -> StepArrays:
        for half, half_slice in self._halves_in(env_slice):
            observation, reward, terminated, truncated, _ = self._receive_half(half)
            self.arrays.observation[half_slice] = observation
            self.arrays.reward[half_slice] = reward
            self.arrays.terminated[half_slice] = terminated
            self.arrays.truncated[half_slice] = truncated
        return self.arrays.select(env_slice)

    def set_resume_class(self, name: str | None = None, max_seconds: float = 20.0) -> str:
        """Record the games for a `replay`, unless the emulator is random."""
        self.resume_class = name or ("replay" if self._is_deterministic else "inexact")
        if self.resume_class == "replay":
            self._records = {half: GameRecord(part.stop - part.start) for half, part in self._halves}
        return self.resume_class

    def env_states(self) -> list[Any]:
        states = [state for half, _ in self._halves for state in self._records[half].states()]
        return [[*state, zlib.crc32(self.arrays.observation[env])] for env, state in enumerate(states)]

    def load_env_states(self, states: Sequence[Any]) -> None:
        """Repeat the games, so that all of them reach their last step together.

        Raises:
            EnvironmentFailure: if the observations differ.

        """
        actions = [load_array(state[2]) for state in states]
        lengths = np.array([len(one) for one in actions])
        batch = np.zeros_like(self.action_space.sample())
        self.reset(seed=0)
        for remaining in range(lengths.max(), -1, -1):
            for env in np.flatnonzero(lengths == remaining).tolist():
                mask = np.arange(self.num_envs) == env
                seed, num_resets, *_ = states[env]
                self.reset(seed=[seed] * self.num_envs, options={"reset_mask": mask})
                for _ in range(num_resets):  # each one draws the number of its first no-ops
                    self.reset(options={"reset_mask": mask})
            if remaining > 0:
                for env in np.flatnonzero(lengths >= remaining).tolist():
                    batch[env] = actions[env][-remaining]
                self.send(batch)
                self.receive()
        if [zlib.crc32(one) for one in self.arrays.observation] != [checksum for *_, checksum in states]:
            raise EnvironmentFailure("a game cannot continue: its repetition differs; use the same version of ale-py")

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


class GameRecord:
    """What repeats the current games: the seeds, the numbers of resets since then, and the actions."""

    def __init__(self, num_envs: int) -> None:
        self.actions: list[NDArray[Any]] = []
        self._seeds = np.full(num_envs, -1)
        self._resets, self._starts = np.zeros(num_envs, int), np.zeros(num_envs, int)

    def reset(self, mask: NDArray[np.bool_], seeds: NDArray[np.int64]) -> None:
        """Begin games where `mask` is set; a negative seed continues the random numbers."""
        is_seeded = mask & (seeds >= 0)
        self._resets = np.where(is_seeded, 0, self._resets + mask)
        self._seeds = np.where(is_seeded, seeds, self._seeds)
        self._starts[mask] = len(self.actions)
        first = int(self._starts.min())
        del self.actions[:first]
        self._starts -= first

    def states(self) -> list[Any]:
        """Return seed, number of resets and actions of every game as plain data."""
        if (self._seeds < 0).any():
            raise EnvironmentFailure("games without a seed cannot be repeated; call env.set_seed")
        return [
            [int(seed), int(resets), save_array(np.array([actions[env] for actions in self.actions[start:]]))]
            for env, (seed, resets, start) in enumerate(zip(self._seeds, self._resets, self._starts, strict=True))
        ]


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
        return SplitAtariVectorEnv(
            lambda num: AtariVectorEnv(spec.kwargs["game"], num, **options),
            num_envs,
            spec=EnvSpec(id, max_episode_steps=MAX_STEPS),
            is_deterministic=not options.get("repeat_action_probability"),
        )
    except (gymnasium.error.Error, TypeError) as error:
        raise EnvironmentFailure(f"environment {id!r} cannot be made: {error}") from error
