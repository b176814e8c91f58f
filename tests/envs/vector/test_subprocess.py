"""Worker processes give the data of one process, and say what became of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch

from torchppo.envs import SerialVectorEnv, SubprocessVectorEnv, make, make_vector_env
from torchppo.envs.make import fastest_num_workers, make_env
from torchppo.errors import ConfigurationError, EnvironmentFailure


class Misbehaving(gymnasium.Env[np.ndarray, int]):
    """In its third step it raises, hangs or dies."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, how: str) -> None:
        self.how, self.steps = how, 0

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: int) -> tuple[np.ndarray, float, bool, bool, dict]:
        self.steps += 1
        if self.steps == 3:
            {
                "raises": self._raise,
                "exits": partial(sys.exit, "no licence"),
                "hangs": partial(time.sleep, 60),
                "dies": partial(os._exit, 7),
            }[self.how]()
        return np.zeros(2, np.float32), 0.0, False, False, {}

    def _raise(self) -> None:
        raise ValueError("a broken joint")


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def refused_in_the_third_step(vector: SubprocessVectorEnv, message: str) -> None:
    vector.reset()
    actions = np.zeros(vector.num_envs, np.int64)
    for _ in range(2):
        vector.step(actions)
    with pytest.raises(EnvironmentFailure, match=message):
        vector.step(actions)


def roll(vector: Any, steps: int = 150) -> list[np.ndarray]:
    """Everything that a seeded run with resets leaves behind."""
    generator = np.random.default_rng(0)
    seen = [vector.reset(seed=3)[0].copy()]
    for _ in range(steps):
        actions = generator.integers(0, 2, vector.num_envs)
        observation, reward, terminated, truncated, info = vector.step(actions)
        seen += [array.copy() for array in (observation, reward, terminated, truncated, info["raw_episode_reward"])]
        done = terminated | truncated
        if done.any():
            seen.append(vector.reset(options={"reset_mask": done})[0].copy())
    vector.close()
    return seen


class TestData:
    @pytest.mark.parametrize("num_workers", [1, 2, 3])
    def test_equals_that_of_one_process_bit_for_bit(self, num_workers: int) -> None:
        makers = [partial(make_env, "CartPole-v1")] * 5
        expected = roll(SerialVectorEnv(makers))
        actual = roll(SubprocessVectorEnv(makers, num_workers))
        assert len(actual) == len(expected)
        for mine, other in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(mine, other)

    def test_raw_returns_come_through_wrappers(self) -> None:
        wrapper = partial(gymnasium.wrappers.TransformReward, func=lambda reward: 100.0 * reward)
        env = make_vector_env("CartPole-v1", 2, num_workers=2, wrappers=[wrapper])
        env.reset_arrays()
        env.send(np.zeros(2, np.int64))
        arrays = env.receive()
        assert arrays.reward.tolist() == [100.0, 100.0]
        assert arrays.raw_episode_reward.tolist() == [1.0, 1.0]
        env.close()

    @pytest.mark.usefixtures("garbage_at_fork")
    def test_workers_do_not_collect_the_garbage_of_their_parent(self) -> None:
        vector = SubprocessVectorEnv([partial(make_env, "CartPole-v1")] * 2, 2)
        vector.reset(seed=0)
        vector.step(np.zeros(2, np.int64))
        vector.close()

    def test_halves_are_stepped_apart(self) -> None:
        vector = SubprocessVectorEnv([partial(make_env, "CartPole-v1")] * 4, 2)
        first, second = vector.double_buffer_groups()
        vector.reset(seed=0)
        before = vector.arrays.observation.copy()
        vector.send(np.zeros(2, np.int64), first)
        assert (vector.receive(first).observation != before[first]).any(-1).all()
        np.testing.assert_array_equal(vector.arrays.observation[second], before[second])
        vector.close()


@pytest.mark.skipif(sys.platform != "linux", reason="a process is given cores on Linux alone")
class TestCores:
    @pytest.mark.parametrize(("num_cores", "are_given"), [(1, True), (2, True), (3, False)])
    def test_are_given_to_as_many_workers_and_left_to_the_scheduler_else(
        self, num_cores: int, are_given: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        true_cores = os.sched_getaffinity
        own = sorted(true_cores(0))
        if are_given and len(own) < num_cores:
            pytest.skip("needs two cores")
        seen = [*own, *range(1000, 1003)][:num_cores]
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(seen))
        vector = SubprocessVectorEnv([partial(make_env, "CartPole-v1")] * 2, 2)
        actual = [true_cores(worker._process.pid or 0) for worker in vector._workers]
        assert actual == ([{seen[0]}, {seen[1 % num_cores]}] if are_given else [set(own)] * 2)
        vector.close()


