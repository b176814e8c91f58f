"""Computes advantages and value targets of a rollout (calls GAE) and splits it into rows for minibatches."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.modules import set_recurrent_mode
from torchrl.objectives.value import ValueEstimatorBase

from ..errors import ConfigurationError
from ..modules.features.extractor import is_recurrent, memory_keys, recurrent_state_shapes
from ..modules.intrinsic.reward_model import RewardModel
from ..modules.intrinsic.streams import add_advantages
from .distributed import normalized
from .metrics.learning import Comparison, compare_policies

WRITTEN_BY: dict[NestedKey, str] = {
    "is_init": "InitTracker",
    ("next", "episode_reward"): "RewardSum",
    ("next", "step_count"): "StepCounter",
}
"""TorchRL transforms by the entries that they write. Rollouts of other collectors may lack these entries."""


class RolloutBatch:
    """One rollout with its advantages and value targets.

    Args:
        rollout: `[num_envs, time]`. Values, advantages and targets are written into it.
        actor: the policy.
        critic: the value function.
        estimator: writes `advantage` and `value_target`.
        critic_estimator: writes the `value_target` of the critic; `None` uses that of `estimator`.
        reward_models: models whose rewards are in the rollout and whose advantages are added.
        normalize: whether to normalize advantages over the whole rollout and all ranks.
        sequence_length: frames of the sequences that recurrent policies are trained on.

    Attributes:
        rows: the rollout as a TensorDict `[rows]`. A row is a frame, or for recurrent policies a sequence
            `[sequence_length, ...]` with the recurrent state before its first frame.
        raw_advantage: the advantages before normalization, `[num_envs, time, 1]`.

    """

    rows: TensorDictBase
    raw_advantage: Tensor

    def __init__(
        self,
        rollout: TensorDictBase,
        actor: Any,
        critic: TensorDictModuleBase,
        estimator: ValueEstimatorBase,
        critic_estimator: ValueEstimatorBase | None = None,
        reward_models: Sequence[RewardModel] = (),
        *,
        normalize: bool,
        sequence_length: int,
    ) -> None:
        self.rollout = rollout
        self.actor = actor
        self.critic = critic
        self.estimator = estimator
        self.critic_estimator = critic_estimator
        self.normalize = normalize
        self.sequence_length = sequence_length
        self.reward_models = reward_models
        self.memory_keys = memory_keys(actor)
        self.in_sequences = is_recurrent(actor)

    @torch.no_grad()
    def estimate(self) -> None:
        """Estimate advantages and value targets, and make the rows.

        The critic evaluates every state once. If the policy writes `state_value` during collection, that value is used.
        """
        rollout = self.rollout
        valued = rollout if "state_value" in self.actor.out_keys else self.critic(rollout.select(*self.critic.in_keys))
        self._estimate_from(valued["state_value"])
        self.rows = self._make_rows()

    def refreshed(self, *, burn_in: int, recompute_advantage: bool) -> TensorDictBase:
        """Return the rows with recurrent states and advantages of the current weights.

        Args:
            burn_in: frames to recompute the recurrent states from; 0 keeps them.
            recompute_advantage: whether to recompute values, advantages and targets.

        """
        rows = self.rows
        if burn_in and self.in_sequences and not self.memory_keys:
            raise ConfigurationError(
                "update.burn_in is not supported by TorchRL's LSTMModule and GRUModule; set it to 0"
            )
        if burn_in and self.memory_keys:
            rows = self._with_burned_in_states(rows, burn_in)
        return self._with_recomputed_advantages(rows) if recompute_advantage else rows

    @torch.no_grad()
    def _with_recomputed_advantages(self, rows: TensorDictBase) -> TensorDictBase:
        """Recompute all values with the current critic. Sequences start from the recurrent states in `rows`."""
        values = self.critic(rows.copy())["state_value"]
        shape = self.rollout.shape
        values = values.reshape(*shape, 1) if self.in_sequences else values.reshape(*shape[::-1], 1).transpose(0, 1)
        self._estimate_from(values)
        return rows.copy().update(self._as_rows(("advantage", *self._target_keys)))

    @torch.no_grad()
    def _with_burned_in_states(self, rows: TensorDictBase, burn_in: int) -> TensorDictBase:
        """Recompute the recurrent state before every sequence from the `burn_in` frames before it.

        The first sequence of each environment keeps its state. Source: Kapturowski et al. 2019, section 3.
        """
        keys = {*self.actor.in_keys} - {*recurrent_state_shapes(self.actor)}
        outputs = self.actor.get_dist_params(self._frames_before_sequences(keys, burn_in))
        rows = rows.copy()
        for key in self.memory_keys:
            by_env = rows[key].unflatten(0, (self.rollout.shape[0], -1)).clone()
            by_env[:, 1:] = outputs["next", key].unflatten(0, (self.rollout.shape[0], -1))
            rows[key] = by_env.flatten(0, 1)
        return rows

    def _frames_before_sequences(self, keys: Iterable[NestedKey], num_frames: int) -> TensorDict:
        """Return the last frames before every sequence but the first of each environment.

        Shapes: `[num_envs x (time / sequence_length - 1)]`, each with `[num_frames, ...]`.
        """
        length = self.sequence_length
        cut = self.rollout[:, : self.rollout.shape[1] - length]
        data = {key: cut[key].unflatten(1, (-1, length))[:, :, -num_frames:].flatten(0, 1) for key in keys}
        data |= {key: cut[key][:, length - num_frames :: length].flatten(0, 1) for key in self.memory_keys}
        return TensorDict(data, len(data[self.memory_keys[0]]))

    def _estimate_from(self, values: Tensor) -> None:
        """Write advantages and targets, given the values of all states `[num_envs, time, 1]`.

        The value of a next observation is that of the following step. Final observations of episodes and the last
        observation of the rollout are evaluated separately, with the recurrent state of that step.
        """
        rollout, next_data = self.rollout, self.rollout["next"]
        is_final = next_data["done"].squeeze(-1).clone()
        is_final[:, -1] = True
        next_data["is_init"] = torch.zeros_like(next_data["done"])
        next_values = values.roll(-1, dims=1)
        with set_recurrent_mode(False):  # single steps
            next_values[is_final] = self.critic(next_data.select(*self.critic.in_keys)[is_final])["state_value"]
        rollout["state_value"], next_data["state_value"] = values, next_values
        self.estimator(rollout)
        check_estimates(rollout, self.estimator)
        if self.critic_estimator is not None:
            self.critic_estimator(copy := rollout.copy())
            rollout["value_target"] = copy["value_target"]
        if self.reward_models:
            add_advantages(rollout, self.reward_models)
        self.raw_advantage = rollout["advantage"]
        if self.normalize:
            rollout["advantage"] = normalized(rollout["advantage"].unsqueeze(0)).squeeze(0)

    @property
    def _target_keys(self) -> list[str]:
        return ["value_target", *(f"value_target_{model.name}" for model in self.reward_models)]

    @torch.no_grad()
    def mean_kl(self) -> float:
        """Return the mean KL(old || new) over all states of this rank, where old is the policy at collection."""
        kl = kl_from_collection(self.actor, self.rows)
        return kl.sum().item() / kl.numel()

    def _make_rows(self) -> TensorDictBase:
        recurrent = recurrent_state_shapes(self.actor)
        inputs = {*self.actor.in_keys, *self.critic.in_keys} - {*recurrent}
        inputs |= {key for model in self.reward_models for key in model.in_keys}
        outputs = {*self.actor.out_keys} - {("next", key) for key in recurrent}
        keys = sorted({*inputs, *outputs, "state_value", "advantage", *self._target_keys}, key=str)
        rows = self._as_rows(keys)
        for key in self.memory_keys:
            rows[key] = self.rollout[key][:, :: self.sequence_length].flatten(0, 1).contiguous()
        return rows

    def _as_rows(self, keys: Iterable[NestedKey]) -> TensorDictBase:
        """Return entries of the rollout as frames `[time * num_envs]`, or as sequences for recurrent policies."""
        selected = self.rollout.select(*keys)
        if not self.in_sequences:
            return selected.transpose(0, 1).flatten().contiguous()
        num_sequences = self.rollout.shape[1] // self.sequence_length
        rows = selected.unflatten(1, (num_sequences, self.sequence_length)).flatten(0, 1).contiguous()
        if self.memory_keys:  # the states before and after a sequence have no time dimension
            rows.batch_size = rows.batch_size[:1]
            if "next" in rows.keys():  # noqa: SIM118 - a TensorDict iterates over rows
                rows["next"].batch_size = rows.batch_size
        return rows


def kl_from_collection(actor: Any, rows: TensorDictBase) -> Tensor:
    """Return KL(old || new) in every row, where old is the policy at collection; see `policy_kl`."""
    return compare_with_collection(actor, rows).kl


def compare_with_collection(actor: Any, rows: TensorDictBase) -> Comparison:
    """Return the result of `compare_policies`. Raise a ConfigurationError if there is none."""
    compared = compare_policies(actor, rows)
    if compared is None:
        raise ConfigurationError(
            "the KL divergence of a CompositeDistribution is not supported; remove controllers that read kl, and use "
            "update=minibatch"
        )
    return compared


def check_estimates(rollout: TensorDictBase, estimator: Any) -> None:
    """Raise a ConfigurationError unless an estimator has written an advantage and a value target for every value."""
    name, shape = type(estimator).__name__, rollout["state_value"].shape
    for key in ("advantage", "value_target"):
        if key not in rollout.keys():  # noqa: SIM118 - a TensorDict iterates over rows
            raise ConfigurationError(f"estimator {name} wrote no {key}; write it to the TensorDict that it receives")
        if rollout[key].shape != shape:
            raise ConfigurationError(
                f"estimator {name} wrote {key} with the shape {tuple(rollout[key].shape)}; write it with that of "
                f"state_value, {tuple(shape)}"
            )


def require_entries(rollout: TensorDictBase, *keys: NestedKey) -> TensorDictBase:
    """Return the rollout. Raise a ConfigurationError that names a transform if an entry is missing."""
    for key in keys:
        if key not in rollout.keys(include_nested=True):
            name = key if isinstance(key, str) else key[-1]
            raise ConfigurationError(
                f"the rollout has no {name}; add the transform torchrl.envs.{WRITTEN_BY[key]} to the environment"
            )
    return rollout
