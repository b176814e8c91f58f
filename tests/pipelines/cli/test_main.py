"""The command line: every mistake in one line, and nothing slow before it must be."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
import yaml

from torchppo import __version__
from torchppo.errors import (
    CheckpointError,
    ConfigurationError,
    EnvironmentFailure,
    NumericalError,
    RunLockedError,
    TorchPPOError,
)
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.cli.main import default_video, main

CONF = Path(__file__).parents[3] / "conf"
GROUPS = sorted({path.parent.name for path in CONF.glob("*/*.yaml")})
NO_VALUE = "has no value; add"

MISTAKES = [
    ("trian", "'trian'", "'train'"),
    ("train --cgf", "--cgf", "'--cfg'"),
    ("eval some.ckpt --epsiodes 3", "--epsiodes", "'--episodes'"),
    ("eval some.ckpt --episodes many", "--episodes", "'many'"),
    ("eval", "checkpoint", "required"),
    ("eval some.ckpt other.ckpt", "other.ckpt", ""),
    ("list policies", "policies", ""),
    ("train polcy=mlp", "'polcy'", "'policy'"),
    ("train policy=mpl", "policy=mpl", "'mlp'"),
    ("train experiment=halfchetah", "experiment=halfchetah", "'halfcheetah'"),
    ("train logger=[csv,tensorbord]", "logger=tensorbord", "'tensorboard'"),
    ("train schedule@schedule.lr=linaer", "schedule=linaer", "'linear'"),
    ("train schedule=linear", "schedule", "schedule@schedule.lr"),
    ("train optimizer.lrr=1", "'optimizer.lrr'", "'optimizer.lr'"),
    ("train objective.clip_epsilom=0.1", "'objective.clip_epsilom'", "'objective.clip_epsilon'"),
    ("train trainer.max_epoch=1", "'trainer.max_epoch'", "'trainer.max_epochs'"),
    ("train ~optimizer.lrr", "'optimizer.lrr'", "'optimizer.lr'"),
    ("train qqqqqq=1", "'qqqqqq'", "+qqqqqq="),
    ("train cartpole", "'cartpole'", "key=value"),
    ("train seed=[", "'seed=['", "key=value"),
    ("train a=b=c", "'a=b=c'", "key=value"),
    ("train =3", "'=3'", "key=value"),
    ("train total_frames=abc", "total_frames=abc", "whole number"),
    ("train total_frames=1.5", "total_frames=1.5", "whole number"),
    ("train total_frames=true", "total_frames=True", "whole number"),
    ("train optimizer.lr=high", "optimizer.lr=high", "number"),
    ("train eval.video=maybe", "eval.video=maybe", "true or false"),
    ("train policy.body=3", "policy.body=3", "keys"),
    ("train policy.body.num_cells=3", "policy.body.num_cells=3", "list"),
    ("train optimizer=3", "optimizer=3", "adam"),
    ("train seed=0,1", "seed", "-m"),
    ("train experiment=null", "experiment=null", "cartpole"),
    ("train ~env", "~env", "needed"),
    ("train ~trainer run_dir=here", "~trainer", "needed"),
    ("train ~total_frames", "~total_frames", "needed"),
    ("train ~eval.video", "~eval.video", "another value"),
    ("train policy=cnn ~policy.body.num_cells", "policy.body.num_cells", "no such key"),
    ("train ~run_dir", "~run_dir", "null"),
    ("train seed=${nothing}", "seed", "nothing"),
    ("train env=gymnasium", "env.id", NO_VALUE),
    ("train env=torchrl", "env._target_", NO_VALUE),
    ("train --config-dir nowhere", "nowhere", "--config-dir"),
    ("train -m seed=0,1 --config-dir nowhere", "nowhere", "--config-dir"),
    ("list --config-dir nowhere", "nowhere", "--config-dir"),
    ("train -m policy=mlp,mpl", "policy=mpl", "'mlp'"),
    ("train seed=0,1 -m total_frames=abc", "total_frames=abc", "whole number"),
    ("train -m optimizer.lr=interval(0,1)", "sweeps", "CHOICE"),
    ("train -m seed=0,1 run_dir=here", "run_dir=here", "here/s${seed}"),
]


class Outcome(NamedTuple):
    """What a command left: its exit code, what it printed, and the configurations that training was asked for."""

    code: int
    out: str
    err: str
    trained: list[Any]


Torchppo = Callable[[str], Outcome]


@pytest.fixture
def training(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A training that only notes what it was asked for, and returns `code` or raises it."""
    module = ModuleType("torchppo.pipelines.train")
    module.code, module.asked = 0, []

    def train(cfg: Any, overrides: list[str]) -> int:
        module.asked.append(cfg)
        if isinstance(module.code, BaseException):
            raise module.code
        return module.code

    module.train = train
    monkeypatch.setitem(sys.modules, "torchppo.pipelines.train", module)
    return module


