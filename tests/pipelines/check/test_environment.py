"""`torchppo check` finds what is wrong with an environment, and nothing in healthy environments."""

from __future__ import annotations

import sys
import time
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.wrappers import TimeLimit

from torchppo.pipelines.check import environment
from torchppo.pipelines.check.data import check_action_space
from torchppo.pipelines.check.environment import examine
from torchppo.pipelines.check.findings import Finding, worst


class Healthy(gymnasium.Env[Any, Any]):
    """A walk on a line that ends at its borders, with a Dict observation as in MiniGrid."""

    observation_space = spaces.Dict(
        {"image": spaces.Box(0, 255, (3, 3, 1), np.uint8), "place": spaces.Box(-19.0, 19.0, (1,), np.float32)}
    )
    action_space: Any = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.place, self.steps = float(self.np_random.uniform(-1, 1)), 0
        return self.observation(), {}

    def observation(self) -> Any:
        return {"image": np.full((3, 3, 1), 7, np.uint8), "place": np.array([self.place], np.float32)}

    def step(self, action: Any) -> Any:
        self.place += float(np.sum(action)) - 0.5 + float(self.np_random.normal())
        self.steps += 1
        return self.observation(), 1.0, bool(abs(self.place) > 8), False, {}


class NoSeed(Healthy):
    def reset(self) -> Any:  # type: ignore[override]
        return super().reset()


class OldReset(Healthy):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(**kwargs)[0]


class OldStep(Healthy):
    def step(self, action: Any) -> Any:
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class WithStep(Healthy):
    """Replaces one of the values that a step returns."""

    change: tuple[int, Any] = (0, None)

    def step(self, action: Any) -> Any:
        values = [*super().step(action)]
        values[self.change[0]] = self.change[1]
        return tuple(values)


class NumberFlag(WithStep):
    change = (2, 0)


class NoReward(WithStep):
    change = (1, None)


class NanReward(WithStep):
    change = (1, float("nan"))


class NoInfo(WithStep):
    change = (4, None)


class Raises(Healthy):
    def step(self, action: Any) -> Any:
        if self.steps == 2:
            raise ZeroDivisionError("own bug")
        return super().step(action)


class WrongShape(Healthy):
    def observation(self) -> Any:
        return super().observation() | {"place": np.zeros((2,), np.float32)}


class NanObservation(Healthy):
    def observation(self) -> Any:
        return super().observation() | {"place": np.array([np.nan], np.float32)}


class MissingPart(Healthy):
    def observation(self) -> Any:
        return {"place": super().observation()["place"]}


class WrongType(Healthy):
    def observation(self) -> Any:
        return super().observation() | {"image": np.full((3, 3, 1), 0.5)}


class OutOfBounds(Healthy):
    def observation(self) -> Any:
        return super().observation() | {"place": np.array([19.5 + self.place / 100], np.float32)}


class GlobalNoise(Healthy):
    """Ignores the seed of its reset."""

    def reset(self, **kwargs: Any) -> Any:
        super().reset(**kwargs)
        self.place = float(np.random.default_rng().uniform(-1, 1))
        return self.observation(), {}


class NoisySteps(Healthy):
    def step(self, action: Any) -> Any:
        self.place += float(np.random.default_rng().normal())
        return super().step(action)


class SameSeeds(Healthy):
    def reset(self, **kwargs: Any) -> Any:
        return super().reset(seed=0)


class IgnoresActions(Healthy):
    def step(self, action: Any) -> Any:
        return super().step(0)


class Endless(Healthy):
    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = super().step(action)
        self.place %= 8
        return observation, reward, False, False, info


class TerminatesAtLimit(Endless):
    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = super().step(action)
        return observation, reward, self.steps == 10, False, info


class LargeObservations(Healthy):
    observation_space = spaces.Dict({"place": spaces.Box(-1e9, 1e9, (1,), np.float32)})

    def observation(self) -> Any:
        return {"place": np.array([self.place * 1000], np.float32)}


class LargeRewards(WithStep):
    change = (1, -1600.0)


class SmallRewards(WithStep):
    change = (1, 1e-5)


class MixedEnds(Healthy):
    """Reaches its time limit in many episodes, which it reports as terminated."""

    def step(self, action: Any) -> Any:
        observation, reward, _, _, info = super().step(action)
        self.place = np.sign(self.place) * min(abs(self.place), 7.0)
        return observation, reward, self.steps >= 30 or self.np_random.random() < 0.02, False, info


class Reseeds(Healthy):
    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return super().reset(seed=seed or 1)


