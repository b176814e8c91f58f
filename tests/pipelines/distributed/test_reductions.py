"""Reductions over two ranks in one process, where the other rank has the same or given numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Trainer
from tensordict import TensorDict
from torch import Tensor

from torchppo.errors import EnvironmentFailure
from torchppo.modules.adaptive_controllers import KLAdaptive
from torchppo.modules.normalizers import RewardNormalizer
from torchppo.pipelines import distributed, step_factory
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.metrics.episode_statistics import EpisodeStatistics
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.updates.minibatch import MinibatchUpdate

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Make this process rank 0 of two with the same numbers, and count the all-reduces and other collectives."""
    counts: Counter[str] = Counter()

    def summed(tensor: Tensor) -> Tensor:
        counts["all_reduce"] += 1
        return 2 * tensor

    def stacked(tensor: Tensor) -> Tensor:
        counts["all_reduce"] += 1
        return torch.stack([tensor, tensor])

    def gathered(items: list[Any]) -> list[Any]:
        counts["gathered"] += 1
        return [*items, *items]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda *_: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda *_: 0)
    for function in (summed, stacked, gathered):
        monkeypatch.setattr(distributed, function.__name__, function)
    monkeypatch.setattr("torchppo.pipelines.metrics.episode_statistics.gathered", gathered)
    monkeypatch.setattr("torchppo.pipelines.requirements.gathered", lambda seeds: [*seeds, None])  # different seeds
    return counts


@pytest.mark.parametrize(("normalize", "expected"), [("minibatch", 5), ("rollout", 5), (None, 4)])
def test_a_rollout_needs_few_all_reduces_and_one_per_optimizer_step(
    normalize: str | None, expected: int, calls: Counter[str], make: Make, fit: Fit
) -> None:
    update = MinibatchUpdate(epochs=3, minibatch_size=16, target_kl=100.0)
    options: dict[str, Any] = {
        "controllers": {"lr": KLAdaptive(target_kl=1.0)},
        "compile": "trace" if normalize == "minibatch" else False,
    }
    options |= {"normalize_advantage": normalize, "normalize_observation": True}
    ppo, collector = make(update=update, rollouts=8, reward_normalizer=RewardNormalizer(0.99), **options)
    after: list[int] = []
    publish = ppo.publish

    def counting(metrics: Any) -> None:
        after.append(calls["all_reduce"])
        publish(metrics)

    ppo.publish = counting  # type: ignore[method-assign]
    fit(ppo, collector)
    steps = 3 * 2
    assert np.diff(after).tolist() == [steps + expected] * 3
    assert calls["gathered"] == 0


def test_the_numbers_of_callbacks_are_exchanged_with_tensors_of_any_shape_and_type(calls: Counter[str]) -> None:
    exchange, found = distributed.Exchange(), []
    exchange.numbers = {"signal": lambda: 15, "late": lambda: 0.5}
    exchange.reduce(torch.tensor([[1, 2], [3, 4]]), found.append)
    exchange.reduce(torch.tensor(0.25), found.append)
    exchange.run()
    assert exchange.of_ranks == {"signal": [15.0, 15.0], "late": [0.5, 0.5]}
    assert [(one.tolist(), one.dtype) for one in found] == [
        ([[[1, 2], [3, 4]], [[1, 2], [3, 4]]], torch.int64),
        ([0.25, 0.25], torch.float32),
    ]
    assert calls["all_reduce"] == 1


def test_mean_and_variance_of_two_ranks_equal_numpy_over_all_values(monkeypatch: pytest.MonkeyPatch) -> None:
    both = 1e3 + np.random.default_rng(0).normal(size=(2, 3, 50)) * [[[1.0]], [[5.0]]]
    other = torch.from_numpy(np.stack([both[1].mean(1), both[1].var(1) * 50])[..., None])
    monkeypatch.setattr(distributed, "num_ranks", lambda: 2)
    monkeypatch.setattr(distributed, "stacked", lambda own: torch.stack([own, other]))
    mean, variance = distributed.mean_and_variance(torch.from_numpy(both[0]))
    values = both.transpose(1, 0, 2).reshape(3, -1)
    np.testing.assert_allclose(mean[:, 0], values.mean(1), rtol=1e-13)
    np.testing.assert_allclose(variance[:, 0], values.var(1), rtol=1e-10)


