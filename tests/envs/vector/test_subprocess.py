"""Worker processes return the data of one process, and their failures are one-line errors."""

from __future__ import annotations

import json
import os
import random
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

from torchppo.envs import SerialVectorEnv, SubprocessVectorEnv, make_env
from torchppo.envs.make import make_gymnasium_env
from torchppo.envs.vector import num_workers as num_workers_of_cores
from torchppo.errors import EnvironmentFailure


class FailingEnv(gymnasium.Env[np.ndarray, int]):
    """Raises, exits, hangs or dies in its third step."""

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


def assert_third_step_raises(vector: SubprocessVectorEnv, message: str) -> None:
    vector.reset()
    actions = np.zeros(vector.num_envs, np.int64)
    for _ in range(2):
        vector.step(actions)
    with pytest.raises(EnvironmentFailure, match=message):
        vector.step(actions)


def rollout(vector: Any, steps: int = 150) -> list[np.ndarray]:
    """All data of a seeded run with resets."""
    generator = np.random.default_rng(0)
    data = [vector.reset(seed=3)[0].copy()]
    for _ in range(steps):
        actions = generator.integers(0, 2, vector.num_envs)
        observation, reward, terminated, truncated, info = vector.step(actions)
        data += [array.copy() for array in (observation, reward, terminated, truncated, info["raw_episode_reward"])]
        done = terminated | truncated
        if done.any():
            data.append(vector.reset(options={"reset_mask": done})[0].copy())
    vector.close()
    return data


class TestData:
    @pytest.mark.parametrize("num_workers", [1, 2, 3])
    def test_the_data_equal_those_of_one_process_bit_for_bit(self, num_workers: int) -> None:
        env_fns = [partial(make_gymnasium_env, "CartPole-v1")] * 5
        expected = rollout(SerialVectorEnv(env_fns))
        actual = rollout(SubprocessVectorEnv(env_fns, num_workers))
        assert len(actual) == len(expected)
        for array, expected_array in zip(actual, expected, strict=True):
            np.testing.assert_array_equal(array, expected_array)

    def test_raw_episode_rewards_do_not_depend_on_wrappers(self) -> None:
        wrapper = partial(gymnasium.wrappers.TransformReward, func=lambda reward: 100.0 * reward)
        env = make_env("CartPole-v1", 2, num_workers=2, wrappers=[wrapper])
        env.reset_arrays()
        env.send(np.zeros(2, np.int64))
        arrays = env.receive()
        assert arrays.reward.tolist() == [100.0, 100.0]
        assert arrays.raw_episode_reward.tolist() == [1.0, 1.0]
        env.close()

    def test_workers_have_other_global_random_numbers_that_the_seed_determines(self) -> None:
        class RandomEnv(FailingEnv):
            """Observes numbers of the global random generators."""

            observation_space = gymnasium.spaces.Box(0.0, 1.0, (3,), np.float32)

            def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
                return np.array([random.random(), np.random.random(), torch.rand(()).item()], np.float32), {}

        def first_observations(seed: int) -> np.ndarray:
            np.random.seed(seed)
            torch.manual_seed(seed)
            vector = SubprocessVectorEnv([partial(RandomEnv, "raises")] * 2, 2)
            observation = vector.reset()[0].copy()
            vector.close()
            return observation

        first, other = first_observations(0), first_observations(1)
        np.testing.assert_array_equal(first, first_observations(0))
        assert len(np.unique([*first, *other])) == 12

    @pytest.mark.usefixtures("garbage_at_fork")
    def test_workers_do_not_collect_the_garbage_of_their_parent(self) -> None:
        vector = SubprocessVectorEnv([partial(make_gymnasium_env, "CartPole-v1")] * 2, 2)
        vector.reset(seed=0)
        vector.step(np.zeros(2, np.int64))
        vector.close()


