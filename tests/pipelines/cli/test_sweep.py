"""A sweep runs every combination of values in its own process."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.cli.sweep import combinations

RunCommand = Callable[[str], Any]


class Runs(NamedTuple):
    """The runs of a sweep, from a log with one line for each process."""

    log: Path

    def overrides(self) -> list[set[str]]:
        """Return the overrides of each run."""
        commands = [line.split() for line in self.log.read_text().splitlines()] if self.log.exists() else []
        assert all(words[:3] == ["-m", "torchppo", "train"] for words in commands)
        return [set(words[3:]) for words in commands]


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], Runs]:
    """Return a function that replaces every run of a sweep by a shell script that logs its arguments."""
    script, log = tmp_path / "python", tmp_path / "log"

    def install(last_line: str) -> Runs:
        script.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{last_line}\n')
        script.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(script))
        return Runs(log)

    return install


class TestRunSweep:
    def test_runs_every_combination_in_its_own_process(
        self, run_command: RunCommand, fake_runs: Callable[[str], Runs]
    ) -> None:
        runs = fake_runs("exit 0")
        code, out, _, trained = run_command("train -m seed=0,1 optimizer.lr=1e-3,1e-4 env=pendulum")
        assert (code, trained) == (0, [])
        cfgs = [compose(sorted(words)) for words in runs.overrides()]
        assert [cfg.env.id for cfg in cfgs] == ["Pendulum-v1"] * 4
        assert {(cfg.seed, cfg.optimizer.lr) for cfg in cfgs} == {(0, 1e-3), (0, 1e-4), (1, 1e-3), (1, 1e-4)}
        assert all(f"[{number}/4]" in out for number in range(1, 5))

    def test_continues_after_a_run_whose_configuration_is_refused(
        self, run_command: RunCommand, fake_runs: Callable[[str], Runs]
    ) -> None:
        runs = fake_runs("exit 0")
        code, out, err, _ = run_command("train -m policy=mlp,mpl seed=0")
        assert code == 2
        assert runs.overrides() == [{"policy=mlp", "seed=0"}]
        assert all(f"[{number}/2]" in out for number in (1, 2))
        assert ["unknown choice policy=mpl" in line for line in err.splitlines()] == [True, False]
        assert "1 of 2 runs failed" in err
        assert run_command("train -m seed=a,b").err.count("\n") == 1

    def test_runs_every_choice_that_matches_a_pattern(
        self, run_command: RunCommand, fake_runs: Callable[[str], Runs]
    ) -> None:
        runs = fake_runs("exit 0")
        assert run_command("train -m policy=glob(transformer*)").code == 0
        assert runs.overrides() == [{"policy=transformer"}, {"policy=transformer_xl"}]

    def test_accepts_a_run_dir_that_differs_by_run(
        self, run_command: RunCommand, fake_runs: Callable[[str], Runs]
    ) -> None:
        runs = fake_runs("exit 0")
        assert run_command("train -m seed=0,1 run_dir=here/s${seed}").code == 0
        assert len(runs.overrides()) == 2

    def test_passes_config_dir_on(
        self, run_command: RunCommand, fake_runs: Callable[[str], Runs], tmp_path: Path
    ) -> None:
        runs = fake_runs("exit 0")
        run_command(f"train -m seed=0,1 --config-dir {tmp_path}")
        assert [words >= {"--config-dir", str(tmp_path)} for words in runs.overrides()] == [True, True]

    def test_finds_components_in_modules_next_to_config_dir(
        self, run_command: RunCommand, fake_runs: Callable[[str], Runs], tmp_path: Path
    ) -> None:
        fake_runs("exit 0")
        (tmp_path / "robots" / "conf").mkdir(parents=True)
        (tmp_path / "robots" / "robot_parts.py").write_text("def loss(**options): ...\n")
        words = "train -m seed=0,1 objective._target_=robot_parts.loss --config-dir robots/conf"
        assert run_command(words).code == 0

    def test_continues_after_a_failing_run_and_returns_its_exit_code(
        self, run_command: RunCommand, fake_runs: Callable[[str], Runs]
    ) -> None:
        runs = fake_runs('case "$*" in *seed=0*) exit 4;; *seed=2*) exit 3;; esac')
        code, _, err, _ = run_command("train -m seed=0,1,2")
        assert (code, runs.overrides()) == (4, [{"seed=0"}, {"seed=1"}, {"seed=2"}])
        assert all(text in err for text in ("2 of 3", "seed=0 (exit 4)", "seed=2 (exit 3)"))

    def test_tells_runs_which_values_are_swept(
        self, run_command: RunCommand, fake_runs: Callable[[str], Runs], tmp_path: Path
    ) -> None:
        fake_runs(f'echo "$TORCHPPO_SWEPT" >> {tmp_path}/swept')
        run_command("train -m seed=0,1 total_frames=7")
        assert (tmp_path / "swept").read_text().splitlines() == ['["seed=0"]', '["seed=1"]']

    def test_passes_cfg_on(self, run_command: RunCommand, fake_runs: Callable[[str], Runs]) -> None:
        runs = fake_runs("exit 0")
        assert run_command("train -m seed=0,1 --cfg").code == 0
        assert all("--cfg" in words for words in runs.overrides())

    def test_sigterm_terminates_the_run_and_waits_for_it(
        self, run_command: RunCommand, fake_runs: Callable[[str], Runs], tmp_path: Path
    ) -> None:
        before = signal.getsignal(signal.SIGTERM)
        runs = fake_runs(
            f"trap 'echo > {tmp_path}/summary; exit 143' TERM; kill -TERM $PPID; while :; do sleep 0.1; done"
        )
        assert run_command("train -m seed=0,1").code == 143
        assert (tmp_path / "summary").exists()
        assert runs.overrides() == [{"seed=0"}]
        assert signal.getsignal(signal.SIGTERM) is before

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
    def test_a_signal_while_a_run_starts_ends_the_sweep(
        self,
        number: signal.Signals,
        run_command: RunCommand,
        fake_runs: Callable[[str], Runs],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        runs = fake_runs("exec sleep 0.5")

        class SignalAtStart(subprocess.Popen[bytes]):
            def __init__(self, command: Sequence[str]) -> None:
                signal.raise_signal(number)
                super().__init__(command)

        monkeypatch.setattr(subprocess, "Popen", SignalAtStart)
        assert run_command("train -m seed=0,1").code == 128 + number
        assert len(runs.overrides()) <= 1

    def test_sigint_waits_for_the_run_and_ends_the_sweep(
        self, run_command: RunCommand, fake_runs: Callable[[str], Runs], tmp_path: Path
    ) -> None:
        """The terminal sends Ctrl-C to the run as well, which then writes its summary."""
        runs = fake_runs(f"trap '' INT; kill -INT $PPID; sleep 0.7; echo > {tmp_path}/summary; exit 130")
        assert run_command("train -m seed=0,1").code == 130
        assert (tmp_path / "summary").exists()
        assert runs.overrides() == [{"seed=0"}]


class TestCombinations:
    @pytest.mark.parametrize(
        ("overrides", "expected"),
        [
            (["seed=0,1", "optimizer.lr=1e-3,1e-4"], [(0, 1e-3), (0, 1e-4), (1, 1e-3), (1, 1e-4)]),
            (["seed=range(0,3)"], [(0, 3e-4), (1, 3e-4), (2, 3e-4)]),
            (["seed=3", "optimizer.lr=1"], [(3, 1)]),
            ([], [(0, 3e-4)]),
            (["seed=3", "seed=0,1,2"], [(0, 3e-4), (1, 3e-4), (2, 3e-4)]),
            (["seed=0,1,2", "seed=3"], [(3, 3e-4)]),
            (["seed=0,1", "seed=2,3"], [(2, 3e-4), (3, 3e-4)]),
        ],
        ids=[
            "two keys",
            "range",
            "single values",
            "no overrides",
            "value then sweep",
            "sweep then value",
            "two sweeps",
        ],
    )
    def test_are_all_combinations_of_the_last_values(
        self, overrides: list[str], expected: list[tuple[int, float]]
    ) -> None:
        cfgs = [compose(combination) for combination in combinations(overrides)]
        assert [(cfg.seed, cfg.optimizer.lr) for cfg in cfgs] == expected

    def test_sweep_over_lists_and_components(self) -> None:
        runs = combinations(
            ["policy.body.num_cells=[8,8],[4]", "objective=clip,kl_penalty", "+env.max_episode_steps=7"]
        )
        cfgs = [compose(combination) for combination in runs]
        assert [cfg.policy.body.num_cells for cfg in cfgs] == [[8, 8], [8, 8], [4], [4]]
        assert [cfg.objective._target_.split(".")[-1] for cfg in cfgs] == ["ClipPPOLoss", "KLPENPPOLoss"] * 2
        assert {cfg.env.max_episode_steps for cfg in cfgs} == {7}
