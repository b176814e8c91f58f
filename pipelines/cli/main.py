"""The command line: `torchppo train | eval | list`. Nothing here imports torch before it must."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ... import __version__
from ...errors import ConfigurationError, TorchPPOError, did_you_mean
from . import config as configuration

EXAMPLES = """\
examples:
  torchppo train env=cartpole
  torchppo train env.id=LunarLander-v3 total_frames=1_000_000
  torchppo train experiment=halfcheetah policy.body.num_cells=[256,256] -m seed=0,1,2
  torchppo train env.id=my_package:MyEnv-v0 --config-dir my_conf
  torchppo eval runs/cartpole/<run>/checkpoints/best.ckpt --json
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0, that of the error (see `errors`), 74 for files, 130 or 143."""
    arguments = parser().parse_args(argv)
    sys.path.append(str(Path.cwd()))  # parts and environments of one's own, as `python -m` finds them
    try:
        return int(arguments.run(arguments))
    except TorchPPOError as error:
        return _fail(str(error), error.exit_code)
    except OSError as error:
        return _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 74)
    except KeyboardInterrupt:
        return 130


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    formatter = argparse.RawDescriptionHelpFormatter
    top = _Parser(
        prog="torchppo", description="PPO as interchangeable parts.", epilog=EXAMPLES, formatter_class=formatter
    )
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = top.add_subparsers(metavar="train | eval | list", required=True)
    train = commands.add_parser(
        "train",
        help="train a policy",
        description="Train a policy. Overrides are Hydra's: group=choice, key=value, +new_key=value.",
        epilog=f"groups:\n{describe_groups()}\n\n{EXAMPLES}",
        formatter_class=formatter,
    )
    train.add_argument("overrides", nargs="*", metavar="override")
    train.add_argument("-m", "--multirun", action="store_true", help="one run for every combination of a,b,c values")
    train.add_argument(
        "-cd", "--config-dir", type=Path, help="a folder with groups of your own; their parts may lie beside it"
    )
    train.add_argument("--cfg", action="store_true", help="print the configuration instead of training")
    train.set_defaults(run=_train, parser=train)
    evaluate = commands.add_parser(
        "eval", help="evaluate a checkpoint", description="Evaluate a checkpoint and film it."
    )
    evaluate.add_argument("checkpoint", type=Path)
    evaluate.add_argument("--episodes", type=int, default=20)
    evaluate.add_argument("--seed", type=int, default=0)
    evaluate.add_argument("--json", action="store_true", help="print one JSON object")
    evaluate.add_argument("--video", type=Path, help="where to film one episode; beside the run if not given")
    evaluate.add_argument("--no-video", action="store_true", help="do not film")
    evaluate.set_defaults(run=_evaluate, parser=evaluate)
    listing = commands.add_parser("list", help="show environments, experiments, and every part that can be swapped")
    listing.add_argument("-cd", "--config-dir", type=Path, help="a folder with groups of your own")
    listing.set_defaults(run=_list, parser=listing)
    return top


class _Parser(argparse.ArgumentParser):
    """Reports a mistake in one line, with the nearest command or option."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise SystemExit(_fail(f"{message}; see {self.prog} --help", 2))

    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        """Take options between overrides as well."""
        namespace, rest = self.parse_known_args(args)
        command = namespace.parser
        for word in rest:
            if word.startswith("-"):
                options = re.findall(r"--[a-z-]+", command.format_help())
                command.error(f"unknown option {word!r}{did_you_mean(word, options)}")
            if "overrides" not in namespace:
                command.error(f"unknown argument {word!r}")
            namespace.overrides.append(word)
        return namespace


def _train(arguments: argparse.Namespace) -> int:
    if arguments.multirun:
        return _multirun(arguments)
    folders = [Path.cwd()]
    if arguments.config_dir:
        folders.append(arguments.config_dir.resolve().parent)
        sys.path.append(str(folders[-1]))
    cfg = configuration.compose(arguments.overrides, arguments.config_dir)
    if arguments.cfg:
        print(OmegaConf.to_yaml(cfg), end="")
        return 0
    with ending_at_once():
        from ..train import train

    cfg.code_dirs = [str(folder) for folder in folders]  # for an evaluation to find own parts again
    return train(cfg, arguments.overrides)


