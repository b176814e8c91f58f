"""Random network distillation: a bonus for observations that a trained network predicts badly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import Composite

from ..features.extractor import Body
from ..normalizers import Reduce
from .networks import FeatureNetworks, check_network_options, first_rows, next_keys, output_of, update_normalizers
from .reward_model import RewardModel, make_stream_critic

# TorchRL 0.14's RNDTransform computes rewards during collection with statistics that change at every step, divides them
# by their own deviation instead of that of their return, normalizes only vectors, and does not reduce over ranks. Its
# RNDLoss masks the minibatch: it computes all rows, but learns from only a quarter of them.


class RND(RewardModel):
    """The bonus mean_i (f_i(s') - g_i(s'))^2 of a trained network f and a frozen random network g.

    The error is small for observations that are similar to those that f was trained on. Observations are normalized
    with running statistics of all next observations and clipped to `[-5, 5]`; see `FeatureNetworks`. f has two more
    layers than g.

    Source: Burda et al. 2019 (arXiv:1810.12894), sections 2.2 to 2.4.

    Args:
        observation_spec: Batched spec with the entry `observation`, a tensor or nested.
        body: Builds the body of both networks and of the stream's critic, as in `make_actor_critic`.
        encoders: See `make_actor_critic`.
        observations: Entries that the networks read, such as `image`; `None` means all.
        num_features: Number of outputs of both networks.
        share: Share of every minibatch that f is trained on.
        options: See `RewardModel`.

    Raises:
        ConfigurationError: If an option is out of range or an entry does not exist.

    """

    stream: ClassVar[str] = "rnd"

    def __init__(
        self,
        observation_spec: Composite,
        *,
        body: Body,
        encoders: Mapping[str, Body] | None = None,
        observations: Sequence[str] | None = None,
        num_features: int = 64,
        share: float = 0.25,
        **options: Any,
    ) -> None:
        check_network_options(self.stream, num_features, share)
        super().__init__(self.stream, make_stream_critic(self.stream, observation_spec, body, encoders), **options)
        networks = FeatureNetworks(self.stream, observation_spec, body, encoders, observations)
        self.share = share
        self.observation_keys = networks.in_keys
        self.target = networks("target", [num_features]).requires_grad_(False)
        self.predictor = networks("prediction", [num_features] * 3)

    @property
    def in_keys(self) -> list[NestedKey]:
        return [*super().in_keys, *next_keys(self.observation_keys)]

    def update(self, rollout: TensorDictBase, reduce: Reduce) -> None:
        """Update the statistics of the observations."""
        update_normalizers(self.target, rollout["next"], reduce)

    def reward(self, rollout: TensorDictBase) -> Tensor:
        """Return the prediction errors of the next observations, `[num_envs, time, 1]`."""
        return self.error(rollout["next"])

    def loss(self, rows: TensorDictBase) -> Tensor:
        """Return the squared error of the critic plus the mean prediction error of a share of the rows."""
        return super().loss(rows) + self.error(first_rows(rows, self.share)["next"]).mean()

    def error(self, data: TensorDictBase) -> Tensor:
        """Return the prediction errors of observations `[*]`, `[*, 1]`."""
        with torch.no_grad():
            target = output_of(self.target, data)
        return (output_of(self.predictor, data) - target).square().mean(-1, keepdim=True)