@pytest.mark.skipif(sys.platform != "linux", reason="cores are assigned on Linux only")
class TestCores:
    @pytest.mark.parametrize(("num_cores", "is_pinned"), [(1, True), (2, True), (3, False)])
    def test_workers_are_pinned_if_there_are_no_more_cores_than_workers(
        self, num_cores: int, is_pinned: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        true_cores = os.sched_getaffinity
        available = sorted(true_cores(0))
        if is_pinned and len(available) < num_cores:
            pytest.skip("needs two cores")
        cores = [*available, *range(1000, 1003)][:num_cores]
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))
        vector = SubprocessVectorEnv([partial(make_gymnasium_env, "CartPole-v1")] * 2, 2)
        actual = [true_cores(worker._process.pid or 0) for worker in vector._workers]
        assert actual == ([{cores[0]}, {cores[1 % num_cores]}] if is_pinned else [set(available)] * 2)
        vector.close()


class TestFailures:
    @pytest.mark.parametrize(
        ("how", "message"),
        [
            ("raises", r"environment 0 at step 3 .*action 0.* failed: ValueError: a broken joint"),
            ("exits", r"environment 0 at step 3 .*action 0.* failed: SystemExit: no licence"),
            ("hangs", r"environment 0 at step 3 .*action 0.* env\.step_timeout=2"),
            ("dies", r"environment 0 at step 3 .*action 0.* died with exit code 7"),
        ],
    )
    def test_a_failure_in_a_step_is_one_line(self, how: str, message: str, capfd: pytest.CaptureFixture[str]) -> None:
        step_timeout = 2.0 if how == "hangs" else 60.0
        vector = SubprocessVectorEnv([partial(FailingEnv, how)], 1, step_timeout=step_timeout)
        start = time.perf_counter()
        assert_third_step_raises(vector, message)
        assert time.perf_counter() - start < 30
        assert ("Traceback" in capfd.readouterr().err) == (how in ("raises", "exits"))
        vector.close()
        assert not any(worker._process.is_alive() for worker in vector._workers)

    def test_an_environment_that_cannot_be_made_raises_at_the_first_reset(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        vector = SubprocessVectorEnv(
            [partial(make_gymnasium_env, "CartPole-v1"), partial(make_gymnasium_env, "NoSuchEnv-v0")], 2
        )
        vector._workers[1]._process.join(timeout=30.0)
        with pytest.raises(EnvironmentFailure, match=r"^environment 'NoSuchEnv-v0' cannot be made: .*$"):
            vector.reset(seed=0)
        assert capfd.readouterr().err == ""
        vector.close()

    def test_a_failure_closes_all_environments(self, tmp_path: Path) -> None:
        class ClosingEnv(FailingEnv):
            def close(self) -> None:
                (tmp_path / str(os.getpid())).touch()

        vector = SubprocessVectorEnv([partial(ClosingEnv, "raises")] * 2, 2)
        assert_third_step_raises(vector, "a broken joint")
        vector.close()
        closed = {int(path.name) for path in tmp_path.iterdir()}
        workers = {worker._process.pid for worker in vector._workers}
        assert closed > workers
        assert len(closed - workers) == 1, "the process that reads the spaces"

    @pytest.mark.parametrize("num_workers", [2, "auto"])
    def test_environments_that_start_threads_work_in_workers(
        self, num_workers: Any, counting_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class ThreadWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
            """Starts a thread once per process, which a fork of the process does not have."""

            threads: ClassVar[list[ThreadPoolExecutor]] = []

            def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
                super().__init__(env)
                if not self.threads:
                    self.threads.append(ThreadPoolExecutor(1))
                    self.threads[0].submit(int).result()

            def step(self, action: Any) -> Any:
                return self.threads[0].submit(partial(self._slow_step, action)).result()

            def _slow_step(self, action: Any) -> Any:
                time.sleep(2e-3)
                return self.env.step(action)

        monkeypatch.setattr(num_workers_of_cores, "num_cores", lambda: 2)
        env = make_env(counting_id, 2, num_workers=num_workers, step_timeout=30.0, wrappers=[ThreadWrapper])
        assert isinstance(env.vector, SubprocessVectorEnv)
        env.reset_arrays()
        env.send(np.zeros(2, np.int64))
        env.receive()
        env.close()
        assert not ThreadWrapper.threads

    @pytest.mark.parametrize("num_workers", [2, "auto"])
    def test_pytorch_operations_work_in_workers_after_pytorch_used_threads(
        self, num_workers: Any, counting_id: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class MatmulWrapper(gymnasium.Wrapper[Any, Any, Any, Any]):
            """Multiplies matrices that are large enough for several threads."""

            def step(self, action: Any) -> Any:
                time.sleep(2e-3)
                return self.env.step(int(action + 0 * (torch.ones(300, 300) @ torch.ones(300, 300)).sum()))

        monkeypatch.setattr(num_workers_of_cores, "num_cores", lambda: 2)
        torch.set_num_threads(2)
        torch.ones(300, 300) @ torch.ones(300, 300)
        env = make_env(counting_id, 2, num_workers=num_workers, step_timeout=30.0, wrappers=[MatmulWrapper])
        torch.set_num_threads(1)
        assert isinstance(env.vector, SubprocessVectorEnv)
        env.reset_arrays()
        env.send(np.zeros(2, np.int64))
        env.receive()
        env.close()

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_workers_ignore_signals_to_the_process_group(self, number: signal.Signals) -> None:
        vector = SubprocessVectorEnv([partial(make_gymnasium_env, "CartPole-v1")] * 2, 2)
        vector.reset()
        for worker in vector._workers:
            os.kill(worker._process.pid or 0, number)
        vector.step(np.zeros(2, np.int64))
        vector.close()

    def test_an_environment_can_terminate_its_child_process(self) -> None:
        class ChildProcessEnv(FailingEnv):
            def step(self, action: int) -> Any:
                server = subprocess.Popen(["sleep", "600"])
                server.terminate()
                assert server.wait(timeout=30) == -signal.SIGTERM
                return np.zeros(2, np.float32), 0.0, False, False, {}

        vector = SubprocessVectorEnv([partial(ChildProcessEnv, "serves")], 1)
        vector.reset()
        vector.step(np.zeros(1, np.int64))
        vector.close()

    def test_a_worker_ends_after_its_parent_even_during_a_step(self, tmp_path: Path) -> None:
        class SleepingEnv(FailingEnv):
            def step(self, action: int) -> Any:
                (tmp_path / "pid").write_text(str(os.getpid()))
                time.sleep(600)

        parent = os.fork()
        if not parent:
            vector = SubprocessVectorEnv([partial(SleepingEnv, "sleeps")], 1)
            vector.reset()
            vector.send(np.zeros(1, np.int64))
            time.sleep(600)
        wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
        os.kill(parent, signal.SIGKILL)
        os.waitpid(parent, 0)
        worker = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
        wait_for(lambda: not worker.exists() or worker.read_text().split()[2] == "Z")

    def test_a_parent_that_exits_without_close_ends_its_workers(self) -> None:
        program = (
            "from torchppo.envs import make_env\n"
            "env = make_env('CartPole-v1', 2, num_workers=2)\n"
            "env.reset()\n"
            "print([worker._process.pid for worker in env.vector._workers])\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
        assert done.stderr == ""
        assert not any(Path(f"/proc/{pid}").exists() for pid in json.loads(done.stdout))

    def test_the_metadata_of_an_environment_may_hold_a_lambda(self) -> None:
        class LambdaEnv(FailingEnv):
            metadata: ClassVar[dict[str, Any]] = {"mission": lambda: "go"}  # as in the spaces of MiniGrid

        vector = SubprocessVectorEnv([partial(LambdaEnv, "raises")], 1)
        assert vector.metadata["mission"]() == "go"
        vector.close()

    def test_a_long_message_does_not_block_the_worker(self, capfd: pytest.CaptureFixture[str]) -> None:
        class VerboseEnv(FailingEnv):
            def _raise(self) -> None:
                raise ValueError("a broken joint " * 30_000)

        vector = SubprocessVectorEnv([partial(VerboseEnv, "raises")], 1, step_timeout=20.0)
        assert_third_step_raises(vector, "failed: ValueError: a broken joint")
        vector.close()
        capfd.readouterr()
