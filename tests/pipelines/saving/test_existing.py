"""A path that is not a checkpoint is refused with the checkpoints that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torchppo.errors import CheckpointError
from torchppo.pipelines.saving.existing import require_checkpoint


@pytest.mark.parametrize("name", ["run", "run/checkpoints"])
def test_for_a_run_directory_its_checkpoints_are_named_and_the_best_is_first(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "checkpoints"
    folder.mkdir(parents=True)
    for file in ("a.ckpt", "best.ckpt", "last.ckpt"):
        (folder / file).touch()
    with pytest.raises(CheckpointError) as raised:
        require_checkpoint(tmp_path / name)
    assert re.findall(r"checkpoints/([\w.]+ckpt)", str(raised.value)) == ["best.ckpt", "a.ckpt", "last.ckpt"]


@pytest.mark.parametrize("name", ["", "no.ckpt"])
def test_a_path_without_checkpoints_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        require_checkpoint(tmp_path / name)


def test_a_file_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "some.ckpt").touch()
    require_checkpoint(tmp_path / "some.ckpt")
