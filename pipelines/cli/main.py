"""The command line. PyTorch is imported only when it is needed."""

from __future__ import annotations

import argparse
import gc
import io
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from ... import __version__
from ...errors import TorchPPOError, did_you_mean, fail
from ..stopping.signals import SIGNALS, Stopped, exit_at_once, exit_code, handle_signals
from .config import compose, is_first_rank, parse
from .help import EVAL_EXAMPLES, EXAMPLES, TRUST_HELP
from .keys.checks import options_by_group

HINTED = ("env", "objective.", "optimizer.", "update.", "estimator.", "ppo.")  # overrides that may cause hints


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0, that of the error (see `errors`) or signal, or 74 for files that cannot be read or written.

    """
    arguments = make_parser().parse_args(argv)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # keeps a log file up to date
    sys.path += map(str, code_folders(arguments))
    try:
        return int(arguments.run(arguments))
    except TorchPPOError as error:
        return fail(str(error), error.exit_code)
    except OSError as error:
        return fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 74)
    except (KeyboardInterrupt, Stopped) as stopped:
        return exit_code(getattr(stopped, "number", signal.SIGINT))


def make_parser() -> Parser:
    """Return the parser of all commands."""
    formatter = argparse.RawDescriptionHelpFormatter
    text = "PPO built from interchangeable TorchRL components."
    top = Parser(prog="torchppo", description=text, epilog=EXAMPLES, formatter_class=formatter)
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    groups = options_by_group().items()
    commands = top.add_subparsers(metavar="train | check | resume | eval | verify-resume | list", required=True)
    train = commands.add_parser(
        "train",
        help="train a policy",
        description="Train a policy. Overrides are Hydra's: group=choice, key=value, +new_key=value.",
        epilog="\n".join(["groups:", *(f"  {name + '=':<12}{' | '.join(one)}" for name, one in groups), "", EXAMPLES]),
        formatter_class=formatter,
    )
    train.add_argument("overrides", nargs="*", metavar="override")
    train.add_argument("-m", "--multirun", action="store_true", help="one run for each combination of values a,b,c")
    train.add_argument("-cd", "--config-dir", type=Path, help="a folder with your own groups, next to your modules")
    train.add_argument("--cfg", action="store_true", help="print the configuration and exit")
    train.set_defaults(run=run_train, parser=train)
    check = commands.add_parser("check", help="check an environment and a policy before a training")
    check.add_argument("overrides", nargs="*", metavar="override", help="those of torchppo train")
    check.add_argument("-cd", "--config-dir", type=Path, help="a folder with your own groups")
    check.add_argument("--json", action="store_true", help="print one JSON object; other output goes to stderr")
    check.set_defaults(run=run_check, parser=check)
    add_eval(commands, formatter)
    add_resume(commands)
    listing = commands.add_parser("list", help="list environments, experiments and all other groups")
    listing.add_argument("-cd", "--config-dir", type=Path, help="a folder with your own groups")
    listing.set_defaults(run=run_list, parser=listing)
    return top


def add_eval(commands: Any, formatter: Any) -> None:
    """Add the command `eval`."""
    evaluate = commands.add_parser(
        "eval",
        help="evaluate a checkpoint",
        description="Evaluate a checkpoint and record a video. Overrides such as env.gravity=5 change the environment.",
        epilog=EVAL_EXAMPLES,
        formatter_class=formatter,
    )
    evaluate.add_argument("checkpoint", type=Path)
    evaluate.add_argument("overrides", nargs="*", metavar="override", help="env.key=value, or +env.key=value to add it")
    evaluate.add_argument("--episodes", type=int, default=20, help="number of episodes (default: 20)")
    evaluate.add_argument("--seed", type=int, default=0, help="seed of environments and random actions (default: 0)")
    evaluate.add_argument("--stochastic", action="store_true", help="sample actions (default: deterministic actions)")
    evaluate.add_argument("--render", choices=["human"], help="show the episodes in a window; no video is recorded")
    evaluate.add_argument("--json", action="store_true", help="print one JSON object; other output goes to stderr")
    evaluate.add_argument("--video", type=Path, help="path of the video (default: in the run directory)")
    evaluate.add_argument("--video-episodes", type=int, default=3, help="episodes in the video (default: 3)")
    evaluate.add_argument("--no-video", action="store_true", help="record no video")
    evaluate.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST_HELP)
    evaluate.set_defaults(run=run_eval, parser=evaluate)


def add_resume(commands: Any) -> None:
    """Add the commands `resume` and `verify-resume`."""
    resume = commands.add_parser("resume", help="continue a run in its directory")
    resume.add_argument("run_dir", type=Path, help="the directory of the run, or one of its checkpoints")
    resume.add_argument("overrides", nargs="*", metavar="override", help="only total_frames=..., to train for longer")
    resume.add_argument("--trust", action="append", default=[], metavar="PACKAGE", help=TRUST_HELP)
    verify = commands.add_parser("verify-resume", help="compare a training in two parts with an uninterrupted one")
    verify.add_argument("overrides", nargs="*", metavar="override", help="those of torchppo train")
    verify.add_argument("--rollouts", type=int, default=2, help="rollouts of each of the two parts (default: 2)")
    verify.add_argument("-cd", "--config-dir", type=Path, help="a folder with your own groups")
    for parser in (resume, verify):
        parser.set_defaults(run=run_resume, parser=parser)


class Parser(argparse.ArgumentParser):
    """Reports a mistake in one line with the most similar option, and accepts options between overrides."""

    def error(self, message: str) -> None:  # type: ignore[override]
        raise SystemExit(fail(f"{message}; see {self.prog} --help", 2))

    def parse_args(self, args: Sequence[str] | None = None) -> argparse.Namespace:  # type: ignore[override]
        namespace, rest = self.parse_known_args(args)
        command = namespace.parser
        for word in rest:
            if word.startswith("-"):
                if "overrides" in namespace and (ours := self._override(word, args)):
                    command.error(f"unknown option {word!r}; write {ours}")
                options = re.findall(r"--[a-z-]+", command.format_help().partition(command.epilog or "\n\n\n")[0])
                command.error(f"unknown option {word!r}{did_you_mean(word, options)}")
            if "overrides" not in namespace:
                command.error(f"unknown argument {word!r}")
            namespace.overrides.append(word)
        return namespace

    def _override(self, word: str, args: Sequence[str] | None) -> str:
        """Return the override for an option such as `--total-timesteps 1000`, or an empty string."""
        from .keys.foreign_names import override_for
        from .keys.schema import FIELDS

        return override_for(word, list(sys.argv[1:] if args is None else args), FIELDS)


def code_folders(arguments: argparse.Namespace) -> list[Path]:
    """Return the folders of the user's modules: the current folder, and the one that contains `--config-dir`.

    A command that reads a checkpoint uses the current folder only if it has overrides, which may name environments.
    """
    folders = [Path.cwd()] if "trust" not in arguments or arguments.overrides else []
    config_dir = getattr(arguments, "config_dir", None)
    return [*folders, config_dir.resolve().parent] if config_dir else folders


def run_train(arguments: argparse.Namespace) -> int:
    """Run `torchppo train`."""
    if arguments.multirun:
        if any(word.lstrip("+").startswith(("hydra/launcher=", "hydra/sweeper=")) for word in arguments.overrides):
            from .hydra_sweep import run_hydra_sweep

            return run_hydra_sweep(arguments.overrides, arguments.config_dir)
        from .sweep import run_sweep

        return run_sweep(arguments.overrides, arguments.config_dir, print_config=arguments.cfg)
    cfg = compose(arguments.overrides, arguments.config_dir, reserve=not arguments.cfg)
    if arguments.cfg:
        print(OmegaConf.to_yaml(cfg), end="")
        return 0
    if is_first_rank() and any(word.lstrip("+").startswith(HINTED) for word in arguments.overrides):
        from .presets import hints

        for line in hints(arguments.overrides, cfg):
            print(line, flush=True)
    run_dir, folder = cfg.run_dir, Path.cwd()
    try:
        with importing():
            from ..train import train

        cfg.code_dirs = [*map(str, code_folders(arguments))]  # for an evaluation to find the user's components
        if not Path(cfg.run_dir, "config.yaml").exists():
            return train(cfg, arguments.overrides)
        from ..resume import train_again

        return train_again(cfg, arguments.overrides)
    finally:
        with suppress(OSError):  # keep a folder that is not empty
            if not Path(run_dir).is_absolute() and Path.cwd() == folder:
                os.removedirs(run_dir)


def run_check(arguments: argparse.Namespace) -> int:
    """Run `torchppo check`."""
    cfg = compose(arguments.overrides, arguments.config_dir)
    with importing():
        from .check_command import check
    return check(cfg, arguments.overrides, as_json=arguments.json)


def run_eval(arguments: argparse.Namespace) -> int:
    """Run `torchppo eval`."""
    from ..saving.existing import require_checkpoint
    from .keys.foreign_names import check_eval_overrides

    check_eval_overrides(parse(arguments.overrides))
    require_checkpoint(arguments.checkpoint)
    with importing():
        from .eval_command import run
    return run(arguments)


def run_resume(arguments: argparse.Namespace) -> int:
    """Run `torchppo resume` or `torchppo verify-resume`."""
    from ..saving.existing import require_run

    if "rollouts" not in arguments:
        require_run(arguments.run_dir)
    with importing():
        from ..resume import resume_run, verify_resume

    if "rollouts" not in arguments:
        return resume_run(arguments.run_dir, arguments.overrides, arguments.trust)
    return verify_resume(compose(arguments.overrides, arguments.config_dir), arguments.rollouts)


def run_list(arguments: argparse.Namespace) -> int:
    """Run `torchppo list`."""
    from .list_command import print_options

    print_options(options_by_group(arguments.config_dir))
    return 0


@contextmanager
def importing() -> Iterator[None]:
    """Disable garbage collection. Signals end the process at once, because an import could catch an exception."""
    gc.disable()  # imports create a million objects and no garbage; collections would take a second
    try:
        with handle_signals(exit_at_once, *SIGNALS):
            yield
    finally:
        gc.freeze()  # excludes these objects from later collections
        gc.enable()
