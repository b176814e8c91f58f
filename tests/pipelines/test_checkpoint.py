"""A checkpoint restores a trained policy, and every other file is rejected without running code from it."""

from __future__ import annotations

import io
import os
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torchppo.errors import CheckpointError
from torchppo.pipelines.checkpoint import restore
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.saving.plain_checkpoints import load_checkpoint


def replace_entries(path: Path, **entries: Any) -> None:
    """Replace entries of a checkpoint."""
    torch.save({**torch.load(path, weights_only=True), **entries}, path)


class Malicious:
    """An object whose unpickling runs code."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("created_by_pickle",)


def text_file(path: Path) -> None:
    path.write_text("frames,return\n1,2\n")


def empty_file(path: Path) -> None:
    path.write_bytes(b"")


def missing_file(path: Path) -> None:
    path.unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def first_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("photo.jpg", b"0" * 1000)


def other_state_dict(path: Path) -> None:
    torch.save({"state_dict": {"weight": torch.zeros(3)}}, path)


def tensor(path: Path) -> None:
    torch.save(torch.zeros(3), path)


def code_in_pickle(path: Path) -> None:
    torch.save({"torchppo": Malicious()}, path)


def flip_bit(path: Path, position: int) -> None:
    """Flip the highest bit of a byte, which makes a character of text invalid."""
    content = bytearray(path.read_bytes())
    content[position] ^= 0x80
    path.write_bytes(content)


def flipped_bit_in_weights(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        largest = max(archive.infolist(), key=lambda entry: entry.file_size * ("/data/" in entry.filename))
        weights = archive.read(largest)
    flip_bit(path, path.read_bytes().index(weights) + 4)


def flipped_bit_in_pickle(path: Path) -> None:
    flip_bit(path, 500)


def flipped_bit_in_file_name(path: Path) -> None:
    flip_bit(path, 30 + 2)


def flipped_bit_in_zip_directory(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        flip_bit(path, archive.start_dir + 46 + 2)


def flipped_bit_in_zip_end(path: Path) -> None:
    flip_bit(path, path.stat().st_size - 22)


def missing_critic(path: Path) -> None:
    state = torch.load(path, weights_only=True)["state_dict"]
    replace_entries(path, state_dict={name: value for name, value in state.items() if "critic" not in name})


def missing_configuration(path: Path) -> None:
    replace_entries(path, torchppo={"config": {}})


def missing_counter(path: Path) -> None:
    state = torch.load(path, weights_only=True)["torchppo"]
    replace_entries(path, torchppo={**state, "num_episodes": None})


def other_state(path: Path) -> None:
    replace_entries(path, torchppo=3)


DAMAGES = [
    *(missing_file, folder, empty_file, text_file, first_half, other_zip, other_state_dict, tensor, code_in_pickle),
    *(flipped_bit_in_weights, flipped_bit_in_pickle, flipped_bit_in_file_name, flipped_bit_in_zip_directory),
    *(flipped_bit_in_zip_end, missing_critic, missing_configuration, missing_counter, other_state),
]


class TestDamagedFile:
    @pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
    def test_is_reported_in_one_line_with_its_name(
        self, damage: Callable[[Path], None], checkpoint: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        damage(checkpoint)
        assert main(["eval", "last.ckpt", "--episodes", "1"]) == 5
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("torchppo: last.ckpt ")
        assert err.count("\n") == 1
        assert {path.name for path in checkpoint.parent.iterdir()} <= {"last.ckpt"}

    def test_with_any_flipped_bit_is_rejected_or_loads_unchanged(self, checkpoint: Path) -> None:
        """Some bits are between the entries of the zip file and have no effect."""
        content = checkpoint.read_bytes()
        saved = load_checkpoint(checkpoint)["state_dict"]
        with zipfile.ZipFile(checkpoint) as archive:
            end = archive.start_dir
        num_rejected = 0
        for position in (*range(0, end, end // 100), *range(end, len(content), 11)):
            flip_bit(checkpoint, position)
            try:
                loaded = load_checkpoint(checkpoint)["state_dict"]
            except CheckpointError:
                num_rejected += 1
            else:
                assert all(torch.equal(loaded[name], saved[name]) for name in saved)
            checkpoint.write_bytes(content)
        assert num_rejected > 100

    def test_that_cannot_be_read_is_an_input_output_error(
        self, checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def deny(file: Any, *arguments: Any, **keywords: Any) -> Any:
            if str(file) == "last.ckpt":
                raise PermissionError(13, "Permission denied", file)
            return original_open(file, *arguments, **keywords)

        original_open = io.open
        monkeypatch.setattr("io.open", deny)
        monkeypatch.setattr("builtins.open", deny)
        assert main(["eval", "last.ckpt"]) == 74
        assert capsys.readouterr().err == "torchppo: Permission denied: last.ckpt\n"


class TestRestore:
    def test_returns_the_trained_weights_and_statistics(self, checkpoint: Path) -> None:
        saved = load_checkpoint(checkpoint)["state_dict"]
        ppo, cfg, env = restore(checkpoint, seed=0, num_envs=2)
        assert set(ppo.state_dict()) == set(saved)
        assert all(torch.equal(value, saved[name]) for name, value in ppo.state_dict().items())
        assert {value.item() for name, value in saved.items() if name.endswith("moments.count")} == {512}
        assert (cfg.seed, env.batch_size) == (3, (2,))

    def test_checkpoint_stores_the_folder_of_the_training(self, trained: Path) -> None:
        folders = load_checkpoint(trained)["torchppo"]["config"]["code_dirs"]
        assert [Path(folder).is_dir() for folder in folders] == [True]

    def test_finds_the_users_components(
        self, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        folder = tmp_path_factory.mktemp("components")
        (folder / "own_bodies.py").write_text("from torchppo.modules.features.bodies import mlp\n")
        state = load_checkpoint(checkpoint)["torchppo"]
        state["config"]["policy"]["body"]["_target_"] = "own_bodies.mlp"
        state["config"]["code_dirs"] = [str(folder)]
        replace_entries(checkpoint, torchppo=state)
        monkeypatch.setattr(sys, "path", [*sys.path])
        restore(checkpoint, seed=0, num_envs=1, trust=["own_bodies"])
        assert sys.modules["own_bodies"].__file__ == str(folder / "own_bodies.py")


class TestLoadFromCheckpoint:
    """`PPO.load_from_checkpoint`."""

    def test_rebuilds_the_module_of_the_command_line(self, trained: Path) -> None:
        saved = load_checkpoint(trained)
        ppo = PPO.load_from_checkpoint(trained)
        assert all(torch.equal(value, saved["state_dict"][name]) for name, value in ppo.state_dict().items())
        assert (ppo.frames, ppo.num_rollouts) == (512, 2)
        assert ppo.config == saved["torchppo"]["config"]
        assert ppo._resumed is None, "a training without `ckpt_path` restores no random numbers"

    def test_loads_a_training_from_python_into_its_components(self, make: Any, fit: Any, tmp_path: Path) -> None:
        ppo, collector = make()
        fit(ppo, collector).save_checkpoint(tmp_path / "python.ckpt")
        other, _ = make(seed=1)
        components = {"objective": other.objective, "estimator": other.estimator, "update": other.update}
        loaded = PPO.load_from_checkpoint(
            tmp_path / "python.ckpt", **components, optimizer=torch.optim.Adam, total_frames=64
        )
        assert loaded.objective is other.objective
        assert all(torch.equal(value, ppo.state_dict()[name]) for name, value in loaded.state_dict().items())
        assert loaded.frames == ppo.frames > 0
        assert loaded._resumed is None

    def test_without_configuration_or_components_raises(self, make: Any, fit: Any, tmp_path: Path) -> None:
        fit(*make()).save_checkpoint(tmp_path / "python.ckpt")
        with pytest.raises(CheckpointError, match=r"python\.ckpt has no configuration.*objective="):
            PPO.load_from_checkpoint(tmp_path / "python.ckpt")

    def test_components_that_do_not_fit_raise_in_one_line(self, make: Any, trained: Path) -> None:
        ppo, _ = make(shared=True)
        components = {"objective": ppo.objective, "estimator": ppo.estimator, "update": ppo.update}
        with pytest.raises(
            CheckpointError, match=r"does not fit the components .*build it as in the training"
        ) as raised:
            PPO.load_from_checkpoint(trained, **components, optimizer=torch.optim.Adam, total_frames=64)
        assert "\n" not in str(raised.value)
