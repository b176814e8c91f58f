"""Tests of the health report on hand-written metrics, and on short trainings."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from torchppo.pipelines.cli.main import main
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.health.report import HealthReport, line_of
from torchppo.pipelines.health.rules import RULES, Condition, Rule
from torchppo.pipelines.ppo import PPO

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]
Row = dict[str, float]
HEALTHY: Row = {
    "rollout/ep_rew_mean": 10.0,
    "rollout/ep_rew_std": 2.0,
    "rollout/truncated": 0.0,
    "train/kl": 0.01,
    "train/target_kl": 0.01,
    "train/clip_fraction": 0.1,
    "train/explained_variance": 0.8,
    "train/value_bias": 0.1,
    "train/return_std": 5.0,
    "train/loss_critic": 2.0,
    "train/advantage_scale": 1.0,
    "train/grad_norm": 0.5,
    "train/grad_clip_fraction": 0.5,
    "train/lr": 3e-4,
    "train/num_epochs": 10.0,
    "train/first_kl": 0.0,
}
DISCRETE, CONTINUOUS = {**HEALTHY, "train/entropy": 0.6}, {**HEALTHY, "train/entropy": 2.0, "train/std": 1.0}


def findings(rows: Sequence[Row], total_frames: int = 10_000, rules: Sequence[Rule] = RULES) -> dict[str, int]:
    """Return the frames at which each rule began; a rollout has 10 frames."""
    report = HealthReport(total_frames, rules)
    for index, row in enumerate(rows):
        report.check(row, 10 * (index + 1))
    return {one["rule"]: one["frames"] for one in report.findings}


@pytest.mark.parametrize("row", [DISCRETE, CONTINUOUS], ids=["discrete", "continuous"])
def test_a_healthy_training_has_no_finding(row: Row) -> None:
    assert findings([row] * 100) == {}


@pytest.mark.parametrize(
    ("rule", "changes", "expected"),
    [
        ("kl_high", {"train/kl": 0.2}, {"kl_above_target"}),
        ("kl_extreme", {"train/kl": 1.1}, {"kl_high", "kl_above_target"}),
        ("kl_above_target", {"train/kl": 0.05}, set()),
        ("kl_below_target", {"train/kl": 5e-4}, set()),
        ("clip_fraction_high", {"train/clip_fraction": 0.6}, set()),
        ("clip_fraction_zero", {"train/clip_fraction": 0.0, "train/kl": 1e-5}, {"kl_below_target"}),
        ("frozen_policy", {"train/kl": 0.0}, {"kl_below_target"}),
        ("dead_learning_rate", {"train/lr": 1e-8}, set()),
        ("entropy_collapse", {"train/entropy": 0.01}, set()),
        ("explained_variance_negative", {"train/explained_variance": -0.1}, set()),
        ("value_bias", {"train/value_bias": -16.0, "rollout/ep_rew_mean": 8.0}, set()),
        ("value_loss_explodes", {"train/loss_critic": 25_100.0}, set()),
        ("advantages_not_normalized", {"train/advantage_scale": 11.0}, set()),
        ("gradients_always_clipped", {"train/grad_norm": 1001.0, "train/grad_clip_fraction": 1.0}, set()),
        ("reward_scale", {"train/return_std": 1001.0}, set()),
        ("too_many_epochs", {"train/num_epochs": 31.0}, set()),
        ("stale_log_probabilities", {"train/first_kl": 0.02}, set()),
        ("policy_collapse", {"train/entropy": 0.02, "rollout/ep_rew_mean": 8.0}, set()),
    ],
)  # fmt: skip
def test_a_rule_begins_after_its_rollouts_in_a_row(rule: str, changes: Row, expected: set[str]) -> None:
    (known,) = [one for one in RULES if one.name == rule]
    bad = {**DISCRETE, **changes}
    found = findings([DISCRETE, *[bad] * 30])
    assert found.pop(rule) == 10 * (known.rollouts + 1)
    assert set(found) == expected
    almost = [DISCRETE, *[bad] * (known.rollouts - 1), DISCRETE]
    assert rule not in findings(almost * 3)


@pytest.mark.parametrize(("rule", "std"), [("std_collapse", 0.01), ("std_explodes", 11.0)])
def test_the_deviation_of_continuous_actions_is_compared_with_the_first_one(rule: str, std: float) -> None:
    bad = {**CONTINUOUS, "train/std": std, "train/entropy": -4.0}  # a negative entropy is normal
    assert set(findings([CONTINUOUS, *[bad] * 10])) == {rule}


def test_episodes_that_end_at_the_time_limit_are_healthy_if_their_return_has_changed() -> None:
    row = {**DISCRETE, "rollout/truncated": 1.0, "rollout/ep_rew_std": 0.0, "rollout/ep_rew_mean": -200.0}
    assert findings([row] * 30) == {"only_truncated_episodes": 200}
    assert findings([{**row, "rollout/ep_rew_mean": -300.0}, *[row] * 30]) == {}


def test_a_return_that_falls_back_is_a_collapse_until_it_recovers() -> None:
    report = HealthReport(10_000)
    for index, value in enumerate([10.0, *[100.0] * 10, *[9.0] * 20]):
        report.check({**CONTINUOUS, "rollout/ep_rew_mean": value}, index)
    assert [one["rule"] for one in report.findings] == ["return_collapse"]
    assert report.has_collapsed
    report.check({**CONTINUOUS, "rollout/ep_rew_mean": 90.0}, 99)
    assert not report.has_collapsed
    assert report.findings[0]["last_frames"] == 30


def test_rules_about_slow_changes_do_not_apply_to_the_end_of_a_schedule() -> None:
    assert findings([{**DISCRETE, "train/kl": 0.0, "train/lr": 0.0}] * 30, total_frames=10) == {}


def test_rollouts_without_the_metric_are_left_out() -> None:
    without = {key: value for key, value in DISCRETE.items() if key != "train/kl"}
    high = {**DISCRETE, "train/kl": 0.2}
    assert findings([high, without, without, high, without, high])["kl_high"] == 60


def test_a_finding_has_its_evidence_and_an_override() -> None:
    rule = Rule("many", (Condition("a", "above", 2.0), Condition("progress", "below", 1.0)), 1, "too many", "b=1", "")
    report = HealthReport(100, [rule])
    assert report.check({"a": 2.0}, 1) == []
    (found,) = report.check({"a": 3.0}, 2)
    assert found["evidence"] == {"a": 3.0}
    assert line_of(found) == "many after 2 frames (a=3): too many; try b=1"
    assert report.check({"a": 4.0}, 3) == [], "it is reported once"


def test_a_restored_report_continues_exactly() -> None:
    rows = [DISCRETE, *[{**DISCRETE, "train/entropy": 0.01, "rollout/ep_rew_mean": 8.0}] * 9]
    whole, first, second = (HealthReport(1000) for _ in range(3))
    for index, row in enumerate(rows):
        whole.check(row, index)
        (first if index < 3 else second).check(row, index)
        if index == 2:
            second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == whole.state_dict()
    assert whole.has_collapsed


def test_every_rule_has_a_source_and_an_override_and_a_test() -> None:
    assert len({rule.name for rule in RULES}) == len(RULES)
    source = Path(__file__).read_text()
    for rule in RULES:
        assert rule.source
        assert "=" in rule.override
        assert f'"{rule.name}"' in source


def test_a_callback_prints_a_finding_once_and_works_from_python(
    make: Make, fit: Fit, caplog: pytest.LogCaptureFixture
) -> None:
    ppo, collector = make(rollouts=3, max_grad_norm=1e-3)
    rule = Rule("any", (Condition("train/grad_clip_fraction", "above", 0.5),), 2, "clipped", "ppo.max_grad_norm=1", "")
    report = HealthReport(rules=[rule])
    fit(ppo, collector, callbacks=[report])
    assert [one["frames"] for one in report.findings] == [64]
    assert len([record for record in caplog.records if "any after" in record.message]) == 1


BAD_RUNS = {
    "learning rate": (
        ["env=cartpole", "collector.frames_per_env=128", "update.minibatch_size=128", "optimizer.lr=0.1",
         "total_frames=3072"],
        {"kl_extreme"},
    ),
    "epochs": (["env=cartpole", "update.epochs=100", "total_frames=1024"], {"too_many_epochs"}),
    "critic": (
        ["env=cartpole", "policy.body.activation=relu", "+critic.optimizer.lr=10", "total_frames=1024"],
        {"value_loss_explodes"},
    ),
    "rewards": (
        ["env=cartpole", "total_frames=4096",
         "transforms=[{_target_: torchrl.envs.RewardScaling, loc: 0.0, scale: 1e6}]"],
        {"reward_scale"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_RUNS)
def test_bad_settings_are_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    overrides, expected = BAD_RUNS[name]
    options = ["eval.episodes=0", "logger=csv", "run_dir=run", "compile=false"]
    assert main(["train", *overrides, *options]) == 0
    summary: dict[str, Any] = json.loads(Path("run/summary.json").read_text())
    assert expected <= {one["rule"] for one in summary["health"]}
    assert summary["collapsed"] is False
