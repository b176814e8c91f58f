"""The size limits of the library's packages, and the number of files on the path of a training."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGES = ("envs", "modules", "pipelines")
MAX_FILES, MAX_FILE_LINES, MAX_FUNCTION_LINES = 12, 250, 50

FILES = {
    str(path.relative_to(ROOT)): path.read_text()
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}


def function_lengths(source: str) -> dict[str, int]:
    """Return the lines of every function, with its decorators and docstring, by line number and name."""
    lengths = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            start = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            lengths[f"{node.lineno}: {node.name}"] = (node.end_lineno or start) - start + 1
    return lengths


def test_every_package_has_files() -> None:
    assert {name.split("/")[0] for name in FILES} == set(PACKAGES)


def test_function_lengths_include_decorators_docstrings_and_nested_functions() -> None:
    source = '@cache\ndef outer():\n    """Doc."""\n\n    async def inner():\n        pass\n\n    return inner\n'
    assert function_lengths(source) == {"2: outer": 8, "5: inner": 2}


def test_no_folder_has_more_than_12_python_files() -> None:
    counts = Counter(str(Path(name).parent) for name in FILES)
    assert {folder: count for folder, count in counts.items() if count > MAX_FILES} == {}


def test_no_file_has_more_than_250_lines() -> None:
    lengths = {name: len(source.splitlines()) for name, source in FILES.items()}
    assert {name: length for name, length in lengths.items() if length > MAX_FILE_LINES} == {}


def test_no_function_has_more_than_50_lines() -> None:
    lengths = {
        f"{name}:{function}": length
        for name, source in FILES.items()
        for function, length in function_lengths(source).items()
    }
    assert {name: length for name, length in lengths.items() if length > MAX_FUNCTION_LINES} == {}


TRACE = """
import json, sys, threading
from pathlib import Path

import hydra, lightning, torchrl.envs, torchrl.objectives  # without tracing, because their imports take long

root, called = Path(sys.argv[1]).resolve(), set()


def note(frame, event, argument):
    code = frame.f_code
    if code.co_flags & 1 and code.co_name != "<module>":  # 1: a function, not the body of a class
        called.add(code.co_filename)


sys.settrace(note)
threading.settrace(note)
from torchppo.pipelines.cli.main import main

code = main(["train", "experiment=cartpole", "compile=false", *sys.argv[2:]])
sys.settrace(None)
paths = {Path(name).resolve() for name in called if not name.startswith("<")}
print(json.dumps(sorted(str(path.relative_to(root)) for path in paths if path.is_relative_to(root))))
sys.exit(code)
"""
MAX_FILES_OF_A_TRAINING = 51
"""16 of these files save and restore a training, or stop it after signals and failures."""


def test_a_cartpole_training_calls_functions_in_few_files(tmp_path: Path) -> None:
    short = ["total_frames=512", "eval.episodes=1", "eval.video=false", "logger=csv", f"run_dir={tmp_path / 'run'}"]
    command = [sys.executable, "-c", TRACE, str(ROOT), *short]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    files = [name for name in json.loads(done.stdout.splitlines()[-1]) if not name.startswith(".venv")]
    assert len(files) <= MAX_FILES_OF_A_TRAINING, files
