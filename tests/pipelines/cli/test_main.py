"""The command line: commands, exit codes, mistakes in one line, and no slow imports before they are needed."""

from __future__ import annotations

import gc
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

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
from torchppo.pipelines.cli.eval_command import default_video
from torchppo.pipelines.cli.main import importing

CONF = Path(__file__).parents[3] / "conf"
GROUPS = sorted({path.parent.name for path in CONF.glob("*/*.yaml")})

MISTAKES = [  # command, and two texts of its error message
    ("trian", "'trian'", "'train'"),
    ("train --cgf", "--cgf", "'--cfg'"),
    ("eval some.ckpt --epsiodes 3", "--epsiodes", "'--episodes'"),
    ("eval some.ckpt --n-eval-episodes 5", "--n-eval-episodes", "--episodes 5"),
    ("eval some.ckpt --deterministic", "--deterministic", "--stochastic"),
    ("eval some.ckpt eval.episodes=3", "eval.episodes=3", "--episodes 3"),
    ("eval some.ckpt seed=3", "seed=3", "--seed 3"),
    ("eval some.ckpt --episodes many", "--episodes", "'many'"),
    ("eval", "checkpoint", ""),
    ("eval some.ckpt other.ckpt", "other.ckpt", ""),
    ("list policies", "policies", ""),
    ("train polcy=mlp", "'polcy'", "'policy'"),
    ("train policy=mpl", "policy=mpl", "'mlp'"),
    ("train experiment=halfchetah", "experiment=halfchetah", "'halfcheetah'"),
    ("train logger=[csv,tensorbord]", "logger=tensorbord", "'tensorboard'"),
    ("train controller@controller.lr=linaer", "controller@controller.lr=linaer", "'linear'"),
    ("train controller=linear", "controller", "controller@controller.lr"),
    ("train optimizer.lrr=1", "'optimizer.lrr'", "'optimizer.lr'"),
    ("train objective.clip_epsilom=0.1", "'objective.clip_epsilom'", "'objective.clip_epsilon'"),
    ("train trainer.max_epoch=1", "'trainer.max_epoch'", "'trainer.max_epochs'"),
    ("train ~optimizer.lrr", "'optimizer.lrr'", "'optimizer.lr'"),
    ("train qqqqqq=1", "'qqqqqq'", "--cfg"),
    ("train +qqqqqq=1", "'qqqqqq'", "--cfg"),
    ("train +eval.qqqqqq=1", "'eval.qqqqqq'", "--cfg"),
    ("train +critic.body.num_cells=[8]", "'critic.body.num_cells'", "policy.body.num_cells="),
    ("train +policy.memory.width=8", "policy.memory", "_target_"),
    ("train policy.memory.width=8", "policy.memory.width", "memory=gru"),
    ("train memory.width=8", "policy.memory.width", "memory=gru"),
    ("train transforms={}", "transforms={}", "ListConfig"),
    ("train env=Ant-v5", "env=Ant-v5", "env.id=Ant-v5"),
    ("train --learning-rate 0.1", "--learning-rate", "optimizer.lr=0.1"),
    ("train --env-id=Ant-v5", "--env-id", "env.id=Ant-v5"),
    ("train --total-timesteps --seed 1", "--total-timesteps", "total_frames=..."),
    ("train seed=-1", "seed=-1", "at least 0"),
    ("train estimator.gamma=1.1", "estimator.gamma=1.1", "between 0 and 1"),
    ("train optimizer.lr=nan", "optimizer.lr=nan", "at least 0"),
    ("train critic.lmbda=abc", "critic.lmbda=abc", "null"),
    ("train compile=fast", "compile=fast", "trace"),
    ("train eval.every_frames=null eval.stop_at=3", "eval.stop_at", "eval.every_frames=null"),
    ("train total_frames=1000 eval.stop_at=3", "eval.stop_at", "eval.every_frames=50000"),
    ("train critic.optimizer.lr=1", "'critic.optimizer.lr'", "+critic.optimizer.lr="),
    ("train eval.env.gravity=1", "'eval.env.gravity'", "+eval.env.gravity="),
    ("train policy.body=null", "policy.body=null", "group of keys"),
    ("train policy.memory={}", "policy.memory={}", "_target_"),
    ("train total_frames=1e30", "total_frames=1", "1e15"),
    ("train update.sequence_length=8", "update.sequence_length", "memory=none"),
    ("train update.epochs=1 update.recompute_advantage=true", "update.recompute_advantage", "update.epochs=1"),
    ("train cartpole", "'cartpole'", "key=value"),
    ("train seed=[", "'seed=['", "key=value"),
    ("train a=b=c", "'a=b=c'", "key=value"),
    ("train =3", "'=3'", "key=value"),
    ("train total_frames=abc", "total_frames=abc", "100000"),
    ("train total_frames=1.5", "total_frames=1.5", "100000"),
    ("train total_frames=true", "total_frames=true", "100000"),
    ("train optimizer.lr=high", "optimizer.lr=high", "0.0003"),
    ("train eval.video=maybe", "eval.video=maybe", "true"),
    ("train policy.body=3", "policy.body=3", ""),
    ("train policy.body.num_cells=3", "policy.body.num_cells=3", "64"),
    ("train optimizer=3", "optimizer=3", "adam"),
    ("train seed=0,1", "seed", "-m"),
    ("train experiment=null", "experiment=null", "cartpole"),
    ("train policy=cnn ~policy.body.num_cells", "policy.body.num_cells", "policy=mlp"),
    ("train ~run_dir", "~run_dir", ""),
    ("train seed=${nothing}", "seed", "nothing"),
    ("train env=gymnasium", "env.id", "env.id=..."),
    ("train env=torchrl", "env._target_", "env._target_=..."),
    ("train --config-dir nowhere", "nowhere", "--config-dir"),
    ("train -m seed=0,1 --config-dir nowhere", "nowhere", "--config-dir"),
    ("list --config-dir nowhere", "nowhere", "--config-dir"),
    ("train seed=0,1 -m total_frames=abc", "total_frames=abc", "100000"),
    ("train -m optimizer.lr=interval(0,1)", "sweeps", "CHOICE"),
    ("train -m seed=0,1 run_dir=here", "run_dir=here", "here/s${seed}"),
]

