"""Failures name the environment, its step, seed and action; with `on_failure="restart"`, it is replaced."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

from torchppo.envs import SerialVectorEnv, SubprocessVectorEnv, make_env
from torchppo.envs.guards import Watchdog, close, time_limit, watched
from torchppo.envs.vector.recovery import Restarts, restarts_for
from torchppo.errors import ConfigurationError, EnvironmentFailure


class OddError(Exception):
    """Cannot be pickled, and its text raises."""

    def __init__(self) -> None:
        self.function = lambda: 0

    def __str__(self) -> str:
        raise RuntimeError("no text")


class BaseError(BaseException):
    """Not an Exception."""


def raise_(error: BaseException) -> Any:
    raise error


class FailingEnv(gymnasium.Env[Any, Any]):
    """Observes `[episode, step]`. In step `at`, its result is passed to `change`, unless the file `once` exists."""

    observation_space = gymnasium.spaces.Box(0, 1000, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, change: Callable[[list[Any]], Any], at: int = 3, once: Path | None = None) -> None:
        self.change, self.at, self.once = change, at, once
        self.is_sound = once is not None and once.exists()
        self.episode = self.num_steps = self.total = 0
        self.seeds: list[int | None] = []

    def observe(self) -> Any:
        return np.array([self.episode, self.num_steps], np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        self.seeds.append(seed)
        self.episode, self.num_steps = self.episode + 1, 0
        if self.at < 0 and self.episode == -self.at:
            return tuple(self.changed([self.observe(), {}]))
        return self.observe(), {}

    def step(self, action: Any) -> Any:
        self.num_steps += 1
        self.total += 1
        result = [self.observe(), 1.0, False, self.num_steps == 10, {}]
        return tuple(self.changed(result) if self.total == self.at else result)

    def changed(self, result: list[Any]) -> Any:
        if self.is_sound:
            return result
        if self.once is not None:
            self.once.touch()
        return self.change(result)


def replaced(index: int, value: Any) -> Callable[[list[Any]], list[Any]]:
    return lambda result: [*result[:index], value, *result[index + 1 :]]


sound: Callable[[list[Any]], Any] = list
zeros = np.zeros(2, np.int64)


def take_steps(vector: Any, number: int) -> None:
    for _ in range(number):
        vector.step(zeros[: vector.num_envs])


class TestInvalidResults:
    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (replaced(0, np.zeros(3, np.float32)), r"shape \(3,\); expected \(2,\)"),
            (replaced(0, np.zeros(1, np.float32)), r"shape \(1,\)"),
            (replaced(0, np.zeros((1, 2), np.float32)), r"shape \(1, 2\)"),
            (replaced(0, 0.5), r"shape \(\)"),
            (replaced(0, None), "observation is None"),
            (replaced(0, "ab"), r"shape \(\)"),
            (replaced(0, np.array(["1", "2"])), "dtype <U1"),
            (replaced(0, np.array([None, 1], object)), "dtype object"),
            (replaced(0, np.array([1j, 1j])), "dtype complex128"),
            (replaced(1, None), "None as a reward"),
            (replaced(1, "1.0"), "'1.0' as a reward"),
            (replaced(1, np.ones(2)), "as a reward"),
            (replaced(1, 1j), "as a reward"),
            (replaced(2, "no"), "'no' as terminated or truncated"),
            (replaced(2, None), "None as terminated"),
            (replaced(3, [False]), r"\[False\] as terminated"),
            (replaced(3, 2), "2 as terminated"),
            (replaced(3, float("nan")), "nan as terminated"),
            (replaced(4, None), "TypeError"),
            (lambda result: result[:4], "ValueError: not enough values"),
            (lambda _: raise_(ValueError("a\nb" * 10**5)), "ValueError: a b"),
            (lambda _: raise_(OddError()), "OddError: a message that cannot be printed"),
            (lambda _: raise_(BaseError("base")), "BaseError: base"),
            (lambda _: raise_(SystemExit(0)), "SystemExit: 0"),
            (lambda _: raise_(MemoryError()), "MemoryError"),
        ],
    )
    def test_a_later_step_raises_in_one_line(
        self, change: Any, message: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        vector = SerialVectorEnv([partial(FailingEnv, sound), partial(FailingEnv, change)])
        vector.reset(seed=7)
        take_steps(vector, 2)
        with pytest.raises(EnvironmentFailure, match=message) as caught:
            vector.step(np.array([0, 1]))
        assert "environment 1 at step 3 (seed 8, action 1)" in str(caught.value)
        assert len(str(caught.value)) < 1500
        capfd.readouterr()

    @pytest.mark.parametrize(
        "change",
        [
            *(replaced(0, value) for value in ([1.0, 2.0], np.ones(2, np.int64), np.ones(2), np.ones(2, np.float16))),
            *(replaced(1, value) for value in (1, True, np.float32(1), np.array([1.0]), np.int8(1))),
            *(replaced(2, value) for value in (0, 0.0, np.bool_(0), np.array([False]), np.array(0))),
        ],
    )
    def test_values_that_can_be_converted_are_accepted(self, change: Any) -> None:
        vector = SerialVectorEnv([partial(FailingEnv, change)])
        vector.reset()
        for _ in range(3):
            _, reward, terminated, _, _ = vector.step(np.zeros(1, np.int64))
        assert (reward.tolist(), terminated.tolist()) == ([1.0], [False])

    def test_ctrl_c_and_our_signals_pass_through(self) -> None:
        class Stop(BaseException):
            """Raised by a handler of a signal."""

        Stop.__module__ = "torchppo.pipelines.distributed"
        for error in (KeyboardInterrupt(), Stop()):
            vector = SerialVectorEnv([partial(FailingEnv, lambda _, error=error: raise_(error))])
            vector.reset()
            take_steps(vector, 2)
            with pytest.raises(type(error)):
                vector.step(zeros[:1])

    def test_a_keyboard_interrupt_without_a_handler_of_python_is_the_environments(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        vector = SerialVectorEnv([partial(FailingEnv, lambda _: raise_(KeyboardInterrupt()))])
        vector.reset()
        take_steps(vector, 2)
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with pytest.raises(EnvironmentFailure, match="failed: KeyboardInterrupt"):
                vector.step(zeros[:1])
        finally:
            signal.signal(signal.SIGINT, before)
        capfd.readouterr()


class TestTimeouts:
    @pytest.mark.parametrize("hang", [partial(time.sleep, 60), lambda: [None for _ in iter(int, 1)]])
    def test_a_watchdog_raises_in_the_environment_that_hangs(
        self, hang: Any, capfd: pytest.CaptureFixture[str]
    ) -> None:
        vector = SerialVectorEnv([partial(FailingEnv, lambda _: hang())], step_timeout=0.2)
        ended: list[Any] = []
        with Watchdog(ended.append):
            vector.reset(seed=3)
            take_steps(vector, 2)
            with pytest.raises(EnvironmentFailure, match=r"^environment 0 at step 3 \(seed 3, .*step_timeout=0.2 sec"):
                vector.step(zeros[:1])
        assert not ended
        assert "line" in capfd.readouterr().err

    def test_environments_that_cannot_be_made_are_not_watched(self) -> None:
        before = {*watched}
        with pytest.raises(ZeroDivisionError) as raised:  # its traceback keeps the environments
            SerialVectorEnv([lambda: FailingEnv(sound), lambda: 1 // 0], step_timeout=0.2)
        assert raised.traceback
        assert {*watched} <= before

    def test_a_watchdog_ends_the_process_if_the_environment_catches_its_error(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        ended: list[Any] = []

        def catch(result: Any) -> Any:
            while not ended:
                with suppress(Exception):
                    time.sleep(0.1)
            return result

        vector = SerialVectorEnv([partial(FailingEnv, catch)], step_timeout=0.2)
        with Watchdog(ended.append):
            vector.reset()
            take_steps(vector, 3)
        assert "did not return" in str(ended[0])
        capfd.readouterr()

    def test_close_is_stopped_after_some_seconds(self) -> None:
        env = FailingEnv(sound)
        env.close = partial(time.sleep, 60)  # type: ignore[method-assign]
        start = time.monotonic()
        with pytest.warns(RuntimeWarning, match="failed to close: TimeoutError: no end within 0.1 seconds"):
            close(env, 0.1)
        assert time.monotonic() - start < 5

    def test_a_time_limit_restores_the_handler(self) -> None:
        before = signal.getsignal(signal.SIGALRM)
        with time_limit(10.0):
            pass
        assert signal.getsignal(signal.SIGALRM) is before
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)

    def test_a_stopped_worker_is_reported(self) -> None:
        vector = SubprocessVectorEnv([partial(FailingEnv, sound)] * 2, 2, step_timeout=1.0)
        vector.reset()
        os.kill(vector._workers[1]._process.pid or 0, signal.SIGSTOP)
        with pytest.raises(EnvironmentFailure, match=r"environments 1 to 1 did not answer within env\.step_timeout=1"):
            vector.step(zeros)
        vector.close()

    def test_a_worker_whose_environments_step_in_time_may_take_longer_together(self) -> None:
        slow = partial(FailingEnv, lambda result: [time.sleep(0.9), result][1])
        vector = SubprocessVectorEnv([slow] * 3, 1, step_timeout=1.5)
        vector.reset()
        for _ in range(3):
            vector.step(np.zeros(3, np.int64))
        vector.close()


class TestRestarts:
    @pytest.mark.parametrize(
        "change",
        [lambda _: raise_(ValueError("broken")), replaced(0, np.full(2, np.nan, np.float32)), replaced(1, np.inf)],
        ids=["raises", "observation", "reward"],
    )
    def test_the_failed_step_is_truncated_at_the_last_observation(
        self, change: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        restarts = restarts_for("restart", 5, 2)
        env_fns = [partial(FailingEnv, sound), partial(FailingEnv, change, once=tmp_path / "failed")]
        vector = SerialVectorEnv(env_fns, restarts=restarts)
        vector.reset(seed=7)
        take_steps(vector, 2)
        observation, reward, terminated, truncated, _ = vector.step(zeros)
        assert observation.tolist() == [[1, 3], [1, 2]]
        assert (reward.tolist(), terminated.tolist(), truncated.tolist()) == ([1, 0], [False] * 2, [False, True])
        assert vector.num_restarts is not None
        assert vector.num_restarts.tolist() == [0, 1]
        vector.reset(options={"reset_mask": truncated.copy()})
        seeds = vector.envs[1].unwrapped.seeds  # type: ignore[attr-defined]
        assert len(seeds) == 1
        assert seeds[0] not in (None, 8)
        assert vector.step(zeros)[0].tolist() == [[1, 4], [1, 1]]
        assert "restart 1 of at most 5" in caplog.text
        capfd.readouterr()

    def test_a_failed_reset_is_repeated(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        fail = partial(FailingEnv, lambda _: raise_(ValueError("broken")), at=-1, once=tmp_path / "failed")
        vector = SerialVectorEnv([fail, fail], restarts=Restarts(3, 2))
        assert vector.reset(seed=1)[0].tolist() == [[1, 0], [1, 0]]
        assert vector.step(zeros)[3].tolist() == [False, False]
        capfd.readouterr()

    @pytest.mark.parametrize("num_workers", [0, 1])
    def test_the_failure_after_the_limit_is_raised(self, num_workers: int, capfd: pytest.CaptureFixture[str]) -> None:
        make = partial(FailingEnv, lambda _: raise_(ValueError("broken")), at=1)
        env = make_env(make, 1, num_workers=num_workers, on_failure="restart", max_restarts=2)
        env.reset_arrays()
        for _ in range(2):
            env.send(zeros[:1])
            assert env.receive().truncated.all()
            env.reset_arrays(np.ones(1, np.bool_))
        with pytest.raises(EnvironmentFailure, match=r"broken.*env\.max_restarts=2"):
            env.step(env.rand_action(env.fake_tensordict()))
        env.close()
        capfd.readouterr()

    def test_a_dead_worker_is_replaced_and_completed_steps_are_kept(self, tmp_path: Path) -> None:
        die = partial(FailingEnv, lambda _: os._exit(3), once=tmp_path / "failed")
        vector = SubprocessVectorEnv([partial(FailingEnv, sound), die], 1, on_failure="restart")
        vector.reset(seed=7)
        take_steps(vector, 2)
        observation, reward, _, truncated, _ = vector.step(zeros)
        assert observation.tolist() == [[1, 3], [1, 2]]
        assert (reward.tolist(), truncated.tolist()) == ([1, 0], [True, True])
        assert vector.num_restarts is not None
        assert vector.num_restarts.tolist() == [1, 1]
        assert vector.reset(options={"reset_mask": truncated.copy()})[0].tolist() == [[1, 0], [1, 0]]
        assert vector.step(zeros)[0].tolist() == [[1, 1], [1, 1]]
        vector.close()

    def test_a_worker_that_dies_in_a_reset_truncates_the_other_episodes_in_the_next_step(self, tmp_path: Path) -> None:
        die = partial(FailingEnv, lambda _: os._exit(3), at=-2, once=tmp_path / "failed")
        vector = SubprocessVectorEnv([partial(FailingEnv, sound), die], 1, on_failure="restart")
        vector.reset(seed=7)
        take_steps(vector, 2)
        observation, _ = vector.reset(options={"reset_mask": np.array([False, True])})
        assert observation.tolist() == [[1, 2], [1, 0]]
        observation, reward, _, truncated, _ = vector.step(zeros)
        assert observation.tolist() == [[1, 2], [1, 1]]
        assert (reward.tolist(), truncated.tolist()) == ([0, 1], [True, False])
        vector.reset(options={"reset_mask": truncated.copy()})
        assert vector.step(zeros)[0].tolist() == [[2, 1], [1, 2]]
        vector.close()

    @pytest.mark.parametrize("resume_class", ["snapshot", "replay"])
    def test_environments_of_a_replaced_worker_continue_their_episodes(self, resume_class: str, tmp_path: Path) -> None:
        die = partial(FailingEnv, lambda _: os._exit(3), once=tmp_path / "failed")
        vector = SubprocessVectorEnv([die], 1, on_failure="restart")
        vector.set_resume_class(resume_class)
        vector.reset(seed=7)
        take_steps(vector, 3)
        vector.reset()
        take_steps(vector, 2)
        resumed = SubprocessVectorEnv([die], 1)
        resumed.set_resume_class(resume_class)
        resumed.load_env_states(vector.env_states())
        assert resumed.step(zeros[:1])[0].tolist() == [[1, 3]]
        vector.close()
        resumed.close()

    def test_stepping_goes_on_after_ten_kills(self) -> None:
        env = make_env("CartPole-v1", 4, num_workers=2, on_failure="restart")
        generator = random.Random(0)
        env.set_seed(0)
        env.reset_arrays()
        for step in range(50):
            if step % 5 == 0:
                os.kill(generator.choice(env.vector._workers)._process.pid, signal.SIGKILL)
            env.send(np.zeros(4, np.int64))
            arrays = env.receive()
            assert np.isfinite(arrays.observation).all()
            if (done := arrays.terminated | arrays.truncated).any():
                env.reset_arrays(done.copy())
        assert env.vector._restarts._num_failures[0] == 10
        env.close()

    def test_other_values_are_refused(self) -> None:
        with pytest.raises(ConfigurationError, match=r"env\.on_failure=ignore .*raise or restart"):
            make_env("CartPole-v1", 1, on_failure="ignore")  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match=r"env\.max_restarts=0"):
            make_env("CartPole-v1", 1, on_failure="restart", max_restarts=0)
