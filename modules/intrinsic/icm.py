"""The intrinsic curiosity module: a bonus for transitions that a network predicts badly."""

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
from .inverse_dynamics import ActionCode, InverseDynamics, two_layers
from .networks import FeatureNetworks, check_network_options, first_rows, update_normalizers
from .reward_model import RewardModel, make_stream_critic


class ICM(RewardModel):
    """The bonus 1/2 |f(phi(s), a) - phi(s')|^2 of a network f that predicts the features phi of the next observation.

    The loss is (1 - beta) L_inverse + beta L_forward, where L_forward is the mean bonus. The features are trained only
    by L_inverse (`InverseDynamics`), as in Burda et al. 2018 (arXiv:1808.04355), so that they cannot collapse. The
    source multiplies the bonus by eta = 0.01; here, `normalize` and `weight` define its scale.

    Source: Pathak et al. 2017 (arXiv:1705.05363), section 2.2, eq. 4 to 7.

    Args:
        observation_spec: Batched spec with the entry `observation`, a tensor or nested.
        action_spec: Batched spec of the action, a tensor or nested.
        body: Builds the body of the features and of the stream's critic, as in `make_actor_critic`.
        encoders: See `make_actor_critic`.
        observations: Entries that the features read, such as `image`; `None` means all.
        num_features: Number of features.
        beta: Weight of the forward loss.
        share: Share of every minibatch that the networks are trained on.
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
        beta: float = 0.2,
        share: float = 1.0,
        **options: Any,
    ) -> None:
        check_network_options("icm", num_features, share)
        if not 0 <= beta <= 1:
            raise ConfigurationError(f"intrinsic.icm.beta={beta} must be between 0 and 1; 0.2 is usual")
        super().__init__("icm", make_stream_critic("icm", observation_spec, body, encoders), **options)
        code = ActionCode(action_spec, len(observation_spec.shape))
        features = FeatureNetworks("icm", observation_spec, body, encoders, observations)("phi", [num_features])
        self.share, self.beta = share, beta
        self.inverse = InverseDynamics(features, num_features, code)
        self.forward_model = two_layers(num_features + sum(code.sizes), num_features)

    @property
    def in_keys(self) -> list[NestedKey]:
        return [*super().in_keys, *self.inverse.in_keys]

    def update(self, rollout: TensorDictBase, reduce: Reduce) -> None:
        """Update the statistics of the observations."""
        update_normalizers(self.inverse.features, rollout["next"], reduce)

    def reward(self, rollout: TensorDictBase) -> Tensor:
        """Return the errors of the predicted features, `[num_envs, time, 1]`."""
        return self.error(rollout, *self.inverse.pair(rollout)).unsqueeze(-1)

    def loss(self, rows: TensorDictBase) -> Tensor:
        """Return the squared error of the critic plus the inverse and forward losses of a share of the rows."""
        part = first_rows(rows, self.share)
        features, next_features = self.inverse.pair(part)
        forward = self.error(part, features.detach(), next_features.detach()).mean()
        inverse = self.inverse.loss(part, features, next_features)
        return super().loss(rows) + (1 - self.beta) * inverse + self.beta * forward

    def error(self, rows: TensorDictBase, features: Tensor, next_features: Tensor) -> Tensor:
        """Return 1/2 |f(phi(s), a) - phi(s')|^2 of rows `[*]`, `[*]`."""
        predicted = self.forward_model(torch.cat([features, self.inverse.code(rows)], -1))
        return 0.5 * (predicted - next_features).square().sum(-1)