class TestFailures:
    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ("raises", r"environments 0 to 0 failed: ValueError: a broken joint"),
            ("exits", r"environments 0 to 0 failed: SystemExit: no licence"),
            ("hangs", r"environments 0 to 0 did not answer within env.step_timeout=2 seconds"),
            ("dies", r"environments 0 to 0 died with exit code 7"),
        ],
    )
    def test_are_told_in_one_line(self, how: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
        step_timeout = 2.0 if how == "hangs" else 60.0
        vector = SubprocessVectorEnv([partial(Misbehaving, how)], 1, step_timeout=step_timeout)
        start = time.perf_counter()
        refused_in_the_third_step(vector, message)
        assert time.perf_counter() - start < 30
        assert ("Traceback" in capfd.readouterr().err) == (how in ("raises", "exits"))
        vector.close()
        assert not any(worker._process.is_alive() for worker in vector._workers)

    def test_an_environment_that_cannot_be_made_is_told_at_the_first_reset_as_in_process(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        vector = SubprocessVectorEnv([partial(make_env, "CartPole-v1"), partial(make_env, "NoSuchEnv-v0")], 2)
        vector._workers[1]._process.join(timeout=30.0)
        with pytest.raises(EnvironmentFailure, match=r"^environment 'NoSuchEnv-v0' cannot be made: .*$"):
            vector.reset(seed=0)
        assert capfd.readouterr().err == ""
        vector.close()

    def test_close_what_its_environments_have_opened(self, tmp_path: Path) -> None:
        class Opening(Misbehaving):
            def close(self) -> None:
                (tmp_path / str(os.getpid())).touch()

        vector = SubprocessVectorEnv([partial(Opening, "raises")] * 2, 2)
        refused_in_the_third_step(vector, "a broken joint")
        vector.close()
        closed = {int(path.name) for path in tmp_path.iterdir()}
        workers = {worker._process.pid for worker in vector._workers}
        assert closed > workers
        assert len(closed - workers) == 1, "that whose spaces are read"

    @pytest.mark.parametrize("num_workers", [2, "auto"])
    def test_are_not_provoked_by_an_environment_made_in_this_process(
        self, num_workers: Any, counting_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Threaded(gymnasium.Wrapper[Any, Any, Any, Any]):
            """Its thread is started once for a process, and missing in a fork of it."""

            threads: ClassVar[list[ThreadPoolExecutor]] = []

            def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
                super().__init__(env)
                if not self.threads:
                    self.threads.append(ThreadPoolExecutor(1))
                    self.threads[0].submit(int).result()

            def step(self, action: Any) -> Any:
                return self.threads[0].submit(partial(self._slow, action)).result()

            def _slow(self, action: Any) -> Any:
                time.sleep(2e-3)
                return self.env.step(action)

        monkeypatch.setattr(make, "num_cores", lambda: 2)
        env = make_vector_env(counting_id, 2, num_workers=num_workers, step_timeout=30.0, wrappers=[Threaded])
        assert isinstance(env.vector, SubprocessVectorEnv)
        env.reset_arrays()
        env.send(np.zeros(2, np.int64))
        env.receive()
        env.close()
        assert not Threaded.threads

    @pytest.mark.parametrize("num_workers", [2, "auto"])
    def test_are_not_provoked_by_threads_of_pytorch_in_this_process(
        self, num_workers: Any, counting_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Computing(gymnasium.Wrapper[Any, Any, Any, Any]):
            """Whose products are large enough for several threads."""

            def step(self, action: Any) -> Any:
                time.sleep(2e-3)
                return self.env.step(int(action + 0 * (torch.ones(300, 300) @ torch.ones(300, 300)).sum()))

        monkeypatch.setattr(make, "num_cores", lambda: 2)
        before = torch.get_num_threads()
        torch.set_num_threads(2)
        torch.ones(300, 300) @ torch.ones(300, 300)
        env = make_vector_env(counting_id, 2, num_workers=num_workers, step_timeout=30.0, wrappers=[Computing])
        torch.set_num_threads(before)
        assert isinstance(env.vector, SubprocessVectorEnv)
        env.reset_arrays()
        env.send(np.zeros(2, np.int64))
        env.receive()
        env.close()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_are_not_what_others_send_to_the_whole_group(self, number: signal.Signals) -> None:
        vector = SubprocessVectorEnv([partial(make_env, "CartPole-v1")] * 2, 2)
        vector.reset()
        for worker in vector._workers:
            os.kill(worker._process.pid or 0, number)
        vector.step(np.zeros(2, np.int64))
        vector.close()

    def test_let_an_environment_terminate_what_it_has_started(self) -> None:
        class Serving(Misbehaving):
            def step(self, action: int) -> Any:
                server = subprocess.Popen(["sleep", "600"])
                server.terminate()
                assert server.wait(timeout=30) == -signal.SIGTERM
                return np.zeros(2, np.float32), 0.0, False, False, {}

        vector = SubprocessVectorEnv([partial(Serving, "serves")], 1)
        vector.reset()
        vector.step(np.zeros(1, np.int64))
        vector.close()

    def test_of_an_owner_that_is_gone_leave_nobody_behind_even_in_a_step(self, tmp_path: Path) -> None:
        class Sleeping(Misbehaving):
            def step(self, action: int) -> Any:
                (tmp_path / "pid").write_text(str(os.getpid()))
                time.sleep(600)

        owner = os.fork()
        if not owner:
            vector = SubprocessVectorEnv([partial(Sleeping, "sleeps")], 1)
            vector.reset()
            vector.send(np.zeros(1, np.int64))
            time.sleep(600)
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        os.kill(owner, signal.SIGKILL)
        os.waitpid(owner, 0)
        worker = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
        wait_for(lambda: not worker.exists() or worker.read_text().split()[2] == "Z")

    def test_are_not_that_an_owner_ends_without_closing_them(self) -> None:
        program = (
            "from torchppo.envs import make_vector_env\n"
            "env = make_vector_env('CartPole-v1', 2, num_workers=2)\n"
            "env.reset()\n"
            "print([worker._process.pid for worker in env.vector._workers])\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
        assert done.stderr == ""
        assert not any(Path(f"/proc/{pid}").exists() for pid in json.loads(done.stdout))

    def test_are_not_made_of_spaces_with_functions_without_a_name(self) -> None:
        class Nameless(Misbehaving):
            metadata: ClassVar[dict[str, Any]] = {"mission": lambda: "go"}  # as MiniGrid's spaces have

        vector = SubprocessVectorEnv([partial(Nameless, "raises")], 1)
        assert vector.metadata["mission"]() == "go"
        vector.close()

    def test_with_many_words_are_told_at_once(self, capfd: pytest.CaptureFixture[str]) -> None:
        class Verbose(Misbehaving):
            def _raise(self) -> None:
                raise ValueError("a broken joint " * 30_000)

        vector = SubprocessVectorEnv([partial(Verbose, "raises")], 1, step_timeout=20.0)
        refused_in_the_third_step(vector, "failed: ValueError: a broken joint")
        vector.close()
        capfd.readouterr()

    @pytest.mark.parametrize("num_workers", [-1, 3, "many"])
    def test_numbers_of_workers_that_cannot_be_are_refused(self, num_workers: Any) -> None:
        with pytest.raises(ConfigurationError, match=rf"env.num_workers={num_workers}"):
            make_vector_env("CartPole-v1", 2, num_workers=num_workers)

    def test_one_worker_has_no_halves(self) -> None:
        env = make_vector_env("CartPole-v1", 2, num_workers=1)
        with pytest.raises(ConfigurationError, match="needs two workers"):
            env.double_buffer_groups()
        env.close()


class TestAuto:
    def make_slow(self, seconds: float) -> Callable[[], gymnasium.Env[Any, Any]]:
        class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
            def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
                time.sleep(seconds)
                return self.env.step(action)

        return lambda: Slow(make_env("CartPole-v1"))

    def test_slow_environments_get_a_worker_for_every_core(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        assert fastest_num_workers(self.make_slow(2e-3), 8) == 2
        assert fastest_num_workers(self.make_slow(2e-3), 1) == 0, "one environment has nothing to share out"

    def test_an_environment_that_fails_meanwhile_is_told_and_closed(
        self,
        counting_env: Callable[..., Any],
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        env = counting_env()
        env.step = lambda _: sys.exit("no licence")
        env.close = (tmp_path / "closed").touch
        with pytest.raises(EnvironmentFailure, match="an environment failed: SystemExit: no licence"):
            fastest_num_workers(lambda: env, 2)
        assert (tmp_path / "closed").exists()
        assert "SystemExit" in capfd.readouterr().err

    def test_fast_environments_stay_in_this_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
        assert fastest_num_workers(partial(make_env, "CartPole-v1"), 2) == 0

    def test_is_a_choice_of_the_configuration(self) -> None:
        env = make_vector_env("CartPole-v1", 2, num_workers="auto")
        assert env.reset_arrays().shape == (2, 4)
        env.close()
