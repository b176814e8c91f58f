"""MuJoCo's warnings are logged once; see `vector/test_recovery.py` for time limits and the watchdog."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest

from torchppo.envs import make_gymnasium_env


class TestMuJoCoWarnings:
    @pytest.fixture(autouse=True)
    def empty_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        pytest.importorskip("mujoco")
        monkeypatch.chdir(tmp_path)

    @pytest.mark.parametrize("id", ["HalfCheetah-v5", "registers_cheetah:Cheetah-v0", "own_cheetah.Cheetah"])
    def test_deprecated_models_print_nothing_and_write_no_file(self, id: str, tmp_path: Path) -> None:  # noqa: A002
        (tmp_path / "registers_cheetah.py").write_text(REGISTERS_CHEETAH)
        (tmp_path / "own_cheetah.py").write_text(OWN_CHEETAH)
        folder = tmp_path / "folder"
        folder.mkdir()
        program = [sys.executable, "-c", WITHOUT_MUJOCO, id]
        done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        assert not [*folder.iterdir()]

    def test_a_function_may_import_mujoco(self) -> None:
        import mujoco

        mujoco.set_mju_user_warning(None)
        make_gymnasium_env(lambda: gymnasium.make("InvertedPendulum-v5")).close()
        assert mujoco.get_mju_user_warning() is not None

    def test_a_warning_is_logged_once(self, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
        import mujoco

        make_gymnasium_env("InvertedPendulum-v5").close()
        warn = mujoco.get_mju_user_warning()
        warn("The simulation of this test is unstable. Time = 0.0200.\n")
        warn("The simulation of this test is unstable. Time = 0.0400.\n")
        assert [(one.levelno, "unstable" in one.message) for one in caplog.records] == [(logging.WARNING, True)]
        assert not [*tmp_path.iterdir()]


REGISTERS_CHEETAH = """
import gymnasium

gymnasium.register("Cheetah-v0", entry_point="gymnasium.envs.mujoco.half_cheetah_v5:HalfCheetahEnv")
"""
OWN_CHEETAH = """
from gymnasium.envs.mujoco.half_cheetah_v5 import HalfCheetahEnv

class Cheetah(HalfCheetahEnv):
    pass
"""
WITHOUT_MUJOCO = """
import sys

sys.modules["mujoco.mjx"] = None  # otherwise, TorchRL imports MuJoCo
sys.path.append("..")
from torchppo.envs import make_gymnasium_env

assert "mujoco" not in sys.modules
make_gymnasium_env(sys.argv[1]).close()
"""
