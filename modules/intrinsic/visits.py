"""Remembers which observations an episode has visited."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor, nn

from .streams import episode_starts


class EpisodeVisits(nn.Module):
    """Finds the first visit of every observation in an episode. Episodes continue in the next rollout.

    Observations are compared by their bytes. The state of the unfinished episodes is saved in the state dict.

    Args:
        keys: Keys of the entries that are compared.

    """

    def __init__(self, keys: Sequence[NestedKey]) -> None:
        super().__init__()
        self.keys = list(keys)
        self._visited: list[set[int]] = []  # of every environment

    def get_extra_state(self) -> list[list[int]]:
        """Return the hashes of the observations that the unfinished episodes have visited, for every environment."""
        return [sorted(visited) for visited in self._visited]

    def set_extra_state(self, state: list[list[int]]) -> None:
        self._visited = [set(visited) for visited in state]

    def first_visits(self, rollout: TensorDictBase) -> Tensor:
        """Return whether the episode visits each next observation for the first time, bool `[num_envs, time, 1]`.

        The first observation of an episode counts as visited.
        """
        num_envs, num_steps = rollout.shape
        starts = episode_starts(rollout).squeeze(-1).tolist()
        hashes, next_hashes = self._hashes(rollout), self._hashes(rollout["next"])
        if len(self._visited) != num_envs:
            self._visited = [set() for _ in range(num_envs)]
        is_first = torch.zeros(num_envs, num_steps, 1, dtype=torch.bool)
        for env, visited in enumerate(self._visited):
            for step in range(num_steps):
                if starts[env][step]:
                    visited.clear()
                visited.add(hashes[env][step])
                is_first[env, step] = next_hashes[env][step] not in visited
                visited.add(next_hashes[env][step])
        return is_first.to(rollout["next", "done"].device)

    def _hashes(self, data: TensorDictBase) -> list[list[int]]:
        """Return a hash of every observation of data `[num_envs, time]`."""
        entries = [data[key].detach().cpu().contiguous().numpy() for key in self.keys]
        return [
            [hash_of(b"".join(entry[env, step].tobytes() for entry in entries)) for step in range(data.shape[1])]
            for env in range(data.shape[0])
        ]


def hash_of(content: bytes) -> int:
    """Return a 64-bit hash, the same in every process. A million hashes collide with a probability of 3e-8."""
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")
