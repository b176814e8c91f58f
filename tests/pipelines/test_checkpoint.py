"""A checkpoint is all that is needed, and a file that is none is told apart without being believed."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

from torchppo.errors import CheckpointError
from torchppo.pipelines.build import EVALUATION_RANK, seed_for_rank
from torchppo.pipelines.checkpoint import load_checkpoint, restore
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.evaluate import evaluate_checkpoint

TRAINING = (
    *("experiment=cartpole", "total_frames=512", "collector.frames_per_env=32", "update.epochs=2", "seed=3"),
    *("eval.episodes=2", "eval.video=false", "compile=false", "trainer.accelerator=cpu", "logger=[csv]"),
    *("policy.normalize_observation=true", "policy.body.num_cells=[8]", "reward=normalized"),
)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Networks this small take ten times as long with more."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a training that normalises observations; not to be written to."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    with redirect_stdout(io.StringIO()):
        assert main(["train", *TRAINING, f"run_dir={run_dir}"]) == 0
    return run_dir / "checkpoints" / "last.ckpt"


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of one's own, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(trained, tmp_path / "last.ckpt"))


def change(path: Path, **entries: Any) -> None:
    """Replace entries of a checkpoint."""
    torch.save({**torch.load(path, weights_only=True), **entries}, path)


class Malicious:
    """What runs code when a pickle is trusted."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("hacked",)


def text(path: Path) -> None:
    path.write_text("frames,return\n1,2\n")


def nothing(path: Path) -> None:
    path.write_bytes(b"")


