"""The rules of the health report. A rule is one entry; `report.py` evaluates them on the metrics of every rollout."""

from __future__ import annotations

from typing import Literal, NamedTuple


class Condition(NamedTuple):
    """Compares a metric with a limit.

    Attributes:
        metric: name of a column of metrics.csv, or of a quantity that `HealthReport._derived` computes.
        comparison: `above` or `below`. A value equal to the limit does not satisfy the condition.
        limit: a value of the metric, or a factor if there is a `reference`.
        reference: what the limit is a factor of: `first` or `largest`, the first or largest value of the same metric in
            this training, or the name of another metric. If it is empty, the limit is absolute.

    """

    metric: str
    comparison: Literal["above", "below"]
    limit: float
    reference: str = ""


class Rule(NamedTuple):
    """A problem of a training, reported when all conditions have been true for several rollouts in a row.

    Attributes:
        name: name in summary.json.
        conditions: conditions on metrics. Rollouts in which a metric has no value are ignored.
        rollouts: number of rollouts in a row.
        message: what is wrong.
        override: override of the command line to try.
        source: source of the limits.
        is_collapse: whether the rule means that the policy has collapsed; see `collapsed` in summary.json.

    """

    name: str
    conditions: tuple[Condition, ...]
    rollouts: int
    message: str
    override: str
    source: str
    is_collapse: bool = False


SPEC = "Schulman et al. 2017, and the ranges of docs/health.md"
MEASURED = "no shipped preset reaches it (benchmarks/health.py)"
IS_LEARNING = Condition("progress", "below", 0.9)
"""Controllers may anneal the learning rate to 0 at the end."""
RETURN_IS_LOST = Condition("return_lost", "above", 0.5)

