"""Evaluates the rules of the health report on the metrics of every rollout."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

from lightning import Callback, Trainer

from .rules import RULES, Condition, Rule

logger = logging.getLogger("torchppo")

RETURN, DEVIATION = "rollout/ep_rew_mean", "rollout/ep_rew_std"
TINY = 1e-12


class HealthReport(Callback):
    """Reports a rule of `rules.py` once when it becomes true, and keeps the findings for summary.json.

    It reads only metrics, so it also works with the rows of metrics.csv. All ranks have the same metrics; rank 0
    prints. Checkpoints contain the state.

    Args:
        total_frames: frames of the training; `None` takes them from the LightningModule.
        rules: the rules.

    Attributes:
        findings: the reported rules in the order of time: `rule`, `message`, `override`, `evidence` (the metrics of the
            conditions), and `frames` and `last_frames`, when the rule was reported and when it was last true.

    """

    def __init__(self, total_frames: int | None = None, rules: Iterable[Rule] = RULES) -> None:
        self.total_frames, self.rules = total_frames, tuple(rules)
        self.findings: list[dict[str, Any]] = []
        self._counts: dict[str, int] = {}
        self._firsts: dict[str, float] = {}
        self._largest: dict[str, float] = {}
        used = [condition for rule in self.rules for condition in rule.conditions]
        self._referenced = {one.metric for one in used if one.reference in ("first", "largest")} | {RETURN, DEVIATION}

    @property
    def summary(self) -> dict[str, Any]:
        """The entries of summary.json."""
        return {"health": self.findings, "collapsed": self.has_collapsed}

    @property
    def has_collapsed(self) -> bool:
        """Whether the policy has collapsed and has not recovered by the last rollout."""
        collapses = {rule.name for rule in self.rules if rule.is_collapse}
        return any(self._counts.get(one["rule"], 0) > 0 for one in self.findings if one["rule"] in collapses)

    def check(self, row: Mapping[str, float], frames: int) -> list[dict[str, Any]]:
        """Return the new findings after a rollout.

        Args:
            row: metrics of the rollout, such as `train/kl`. Metrics without a value are missing.
            frames: frames so far.

        """
        values = {**row, **self._derived(row, frames)}
        for name in self._referenced & values.keys():
            self._firsts.setdefault(name, values[name])
            self._largest[name] = max(values[name], self._largest.get(name, values[name]))
        new = []
        known = {one["rule"]: one for one in self.findings}
        for rule in self.rules:
            if not all(condition.metric in values for condition in rule.conditions):
                continue
            is_true = all(self._holds(condition, values) for condition in rule.conditions)
            self._counts[rule.name] = self._counts.get(rule.name, 0) + 1 if is_true else 0
            if is_true and rule.name in known:
                known[rule.name]["last_frames"] = frames
            elif self._counts[rule.name] >= rule.rollouts:
                new.append(finding(rule, values, frames))
        self.findings += new
        return new

    def _holds(self, condition: Condition, values: Mapping[str, float]) -> bool:
        references = {
            "": 1.0,
            "first": self._firsts.get(condition.metric),
            "largest": self._largest.get(condition.metric),
        }
        reference = references.get(condition.reference, values.get(condition.reference))
        if reference is None:
            return False
        limit = condition.limit * reference
        value = values[condition.metric]
        return value > limit if condition.comparison == "above" else value < limit

    def _derived(self, row: Mapping[str, float], frames: int) -> dict[str, float]:
        """Return quantities that rules use besides the metrics.

        They are `progress` in [0, 1]; `discrete_entropy`, the entropy of a policy without a standard deviation;
        `abs_value_bias`; `value_loss_ratio`, the loss of the critic divided by the variance of the returns;
        `return_gain`, the best return minus the first one; and `return_lost`, the best return minus the current one.
        The gain is in units of the first standard deviation of the returns; what is lost is in units of the gain or, if
        that is larger, of this deviation.
        """
        found = {} if self.total_frames is None else {"progress": frames / self.total_frames}
        if "train/entropy" in row and not {"train/std"} & (row.keys() | self._firsts.keys()):
            found["discrete_entropy"] = row["train/entropy"]
        if "train/value_bias" in row:
            found["abs_value_bias"] = abs(row["train/value_bias"])
        if {"train/loss_critic", "train/return_std"} <= row.keys():
            found["value_loss_ratio"] = row["train/loss_critic"] / max(row["train/return_std"] ** 2, TINY)
        if RETURN in row:
            value, deviation = row[RETURN], self._firsts.get(DEVIATION, row.get(DEVIATION, 0.0))
            best = max(value, self._largest.get(RETURN, value))
            gain = best - self._firsts.get(RETURN, value)
            found["return_gain"] = gain / max(deviation, TINY)
            found["return_lost"] = (best - value) / max(gain, deviation, TINY)
        return found

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.total_frames = pl_module.total_frames
        for one in self.check(pl_module.published, pl_module.frames):
            if trainer.is_global_zero:
                logger.warning("torchppo: %s", line_of(one))

    def state_dict(self) -> dict[str, Any]:
        return {
            "counts": dict(self._counts),
            "firsts": dict(self._firsts),
            "largest": dict(self._largest),
            "findings": [dict(one) for one in self.findings],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._counts, self._firsts = dict(state_dict["counts"]), dict(state_dict["firsts"])
        self._largest = dict(state_dict["largest"])
        self.findings = [dict(one) for one in state_dict["findings"]]


def finding(rule: Rule, values: Mapping[str, float], frames: int) -> dict[str, Any]:
    """Return a new finding as plain data."""
    names = [condition.metric for condition in rule.conditions if condition.metric != "progress"]
    return {
        "rule": rule.name,
        "frames": frames,
        "last_frames": frames,
        "evidence": {name: values[name] for name in names},
        "message": rule.message,
        "override": rule.override,
    }


def line_of(one: Mapping[str, Any]) -> str:
    """Return a finding in one line, with its evidence and the override."""
    evidence = ", ".join(f"{name}={value:.4g}" for name, value in one["evidence"].items())
    return f"{one['rule']} after {one['frames']:,} frames ({evidence}): {one['message']}; try {one['override']}"
