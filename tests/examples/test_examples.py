"""Every example has at most 60 lines and runs."""

from __future__ import annotations

import importlib
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from tensordict import TensorDict

from torchppo.envs import make_gymnasium_env
from torchppo.envs.wrappers import ActionMask, random_action

EXAMPLES = Path(__file__).parents[2] / "examples"
Train = Callable[[str, list[str]], Path]
SMALL = ["total_frames=512", "update.epochs=2", "eval.episodes=1", "eval.video=false", "compile=false", "seed=1"]


@pytest.fixture(autouse=True)
def _run_in_tmp_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """A function that runs an example as a program, checks that it trains, and returns its run directory."""

    def run(name: str, overrides: list[str]) -> Path:
        run_dir = tmp_path / "run"
        monkeypatch.setattr(sys, "argv", [name, *SMALL, *overrides, f"run_dir={run_dir}"])
        with pytest.raises(SystemExit) as exited:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert exited.value.code == 0
        assert (run_dir / "summary.json").is_file()
        return run_dir

    return run


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_has_at_most_60_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 60


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("own_policy", []),
        ("own_environment", ["collector.frames_per_env=32", "update.minibatch_size=64"]),
        ("own_objective", []),
        ("own_controller", []),
        ("own_memory", ["collector.frames_per_env=32", "update.minibatch_size=64"]),
        ("own_head", ["collector.frames_per_env=64"]),
        ("own_critic", []),
        ("own_encoder", ["collector.frames_per_env=32", "update.minibatch_size=64"]),
        ("own_estimator", ["collector.frames_per_env=32"]),
        ("own_reward_model", ["collector.frames_per_env=32", "update.minibatch_size=64"]),
        ("masked_actions", ["collector.frames_per_env=32", "update.minibatch_size=64"]),
    ],
)
def test_trains_from_the_command_line(name: str, overrides: list[str], train: Train) -> None:
    train(name, overrides)


def test_the_curriculum_doubles_the_distance_in_workers(train: Train, capsys: pytest.CaptureFixture[str]) -> None:
    run_dir = train("curriculum", ["env.num_workers=2", "collector.frames_per_env=32", "update.minibatch_size=64"])
    assert "distance 4\n" in capsys.readouterr().out
    assert "rollout/success_rate" in (run_dir / "metrics.csv").read_text()


def test_trains_from_python() -> None:
    ppo = importlib.import_module("train_from_python").main(total_frames=512)
    assert ppo.frames == 512


def test_saved_rollouts_can_be_loaded_and_continue_each_other(train: Train) -> None:
    run_dir = train("own_collector", ["collector.frames_per_env=32"])
    first, second = (TensorDict.load_memmap(path) for path in sorted((run_dir / "rollouts").iterdir()))
    assert first.shape == second.shape == (8, 32)
    continues = ~first["next", "done"][:, -1, 0]
    torch.testing.assert_close(second["observation"][continues, 0], first["next", "observation"][continues, -1])


def test_upgoing_returns_follow_the_rewards_while_actions_are_better_than_expected() -> None:
    values, next_values = torch.tensor([[0.0, 10.0, 0.0]] * 2), torch.tensor([[10.0, 0.0, 4.0]] * 2)
    done = torch.tensor([[False, False, False], [False, True, False]])
    next_td = {"reward": torch.ones(2, 3), "state_value": next_values, "done": done, "terminated": done}
    rollout = TensorDict({"state_value": values, "next": next_td}, (2, 3)).apply(lambda entry: entry.unsqueeze(-1))
    estimator = importlib.import_module("own_estimator").UpgoingReturn(gamma=0.5)
    expected = torch.tensor([[6.0, 1 + 0.5 * 3, 3.0], [6.0, 1.0, 3.0]])
    result = estimator(rollout)
    torch.testing.assert_close(result["value_target"].squeeze(-1), expected)
    torch.testing.assert_close(result["advantage"].squeeze(-1), expected - values)


class TestMaskedActions:
    @pytest.fixture
    def env(self) -> Iterator[Any]:
        gymnasium.registry.pop("Storeroom-v0", None)
        runpy.run_path(str(EXAMPLES / "masked_actions.py"))
        yield make_gymnasium_env("Storeroom-v0", wrappers=[ActionMask])
        del gymnasium.registry["Storeroom-v0"]

    def test_episode_of_valid_actions_ends_when_no_box_waits(self, env: Any) -> None:
        env.action_space.seed(0)
        for episode in range(20):
            observation, info = env.reset(seed=episode)
            rewards: list[float] = []
            terminated = False
            while not terminated:
                assert env.observation_space.contains(observation)
                assert observation["action_mask"].tolist() == observation["observation"].tolist()
                observation, reward, terminated, _, info = env.step(random_action(env.action_space, info))
                rewards.append(reward)
            assert len(rewards) == 3
            assert all(0 < reward <= 1 for reward in rewards)

    def test_shelf_with_the_number_of_the_box_has_the_highest_reward(self, env: Any) -> None:
        observation, _ = env.reset(seed=0)
        box = int(observation["action_mask"][:5].argmax())
        assert env.step(np.array([box, box]))[1] == 1.0

    def test_invalid_action_raises(self, env: Any) -> None:
        observation, _ = env.reset(seed=0)
        box = int(observation["action_mask"][:5].argmin())
        with pytest.raises(ValueError, match=f"box={box}"):
            env.step(np.array([box, 0]))


class TestUsePolicy:
    def returns(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> list[str]:
        """Run `use_policy.py` on a checkpoint and return the line that it prints."""
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["use_policy", str(checkpoint), "own_policy"])
        runpy.run_path(str(EXAMPLES / "use_policy.py"), run_name="__main__")
        return capsys.readouterr().out.splitlines()

    @pytest.mark.parametrize("memory", ["none", "gru"])
    def test_is_deterministic(
        self, memory: str, train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        short = ["collector.frames_per_env=32", "update.minibatch_size=64", f"memory={memory}"]
        checkpoint = train("own_policy", short) / "checkpoints" / "last.ckpt"
        first = self.returns(checkpoint, monkeypatch, capsys)
        assert first == self.returns(checkpoint, monkeypatch, capsys)
        assert [float(line.removeprefix("return ")) >= 8 for line in first] == [True]


@pytest.mark.filterwarnings("ignore:The env passed to Collector is missing transforms:FutureWarning")
@pytest.mark.parametrize("torchrl_only", [False, True], ids=["torchppo", "torchrl"])
def test_torchrl_script_runs_with_either_library(torchrl_only: bool) -> None:
    num_threads = torch.get_num_threads()
    script = importlib.import_module("torchrl_script")
    assert 8 <= script.main(torchrl_only=torchrl_only, total_frames=1024) < 100
    torch.set_num_threads(num_threads)
