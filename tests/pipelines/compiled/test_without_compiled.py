"""The eager library works without the folder `pipelines/compiled`."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
SOURCES = ("__init__.py", "__main__.py", "errors.py", "conf", "envs", "modules", "pipelines")
TINY = [
    "env.num_envs=2",
    "collector.frames_per_env=256",
    "update.minibatch_size=256",
    "update.epochs=1",
    "total_frames=1024",
    "eval.every_frames=null",
    "eval.episodes=1",
    "eval.video=false",
    "logger=[]",
    "run_dir=run",
]


@pytest.fixture(scope="module")
def without_compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has no `pipelines/compiled`."""
    folder = tmp_path_factory.mktemp("site")
    for name in SOURCES:
        source, target = ROOT / name, folder / "torchppo" / name
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__", "compiled"))
        else:
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
    assert not (folder / "torchppo" / "pipelines" / "compiled").exists()
    return folder


def run(package: Path, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(package)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def lines_about_compile(stderr: str) -> list[str]:
    return [line for line in stderr.splitlines() if "compile=" in line]


def test_copy_is_the_imported_package(without_compiled: Path, tmp_path: Path) -> None:
    done = run(without_compiled, tmp_path, "-c", "import torchppo; print(torchppo.__file__)")
    assert Path(done.stdout.strip()) == without_compiled / "torchppo" / "__init__.py", done.stderr


@pytest.mark.parametrize(("mode", "exit_code", "num_lines"), [("false", 0, 0), ("auto", 0, 1), ("true", 2, 1)])
def test_train(mode: str, exit_code: int, num_lines: int, without_compiled: Path, tmp_path: Path) -> None:
    """The 512 policy steps are enough for `auto` to trace them, the 2 optimizer steps are not."""
    done = run(without_compiled, tmp_path, "-m", "torchppo", "train", *TINY, f"compile={mode}")
    assert done.returncode == exit_code, done.stderr[-3000:]
    assert len(lines_about_compile(done.stderr)) == num_lines, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