def test_a_failure_of_this_rank_is_raised_after_the_others_know_it(calls: Counter[str]) -> None:
    def fail() -> None:
        raise EnvironmentFailure("motor failure")

    assert distributed.raise_on_all_ranks(lambda: 3) == 3
    assert calls == {"all_reduce": 1}
    with pytest.raises(EnvironmentFailure, match="motor failure"):
        distributed.raise_on_all_ranks(fail)
    assert calls == {"all_reduce": 2, "gathered": 1}


def episodes(ends: list[list[int]], offset: float, infos: list[float] | None = None) -> TensorDict:
    """Return a rollout in which episodes with different returns end, and report `info`."""
    done = torch.tensor(ends).bool().unsqueeze(-1)
    steps = torch.arange(done.shape[1]).expand(len(done), -1).unsqueeze(-1)
    entries: dict[Any, Any] = {"done": done, "terminated": done & (steps % 2 == 0), "step_count": steps + 1}
    entries["episode_reward"] = steps + offset
    if infos is not None:
        entries["episode_info"] = TensorDict({"score": torch.tensor(infos).expand(done.shape[0], -1)[..., None]})
    return TensorDict({"next": TensorDict(entries, done.shape[:2])}, done.shape[:2])


@pytest.mark.parametrize("has_infos", [False, True])
def test_episodes_of_two_ranks_are_those_of_one_rank_with_all_environments(
    has_infos: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    ends, scores = generator.integers(0, 2, (2, 3, 60)).tolist(), generator.normal(size=(2, 60)).tolist()
    rollouts = [episodes(ends[i], 100.0 * i, scores[i] if has_infos and i else None) for i in range(2)]
    expected = EpisodeStatistics()
    data = [rollout["next"].exclude("episode_info") for rollout in rollouts]
    together = TensorDict({"next": torch.cat(data)}, (6, 60))
    if has_infos:
        score = torch.cat([torch.full((3, 60, 1), math.nan), rollouts[1]["next", "episode_info", "score"]])
        together["next", "episode_info"] = TensorDict({"score": score}, (6, 60))
    expected.update(together)
    monkeypatch.setattr("torchppo.pipelines.metrics.episode_statistics.num_ranks", lambda: 2)
    waiting: list[tuple[Tensor, Any]] = []
    items: list[Any] = []
    monkeypatch.setattr(
        "torchppo.pipelines.metrics.episode_statistics.gathered", lambda own: items.extend(own) or [*items]
    )
    ranks = EpisodeStatistics(), EpisodeStatistics()
    for rank, rollout in zip(ranks, rollouts, strict=True):
        rank.update(rollout, lambda table, use: waiting.append((table, use)))
    for _, use in waiting:
        use(torch.stack([table for table, _ in waiting]))
    assert ranks[1].state_dict() == expected.state_dict()
    assert ranks[1].metrics == expected.metrics
    assert bool(items) == has_infos


def test_auto_counts_the_steps_of_one_rank(
    calls: Counter[str], make: Make, fit: Fit, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[float] = []
    monkeypatch.setattr(step_factory, "choose", lambda _, num_steps, __: bool(found.append(num_steps)))
    ppo, collector = make(update=MinibatchUpdate(epochs=3, minibatch_size=16), rollouts=8)
    fit(ppo, collector)
    Collector(collector.env, ppo.actor, frames_per_env=16, total_frames=256, num_ranks=2, compile="auto")
    assert found == [128, 3 * 2 * 4, 64], "a policy step of 2 environments; an optimizer step"
