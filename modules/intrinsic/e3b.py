"""E3B: an episodic bonus for features that point in new directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from tensordict import NestedKey, TensorDictBase
from torch import Tensor
from torchrl.data import Composite, TensorSpec

from ...errors import ConfigurationError
from ..features.extractor import Body
from ..normalizers import Reduce
from .inverse_dynamics import ActionCode, InverseDynamics
from .networks import FeatureNetworks, check_network_options, first_rows, update_normalizers
from .reward_model import RewardModel, make_stream_critic
from .streams import episode_starts


class E3B(RewardModel):
    """The bonus phi(s')^T C^-1 phi(s') with C = ridge I + the sum of phi phi^T over the episode before s'.

    The features phi are trained to predict the action (`InverseDynamics`). Every step is a rank-one update of C^-1
    (Sherman and Morrison 1950), in float64. C starts again with every episode and continues in the next rollout. The
    state dict contains C^-1, which takes 8 num_features^2 bytes for each environment.

    Source: Henaff et al. 2022 (arXiv:2210.05805), algorithm 1.

    Args:
        observation_spec: Batched spec with the entry `observation`, a tensor or nested.
        action_spec: Batched spec of the action, a tensor or nested.
        body: Builds the body of the features and of the stream's critic, as in `make_actor_critic`.
        encoders: See `make_actor_critic`.
        observations: Entries that the features read, such as `image`; `None` means all.
        num_features: Number of features.
        ridge: Initial value of the diagonal of C.
        share: Share of every minibatch that the features are trained on.
        is_episodic: See `RewardModel`. True, because the bonus starts again with every episode.
        options: See `RewardModel`.

    Raises:
        ConfigurationError: If an option is out of range or an entry does not exist.

    """

    def __init__(
        self,
        observation_spec: Composite,
        action_spec: TensorSpec,
        *,
        body: Body,
        encoders: Mapping[str, Body] | None = None,
        observations: Sequence[str] | None = None,
        num_features: int = 64,
        ridge: float = 0.1,
        share: float = 1.0,
        is_episodic: bool = True,
        **options: Any,
    ) -> None:
        check_network_options("e3b", num_features, share)
        if not ridge > 0:
            raise ConfigurationError(f"intrinsic.e3b.ridge={ridge} must be positive; 0.1 is usual")
        critic = make_stream_critic("e3b", observation_spec, body, encoders)
        super().__init__("e3b", critic, is_episodic=is_episodic, **options)
        features = FeatureNetworks("e3b", observation_spec, body, encoders, observations)("phi", [num_features])
        self.share, self.ridge = share, ridge
        self.inverse = InverseDynamics(features, num_features, ActionCode(action_spec, len(observation_spec.shape)))
        self._inverses: Tensor | None = None  # C^-1 of every environment, float64 `[num_envs, features, features]`

    def get_extra_state(self) -> Tensor | None:
        """Return C^-1 of every environment at the end of the last rollout."""
        return self._inverses

    def set_extra_state(self, state: Tensor | None) -> None:
        self._inverses = state

    @property
    def in_keys(self) -> list[NestedKey]:
        return [*super().in_keys, *self.inverse.in_keys]

    def update(self, rollout: TensorDictBase, reduce: Reduce) -> None:
        """Update the statistics of the observations."""
        update_normalizers(self.inverse.features, rollout["next"], reduce)

    def reward(self, rollout: TensorDictBase) -> Tensor:
        """Return the bonus of the next observations, `[num_envs, time, 1]`."""
        features, next_features = (part.double() for part in self.inverse.pair(rollout))
        starts = episode_starts(rollout)
        num_envs, num_steps, size = features.shape
        first = torch.eye(size, dtype=torch.float64, device=features.device) / self.ridge
        inverses = self._inverses
        if inverses is None or inverses.shape != (num_envs, size, size):
            inverses = first.expand(num_envs, size, size)
        inverses = inverses.to(features.device, copy=True)
        rewards = []
        for step in range(num_steps):
            is_first = starts[:, step, 0]
            if bool(is_first.any()):
                inverses[is_first] = first
                add_feature(inverses, features[:, step] * is_first.unsqueeze(-1))
            rewards.append(add_feature(inverses, next_features[:, step]))
        self._inverses = inverses
        return torch.stack(rewards, 1).unsqueeze(-1).to(torch.float32)

    def loss(self, rows: TensorDictBase) -> Tensor:
        """Return the squared error of the critic plus the inverse dynamics loss of a share of the rows."""
        part = first_rows(rows, self.share)
        return super().loss(rows) + self.inverse.loss(part, *self.inverse.pair(part))


def add_feature(inverses: Tensor, feature: Tensor) -> Tensor:
    """Add phi phi^T to every C by changing C^-1 in place, and return phi^T C^-1 phi of the old C.

    Args:
        inverses: C^-1, `[num_envs, features, features]`; changed in place.
        feature: phi, `[num_envs, features]`. Zeros change nothing.

    Returns:
        The bonus, `[num_envs]`.

    """
    direction = torch.bmm(inverses, feature.unsqueeze(-1))
    bonus = (direction.squeeze(-1) * feature).sum(-1)
    inverses.baddbmm_(direction / (1 + bonus)[:, None, None], direction.transpose(1, 2), alpha=-1)
    return bonus
