"""Metrics of critic, policy and gradients after an update, over all ranks."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

import torch
from tensordict import TensorDictBase
from tensordict.nn import CompositeDistribution
from torch import Tensor
from torch import distributions as D  # noqa: N812
from torchrl.modules import set_recurrent_mode

from ...modules.distributions.action import policy_kl, probability_ratio
from ...modules.normalizers import Reduce, no_reduce
from ...modules.objectives.ppo_loss import old_distribution
from ..distributed import mean_and_variance, num_ranks

SAMPLE_FRAMES, FRAMES_PER_SAMPLE = 1024, 2048
"""Frames of a sample on which the policy after an update is compared, and frames of a rank between two samples."""
METRIC_NAMES = {"kl_approx": "approx_kl"}  # the names that PPO users know
OF_OBJECTIVE = ("kl", "max_ratio", "mean_ratio", "ESS", "clip_fraction", "entropy")
"""Metrics of the sample that have no value if the objective returns them for every minibatch."""
CLIP_EPSILON = 0.2
"""Clip range of `clip_fraction` for objectives without a `clip_epsilon`."""


class Comparison(NamedTuple):
    """The new policy, and its differences from the policy at collection for the actions taken, `[*batch]` each.

    `outputs` are the rows with all outputs of the new policy, such as its features.
    """

    new: D.Distribution
    log_ratio: Tensor
    kl: Tensor
    outputs: TensorDictBase


@set_recurrent_mode(True)  # type: ignore[untyped-decorator]
def compare_policies(actor: Any, rows: TensorDictBase) -> Comparison | None:
    """Run the policy on rows of a rollout, and return KL(old || new) and log(new / old).

    Return `None` if the policy has a TorchRL `CompositeDistribution`, no `get_dist`, or several log-probabilities.
    """
    if not hasattr(actor, "get_dist") or len(actor.log_prob_keys) != 1:
        return None
    data = rows.copy()
    old, new = old_distribution(actor, data), actor.get_dist(data)
    if isinstance(new, CompositeDistribution):
        return None
    log_ratio = new.log_prob(data[actor.dist_sample_keys[0]]) - data[actor.log_prob_keys[0]]
    return Comparison(new, log_ratio, policy_kl(old, new, log_ratio), data)


def critic_metrics(batch: Any) -> dict[str, float]:
    """Return the metrics of values, targets and advantages at collection, over all ranks.

    Args:
        batch: a `RolloutBatch` before its update.

    Returns:
        `explained_variance`, which is 1 - Var(target - value) / Var(target), or 0 if all targets are equal;
        `value_bias`, the mean of value - target; `return_mean` and `return_std` of the targets; `advantage_mean` and
        `advantage_std`.

    """
    target = batch.rollout["value_target"].double()
    table = torch.stack([target, batch.rollout["state_value"] - target, batch.raw_advantage]).flatten(1)
    means, variances = torch.stack(mean_and_variance(table)).squeeze(-1).tolist()
    return {
        "explained_variance": 1 - variances[1] / variances[0] if variances[0] > 0 else 0.0,
        "value_bias": means[1],
        "return_mean": means[0],
        "return_std": math.sqrt(variances[0]),
        "advantage_mean": means[2],
        "advantage_std": math.sqrt(variances[2]),
    }


def gradient_metrics(norms: Tensor, limit: float) -> dict[str, float]:
    """Return the largest gradient norm of the steps, `grad_norm_max`, and the fraction above `limit`.

    Steps whose norm is not finite were skipped and do not count. The result is empty if no step is left.
    """
    norms = norms[norms.isfinite()]
    if not len(norms):
        return {}
    return {"grad_norm_max": norms.max().item(), "grad_clip_fraction": (norms > limit).float().mean().item()}


@torch.no_grad()
def policy_metrics(ppo: Any, batch: Any, results: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics of the policy after an update, on a sample of the frames of the rollout.

    The sample is the same for all rollouts of the same size.

    Args:
        ppo: the LightningModule.
        batch: the `RolloutBatch`, after its update.
        results: metrics of this rank; `advantage_mean` and `advantage_std` are those of all ranks.

    Returns:
        `kl`, `max_kl`, `max_advantage`, `surrogate_improvement`, `max_ratio`, `mean_ratio`, `ESS`, `clip_fraction`,
        `entropy` and `std`; see docs/metrics.md. The result is empty in rollouts without a sample.

    """
    index = ppo.num_rollouts - ppo.value_pretraining - 1
    if index < 0 or index % max(1, FRAMES_PER_SAMPLE // batch.rollout.numel()):
        return {}
    rows = batch.rows
    num_rows = max(1, SAMPLE_FRAMES * len(rows) // rows["advantage"].numel())
    if num_rows < len(rows):
        rows = rows[sample_of(len(rows), num_rows).to(rows["advantage"].device)]
    compared = compare_policies(batch.actor, rows)
    if compared is None:
        return {}
    mean, std = results["advantage_mean"], results["advantage_std"]
    advantage = rows["advantage"].squeeze(-1).double()
    centered = advantage * (std + 1e-8) if batch.normalize else advantage - mean
    ratio, kl = probability_ratio(compared.log_ratio).double(), compared.kl
    names = ("clip_epsilon", "clip_epsilon_low", "clip_epsilon_high")
    both, low, high = (results.get(name, CLIP_EPSILON) for name in names)
    low, high = (low, high) if "clip_epsilon_low" in results else (both, both)
    values = {
        "kl": kl.mean(),
        "max_kl": kl.max(),
        "max_advantage": (centered + mean).abs().max(),
        "surrogate_improvement": ((ratio - 1) * centered).mean(),
        "max_ratio": ratio.max(),
        "mean_ratio": ratio.mean(),
        "ESS": ratio.mean().square() / ratio.square().mean(),
        "clip_fraction": ((ratio > 1 + high) | (ratio < 1 - low)).double().mean(),
        **spread(compared.new, rows, batch.actor),
    }
    table = torch.stack([value.double() for value in values.values()]).tolist()
    pairs = zip(values, table, strict=True)
    return {name: value for name, value in pairs if name not in OF_OBJECTIVE or name not in results}


def spread(new: D.Distribution, rows: TensorDictBase, actor: Any) -> dict[str, Tensor]:
    """Return the mean `entropy` of a policy if it has a closed form, and the mean `std` of continuous actions."""
    found = {}
    with suppress(NotImplementedError):
        found["entropy"] = new.entropy().mean()
    base = getattr(new, "base_dist", new)
    while isinstance(base, D.TransformedDistribution):  # before the tanh
        base = base.base_dist
    if rows[actor.dist_sample_keys[0]].is_floating_point():
        with suppress(NotImplementedError, AttributeError):
            found["std"] = base.stddev.mean()
    return found


@cache
def sample_of(num_rows: int, size: int) -> Tensor:
    """Return `size` of the indices below `num_rows`, always the same. The global random state does not change."""
    return torch.randperm(num_rows, generator=torch.Generator().manual_seed(0))[:size]


def learning_metrics(
    ppo: Any, batch: Any, results: Mapping[str, float], reduce: Reduce = no_reduce
) -> dict[str, float]:
    """Add the metrics of gradients and policy to the metrics of an update, and reduce all over the ranks.

    Metrics of the sample that are not finite are omitted, because no step depends on them.

    Args:
        ppo: the LightningModule.
        batch: the `RolloutBatch`, after its update.
        results: metrics of the update on this rank.
        reduce: passes on the metrics of all ranks, at once or later.

    Returns:
        The mean of every metric over the ranks, or the largest value of those whose name contains `max`. The dictionary
        is empty until `reduce` has passed on the metrics.

    """
    sample = policy_metrics(ppo, batch, results)
    gradients = gradient_metrics(ppo.skipped.norms, ppo.max_grad_norm)
    scale = {"advantage_scale": 1.0 if ppo.normalize_advantage else results["advantage_std"]}
    own, found = {*sample, "improvement_bound"}, dict[str, float]()

    def finish(metrics: dict[str, float]) -> None:
        if "max_advantage" in metrics:
            gamma = getattr(batch.estimator, "gamma", 1.0)
            metrics["improvement_bound"] = improvement_bound(
                metrics["surrogate_improvement"], metrics.pop("max_advantage"), metrics["max_kl"], float(gamma)
            )
        found.update({name: value for name, value in metrics.items() if name not in own or math.isfinite(value)})

    over_ranks({**results, **scale, **gradients, **sample}, reduce, finish)
    return found


def over_ranks(metrics: dict[str, float], reduce: Reduce, use: Callable[[dict[str, float]], None]) -> None:
    """Call `use` with the mean of every metric over the ranks, or the largest value if its name contains `max`."""
    if num_ranks() == 1:
        use(metrics)
        return

    def combine(table: Tensor) -> None:
        rows = zip(metrics, table.mean(0).tolist(), table.amax(0).tolist(), strict=True)
        use({name: largest if "max" in name else mean for name, mean, largest in rows})

    reduce(torch.tensor([*metrics.values()], dtype=torch.float64), combine)


def improvement_bound(surrogate: float, max_advantage: float, max_kl: float, gamma: float) -> float:
    """Return a lower bound of the change of the discounted return; minus infinity if gamma is 1.

    J(new) - J(old) >= E[r A] / (1 - gamma) - 4 max|A| gamma / (1 - gamma)^2 max KL(old || new)

    The advantages are estimates, and the largest values are those of the sample. The bound is loose.

    Source: Schulman et al. 2015, "Trust region policy optimization", theorem 1.

    Args:
        surrogate: estimate of E[r A] per step, in units of the reward: E[(r - 1) (A - mean A)], which has the same
            expectation and a lower variance.
        max_advantage: largest |A|.
        max_kl: largest KL(old || new) of a state, in nats.
        gamma: discount factor.

    """
    if gamma >= 1:
        return -math.inf
    return surrogate / (1 - gamma) - 4 * max_advantage * gamma / (1 - gamma) ** 2 * max_kl
