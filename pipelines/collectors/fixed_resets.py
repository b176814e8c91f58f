"""Starts new episodes at fixed numbers of frames, for environments whose episodes cannot continue after a restart."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import torch
from tensordict import TensorDictBase
from torchrl.envs import EnvBase

from ...envs.resume.plain_data import are_equal, load_random_state, save_random_state
from ..distributed import num_ranks
from .rollouts import seed_at


class FixedResets:
    """Collects rollouts, and starts new episodes from derived seeds whenever `every_frames` are collected.

    A training that is saved there and continues equals one without interruption, bit by bit. An episode that is
    running when another one starts does not count in the statistics, and the value of its last observation replaces
    the rest of its return, as at the end of every rollout.

    Args:
        rollouts: collects the rollouts; its `restart` lets the next one begin with a reset.
        env: the environment.
        every_frames: frames over all ranks between resets.
        total_frames: frames of the training over all ranks.
        seed: determines the seeds of the resets.

    """

    resume_class = "reset"

    def __init__(self, rollouts: Any, env: EnvBase, every_frames: int, total_frames: int, seed: int) -> None:
        self._rollouts, self._env = rollouts, env
        self._every_frames, self._total_frames, self._seed = every_frames, total_frames, seed
        self._frames = self._frames_per_rollout = 0
        self._started_at: int | None = None  # `None`: the next rollout begins with a reset

    @property
    def seconds(self) -> dict[str, float]:
        return self._rollouts.seconds

    @property
    def is_due(self) -> bool:
        """Whether new episodes start before the next rollout."""
        every = self._every_frames
        return self._started_at is None or self._started_at // every < self._frames // every

    @property
    def may_save(self) -> bool:
        """Whether a training that is saved now would continue exactly, or is complete."""
        return self.is_due or self._frames + self._frames_per_rollout > self._total_frames

    def __call__(self) -> TensorDictBase:
        if self.is_due:
            self._env.set_seed(seed_at(self._seed, self._frames))
            self._rollouts.restart()
            self._started_at = self._frames
        rollout: TensorDictBase = self._rollouts()
        self._frames_per_rollout = rollout.numel() * num_ranks()
        self._frames += self._frames_per_rollout
        return rollout

    def state_dict(self) -> dict[str, Any]:
        names = ("every_frames", "frames", "seed")
        return {"resume_class": "reset", **{name: getattr(self, f"_{name}") for name in names}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after `state_dict`; an empty state only starts new episodes."""
        self._started_at = None
        if state:
            self._every_frames, self._frames, self._seed = state["every_frames"], state["frames"], state["seed"]


def follows_seed(env: EnvBase, max_seconds: float = 10.0) -> bool | None:
    """Return whether a seed determines the episodes of an environment, whatever happened in it before.

    It is reset and stepped with random actions, twice. The global random generators stay as they are. If this fails or
    takes too long, the result is `None`.
    """
    before, end = save_random_state(), time.monotonic() + max_seconds
    results: list[list[Any]] = []
    try:
        with suppress(Exception):  # the training reports what an environment raises
            for _ in range(2):
                load_random_state(before)
                torch.manual_seed(0)
                env.set_seed(0)
                results.append(random_steps(env, end))
    finally:
        load_random_state(before)
    return are_equal(*results) if len(results) == 2 else None


def random_steps(env: EnvBase, end: float) -> list[Any]:
    """Return the data of the first steps after a reset. Raise a TimeoutError after `end`."""
    current, found = env.reset(), []
    for _ in range(100):
        if time.monotonic() > end:
            raise TimeoutError
        step, current = env.step_and_maybe_reset(env.rand_action(current))
        for data in (step["next"], current):
            items = sorted(data.items(include_nested=True, leaves_only=True), key=lambda item: str(item[0]))
            found += [value.cpu().numpy().copy() for _, value in items if isinstance(value, torch.Tensor)]
    return found