MISSING = (
    "import sys; from torchppo.pipelines.cli.main import main; code = main(); sys.exit(code + ('torch' in sys.modules))"
)
"""A program that ends with another code if it has imported PyTorch."""

RunCommand = Callable[[str], Any]


class TestMistakes:
    @pytest.mark.parametrize(("command", "mistake", "advice"), MISTAKES, ids=[command for command, *_ in MISTAKES])
    def test_are_reported_in_one_line_with_advice(
        self, command: str, mistake: str, advice: str, run_command: RunCommand
    ) -> None:
        code, out, err, trained = run_command(command)
        assert code == 2
        assert out == ""
        assert err.startswith("torchppo: ")
        assert err.count("\n") == 1
        assert err.endswith("\n")
        assert mistake in err
        assert advice in err
        assert not trained

    def test_suggestion_differs_from_the_given_name(self, run_command: RunCommand) -> None:
        assert "did you mean 'controller'" not in run_command("train controller=linear").err
        assert "did you mean" not in run_command("train --json").err  # an option of the examples below the help


class TestExitCodes:
    @pytest.mark.parametrize(
        ("outcome", "code"),
        [
            (0, 0),
            (143, 143),
            (TorchPPOError("a bug"), 1),
            (ConfigurationError("a key"), 2),
            (EnvironmentFailure("an environment"), 3),
            (NumericalError("a number"), 4),
            (CheckpointError("a file"), 5),
            (RunLockedError("a folder"), 6),
            (OSError(28, "No space left on device", "metrics.csv"), 74),
            (KeyboardInterrupt(), 130),
        ],
        ids=repr,
    )
    def test_follow_from_the_error(
        self, outcome: int | BaseException, code: int, fake_training: ModuleType, run_command: RunCommand
    ) -> None:
        fake_training.outcome = outcome
        assert run_command("train")[0] == code

    @pytest.mark.parametrize(
        ("error", "line"),
        [
            (EnvironmentFailure("an environment"), "torchppo: an environment\n"),
            (ConfigurationError("a spec(\n    of several lines)"), "torchppo: a spec( of several lines)\n"),
            (OSError(28, "No space left on device", "metrics.csv"), "torchppo: No space left on device: metrics.csv\n"),
            (OSError("a disk"), "torchppo: a disk\n"),
        ],
        ids=repr,
    )
    def test_errors_are_printed_in_one_line(
        self, error: BaseException, line: str, fake_training: ModuleType, run_command: RunCommand
    ) -> None:
        fake_training.outcome = error
        assert run_command("train").err == line

    def test_other_exceptions_are_raised(self, fake_training: ModuleType, run_command: RunCommand) -> None:
        fake_training.outcome = ZeroDivisionError("a bug")
        with pytest.raises(ZeroDivisionError, match="a bug"):
            run_command("train")


class TestHelp:
    @pytest.mark.parametrize("command", ["--help", "-h"])
    def test_shows_commands_and_examples(self, command: str, run_command: RunCommand) -> None:
        code, out, err, _ = run_command(command)
        assert (code, err) == (0, "")
        for text in ("train", "eval", "list", "torchppo train env=cartpole", "-m seed=0,1,2"):
            assert text in out

    def test_of_train_shows_groups_choices_and_examples(self, run_command: RunCommand) -> None:
        out = run_command("train --help").out
        lines = {line.split("=")[0].strip(): line for line in out.splitlines() if "=" in line}
        for path in CONF.glob("*/*.yaml"):
            assert path.stem in lines[path.parent.name].replace("|", " ").split("=", 1)[1].split()
        assert "torchppo train env=cartpole" in out

    @pytest.mark.parametrize("option", ["--episodes", "--seed", "--json", "--video", "--no-video"])
    def test_of_eval_shows_the_options(self, option: str, run_command: RunCommand) -> None:
        assert option in run_command("eval --help").out

    def test_a_missing_command_is_reported_with_the_commands(self, run_command: RunCommand) -> None:
        code, _, err, _ = run_command("")
        assert code == 2
        assert all(command in err for command in ("train", "eval", "list"))

    def test_every_example_composes(self, run_command: RunCommand, tmp_path: Path) -> None:
        (tmp_path / "my_conf").mkdir()
        words = [line.split() for line in run_command("--help").out.splitlines() if "torchppo train" in line]
        assert len(words) >= 4
        for _, *example in words:
            command = " ".join(example).replace("-m seed=0,1,2", "")
            assert run_command(f"{command} --cfg").code == 0


