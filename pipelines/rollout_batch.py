"""A rollout as learning sees it: valued, estimated, and cut into rows for minibatches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.objectives.value import ValueEstimatorBase

from ..modules.features.extractor import memory_keys, recurrent_state_shapes
from .distributed import normalized

Data = dict[NestedKey, Tensor]


class Experience:
    """One rollout and what is worked out from it.

    Args:
        rollout: `[num_envs, time]`, its rewards as learning is to see them.
        actor: the policy.
        critic: the value function.
        estimator: of advantages and value targets.
        critic_estimator: of other value targets, or none.
        normalize: whether to normalise advantages over the whole rollout, and all ranks.
        length: frames of the sequences that a policy with a memory learns from; divides the rollout's time.

    """

    def __init__(
        self,
        rollout: TensorDictBase,
        actor: Any,
        critic: TensorDictModuleBase,
        estimator: ValueEstimatorBase,
        critic_estimator: ValueEstimatorBase | None,
        *,
        normalize: bool,
        length: int,
    ) -> None:
        """Nothing is computed yet."""
        self.rollout = rollout
        self.actor = actor
        self.critic = critic
        self.estimator = estimator
        self.critic_estimator = critic_estimator
        self.normalize = normalize
        self.length = length
        self.memories = memory_keys(actor)

    @torch.no_grad()
    def estimate(self) -> Data:
        """Advantages and value targets, and the tensors that the update reads (see `training_data`).

        Every state is valued once, by the policy if it has written a value as it acted.
        """
        rollout = self.rollout
        valued = rollout if "state_value" in self.actor.out_keys else self.critic(rollout.select(*self.critic.in_keys))
        self._estimate_from(valued["state_value"])
        return self._data()

    @property
    def explained_variance(self) -> float:
        """1 - Var(target - value) / Var(target); 0 where all targets are equal."""
        target = self.rollout["value_target"].double()
        left, variance = (values.var(correction=0).item() for values in (target - self.rollout["state_value"], target))
        return 1 - left / variance if variance > 0 else 0.0

    @torch.no_grad()
    def recomputed(self, data: Data) -> Data:
        """The same data with advantages and targets from the values of the critic as it is now.

        Sequences, and what follows the end of an episode, start from what was remembered when they were collected.
        """
        values = self.critic(TensorDict(data, len(data["advantage"])))["state_value"]
        shape = self.rollout.shape
        values = values.reshape(*shape, 1) if self.memories else values.reshape(*shape[::-1], 1).transpose(0, 1)
        self._estimate_from(values)
        return data | in_rows(self.rollout, ("advantage", "value_target"), self.length if self.memories else None)

    @torch.no_grad()
    def burned_in(self, data: Data, num: int) -> Data:
        """The same data with what the policy as it is now remembers at the start of every sequence.

        It is worked out from the `num` frames before, except for each environment's first (Kapturowski et al. 2019,
        section 3).
        """
        keys = {*self.actor.in_keys} - {*recurrent_state_shapes(self.actor)}
        after = self.actor.get_dist_params(frames_before(self.rollout, keys, self.memories, self.length, num))
        anew = {}
        for key in self.memories:
            by_env = data[key].unflatten(0, (self.rollout.shape[0], -1)).clone()
            by_env[:, 1:] = after["next", key][:, -1].unflatten(0, (self.rollout.shape[0], -1))
            anew[key] = by_env.flatten(0, 1)
        return data | anew

    def _estimate_from(self, values: Tensor) -> None:
        """Write advantages and targets, the states being worth `values` `[num_envs, time, 1]`.

        A next observation that is not the end of an episode is the observation after it; only true final ones, and
        the last, are valued apart, with what the policy remembered at that moment.
        """
        rollout, following = self.rollout, self.rollout["next"]
        apart = following["done"].squeeze(-1).clone()
        apart[:, -1] = True
        following["is_init"] = torch.zeros_like(following["done"])
        next_values = values.roll(-1, dims=1)
        next_values[apart] = self.critic(following.select(*self.critic.in_keys)[apart])["state_value"]
        rollout["state_value"], following["state_value"] = values, next_values
        self.estimator(rollout)
        if self.critic_estimator is not None:
            rollout["value_target"] = self.critic_estimator(rollout.copy())["value_target"]
        if self.normalize:
            rollout["advantage"] = normalized(rollout["advantage"].unsqueeze(0)).squeeze(0)

    def _data(self) -> Data:
        carried = recurrent_state_shapes(self.actor)
        read = {*self.actor.in_keys, *self.critic.in_keys} - {*carried}
        written = {*self.actor.out_keys} - {("next", key) for key in carried}
        keys = sorted({*read, *written, "state_value", "advantage", "value_target"}, key=str)
        return training_data(self.rollout, keys, self.memories, self.length)


def training_data(rollout: TensorDictBase, keys: Iterable[NestedKey], memories: Sequence[str], length: int) -> Data:
    """A rollout `[num_envs, time]` as tensors for minibatches to take rows of.

    Args:
        rollout: what was collected and estimated.
        keys: of the entries that learning reads.
        memories: keys of what a policy remembers from step to step, if anything.
        length: frames of a sequence; must divide the rollout's time.

    Returns:
        Frames `[time x num_envs, ...]`; with a memory sequences `[num_envs x time / length, length, ...]`, and
        what was remembered at their first step, `[num_envs x time / length, ...]`.

    """
    if not memories:
        return in_rows(rollout, keys, None)
    starts = {key: rollout[key][:, ::length].flatten(0, 1).contiguous() for key in memories}
    return in_rows(rollout, keys, length) | starts


def in_rows(rollout: TensorDictBase, keys: Iterable[NestedKey], length: int | None) -> Data:
    """Entries of a rollout as frames in the order of time, or as sequences of `length`; see `training_data`."""
    selected = rollout.select(*keys)
    if length is None:
        flat = selected.transpose(0, 1).flatten()
        return {key: tensor.contiguous() for key, tensor in flat.items(include_nested=True, leaves_only=True)}
    return {
        key: tensor.unflatten(1, (-1, length)).flatten(0, 1).contiguous()
        for key, tensor in selected.items(include_nested=True, leaves_only=True)
    }


def frames_before(
    rollout: TensorDictBase, keys: Iterable[str], memories: Sequence[str], length: int, num: int
) -> TensorDict:
    """The last `num` frames before every sequence but each environment's first, with the memory at their start.

    Returns:
        Sequences `[num_envs x (time / length - 1)]`, of `[num, ...]` each; see `training_data`.

    """
    cut = rollout[:, : rollout.shape[1] - length]
    data = {key: cut[key].unflatten(1, (-1, length))[:, :, -num:].flatten(0, 1) for key in keys}
    data |= {key: cut[key][:, length - num :: length].flatten(0, 1) for key in memories}
    return TensorDict(data, len(data[memories[0]]))
