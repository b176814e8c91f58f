"""The base class of reward models, which add a reward stream with its own critic."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from tensordict import NestedKey, TensorDictBase
from tensordict.nn import TensorDictModule, TensorDictModuleBase, TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Composite

from ...errors import ConfigurationError
from ..features.extractor import Body, FeatureExtractorBuilder, split_observation_spec
from ..heads.value_heads import last_layer
from ..normalizers import Reduce, RewardNormalizer


class RewardModel(nn.Module, ABC):
    """Base class of reward models.

    A model writes a reward for every step. The advantages of this stream are estimated with the model's own critic,
    discount and lambda, and are added to those of the environment with a weight. The objective uses only the sum.

    Args:
        name: Name of the stream. Its entries are `reward_<name>`, `state_value_<name>`, `value_target_<name>` and
            `loss_<name>`.
        critic: Value function of the stream; writes `state_value_<name>` `[*, 1]`.
        weight: Weight of the stream's advantages. The default is 1/2, because RND multiplies the advantages of the
            environment by 2 (Burda et al. 2019).
        gamma: Discount factor of the stream.
        lmbda: Lambda of the stream's advantages.
        is_episodic: Whether the stream ends with an episode. A non-episodic stream continues in the next episode, so
            that the end of an episode does not limit exploration (Burda et al. 2019, section 2.3).
        normalize: Whether to divide rewards by the running standard deviation of their discounted return (Burda et al.
            2019, section 2.4). The return of a non-episodic stream continues in the next episode.
        optimizer: Options of the optimizer, such as `lr`, that differ for the parameters of this model.

    Attributes:
        normalizer: Divides the rewards; `None` if `normalize` is false.

    Raises:
        ConfigurationError: If a number is out of range.

    """

    def __init__(
        self,
        name: str,
        critic: TensorDictModuleBase,
        /,
        *,
        weight: float = 0.5,
        gamma: float = 0.99,
        lmbda: float = 0.95,
        is_episodic: bool = False,
        normalize: bool = True,
        optimizer: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if weight < 0:
            raise ConfigurationError(f"intrinsic.{name}.weight={weight} must not be negative; 0.1 is usual")
        for key, value in (("gamma", gamma), ("lmbda", lmbda)):
            if not 0 <= value <= 1:
                raise ConfigurationError(f"intrinsic.{name}.{key}={value} must be between 0 and 1")
        self.name = name
        self.critic = critic
        self.weight = weight
        self.gamma = gamma
        self.lmbda = lmbda
        self.is_episodic = is_episodic
        self.normalizer = RewardNormalizer(gamma, clip=math.inf) if normalize else None
        self.optimizer = dict(optimizer or {})

    @abstractmethod
    def update(self, rollout: TensorDictBase, reduce: Reduce) -> None:
        """Update statistics with a rollout `[num_envs, time]`, before its rewards are computed.

        Args:
            rollout: The rollout.
            reduce: Calls a function with the tensors of all ranks, at once.

        """

    @abstractmethod
    def reward(self, rollout: TensorDictBase) -> Tensor:
        """Return the reward of every step, `[num_envs, time, 1]`, before normalization."""

    def loss(self, rows: TensorDictBase) -> Tensor:
        """Return the loss of a minibatch, a scalar: the squared error of the critic.

        A model with other networks overrides this method and adds their losses. It may use only a part of the rows.
        """
        value: Tensor = self.critic(rows.copy())[f"state_value_{self.name}"]
        return (value - rows[f"value_target_{self.name}"]).square().mean()

    @property
    def in_keys(self) -> list[NestedKey]:
        """Keys of the rollout that `loss` reads in addition to `value_target_<name>`, such as `("next", "pixels")`."""
        return list(self.critic.in_keys)


class LossesWithRewardModels(nn.Module):
    """Adds the losses of reward models to those of an objective.

    Args:
        objective: The objective.
        models: The reward models.

    """

    def __init__(self, objective: nn.Module, models: list[RewardModel]) -> None:
        super().__init__()
        self.objective = objective
        self.models = nn.ModuleList(models)

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the losses and metrics of the objective, and `loss_<name>` of every model."""
        losses: TensorDictBase = self.objective(tensordict)
        for model in self.models:
            assert isinstance(model, RewardModel)
            if f"loss_{model.name}" in losses.keys():  # noqa: SIM118 - a TensorDict iterates over rows
                raise ConfigurationError(
                    f"intrinsic.{model.name}: the objective already has a loss_{model.name}; rename the reward model"
                )
            losses[f"loss_{model.name}"] = model.loss(tensordict)
        return losses


def make_stream_critic(
    name: str, observation_spec: Composite, body: Body, encoders: Mapping[str, Body] | None = None
) -> TensorDictModuleBase:
    """Build a critic that writes `state_value_<name>` from the observation; see `make_actor_critic` for `encoders`.

    Entries of floats are normalized.
    """
    specs, num_batch = split_observation_spec(observation_spec).specs, len(observation_spec.shape)
    extractor = FeatureExtractorBuilder(specs, num_batch, True, encoders or {}, None)(name, specs, body)
    value = TensorDictModule(last_layer(extractor.num_features, 1), [extractor.key], [f"state_value_{name}"])
    return TensorDictSequential(*extractor.modules, value)
