"""The evaluation of a checkpoint: it needs only the file, is reproducible, and prints its results."""

from __future__ import annotations

import ctypes
import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from gymnasium.envs.classic_control import CartPoleEnv

from torchppo.errors import ConfigurationError
from torchppo.pipelines.build import EVALUATION_RANK
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.components.instantiate import seed_for_rank
from torchppo.pipelines.evaluate import evaluate_checkpoint
from torchppo.pipelines.saving.plain_checkpoints import load_checkpoint


class TestEval:
    def evaluate(self, capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, Any]:
        """Return what `torchppo eval --json` prints in one line."""
        assert main(["eval", "last.ckpt", "--json", *options]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        assert out.count("\n") == 1
        return json.loads(out)

    def test_prints_one_json_object(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        figures = self.evaluate(capsys, "--no-video", "--episodes", "4")
        assert (figures["env"], figures["checkpoint"], figures["video"]) == ("CartPole-v1", "last.ckpt", None)
        assert figures["eval_episodes"] == 4
        assert 1 <= figures["eval_return_mean"] <= 500
        assert figures["eval_return_std"] >= 0
        assert figures["eval_length_mean"] == figures["eval_return_mean"]
        assert list(checkpoint.parent.iterdir()) == [checkpoint]

    def test_evaluates_twenty_episodes_by_default(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert self.evaluate(capsys, "--no-video")["eval_episodes"] == 20

    def test_is_reproducible_by_the_seed_and_does_not_change_the_file(
        self, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = checkpoint.read_bytes()
        options = ("--no-video", "--episodes", "3")
        first, repeated, other_seed = (self.evaluate(capsys, *options, "--seed", seed) for seed in ("7", "7", "8"))
        assert first == repeated
        assert first != other_seed
        assert checkpoint.read_bytes() == content

    def test_agrees_with_the_evaluation_of_the_training(self, trained: Path) -> None:
        summary = json.loads((trained.parents[1] / "summary.json").read_text())
        figures = evaluate_checkpoint(trained, episodes=2, seed=seed_for_rank(3, EVALUATION_RANK), video=None)
        assert figures["eval_return_mean"] == summary["eval_return_mean"]
        assert figures["eval_return_std"] == summary["eval_return_std"]

    def test_prints_a_table_without_json(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["eval", "last.ckpt", "--no-video", "--episodes", "2"]) == 0
        out = capsys.readouterr().out
        for words in ("CartPole-v1", "last.ckpt", "return", "+-", "episodes"):
            assert words in out

    def test_records_a_video_to_the_given_path(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        figures = self.evaluate(capsys, "--episodes", "1", "--video", "videos/one.mp4")
        assert figures["video"] == "videos/one.mp4"
        assert (checkpoint.parent / "videos" / "one.mp4").read_bytes()[4:8] == b"ftyp"

    def test_changes_the_environment(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """An override of `env` replaces the value of the training; `+` adds a key."""
        options = ("--no-video", "--episodes", "3")
        figures = self.evaluate(capsys, "+env.max_episode_steps=7", *options)
        assert (figures["eval_return_mean"], figures["eval_episodes_cut"]) == (7.0, 0)
        cut = self.evaluate(capsys, "eval.max_steps=6", *options)
        assert (cut["eval_return_mean"], cut["eval_episodes_cut"]) == (6.0, 3)
        assert self.evaluate(capsys, "+eval.env.sutton_barto_reward=true", *options)["eval_return_mean"] <= 0
        assert main(["eval", "last.ckpt", "--no-video", "env.id=Gone-v0"]) == 3
        assert "Gone-v0" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("override", "words"),
        [
            ("env.gravity=5", ["env.gravity", "+env.gravity=5"]),
            ("env.num_env=5", ["env.num_envs"]),
            ("policy=mlp", ["policy=mlp", "env.key=value"]),
            ("optimizer.lr=1", ["optimizer.lr=1", "env.key=value"]),
            ("~env.id", ["env.key=value"]),
            ("env.id=a,b", ["env.key=value"]),
            ("word", ["'word'"]),
        ],
    )
    def test_rejects_other_overrides(
        self, override: str, words: list[str], checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["eval", "last.ckpt", "--no-video", override]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        for word in words:
            assert word in err

    def test_samples_actions_reproducibly(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        options = ("--no-video", "--episodes", "4")
        certain = self.evaluate(capsys, *options)
        first, repeated = (self.evaluate(capsys, "--stochastic", *options) for _ in range(2))
        assert first == repeated
        assert first != certain

    def test_shows_the_episodes_in_a_window(
        self, checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
        made: list[dict[str, Any]] = []
        spec = gymnasium.registry["CartPole-v1"]

        def make(**options: Any) -> Any:
            made.append(options)
            return Window(**options)

        class Window(CartPoleEnv):
            def render(self) -> None: ...

        monkeypatch.setattr(spec, "entry_point", make)
        figures = self.evaluate(capsys, "--render", "human", "--episodes", "2")
        assert made == [{"render_mode": "human"}]
        assert (figures["eval_episodes"], figures["video"]) == (2, None)

    @pytest.mark.parametrize(("place", "code"), [("step", 3), ("render", 0)])
    def test_a_step_or_rendering_that_does_not_return_is_ended(
        self,
        place: str,
        code: int,
        checkpoint: Path,
        capfd: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def hang(*_: Any) -> None:
            time.sleep(60)

        monkeypatch.setattr(CartPoleEnv, place, hang)
        start = time.monotonic()
        assert main(["eval", "last.ckpt", "--episodes", "1", "--video", "one.mp4", "env.step_timeout=0.2"]) == code
        assert time.monotonic() - start < 30
        assert "did not return within env.step_timeout=0.2 seconds" in capfd.readouterr().err
        assert not Path("one.mp4").exists()

    def test_prints_nothing_else_to_stdout(
        self, checkpoint: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Python code, C code and child processes of an environment print to stderr."""

        class Loud(CartPoleEnv):
            def reset(self, **options: Any) -> Any:
                print("from Python")
                ctypes.CDLL(None).puts(b"from C")
                subprocess.run(["echo", "from a child"], check=True)
                return super().reset(**options)

        monkeypatch.setattr(gymnasium.registry["CartPole-v1"], "entry_point", Loud)
        assert main(["eval", "last.ckpt", "--json", "--no-video", "--episodes", "1"]) == 0
        out, err = capfd.readouterr()
        assert json.loads(out)["eval_episodes"] == 1
        for words in ("from Python", "from C", "from a child"):
            assert words in err

    @pytest.mark.parametrize("path", ["folder", "last.ckpt/one.mp4"])
    def test_an_unwritable_path_of_the_video_is_an_input_output_error(
        self, path: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (checkpoint.parent / "folder").mkdir()
        assert main(["eval", "last.ckpt", "--video", path]) == 74
        assert re.fullmatch(r"torchppo: (Is a directory|File exists): .*\n", capsys.readouterr().err)

    @pytest.mark.parametrize("episodes", ["0", "-3"])
    def test_less_than_one_episode_is_rejected(
        self, episodes: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["eval", "last.ckpt", "--no-video", f"--episodes={episodes}"]) == 2
        err = capsys.readouterr().err
        assert f"--episodes {episodes}" in err
        assert err.count("\n") == 1

    def test_an_environment_that_no_longer_exists_is_an_environment_failure(
        self, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = load_checkpoint(checkpoint)
        content["torchppo"]["config"]["env"]["id"] = "Gone-v0"
        torch.save(content, checkpoint)
        assert main(["eval", "last.ckpt", "--no-video"]) == 3
        assert "Gone-v0" in capsys.readouterr().err


def test_needs_only_the_checkpoint(checkpoint: Path) -> None:
    assert list(checkpoint.parent.iterdir()) == [checkpoint]
    assert evaluate_checkpoint(checkpoint, episodes=1, seed=0, video=None)["eval_episodes"] == 1


def test_a_negative_seed_is_rejected(checkpoint: Path) -> None:
    with pytest.raises(ConfigurationError, match="--seed -1"):
        evaluate_checkpoint(checkpoint, episodes=1, seed=-1, video=None)


@pytest.mark.parametrize("command", ["eval last.ckpt env.id=Pendulum-v1", "train +eval.env.id=Pendulum-v1 logger=[]"])
def test_an_environment_with_other_spaces_is_refused_with_both(
    command: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert all(part in line for part in ("[3] float32", "[4] float32", "action [1] float32", "below 2"))