class TestList:
    @pytest.fixture
    def sections(self, run_command: RunCommand) -> dict[str, dict[str, str]]:
        """Return the choices of every group with their descriptions."""
        groups: dict[str, dict[str, str]] = {}
        for line in run_command("list").out.splitlines():
            if line[0] != " ":
                section = groups.setdefault(line.split("=")[0], {})
            else:
                name, section[name] = line.split(maxsplit=1)
        return groups

    @pytest.mark.parametrize("group", GROUPS)
    def test_shows_every_choice_with_its_description(self, group: str, sections: dict[str, dict[str, str]]) -> None:
        files = {path.stem: path.read_text() for path in (CONF / group).glob("*.yaml")}
        assert set(sections[group]) == set(files)
        for name, text in files.items():
            assert f"# {sections[group][name]}\n" in text

    def test_shows_choices_of_config_dir(self, run_command: RunCommand, tmp_path: Path) -> None:
        (tmp_path / "env").mkdir()
        (tmp_path / "env" / "ours.yaml").write_text("# Ours.\n")
        assert re.search(r"^  ours +Ours\.$", run_command(f"list --config-dir {tmp_path}").out, re.MULTILINE)


def test_version(run_command: RunCommand) -> None:
    assert run_command("--version").out == f"torchppo {__version__}\n"


class TestTrain:
    def test_overrides_may_surround_an_option(self, run_command: RunCommand, tmp_path: Path) -> None:
        (cfg,) = run_command(f"train seed=3 --config-dir {tmp_path} total_frames=7").trained
        assert (cfg.seed, cfg.total_frames) == (3, 7)

    def test_cfg_prints_the_configuration_and_does_not_train(self, run_command: RunCommand) -> None:
        code, out, err, trained = run_command("train experiment=pendulum seed=3 --cfg")
        assert (code, err, trained) == (0, "", [])
        cfg = yaml.safe_load(out)
        assert (cfg["seed"], cfg["env"]["id"], cfg["estimator"]["gamma"]) == (3, "Pendulum-v1", 0.9)

    def test_config_dir_adds_choices(self, run_command: RunCommand, tmp_path: Path) -> None:
        (tmp_path / "mine" / "env").mkdir(parents=True)
        (tmp_path / "mine" / "env" / "ours.yaml").write_text("# Ours.\ndefaults: [gymnasium]\nid: Acrobot-v1\n")
        (cfg,) = run_command("train env=ours --config-dir mine").trained
        assert (cfg.env.id, cfg.env.num_envs) == ("Acrobot-v1", 8)

    @pytest.mark.parametrize("command", ["train", "list"])
    def test_modules_are_found_in_the_working_directory_and_next_to_config_dir(
        self, command: str, run_command: RunCommand, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(sys, "path", [*sys.path])
        (tmp_path / "robots" / "conf").mkdir(parents=True)
        assert run_command(f"{command} --config-dir robots/conf").code == 0
        assert sys.path[-2:] == [str(Path.cwd()), str((tmp_path / "robots").resolve())]


@pytest.mark.parametrize(
    ("checkpoint", "video"),
    [
        ("run/checkpoints/best.ckpt", "run/videos/best.mp4"),
        ("folder/kept.ckpt", "folder/kept.mp4"),
    ],
)
def test_default_video_is_in_the_run_directory_or_next_to_the_checkpoint(
    checkpoint: str, video: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert default_video(Path(checkpoint)) == tmp_path / video


def test_imports_are_not_searched_for_garbage() -> None:
    before = gc.get_freeze_count()
    try:
        with importing():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > before
    finally:
        gc.unfreeze()


def test_commands_without_training_do_not_import_torch(tmp_path: Path) -> None:
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
    arguments = [sys.executable, "-c", program, json.dumps(commands)]
    process = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = process.stderr.splitlines()
    assert [line.split()[0] for line in lines] == ["torchppo:"] * 3 + ["set()"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("words", [("eval", "no.ckpt"), ("resume", "no_run")])
def test_a_missing_file_is_refused_before_pytorch_is_imported(words: tuple[str, ...], tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", MISSING, *words], cwd=tmp_path, check=False, capture_output=True)
    assert done.returncode == CheckpointError.exit_code, done.stderr
