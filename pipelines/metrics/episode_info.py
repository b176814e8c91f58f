"""Metrics from the `info` of the last step of an episode, such as `is_success`."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from tensordict import TensorDictBase
from torch import Tensor

NAMES = {"is_success": "success_rate", "success": "success_rate"}
"""Metrics whose name differs from the key in `info`."""


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
