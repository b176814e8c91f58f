"""The size limits of the library's packages: short folders, files and functions."""

from __future__ import annotations

import ast
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
