"""Deleted keys and a user's own configuration files are checked before the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

RunCommand = Callable[[str], Any]


@pytest.mark.parametrize("key", ["env", "trainer", "total_frames", "eval.video"])
def test_a_required_key_cannot_be_deleted(key: str, run_command: RunCommand) -> None:
    code, out, err, trained = run_command(f"train ~{key} run_dir=here")
    assert (code, out, trained) == (2, "", [])
    assert err.startswith("torchppo: ")
    assert err.count("\n") == 1
    assert f"~{key}" in err


class TestUserFiles:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("# @package _global_\ntotal_framse: 3000\n", ["total_framse", "'total_frames'"]),
            ("# @package _global_\neval: {vidio: false}\n", ["eval.vidio", "'eval.video'"]),
            ("total_frames: 3000\n", ["experiment/", "# @package _global_"]),
        ],
        ids=["misspelt key", "misspelt key of eval", "experiment without package"],
    )
    def test_a_file_without_effect_is_rejected(
        self, text: str, words: list[str], run_command: RunCommand, tmp_path: Path
    ) -> None:
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "ours.yaml").write_text(text)
        code, _, err, trained = run_command(f"train experiment=ours --config-dir {tmp_path}")
        assert (code, trained) == (2, [])
        assert all(word in err for word in words)

    def test_new_keys_that_others_read_are_kept(self, run_command: RunCommand, tmp_path: Path) -> None:
        (tmp_path / "experiment").mkdir()
        text = "# @package _global_\nmy_width: 8\npolicy: {body: {num_cells: ['${my_width}']}}\n"
        (tmp_path / "experiment" / "ours.yaml").write_text(text)
        (cfg,) = run_command(f"train experiment=ours --config-dir {tmp_path} ").trained
        assert cfg.policy.body.num_cells == [8]
