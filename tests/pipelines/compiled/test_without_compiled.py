"""The eager library works without the folder `pipelines/compiled`."""

from __future__ import annotations

import os
import re
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


PROGRAM = """
import sys
import torchppo
from torchppo.pipelines.cli.main import main

print(torchppo.__file__)
for mode in ("false", "auto", "true"):
    code = main(["train", *sys.argv[1:], f"compile={mode}", f"run_dir=run-{mode}"])
    print(f"\\nEXIT {code}", file=sys.stderr)
"""


def test_eager_trainings_run_and_a_graph_is_refused(without_compiled: Path, tmp_path: Path) -> None:
    """The 512 policy steps are enough for `auto` to trace them, the 2 optimizer steps are not."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *TINY],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(without_compiled)},
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    assert Path(done.stdout.splitlines()[0]) == without_compiled / "torchppo" / "__init__.py"
    *runs, rest = re.split(r"EXIT (\d)\n", done.stderr)
    lines = [[line for line in stderr.splitlines() if "compile=" in line] for stderr in runs[::2]]
    assert runs[1::2] == ["0", "0", "2"], done.stderr[-3000:]
    assert [len(one) for one in lines] == [0, 1, 1], done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    assert rest == ""