class Exits(Healthy):
    def step(self, action: Any) -> Any:
        return sys.exit(0) if self.steps == 5 else super().step(action)

    def close(self) -> None:
        sys.exit(0)


class Hangs(Healthy):
    def step(self, action: Any) -> Any:
        time.sleep(60.0 if self.steps == 5 else 0.0)
        return super().step(action)


class Unbounded(Healthy):
    action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)


def problems(env_class: type[gymnasium.Env[Any, Any]]) -> list[Finding]:
    """Return what is found, without the speed, which depends on the machine."""
    return [finding for finding in examine(env_class) if finding.level != "ok" and finding.topic != "speed"]


@pytest.mark.parametrize(
    ("env_class", "topic", "words"),
    [
        (NoSeed, "reset", "seed"),
        (OldReset, "reset", "(observation, info)"),
        (OldStep, "step", "4 values"),
        (NumberFlag, "step", "terminated=0"),
        (NoReward, "step", "reward=None"),
        (NanReward, "step", "reward=nan"),
        (NoInfo, "step", "info"),
        (Raises, "steps", "own bug"),
        (Exits, "steps", "SystemExit"),
        (Hangs, "steps", "TimeoutError"),
        (WrongShape, "spaces", "observation/place has shape (2,)"),
        (NanObservation, "spaces", "not finite"),
        (MissingPart, "spaces", "observation/image is missing"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_broken_environment_is_an_error(
    env_class: type[Healthy], topic: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if env_class is Hangs:
        monkeypatch.setattr(environment, "MAX_CALL_SECONDS", 0.1)
        monkeypatch.setattr(environment, "MAX_SECONDS", 0.1)
    errors = [finding for finding in problems(env_class) if finding.level == "error"]
    assert [finding.topic for finding in errors] == [topic]
    assert words in errors[0].message
    assert worst(errors) == "error"


@pytest.mark.parametrize(
    ("env_class", "topic", "words", "override"),
    [
        (WrongType, "spaces", "dtype float64", ""),
        (OutOfBounds, "spaces", "outside", ""),
        (GlobalNoise, "seeding", "np_random", ""),
        (NoisySteps, "determinism", "np_random", ""),
        (SameSeeds, "seeding", "all seeds", ""),
        (IgnoresActions, "actions", "change nothing", ""),
        (Endless, "episodes", "none ended", "+env.max_episode_steps=1000"),
        (TerminatesAtLimit, "episodes", "truncated=True", ""),
        (MixedEnds, "episodes", "with terminated=True after 30 steps", ""),
        (Reseeds, "seeding", "without a seed begin alike", ""),
        (LargeObservations, "observations", "reaches", "policy.normalize_observation=true"),
        (LargeRewards, "rewards", "1,600", "reward=normalized"),
        (SmallRewards, "rewards", "1e-05", "reward=normalized"),
        (Unbounded, "actions", "no bounds", ""),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_advice_is_a_note_with_an_override(env_class: type[Healthy], topic: str, words: str, override: str) -> None:
    (note,) = problems(env_class)
    assert (note.level, note.topic, note.override) == ("note", topic, override)
    assert words in note.message
    assert "\n" not in str(note)


@pytest.mark.parametrize("id", ["CartPole-v1", "Pendulum-v1", "FrozenLake-v1"])
def test_healthy_environments_have_no_problems(id: str) -> None:  # noqa: A002
    assert problems(lambda: gymnasium.make(id, disable_env_checker=True)) == []  # type: ignore[arg-type]


def test_every_topic_without_a_problem_is_shown() -> None:
    findings = examine(Healthy)
    shown = [topic for finding in findings for topic in finding.topic.split(", ")]
    passed = ["reset", "step", "spaces", "episodes", "observations", "rewards", "actions"]
    assert shown == ["seeding", "determinism", *passed, "speed", "resume"]
    assert "snapshot" in findings[-1].message
    assert "rewards" not in ", ".join(finding.topic for finding in examine(LargeRewards) if finding.level == "ok")


def test_a_time_limit_makes_episodes_end() -> None:
    assert problems(lambda: TimeLimit(Endless(), 50)) == []  # type: ignore[arg-type]


def test_parts_of_a_dict_of_actions_are_checked() -> None:
    space = spaces.Dict(
        {"turn": spaces.Box(-1, 1, (1,)), "gas": spaces.Box(0, np.inf, (1,)), "horn": spaces.Discrete(2)}
    )
    assert [finding.message.split()[0] for finding in check_action_space(space)] == ["action/gas"]