@pytest.fixture
def torchppo(
    training: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Torchppo:
    """The command line in this process, in an empty folder, without the training itself."""
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> Outcome:
        try:
            code = main(command.split())
        except SystemExit as error:
            code = int(error.code or 0)
        return Outcome(code, *capsys.readouterr(), training.asked)

    return run


class Runs(NamedTuple):
    """The processes that a sweep started."""

    log: Path

    def overrides(self) -> list[set[str]]:
        """Of each process."""
        started = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        assert all(words[:3] == ["-m", "torchppo", "train"] for words in started)
        return [set(words[3:]) for words in started]


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Runs]:
    """Make every process of a sweep a shell script that notes its arguments."""
    script, log = tmp_path / "python", tmp_path / "log"

    def install(last_line: str) -> Runs:
        script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{last_line}\n')
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return Runs(log)

    return install


class TestMistakes:
    @pytest.mark.parametrize(("command", "culprit", "remedy"), MISTAKES, ids=[mistake[0] for mistake in MISTAKES])
    def test_are_told_in_one_line_with_the_way_out(
        self, command: str, culprit: str, remedy: str, torchppo: Torchppo
    ) -> None:
        code, out, err, trained = torchppo(command)
        assert code == 2
        assert out == ""
        assert err.startswith("torchppo: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert culprit in err
        assert remedy in err
        assert not trained

    def test_never_suggest_the_word_itself(self, torchppo: Torchppo) -> None:
        assert "did you mean 'schedule'" not in torchppo("train schedule=linear").err


class TestExitCodes:
    @pytest.mark.parametrize(
        ("outcome", "code"),
        [
            (0, 0),
            (143, 143),
            (TorchPPOError("a bug"), 1),
            (ConfigurationError("a key"), 2),
            (EnvironmentFailure("a world"), 3),
            (NumericalError("a number"), 4),
            (CheckpointError("a file"), 5),
            (RunLockedError("a folder"), 6),
            (OSError(28, "No space left on device", "metrics.csv"), 74),
            (KeyboardInterrupt(), 130),
        ],
        ids=repr,
    )
    def test_are_those_of_the_table(
        self, outcome: int | BaseException, code: int, training: ModuleType, torchppo: Torchppo
    ) -> None:
        training.code = outcome
        assert torchppo("train")[0] == code

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (EnvironmentFailure("a world"), "torchppo: a world\n"),
            (ConfigurationError("a spec(\n    of several lines)"), "torchppo: a spec( of several lines)\n"),
            (OSError(28, "No space left on device", "metrics.csv"), "torchppo: No space left on device: metrics.csv\n"),
            (OSError("a disk"), "torchppo: a disk\n"),
        ],
        ids=repr,
    )
    def test_come_with_one_line(
        self, error: BaseException, line: str, training: ModuleType, torchppo: Torchppo
    ) -> None:
        training.code = error
        assert torchppo("train").err == line

    def test_a_bug_is_not_hidden(self, training: ModuleType, torchppo: Torchppo) -> None:
        training.code = ZeroDivisionError("a bug")
        with pytest.raises(ZeroDivisionError, match="a bug"):
            torchppo("train")