def absence(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def zip_of_something_else(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"0" * 1000)


def weights_of_something_else(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)


def a_tensor(path: Path) -> None:
    torch.save(torch.zeros(3), path)


def code(path: Path) -> None:
    torch.save({"torchppo": Malicious()}, path)


def flip(path: Path, position: int) -> None:
    """Change one bit so that a byte of text is no text any more."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x80
    path.write_bytes(content)


def flip_in_the_weights(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size * ("/data/" in entry.filename))
        weights = archive.read(largest)
    flip(path, path.read_bytes().index(weights) + 4)


def flip_in_the_pickle(path: Path) -> None:
    flip(path, 500)


def flip_in_a_name(path: Path) -> None:
    flip(path, 30 + 2)


def flip_in_the_directory(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        flip(path, archive.start_dir + 46 + 2)


def flip_in_the_end(path: Path) -> None:
    flip(path, path.stat().st_size - 22)


def other_weights(path: Path) -> None:
    state = torch.load(path, weights_only=True)["state_dict"]
    change(path, state_dict={name: value for name, value in state.items() if "critic" not in name})


def no_configuration(path: Path) -> None:
    change(path, torchppo={"config": {}})


DAMAGES = [
    *(absence, folder, nothing, text, half, zip_of_something_else, weights_of_something_else, a_tensor, code),
    *(flip_in_the_weights, flip_in_the_pickle, flip_in_a_name, flip_in_the_directory, flip_in_the_end),
    *(other_weights, no_configuration),
]


class TestDamage:
    @pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
    def test_is_told_in_one_line_that_names_the_file(
        self, damage: Callable[[Path], None], checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        damage(checkpoint)
        assert main(["eval", "last.ckpt", "--episodes", "1"]) == 5
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("torchppo: last.ckpt ")
        assert err.count("\n") == 1
        assert {path.name for path in checkpoint.parent.iterdir()} <= {"last.ckpt"}

    def test_of_any_bit_is_never_a_traceback(self, checkpoint: Path) -> None:
        """Some bits lie between the entries and mean nothing; what is loaded then is what was saved."""
        content = checkpoint.read_bytes()
        saved = load_checkpoint(checkpoint)["state_dict"]
        with zipfile.ZipFile(checkpoint) as archive:
            end = archive.start_dir
        refused = 0
        for position in (*range(0, end, end // 100), *range(end, len(content), 11)):
            flip(checkpoint, position)
            try:
                loaded = load_checkpoint(checkpoint)["state_dict"]
            except CheckpointError:
                refused += 1
            else:
                assert all(torch.equal(loaded[name], saved[name]) for name in saved)
            checkpoint.write_bytes(content)
        assert refused > 100

    def test_that_cannot_be_read_is_a_failure_of_input_and_output(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def refuse(file: Any, *arguments: Any, **keywords: Any) -> Any:
            if str(file) == "last.ckpt":
                raise PermissionError(13, "Permission denied", file)
            return plain_open(file, *arguments, **keywords)

        plain_open = io.open
        monkeypatch.setattr("io.open", refuse)
        monkeypatch.setattr("builtins.open", refuse)
        assert main(["eval", "last.ckpt"]) == 74
        assert capsys.readouterr().err == "torchppo: Permission denied: last.ckpt\n"


class TestRestore:
    def test_gives_the_trained_weights_and_statistics(self, checkpoint: Path) -> None:
        saved = load_checkpoint(checkpoint)["state_dict"]
        ppo, cfg, env = restore(checkpoint, seed=0, num_envs=2)
        assert set(ppo.state_dict()) == set(saved)
        assert all(torch.equal(value, saved[name]) for name, value in ppo.state_dict().items())
        assert {value.item() for name, value in saved.items() if name.endswith("moments.count")} == {512}
        assert (cfg.seed, env.batch_size) == (3, (2,))

    def test_needs_nothing_but_the_file(self, checkpoint: Path) -> None:
        assert list(checkpoint.parent.iterdir()) == [checkpoint]
        assert evaluate_checkpoint(checkpoint, episodes=1, seed=0, video=None)["eval_episodes"] == 1

    def test_knows_the_folder_that_it_was_trained_in(self, trained: Path) -> None:
        folders = load_checkpoint(trained)["torchppo"]["config"]["code_dirs"]
        assert [Path(folder).is_dir() for folder in folders] == [True]

    def test_finds_parts_of_ones_own_again(
        self, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path_factory.mktemp("own")
        (folder / "own_bodies.py").write_text("from torchppo.modules.features.bodies import mlp\n")
        state = load_checkpoint(checkpoint)["torchppo"]
        state["config"]["policy"]["body"]["_target_"] = "own_bodies.mlp"
        state["config"]["code_dirs"] = [str(folder)]
        change(checkpoint, torchppo=state)
        monkeypatch.setattr(sys, "path", [*sys.path])
        assert evaluate_checkpoint(checkpoint, episodes=1, seed=0, video=None)["eval_episodes"] == 1


class TestEval:
    def evaluate(self, capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
        """What `torchppo eval --json` prints, which is one line."""
        assert main(["eval", "last.ckpt", "--json", *words]) == 0
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

    def test_plays_twenty_episodes_unless_told_otherwise(
        self, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.evaluate(capsys, "--no-video")["eval_episodes"] == 20

    def test_finds_the_same_twice_and_leaves_the_file_alone(
        self, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        content = checkpoint.read_bytes()
        words = ("--no-video", "--episodes", "3")
        first, again, other = (self.evaluate(capsys, *words, "--seed", seed) for seed in ("7", "7", "8"))
        assert first == again
        assert first != other
        assert checkpoint.read_bytes() == content

    def test_finds_what_the_training_found(self, trained: Path) -> None:
        """The training's own evaluation, if it is given the same seed."""
        found = json.loads((trained.parents[1] / "summary.json").read_text())
        figures = evaluate_checkpoint(trained, episodes=2, seed=seed_for_rank(3, EVALUATION_RANK), video=None)
        assert figures["eval_return_mean"] == found["eval_return_mean"]
        assert figures["eval_return_std"] == found["eval_return_std"]

    def test_shows_a_table_to_people(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["eval", "last.ckpt", "--no-video", "--episodes", "2"]) == 0
        out = capsys.readouterr().out
        for words in ("CartPole-v1", "last.ckpt", "return", "+-", "episodes"):
            assert words in out

    def test_films_where_it_is_told_to(self, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
        figures = self.evaluate(capsys, "--episodes", "1", "--video", "films/one.mp4")
        assert figures["video"] == "films/one.mp4"
        assert (checkpoint.parent / "films" / "one.mp4").read_bytes()[4:8] == b"ftyp"

    @pytest.mark.parametrize("path", ["folder", "last.ckpt/one.mp4"])
    def test_says_so_where_no_film_can_be_written(
        self, path: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (checkpoint.parent / "folder").mkdir()
        assert main(["eval", "last.ckpt", "--video", path]) == 74
        assert re.fullmatch(r"torchppo: (Is a directory|File exists): .*\n", capsys.readouterr().err)

    @pytest.mark.parametrize("episodes", ["0", "-3"])
    def test_refuses_to_play_no_episode(
        self, episodes: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["eval", "last.ckpt", "--no-video", f"--episodes={episodes}"]) == 2
        err = capsys.readouterr().err
        assert f"--episodes {episodes}" in err
        assert err.count("\n") == 1

    def test_of_an_environment_that_is_gone_is_a_failure_of_the_environment(
        self, checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        state = load_checkpoint(checkpoint)["torchppo"]
        state["config"]["env"]["id"] = "Gone-v0"
        change(checkpoint, torchppo=state)
        assert main(["eval", "last.ckpt", "--no-video"]) == 3
        assert "Gone-v0" in capsys.readouterr().err