RULES = (
    Rule(
        "kl_high",
        (Condition("train/kl", "above", 0.1),),
        3,
        "the policy changes too much in an update; 0.01 to 0.05 is usual",
        "update.target_kl=0.03",
        "Schulman et al. 2017, section 4; OpenAI Spinning Up stops an update at 0.015",
    ),
    Rule(
        "kl_extreme",
        (Condition("train/kl", "above", 1.0),),
        1,
        "one update has changed the policy almost completely",
        "optimizer.lr=3e-4 update.target_kl=0.03",
        MEASURED,
    ),
    Rule(
        "kl_above_target",
        (Condition("train/kl", "above", 4.0, "train/target_kl"),),
        10,
        "the KL divergence stays above 4 times its target; the controller is at its limit or too slow",
        "update.epochs=4",
        "Schulman et al. 2017, section 4, which doubles beta above 1.5 times the target",
    ),
    Rule(
        "kl_below_target",
        (Condition("train/kl", "below", 0.1, "train/target_kl"), IS_LEARNING),
        20,
        "the KL divergence stays below 1/10 of its target; the policy changes less than intended",
        "optimizer.lr=3e-4 update.epochs=10",
        "Schulman et al. 2017, section 4, which halves beta below 1/1.5 of the target",
    ),
    Rule(
        "clip_fraction_high",
        (Condition("train/clip_fraction", "above", 0.5),),
        3,
        "most samples are clipped and have no gradient",
        "optimizer.lr=1e-4",
        "Andrychowicz et al. 2020, and " + MEASURED,
    ),
    Rule(
        "clip_fraction_zero",
        (Condition("train/clip_fraction", "below", 1e-6), Condition("train/kl", "below", 1e-4),
         Condition("train/kl", "above", 1e-7), IS_LEARNING),
        10,
        "no sample is clipped and the policy hardly changes",
        "optimizer.lr=3e-4 update.epochs=10",
        MEASURED,
    ),
    Rule(
        "frozen_policy",
        (Condition("train/kl", "below", 1e-7), IS_LEARNING),
        3,
        "updates do not change the policy",
        "optimizer.lr=3e-4",
        "rounding errors of float32 are below 1e-7",
    ),
    Rule(
        "dead_learning_rate",
        (Condition("train/lr", "below", 1e-7), IS_LEARNING),
        3,
        "the learning rate is too small to change a float32 weight",
        "controller@controller.lr=linear optimizer.lr=3e-4",
        "float32 has a relative precision of 6e-8",
    ),
    Rule(
        "entropy_collapse",
        (Condition("discrete_entropy", "below", 0.02, "first"),),
        5,
        "the policy is almost deterministic and no longer explores",
        "objective.entropy_coeff=0.01",
        MEASURED,
    ),
    Rule(
        "std_collapse",
        (Condition("train/std", "below", 0.02, "first"),),
        5,
        "the standard deviation of the actions is so small that the policy no longer explores",
        "objective.entropy_coeff=0.001",
        MEASURED,
    ),
    Rule(
        "std_explodes",
        (Condition("train/std", "above", 10.0, "first"),),
        5,
        "the standard deviation of the actions has grown so much that the actions are mostly noise",
        "objective.entropy_coeff=0",
        MEASURED,
    ),
    Rule(
        "explained_variance_negative",
        (Condition("train/explained_variance", "below", 0.0), Condition("train/return_std", "above", 0.2, "largest")),
        20,
        "the critic predicts worse than a constant",
        "critic.epochs=20",
        MEASURED,
    ),
    Rule(
        "value_bias",
        (Condition("abs_value_bias", "above", 3.0, "train/return_std"), RETURN_IS_LOST),
        10,
        "the critic is wrong by several standard deviations of the returns, so advantages are biased",
        "critic.epochs=20",
        MEASURED,
    ),
    Rule(
        "value_loss_explodes",
        (Condition("train/loss_critic", "above", 100.0), Condition("value_loss_ratio", "above", 1000.0),
         Condition("train/return_std", "above", 0.2, "largest")),
        1,
        "the loss of the critic is more than 1,000 times the variance of the returns",
        "optimizer.lr=3e-4 reward=normalized",
        MEASURED,
    ),
    Rule(
        "advantages_not_normalized",
        (Condition("train/advantage_scale", "above", 10.0),),
        5,
        "advantages are large and not normalized, so the updates of the policy depend on the scale of the rewards",
        "ppo.normalize_advantage=rollout",
        "Andrychowicz et al. 2020, section 3.5; the specification always normalizes",
    ),
    Rule(
        "gradients_always_clipped",
        (Condition("train/grad_clip_fraction", "above", 0.999), Condition("train/grad_norm", "above", 1000.0)),
        10,
        "gradients are always clipped, from a norm above 1,000; the gradient of the critic hides that of the policy",
        "reward=normalized",
        MEASURED,
    ),
    Rule(
        "reward_scale",
        (Condition("train/return_std", "above", 1000.0),),
        3,
        "the returns are so large that the critic learns slowly and dominates the gradient",
        "reward=normalized",
        MEASURED,
    ),
    Rule(
        "too_many_epochs",
        (Condition("train/num_epochs", "above", 30.0),),
        1,
        "the update makes many passes over each rollout and overfits to it; 3 to 10 are usual",
        "update.epochs=10",
        "Schulman et al. 2017, tables 3 to 5; RL Baselines3 Zoo uses at most 20",
    ),
    Rule(
        "stale_log_probabilities",
        (Condition("train/first_kl", "above", 0.01),),
        3,
        "the policy of the first step is not the one that collected the rollout, so ratios are wrong",
        "collector=vector compile=false",
        "Schulman et al. 2017, eq. 6: the ratio is 1 before the first step",
    ),
    Rule(
        "only_truncated_episodes",
        (Condition("rollout/truncated", "above", 0.999), Condition("rollout/ep_rew_std", "below", 1e-6),
         Condition("return_gain", "below", 1e-6)),
        20,
        "all episodes end at the time limit with the same return as at the start; the policy has found no reward",
        "intrinsic=count",
        MEASURED,
    ),
    Rule(
        "policy_collapse",
        (Condition("discrete_entropy", "below", 0.05, "first"), RETURN_IS_LOST),
        3,
        "the policy has collapsed: it is deterministic, and its return has fallen",
        "optimizer.lr=3e-4 update.target_kl=0.03",
        MEASURED,
        is_collapse=True,
    ),
    Rule(
        "return_collapse",
        (Condition("return_gain", "above", 1.0), Condition("return_lost", "above", 1.0)),
        5,
        "the policy has collapsed: its return has fallen below that of the start",
        "optimizer.lr=1e-4 update.target_kl=0.03",
        MEASURED,
        is_collapse=True,
    ),
)  # fmt: skip