class TestHelp:
    @pytest.mark.parametrize("command", ["--help", "-h"])
    def test_names_the_commands_and_shows_examples(self, command: str, torchppo: Torchppo) -> None:
        code, out, err, _ = torchppo(command)
        assert (code, err) == (0, "")
        for words in ("train", "eval", "list", "torchppo train env=cartpole", "-m seed=0,1,2"):
            assert words in out

    def test_of_train_shows_every_group_with_its_choices_and_examples(self, torchppo: Torchppo) -> None:
        out = torchppo("train --help").out
        lines = {line.split("=")[0].strip(): line for line in out.splitlines() if "=" in line}
        for path in CONF.glob("*/*.yaml"):
            assert path.stem in lines[path.parent.name].replace("|", " ").split("=", 1)[1].split()
        assert "torchppo train env=cartpole" in out

    @pytest.mark.parametrize("option", ["--episodes", "--seed", "--json", "--video", "--no-video"])
    def test_of_eval_shows_its_options(self, option: str, torchppo: Torchppo) -> None:
        assert option in torchppo("eval --help").out

    def test_without_a_command_the_commands_are_named(self, torchppo: Torchppo) -> None:
        code, _, err, _ = torchppo("")
        assert code == 2
        assert all(command in err for command in ("train", "eval", "list"))

    def test_every_example_of_the_help_composes(self, torchppo: Torchppo, tmp_path: Path) -> None:
        (tmp_path / "my_conf").mkdir()
        words = [line.split() for line in torchppo("--help").out.splitlines() if "torchppo train" in line]
        assert len(words) >= 4
        for _, *example in words:
            command = " ".join(example).replace("-m seed=0,1,2", "")
            assert torchppo(f"{command} --cfg").code == 0


class TestList:
    @pytest.fixture
    def sections(self, torchppo: Torchppo) -> dict[str, dict[str, str]]:
        """What is shown: of every group, its choices with their descriptions."""
        shown: dict[str, dict[str, str]] = {}
        for line in torchppo("list").out.splitlines():
            if line.endswith("="):
                section = shown.setdefault(line.removesuffix("="), {})
            else:
                name, section[name] = line.split(maxsplit=1)
        return shown

    @pytest.mark.parametrize("group", GROUPS)
    def test_shows_every_file_of_a_group_with_its_comment(
        self, group: str, sections: dict[str, dict[str, str]]
    ) -> None:
        files = {path.stem: path.read_text() for path in (CONF / group).glob("*.yaml")}
        assert set(sections[group]) == set(files)
        for name, text in files.items():
            assert f"# {sections[group][name]}\n" in text

    def test_shows_a_users_own(self, torchppo: Torchppo, tmp_path: Path) -> None:
        (tmp_path / "env").mkdir()
        (tmp_path / "env" / "ours.yaml").write_text("# Ours.\n")
        assert re.search(r"^  ours +Ours\.$", torchppo(f"list --config-dir {tmp_path}").out, re.MULTILINE)


def test_says_its_version(torchppo: Torchppo) -> None:
    assert torchppo("--version").out == f"torchppo {__version__}\n"


