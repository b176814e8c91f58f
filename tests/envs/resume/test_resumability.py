"""Classes of environments after a restart."""

from __future__ import annotations

import itertools
import random
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import FrameStackObservation, NormalizeReward

from torchppo.envs import SerialVectorEnv, SubprocessVectorEnv
from torchppo.envs.make import make_gymnasium_env
from torchppo.envs.native.atari import make_atari_vector
from torchppo.envs.resume.plain_data import are_equal, save_random_state
from torchppo.envs.resume.resumability import resume_class
from torchppo.errors import EnvironmentFailure


class Walk(gymnasium.Env[Any, Any]):
    """Adds random numbers; where they come from decides the class."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float64)
    action_space = spaces.Dict(move=spaces.Discrete(2), by=spaces.Box(-1, 1, (1,)))

    def __init__(self, hidden: str = "none") -> None:
        self.hidden = hidden
        self.draws: Any = None
        self.draw = closure()
        self.resets = itertools.count() if hidden == "counter" else None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.place = self.np_random.random()
        self.time = 0
        if self.hidden == "episode":
            self.draws = iter(self.np_random.random(1000).tolist())
        if self.hidden == "counter":  # of resets, where a second environment would be after as many
            self.draws = itertools.repeat(next(self.resets))
        return np.array([self.place]), {}

    def step(self, action: Any) -> Any:
        noise = {
            "none": self.np_random.random,
            "rare": lambda: self.np_random.random() - 0.5,
            "closure": self.draw,
            "global": np.random.rand,
            "space": self.sample,
            "module": RNG.random,
        }.get(self.hidden)
        self.time += 1
        if self.hidden == "rare" and self.time == 40:
            RESETS.append(0)
            self.place += len(RESETS)
        self.place += action["by"][0] + (noise() if noise else next(self.draws or COUNTER))
        return np.array([self.place]), self.place, bool(action["move"]) and self.place > 9, False, {}

    def sample(self) -> float:
        return float(self.observation_space.sample()[0]) + random.random()


def closure() -> Any:
    drawn: list[int] = []

    def draw() -> int:
        drawn.append(0)
        return len(drawn)

    return draw


COUNTER, RNG = itertools.count(), np.random.default_rng(0)
RESETS: list[int] = []


@pytest.mark.parametrize(
    ("hidden", "name"),
    [
        ("none", "snapshot"),
        ("global", "snapshot"),
        ("space", "snapshot"),
        ("module", "snapshot"),
        ("closure", "snapshot"),
        ("episode", "replay"),
        ("process", "inexact"),
        ("counter", "inexact"),
        ("rare", "inexact"),
    ],
)
def test_class_depends_on_where_the_randomness_is(hidden: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchppo.envs.resume.resumability.MORE_SECONDS", 100.0)  # as many steps on a slow machine
    before = save_random_state()
    assert resume_class(partial(Walk, hidden)) == name
    assert are_equal(np.asarray(before["torch"]), np.asarray(save_random_state()["torch"]))
    assert before["python"] == save_random_state()["python"]


@pytest.mark.parametrize(
    ("id_", "name"),
    [
        ("CartPole-v1", "snapshot"),
        ("Hopper-v5", "snapshot"),
        ("LunarLander-v3", "replay"),
        ("BipedalWalkerHardcore-v3", "inexact"),  # keeps its Box2D world between episodes; the steps are equal
    ],
)
def test_class_of_gymnasium_environments(id_: str, name: str) -> None:
    assert resume_class(partial(make_gymnasium_env, id_)) == name


def test_an_environment_that_fails_or_is_slow_is_inexact() -> None:
    assert resume_class(partial(gymnasium.make, "missing")) == "inexact"
    assert resume_class(Walk, max_seconds=0.0) == "inexact"


MAKERS: dict[str, Any] = {
    "snapshot": lambda: SerialVectorEnv([partial(make_gymnasium_env, "Ant-v5")] * 2),
    "aliases": lambda: SerialVectorEnv([lambda: FrameStackObservation(make_gymnasium_env("CartPole-v1"), 3)] * 2),
    "wrappers": lambda: SerialVectorEnv([lambda: NormalizeReward(make_gymnasium_env("LunarLander-v3"))] * 2),
    "replay": lambda: SerialVectorEnv([partial(make_gymnasium_env, "LunarLander-v3")] * 2),
    "nested actions": lambda: SerialVectorEnv([partial(Walk, "episode")] * 2),
    "workers": lambda: SubprocessVectorEnv([partial(Walk, "global"), partial(Walk, "space"), Walk], 2),
    "atari": lambda: make_atari_vector("ALE/Pong-v5", 3, num_threads=1),
}


def play(vector: Any, num_steps: int, *, seed: int) -> list[Any]:
    """Step with random actions; reset single environments at fixed steps. Return all observations and rewards."""
    dtype, results = getattr(vector.action_space, "dtype", None), []
    vector.action_space.seed(seed)
    for step in range(num_steps):
        actions = vector.action_space.sample()
        if dtype is None:  # a structured array
            pairs = zip(actions["by"], actions["move"], strict=True)
            actions = np.array([*pairs], [("by", "f4", (1,)), ("move", "i8")])
        vector.send(actions)
        arrays = vector.receive()
        results += [arrays.observation.copy(), arrays.reward.copy()]
        mask = arrays.terminated | arrays.truncated | (np.arange(vector.num_envs) == step - 3)
        if mask.any():
            results.append(vector.reset(options={"reset_mask": mask})[0].copy())
    return results


@pytest.mark.parametrize("name", MAKERS)
def test_vector_environments_continue_their_episodes(name: str) -> None:
    vectors = [MAKERS[name]() for _ in range(2)]
    vectors[0].set_resume_class()
    vectors[0].reset(seed=3)
    play(vectors[0], 10, seed=0)
    states = vectors[0].env_states()
    vectors[1].set_resume_class(vectors[0].resume_class)
    vectors[1].load_env_states(states)
    expected = play(vectors[0], 10, seed=1)
    assert vectors[0].resume_class in ("snapshot", "replay")
    assert are_equal(play(vectors[1], 10, seed=1), expected)
    for vector in vectors:
        vector.close()


def test_atari_games_with_random_repetitions_or_without_a_seed_do_not_continue() -> None:
    vector = make_atari_vector("ALE/Pong-v5", 1, num_threads=1, repeat_action_probability=0.25)
    vector.set_resume_class()
    assert vector.resume_class == "inexact"
    vector.set_resume_class("replay")
    vector.reset()
    with pytest.raises(EnvironmentFailure, match="seed"):
        vector.env_states()
    vector.close()
