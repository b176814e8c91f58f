"""The Python blocks of the README and of the pages in docs/ run, shortened, and their commands are valid.

The blocks of a page share their variables and a folder. A block with a title is written to a file in that folder. A
Python block with a title is also executed. Blocks that cannot run have `<!-- not run: reason -->` in the line before.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from torchppo.pipelines.cli import config
from torchppo.pipelines.cli.keys.reference import reference
from torchppo.pipelines.cli.main import main, make_parser
from torchppo.pipelines.cli.sweep import combinations

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").rglob("*.md"))]

BLOCK = re.compile(
    r"(<!-- not run: [^>]+ -->\n)?^```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.MULTILINE | re.DOTALL
)
SHORT = {
    r"total_frames=[\d_]+": "total_frames=512",
    r"^frames = [\d_]+": "frames = 512",
    r"episodes=\d+": "episodes=1",
    r"Trainer\(": "Trainer(enable_progress_bar=False, enable_model_summary=False, ",
    r"runs/cartpole/<run>/checkpoints/(last|best)\.ckpt": "trained.ckpt",
}
"""Patterns in Python blocks and their replacements."""
CONTINUES = {"extending": "getting_started"}
"""Pages whose Python blocks continue the training of another page."""
OTHER_COMMANDS = {
    ".": "activates the environment of `make install`",
    "[": "needs SLURM",
    "make": "the Makefile is used by CI",
    "pip": "installs packages",
    "sbatch": "needs SLURM",
    "tensorboard": "is a server",
}
"""First words of commands that are not checked, and why."""
PLUGINS = r"hydra[./]|.*interval\(|\+env\.df=|\+trainer\.num_nodes=|logger[=.].*(wandb|mlflow)"
"""Overrides that need plugins of Hydra, pandas, SLURM or loggers, which the tests do not have."""


class Block(NamedTuple):
    language: str
    title: str
    text: str
    runs: bool


def blocks_of(page: Path) -> list[Block]:
    return [Block(match[2], match[3] or "", match[4], not match[1]) for match in BLOCK.finditer(page.read_text())]


def commands_of(page: Path) -> list[list[str]]:
    """Return the words of every command in fenced bash blocks, and in indented lines that begin with torchppo."""
    text = page.read_text()
    scripts = [block.text for block in blocks_of(page) if block.language == "bash" and block.runs]
    indented = re.sub(BLOCK, "", text).replace("\\\n", " ")
    script = "\n".join([*scripts, *re.findall(r"^    ((?:torchppo|python) .*)$", indented, re.MULTILINE)])
    script = re.sub(r"\$\w+", "1", script.replace("<run>", "run").replace("\\\n", " "))
    subprocess.run(["bash", "-n", "-c", script], check=True)  # finds missing quotes
    commands = [shlex.split(line, comments=True) for line in script.splitlines()]
    return [words[1:] if words[0] == "srun" else words for words in commands if words]


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("docs") / "run"
    short = ["total_frames=512", "eval.episodes=1", "eval.video=false", "compile=false", "logger=csv"]
    assert main(["train", "experiment=cartpole", "trainer.accelerator=cpu", *short, f"run_dir={run_dir}"]) == 0
    return run_dir / "checkpoints" / "last.ckpt"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> Iterator[Path]:
    """Change to a folder with a checkpoint. Afterwards, remove the modules that were imported from it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "trained.ckpt").symlink_to(checkpoint)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (tmp_path / f"{name}.py").exists():
            del sys.modules[name]


def write_files(page: Path, folder: Path) -> None:
    for block in blocks_of(page):
        if block.title:
            path = folder / block.title
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.text)


def shortened(text: str) -> str:
    for pattern, short in SHORT.items():
        text = re.sub(pattern, short, text, flags=re.MULTILINE)
    return text


WITH_PYTHON = [page for page in PAGES if any(block.language == "python" and block.runs for block in blocks_of(page))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=lambda page: page.stem)
def test_python_blocks_run(page: Path, folder: Path) -> None:
    write_files(page, folder)
    blocks = [(page, block.text) for block in blocks_of(page) if block.language == "python" and block.runs]
    if page.stem in CONTINUES:
        other = page.with_stem(CONTINUES[page.stem])
        setup = [re.sub(r"^(trainer\.fit|print).*$", "", block.text, flags=re.MULTILINE) for block in blocks_of(other)]
        blocks = [(other, text) for text in setup if text.startswith("import torch")] + blocks
    names: dict[str, Any] = {"observation": np.zeros(4)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's hints about the machine
        for source, text in blocks:
            exec(compile(shortened(text), f"{source.name}: {text[:40]!r}", "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if commands_of(page)], ids=lambda page: page.stem)
def test_commands_are_accepted(page: Path, folder: Path) -> None:
    write_files(page, folder)
    for words in commands_of(page):
        if words[0] == "torchppo" and words[1] == "train":
            arguments = make_parser().parse_args(words[1:])
            overrides = [word for word in arguments.overrides if not re.match(PLUGINS, word)]
            runs = combinations(overrides, arguments.config_dir)
            assert arguments.multirun or len(runs) == 1
            for run in (runs[0], *runs[1:][-1:]):
                config.compose(run, arguments.config_dir)
        elif words[0] == "torchppo":
            make_parser().parse_args(words[1:])
        elif words[0] == "python":
            assert (folder / words[1]).is_file() or (ROOT / words[1]).is_file(), words
        else:
            assert words[0] in OTHER_COMMANDS, words


def test_readme_trains_in_at_most_ten_lines() -> None:
    program = next(block.text for block in blocks_of(README) if block.language == "python")
    lines = [line for line in program.splitlines() if line.strip()]
    assert len(lines) <= 10
    assert max(map(len, lines)) <= 120


def test_keys_of_other_libraries_are_translated_to_existing_keys() -> None:
    known = {row.key for row in reference()} | {path.name for path in (ROOT / "conf").iterdir()}
    known |= {"controller@controller.lr", "controller.lr.target_kl", "env.key", "trainer.deterministic"}
    cells = re.findall(r"^\|[^|]*\|([^|]*)\|[^|]*\|$", (ROOT / "docs" / "other_libraries.md").read_text(), re.MULTILINE)
    keys = {key.split("=")[0].lstrip("+") for cell in cells for key in re.findall(r"`([^`]+)`", cell)}
    assert len(keys) > 40
    assert keys <= known


def test_glossary_has_every_metric_of_a_training(checkpoint: Path) -> None:
    columns = (checkpoint.parents[1] / "metrics.csv").read_text().splitlines()[0].split(",")
    glossary = re.findall(r"^\| `([^`]+)` \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    assert set(columns) <= set(glossary)