class TestTrain:
    def test_takes_overrides_on_both_sides_of_an_option(self, torchppo: Torchppo, tmp_path: Path) -> None:
        (cfg,) = torchppo(f"train seed=3 --config-dir {tmp_path} total_frames=7").trained
        assert (cfg.seed, cfg.total_frames) == (3, 7)

    def test_prints_its_configuration_on_demand_and_does_not_train(self, torchppo: Torchppo) -> None:
        code, out, err, trained = torchppo("train experiment=pendulum seed=3 --cfg")
        assert (code, err, trained) == (0, "", [])
        shown = yaml.safe_load(out)
        assert (shown["seed"], shown["env"]["id"], shown["estimator"]["gamma"]) == (3, "Pendulum-v1", 0.9)

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("# @package _global_\ntotal_framse: 3000\n", ["'total_framse'", "'total_frames'"]),
            ("# @package _global_\neval: {vidio: false}\n", ["'eval.vidio'", "'video'"]),
            ("total_frames: 3000\n", ["experiment/", "# @package _global_"]),
        ],
    )
    def test_a_file_of_the_users_own_that_would_change_nothing_is_told(
        self, text: str, words: list[str], torchppo: Torchppo, tmp_path: Path
    ) -> None:
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "ours.yaml").write_text(text)
        code, _, err, trained = torchppo(f"train experiment=ours --config-dir {tmp_path}")
        assert (code, trained) == (2, [])
        assert all(word in err for word in words)

    def test_keys_of_the_users_own_are_kept(self, torchppo: Torchppo, tmp_path: Path) -> None:
        (tmp_path / "experiment").mkdir()
        text = "# @package _global_\nmy_width: 8\npolicy: {body: {num_cells: ['${my_width}']}}\n"
        (tmp_path / "experiment" / "ours.yaml").write_text(text)
        (cfg,) = torchppo(f"train experiment=ours --config-dir {tmp_path} +seeds=3").trained
        assert (cfg.policy.body.num_cells, cfg.seeds) == ([8], 3)

    def test_a_folder_of_the_users_own_adds_choices(self, torchppo: Torchppo, tmp_path: Path) -> None:
        (tmp_path / "mine" / "env").mkdir(parents=True)
        (tmp_path / "mine" / "env" / "ours.yaml").write_text("# Ours.\ndefaults: [gymnasium]\nid: Acrobot-v1\n")
        (cfg,) = torchppo("train env=ours --config-dir mine").trained
        assert (cfg.env.id, cfg.env.num_envs) == ("Acrobot-v1", 8)

    def test_parts_of_the_users_own_lie_in_this_folder_or_beside_the_folder_of_groups(
        self, torchppo: Torchppo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "path", [*sys.path])
        (tmp_path / "robots" / "conf").mkdir(parents=True)
        assert torchppo("train --config-dir robots/conf").code == 0
        assert sys.path[-2:] == [str(Path.cwd()), str((tmp_path / "robots").resolve())]