def _multirun(arguments: argparse.Namespace) -> int:
    """Run every combination in a process of its own, so that none inherits another's state."""
    command = [sys.executable, "-m", "torchppo", "train"]
    if arguments.config_dir:
        command += ["--config-dir", str(arguments.config_dir)]
    if arguments.cfg:
        command += ["--cfg"]
    combinations = configuration.combinations(arguments.overrides, arguments.config_dir)
    folders = [configuration.compose(overrides, arguments.config_dir).run_dir for overrides in combinations]
    shared = [folder for number, folder in enumerate(folders) if folder in folders[:number]]
    if shared and any(word.startswith("run_dir=") for word in arguments.overrides):
        raise ConfigurationError(f"run_dir={shared[0]} would hold several runs; write run_dir='{shared[0]}/s${{seed}}'")
    for number, overrides in enumerate(combinations, 1):
        print(f"[{number}/{len(combinations)}] torchppo train {' '.join(overrides)}", flush=True)
        code = run_to_end([*command, *overrides])
        if code:
            return code
    return 0


def run_to_end(command: Sequence[str]) -> int:
    """The exit code of a process, which Ctrl-C reaches as well, SIGTERM is sent on to, and which takes its time."""
    received: list[int] = []

    def send_on(number: int, _: Any) -> None:
        received.append(number)
        process.terminate()

    with (
        answered(lambda number, _: received.append(number), signal.SIGINT, signal.SIGTERM),
        subprocess.Popen(command) as process,
        answered(send_on, signal.SIGTERM),
    ):
        if signal.SIGTERM in received:  # before there was a process to send it to
            process.terminate()
        code = process.wait()
    if code < 0:
        return 128 - code
    return code or (128 + received[0] if received else 0)


def ending_at_once() -> AbstractContextManager[None]:
    """Let a signal end the process, not raise: what is imported meanwhile would be left by halves, or swallow it."""
    return answered(lambda number, _: os._exit(128 + number), signal.SIGINT, signal.SIGTERM)


@contextmanager
def answered(handler: Callable[[int, Any], object], *numbers: int) -> Iterator[None]:
    """Give some signals a handler for as long as it lasts."""
    before = [signal.signal(number, handler) for number in numbers]
    try:
        yield
    finally:
        for number, own in zip(numbers, before, strict=True):
            signal.signal(number, own)


def _evaluate(arguments: argparse.Namespace) -> int:
    with ending_at_once():
        from ..evaluate import evaluate_checkpoint
        from ..run_files.summary import print_evaluation
        from ..run_files.video import require_writable

    if arguments.video:
        require_writable(arguments.video)
    video = None if arguments.no_video else arguments.video or default_video(arguments.checkpoint)
    report = evaluate_checkpoint(arguments.checkpoint, episodes=arguments.episodes, seed=arguments.seed, video=video)
    if arguments.json:
        print(json.dumps(report, allow_nan=False))
    else:
        print_evaluation(report)
    return 0


def default_video(checkpoint: Path) -> Path:
    """Beside the run that the checkpoint belongs to, or beside the file where there is none."""
    folder = checkpoint.resolve().parent
    return (folder.parent / "videos" if folder.name == "checkpoints" else folder) / f"{checkpoint.stem}.mp4"


def describe_groups() -> str:
    """A line for every group with its choices."""
    return "\n".join(
        f"  {group + '=':<12}{' | '.join(names)}" for group, names in configuration.options_by_group().items()
    )


def _list(arguments: argparse.Namespace) -> int:
    for group, choices in configuration.options_by_group(arguments.config_dir).items():
        print(f"{group}=")
        for name, description in choices.items():
            print(f"  {name:<26}{description}")
    return 0


def _fail(message: str, code: int) -> int:
    print(f"torchppo: {' '.join(message.split())}", file=sys.stderr)
    return code
