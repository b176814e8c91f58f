"""The wheel contains the package torchppo with its configuration, and nothing else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command: str | Path, cwd: Path, **variables: str) -> str:
    """Return the standard output of a command that must succeed."""
    env = {**os.environ, **variables}
    process = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return process.stdout


def pip(*arguments: str | Path, cwd: Path) -> None:
    run(sys.executable, "-m", "pip", *arguments, "--no-deps", "--disable-pip-version-check", "--no-index", cwd=cwd)


@pytest.fixture(scope="module")
def tracked_files() -> list[str]:
    """Return the files that git tracks and that exist."""
    if not (ROOT / ".git").exists():
        pytest.skip("only a git clone knows which files are tracked")
    return [name for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked_files: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the wheel from a copy of the tracked files, without a network."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked_files:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-build-isolation", "--wheel-dir", target, source, cwd=target)
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_contains_only_the_package_and_its_configuration(wheel: Path, tracked_files: list[str]) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"torchppo"}
    packaged = ("__init__.py", "__main__.py", "errors.py", "envs/", "modules/", "pipelines/", "conf/")
    assert {name.removeprefix("torchppo/") for name in names} == {
        name for name in tracked_files if name.startswith(packaged)
    }


def test_an_installed_wheel_works_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    installed, folder = tmp_path / "installed", tmp_path / "folder"
    folder.mkdir()
    pip("install", "--target", installed, wheel, cwd=folder)
    assert not {"envs", "modules", "pipelines", "conf", "tests"} & {path.name for path in installed.iterdir()}
    print_location = "import torchppo; print(torchppo.__file__)"
    for arguments, expected in (
        (["-c", print_location], str(installed / "torchppo" / "__init__.py")),
        (["-m", "torchppo", "list"], "halfcheetah"),
    ):
        assert expected in run(sys.executable, *arguments, cwd=folder, PYTHONPATH=str(installed))