class TestSweeps:
    def test_run_every_combination_in_a_process_of_its_own(
        self, torchppo: Torchppo, processes: Callable[[str], Runs]
    ) -> None:
        runs = processes("exit 0")
        code, out, _, trained = torchppo("train -m seed=0,1 optimizer.lr=1e-3,1e-4 env=pendulum")
        assert (code, trained) == (0, [])
        started = [compose(sorted(words)) for words in runs.overrides()]
        assert [cfg.env.id for cfg in started] == ["Pendulum-v1"] * 4
        assert {(cfg.seed, cfg.optimizer.lr) for cfg in started} == {(0, 1e-3), (0, 1e-4), (1, 1e-3), (1, 1e-4)}
        assert all(f"[{number}/4]" in out for number in range(1, 5))

    def test_run_every_choice_that_a_pattern_fits(self, torchppo: Torchppo, processes: Callable[[str], Runs]) -> None:
        runs = processes("exit 0")
        assert torchppo("train -m policy=glob(transformer*)").code == 0
        assert runs.overrides() == [{"policy=transformer"}, {"policy=transformer_xl"}]

    def test_run_in_one_folder_each(self, torchppo: Torchppo, processes: Callable[[str], Runs]) -> None:
        runs = processes("exit 0")
        assert torchppo("train -m seed=0,1 run_dir=here/s${seed}").code == 0
        assert len(runs.overrides()) == 2

    def test_pass_the_users_folder_on(
        self, torchppo: Torchppo, processes: Callable[[str], Runs], tmp_path: Path
    ) -> None:
        runs = processes("exit 0")
        torchppo(f"train -m seed=0,1 --config-dir {tmp_path}")
        assert [words >= {"--config-dir", str(tmp_path)} for words in runs.overrides()] == [True, True]

    def test_end_with_the_first_run_that_fails_and_its_exit_code(
        self, torchppo: Torchppo, processes: Callable[[str], Runs]
    ) -> None:
        runs = processes("exit 4")
        assert torchppo("train -m seed=0,1,2").code == 4
        assert runs.overrides() == [{"seed=0"}]

    def test_start_nothing_if_one_combination_is_mistaken(
        self, torchppo: Torchppo, processes: Callable[[str], Runs]
    ) -> None:
        runs = processes("exit 0")
        assert torchppo("train -m seed=0,abc").code == 2
        assert runs.overrides() == []

    def test_print_their_configurations_on_demand_and_do_not_train(
        self, torchppo: Torchppo, processes: Callable[[str], Runs]
    ) -> None:
        runs = processes("exit 0")
        assert torchppo("train -m seed=0,1 --cfg").code == 0
        assert all("--cfg" in words for words in runs.overrides())

    def test_that_are_terminated_terminate_the_run(
        self, torchppo: Torchppo, processes: Callable[[str], Runs], tmp_path: Path
    ) -> None:
        """It then writes its summary."""
        before = signal.getsignal(signal.SIGTERM)
        runs = processes(
            f"trap 'echo > {tmp_path}/summary; exit 143' TERM; kill -TERM $PPID; while :; do sleep 0.1; done"
        )
        assert torchppo("train -m seed=0,1").code == 143
        assert (tmp_path / "summary").exists()
        assert runs.overrides() == [{"seed=0"}]
        assert signal.getsignal(signal.SIGTERM) is before

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["interrupted", "terminated"])
    def test_end_even_if_the_signal_comes_while_a_run_starts(
        self,
        number: signal.Signals,
        torchppo: Torchppo,
        processes: Callable[[str], Runs],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        runs = processes("exec sleep 0.5")

        class Starting(subprocess.Popen[bytes]):
            def __init__(self, command: Sequence[str]) -> None:
                signal.raise_signal(number)
                super().__init__(command)

        monkeypatch.setattr(subprocess, "Popen", Starting)
        assert torchppo("train -m seed=0,1").code == 128 + number
        assert len(runs.overrides()) <= 1

    def test_an_interrupted_run_is_waited_for_and_ends_the_sweep(
        self, torchppo: Torchppo, processes: Callable[[str], Runs], tmp_path: Path
    ) -> None:
        """Ctrl-C reaches the run as well, which then writes its summary."""
        runs = processes(f"trap '' INT; kill -INT $PPID; sleep 0.7; echo > {tmp_path}/summary; exit 130")
        assert torchppo("train -m seed=0,1").code == 130
        assert (tmp_path / "summary").exists()
        assert runs.overrides() == [{"seed=0"}]


@pytest.mark.parametrize(
    ("checkpoint", "video"),
    [
        ("run/checkpoints/best.ckpt", "run/videos/best.mp4"),
        ("elsewhere/kept.ckpt", "elsewhere/kept.mp4"),
    ],
)
def test_a_film_lies_with_the_run_or_else_beside_the_checkpoint(
    checkpoint: str, video: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_video(Path(checkpoint)) == tmp_path / video


def test_help_lists_configurations_and_mistakes_do_not_import_torch(tmp_path: Path) -> None:
    commands = ["--help", "train --help", "list", "train --cfg", "train polcy=mlp", "train total_frames=abc", "trian"]
    program = (
        "import json, sys\n"
        "from torchppo.pipelines.cli.main import main\n"
        "for command in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        main(command.split())\n"
        "    except SystemExit:\n"
        "        pass\n"
        "print({'torch', 'lightning', 'torchrl', 'gymnasium'} & set(sys.modules), file=sys.stderr)\n"
    )
    words = [sys.executable, "-c", program, json.dumps(commands)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    told = done.stderr.splitlines()
    assert [line.split()[0] for line in told] == ["torchppo:"] * 3 + ["set()"]
    assert list(tmp_path.iterdir()) == []
