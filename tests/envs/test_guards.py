"""MuJoCo's warnings are logged once; see `vector/test_recovery.py` for time limits and the watchdog."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from torchppo.envs import make_gymnasium_env


class TestMuJoCoWarnings:
    @pytest.fixture(autouse=True)
    def empty_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("mujoco")
        monkeypatch.chdir(tmp_path)

    def test_deprecated_models_print_nothing_and_write_no_file(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        make_gymnasium_env("HalfCheetah-v5").close()
        assert capfd.readouterr().err == ""
        assert not [*tmp_path.iterdir()]

    def test_a_warning_is_logged_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        import mujoco

        make_gymnasium_env("InvertedPendulum-v5").close()
        warn = mujoco.get_mju_user_warning()
        warn("the simulation of this test is unstable")
        warn("the simulation of this test is unstable")
        assert [(one.levelno, "unstable" in one.message) for one in caplog.records] == [(logging.WARNING, True)]
        assert not [*tmp_path.iterdir()]
