"""Statistics of ended episodes: returns, lengths, and metrics from the last `info`, such as `is_success`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import repeat
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor

from ...modules.normalizers import Reduce, no_reduce
from ..distributed import gathered, num_ranks

NAMES = {"is_success": "success_rate", "success": "success_rate"}
"""Metrics whose name differs from the key in `info`."""

EPISODE_KEYS = (("next", "episode_reward"), ("next", "step_count"))
"""Entries of a rollout that `EpisodeStatistics` needs, besides `done`."""


class EpisodeInfo(NamedTuple):
    """Values `[len(envs), len(info_keys)]` of the environments `envs`, whose episodes ended at `step` of a rollout."""

    step: int
    envs: NDArray[np.intp]
    values: NDArray[np.float64]


def write_episode_info(rollout: TensorDictBase, keys: Sequence[str], infos: Sequence[EpisodeInfo]) -> TensorDictBase:
    """Write `("next", "episode_info", key)`, `[num_envs, time, 1]`, for every reported key. Missing values are NaN."""
    array = np.full((*rollout.shape, len(keys)), np.nan, np.float32)
    for step, envs, values in infos:
        array[envs, step] = values
    for index, key in enumerate(keys):
        if not np.isnan(array[..., index]).all():
            rollout["next", "episode_info", key] = torch.from_numpy(array[..., [index]])
    return rollout


def ended_infos(data: TensorDictBase, index: Any) -> list[dict[str, float]]:
    """Return the reported values of every episode that ended, by key of `info`.

    Args:
        data: the entry `next` of a step or rollout, with `episode_info`.
        index: where an episode ended. Either a list of indices, or a mask `[*data.shape]` or `[*data.shape, 1]`.

    """
    index = index.reshape(data.shape) if isinstance(index, Tensor) else index
    entries = data["episode_info"].items()
    columns = {key: value.reshape(data.shape)[index].reshape(-1).tolist() for key, value in entries}
    rows = zip(*columns.values(), strict=True)
    return [{key: value for key, value in zip(columns, row, strict=True) if not math.isnan(value)} for row in rows]


def add_infos(
    values: dict[str, deque[float]], infos: Iterable[Mapping[str, float]], max_length: int | None = None
) -> None:
    """Append the reported values of episodes to `values`. `values` keeps the last `max_length` values of each key."""
    for info in infos:
        for key, value in info.items():
            values.setdefault(key, deque(maxlen=max_length)).append(value)


def mean_infos(group: str, values: Mapping[str, Iterable[float]], separator: str = "/") -> dict[str, float]:
    """Return the mean of every entry as `group/name`. The name of `is_success` and `success` is `success_rate`."""
    metrics: dict[str, float] = {}
    for key, numbers in sorted(values.items()):  # `is_success` first
        metrics.setdefault(f"{group}{separator}{NAMES.get(key, key)}", float(np.mean([*numbers])))
    return metrics


class EpisodeStatistics:
    """Returns and lengths of the last 100 training episodes of all ranks.

    Attributes:
        episodes: `(return, length)` of each episode, oldest first.
        infos: the last 100 values of every entry of `info` that episodes reported.
        num_episodes: number of episodes that have ended since training started.

    """

    def __init__(self) -> None:
        self.episodes: deque[tuple[float, int]] = deque(maxlen=100)
        self.infos: dict[str, deque[float]] = {}
        self.num_episodes, self._truncated = 0, dict[str, float]()

    def update(self, rollout: TensorDictBase, reduce: Reduce = no_reduce) -> None:
        """Add the episodes that ended in a rollout `[num_envs, time]` of every rank, in the order of time."""
        data = rollout["next"]
        names = ("done", "terminated", "episode_reward", "step_count")
        done, terminated, rewards, lengths = (data[name].transpose(0, 1) for name in names)
        done = done & (lengths > 0)  # 0: a skipped step
        entries = done.nonzero()[:, 0], rewards[done], lengths[done], ~terminated[done]
        has_infos = "episode_info" in data.keys()  # noqa: SIM118
        infos = ended_infos(data.select("episode_info").transpose(0, 1), done) if has_infos else repeat({})
        ended = [*zip(*(entry.tolist() for entry in entries), infos, strict=False)]
        counts = len(ended), sum(one[3] for one in ended), any(info for *_, info in ended)
        if num_ranks() == 1:
            self._add(ended, *counts[:2])
            return
        newest = [(*counts, 0), *(one[:4] for one in ended[-100:])]  # older episodes have no effect
        table = torch.full((101, 4), math.nan, dtype=torch.float64)
        table[: len(newest)] = torch.tensor(newest, dtype=torch.float64)
        reduce(table, lambda of_ranks: self._add_of_ranks(of_ranks, ended))

    def _add_of_ranks(self, of_ranks: Tensor, own: list[Any]) -> None:
        """Add the episodes of all ranks, `[num_ranks, 101, 4]`. If they have infos, gather these too."""
        num_ended, num_truncated, has_infos, _ = of_ranks[:, 0].sum(0).tolist()
        rows = of_ranks[:, 1:].flatten(0, 1)
        ended = gathered(own) if has_infos else [(*row, {}) for row in rows[~rows[:, 0].isnan()].tolist()]
        self._add(sorted(ended, key=itemgetter(0)), int(num_ended), int(num_truncated))

    def _add(self, ended: list[Any], num_ended: int, num_truncated: int) -> None:
        """Add the newest episodes `(time, return, length, is_truncated, info)`, and the numbers of all that ended."""
        self.episodes.extend((reward, int(length)) for _, reward, length, *_ in ended)
        self._truncated = {"rollout/truncated": num_truncated / num_ended} if num_ended else {}
        if any(info for *_, info in ended):
            add_infos(self.infos, [info for *_, info in ended], max_length=100)
        self.num_episodes += num_ended

    @property
    def metrics(self) -> dict[str, float]:
        """Mean and standard deviation of the returns, mean length, and means of `infos`; empty without an episode."""
        if not self.episodes:
            return {}
        rewards, lengths = zip(*self.episodes, strict=True)
        return {
            "rollout/ep_rew_mean": sum(rewards) / len(rewards),
            "rollout/ep_rew_std": torch.tensor(rewards, dtype=torch.float64).std(correction=0).item(),
            "rollout/ep_len_mean": sum(lengths) / len(lengths),
            **self._truncated,  # of the episodes that ended in the last rollout
            **mean_infos("rollout", self.infos),
        }

    def state_dict(self) -> dict[str, Any]:
        infos = {name: list(values) for name, values in self.infos.items()}
        counts = {"num_episodes": self.num_episodes, "truncated_episodes": dict(self._truncated)}
        return {**counts, "episodes": list(self.episodes), "episode_infos": infos}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_episodes, self._truncated = state["num_episodes"], dict(state["truncated_episodes"])
        self.episodes.clear()
        self.episodes.extend(tuple(episode) for episode in state["episodes"])
        self.infos = {name: deque(values, maxlen=100) for name, values in state["episode_infos"].items()}
