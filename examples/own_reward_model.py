"""A custom intrinsic reward: the distance to the k-th nearest neighbor in the rollout (RE3; Seo et al. 2021, eq. 3).

A reward model writes one more reward for every step. Its base class `RewardModel` adds a critic, advantages with their
own discount, normalization, and a parameter group. A model with networks also overrides `loss` and `in_keys`.

    python examples/own_reward_model.py
"""

import sys
from pathlib import Path

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.data import Composite

from torchppo.modules.features.extractor import Body
from torchppo.modules.intrinsic.reward_model import RewardModel, make_stream_critic
from torchppo.modules.normalizers import Reduce
from torchppo.pipelines.cli.main import main


class NeighborDistance(RewardModel):
    """Rewards observations that are far from the others in the rollout, after a fixed random projection."""

    projection: Tensor

    def __init__(self, observation_spec: Composite, *, body: Body, k: int, weight: float) -> None:
        critic = make_stream_critic("neighbors", observation_spec, body)
        super().__init__("neighbors", critic, weight=weight, gamma=0.99, lmbda=0.95, is_episodic=False, normalize=True)
        self.k = k
        self.register_buffer("projection", torch.randn(observation_spec["observation"].shape[-1], 8))

    def update(self, rollout: TensorDictBase, reduce: Reduce) -> None:
        """Do nothing, because this model has no statistics."""

    def reward(self, rollout: TensorDictBase) -> Tensor:
        features = rollout["next", "observation"].flatten(0, 1) @ self.projection
        distance = torch.cdist(features, features).kthvalue(self.k + 1, dim=1).values  # the first is itself
        return (1 + distance).log().reshape(*rollout.shape, 1)


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains intrinsic/neighbors.yaml, which names NeighborDistance
    sys.exit(main(["train", "env=acrobot", "intrinsic=neighbors", "--config-dir", str(conf), *sys.argv[1:]]))
