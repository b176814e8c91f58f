"""Every example is short and runs."""

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

from torchppo.envs import make_env
from torchppo.envs.wrappers import ActionMask, random_action
from torchppo.pipelines.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples"
Train = Callable[[str, list[str]], Path]
SMALL = ["total_frames=512", "eval.episodes=1", "eval.video=false", "compile=false", "seed=1"]


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Train:
    """Runs an example as a program, sees it train, and gives its run directory."""

    def run(name: str, overrides: list[str]) -> Path:
        run_dir = tmp_path / "run"
        monkeypatch.setattr(sys, "argv", [name, *SMALL, *overrides, f"run_dir={run_dir}"])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        assert ended.value.code == 0
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
        ("own_memory", ["collector.frames_per_env=32", "update.minibatch_size=64"]),
        ("own_head", ["collector.frames_per_env=64"]),
        ("own_critic", []),
        ("own_encoder", ["collector.frames_per_env=32", "update.minibatch_size=64"]),
        ("own_estimator", ["collector.frames_per_env=32"]),
        ("masked_actions", ["collector.frames_per_env=32", "update.minibatch_size=64"]),
    ],
)
def test_trains_from_the_command_line(name: str, overrides: list[str], train: Train) -> None:
    train(name, overrides)


def test_trains_from_python() -> None:
    ppo = importlib.import_module("train_from_python").main(total_frames=512)
    assert ppo.frames == 512


def test_recorded_rollouts_are_read_again(train: Train) -> None:
    run_dir = train("own_collector", ["collector.frames_per_env=32"])
    first, second = (TensorDict.load_memmap(path) for path in sorted((run_dir / "rollouts").iterdir()))
    assert first.shape == second.shape == (8, 32)
    goes_on = ~first["next", "done"][:, -1, 0]
    torch.testing.assert_close(second["observation"][goes_on, 0], first["next", "observation"][goes_on, -1])


def test_upgoing_returns_go_on_while_actions_are_better_than_expected() -> None:
    values, following = torch.tensor([[0.0, 10.0, 0.0]] * 2), torch.tensor([[10.0, 0.0, 4.0]] * 2)
    ends = torch.tensor([[False, False, False], [False, True, False]])
    after = {"reward": torch.ones(2, 3), "state_value": following, "done": ends, "terminated": ends}
    rollout = TensorDict({"state_value": values, "next": after}, (2, 3)).apply(lambda entry: entry.unsqueeze(-1))
    estimator = importlib.import_module("own_estimator").UpgoingReturn(gamma=0.5)
    expected = torch.tensor([[6.0, 1 + 0.5 * 3, 3.0], [6.0, 1.0, 3.0]])
    estimated = estimator(rollout)
    torch.testing.assert_close(estimated["value_target"].squeeze(-1), expected)
    torch.testing.assert_close(estimated["advantage"].squeeze(-1), expected - values)


class TestMaskedActions:
    @pytest.fixture
    def env(self) -> Iterator[Any]:
        gymnasium.registry.pop("Storeroom-v0", None)
        runpy.run_path(str(EXAMPLES / "masked_actions.py"))
        yield make_env("Storeroom-v0", wrappers=[ActionMask])
        del gymnasium.registry["Storeroom-v0"]

    def test_of_the_mask_are_taken_until_no_box_waits(self, env: Any) -> None:
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

    def test_with_the_shelf_of_the_box_earn_most(self, env: Any) -> None:
        observation, _ = env.reset(seed=0)
        box = int(observation["action_mask"][:5].argmax())
        assert env.step(np.array([box, box]))[1] == 1.0

    def test_outside_of_the_mask_are_refused(self, env: Any) -> None:
        observation, _ = env.reset(seed=0)
        closed = int(observation["action_mask"][:5].argmin())
        with pytest.raises(ValueError, match=f"box {closed} does not wait"):
            env.step(np.array([closed, 0]))


def test_a_trained_policy_acts_in_a_loop_of_its_users(
    train: Train, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = train("own_policy", []) / "checkpoints" / "last.ckpt"
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["use_policy", str(checkpoint)])
    returns = []
    for _ in range(2):
        runpy.run_path(str(EXAMPLES / "use_policy.py"), run_name="__main__")
        returns.append(capsys.readouterr().out)
    assert returns[0] == returns[1]
    assert float(returns[0].split()[1]) >= 8


def test_a_policy_in_a_loop_of_its_users_sees_what_it_was_trained_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hidden = ["experiment=cartpole_positions", "total_frames=512", "collector.frames_per_env=64", "policy=lstm"]
    quick = ["update.epochs=1", "compile=false", "logger=[]", "eval.episodes=1", "eval.every_frames=null"]
    assert main(["train", *hidden, *quick, "eval.video=false", "run_dir=run"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["use_policy", "run/checkpoints/last.ckpt"])
    runpy.run_path(str(EXAMPLES / "use_policy.py"), run_name="__main__")
    assert float(capsys.readouterr().out.split()[1]) >= 8


@pytest.mark.parametrize("memory", ["memory=gru", "memory=transformer", "head=gsde"])
def test_what_a_policy_carries_goes_on_in_a_loop_of_its_users(
    memory: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["env.id=Pendulum-v1", "total_frames=64", "env.num_envs=2", "collector.frames_per_env=32"]
    quick = ["update.minibatch_size=32", "update.epochs=1", "compile=false", "logger=[]", "eval.episodes=1"]
    assert main(["train", *short, *quick, memory, "eval.video=false", "run_dir=run"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["use_policy", "run/checkpoints/last.ckpt"])
    runpy.run_path(str(EXAMPLES / "use_policy.py"), run_name="__main__")
    assert -2000 < float(capsys.readouterr().out.split()[1]) < 0
