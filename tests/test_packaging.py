"""What is installed is the package torchppo with its configuration, and nothing beside it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*words: str | Path, cwd: Path, **environment: str) -> str:
    """Standard output of a command that must not fail."""
    env = {**os.environ, **environment}
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pip(*words: str | Path, cwd: Path) -> None:
    run(sys.executable, "-m", "pip", *words, "--no-deps", "--disable-pip-version-check", "--no-index", cwd=cwd)


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    """The files that git tracks, as they are now."""
    if not (ROOT / ".git").exists():
        pytest.skip("a clone is needed to know which files are tracked")
    return [name for name in run("git", "ls-files", "-z", cwd=ROOT).split("\0") if (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tracked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built without a network from a copy."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in tracked:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pip("wheel", "--no-build-isolation", "--wheel-dir", target, source, cwd=target)
    (built,) = target.glob("*.whl")
    return built


def test_the_wheel_holds_the_package_with_its_configuration_and_nothing_beside_it(
    wheel: Path, tracked: list[str]
) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name]
    assert {name.split("/")[0] for name in names} == {"torchppo"}
    packaged = ("__init__.py", "__main__.py", "errors.py", "envs/", "modules/", "pipelines/", "conf/")
    assert {name.removeprefix("torchppo/") for name in names} == {name for name in tracked if name.startswith(packaged)}


def test_an_installation_works_in_another_folder(wheel: Path, tmp_path: Path) -> None:
    installed, elsewhere = tmp_path / "installed", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip("install", "--target", installed, wheel, cwd=elsewhere)
    assert not {"envs", "modules", "pipelines", "conf", "tests"} & {path.name for path in installed.iterdir()}
    where = "import torchppo; print(torchppo.__file__)"
    for code, expected in (
        (["-c", where], str(installed / "torchppo" / "__init__.py")),
        (["-m", "torchppo", "list"], "halfcheetah"),
    ):
        assert expected in run(sys.executable, *code, cwd=elsewhere, PYTHONPATH=str(installed))
