"""A rollout with ends of episodes, and networks in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torch import nn
from torchrl.data import Categorical, Composite, Unbounded

from torchppo.modules.features.bodies import mlp

Array = NDArray[np.float64]
NUM_ENVS, NUM_STEPS, SIZE, NUM_ACTIONS = 3, 6, 4, 3


def make_rollout(seed: int, continues: TensorDict | None = None) -> TensorDict:
    """Make a rollout whose episodes end in environment 0 at step 2 (terminated) and in environment 1 at step 5.

    Args:
        seed: seed of the observations and actions.
        continues: the rollout before it; `None` starts new episodes.

    """
    rng = np.random.default_rng(seed)
    states = rng.normal(size=(NUM_ENVS, NUM_STEPS + 1, SIZE)) * 3 + 1
    terminated, truncated = (np.zeros((NUM_ENVS, NUM_STEPS, 1), bool) for _ in range(2))
    terminated[0, 2] = truncated[1, 5] = True
    done = terminated | truncated
    is_init = np.concatenate([np.ones((NUM_ENVS, 1, 1), bool), done[:, :-1]], 1)
    if continues is not None:
        is_init[:, 0] = continues["next", "done"][:, -1].numpy()
        before = continues["next", "observation"][:, -1].numpy()
        states[:, 0] = np.where(is_init[:, 0], states[:, 0], before)
    next_states = states[:, 1:].copy()
    next_states[done[..., 0]] = rng.normal(size=(2, SIZE))  # final observations
    flags = {"terminated": terminated, "truncated": truncated, "done": done}
    next_data = {"observation": next_states.astype(np.float32), **flags}
    action = rng.integers(NUM_ACTIONS, size=(NUM_ENVS, NUM_STEPS))
    shape = (NUM_ENVS, NUM_STEPS)
    data = {"observation": states[:, :-1].astype(np.float32), "is_init": is_init, "action": action}
    tensors = {key: torch.from_numpy(value) for key, value in data.items()}
    return TensorDict(
        {**tensors, "next": TensorDict({key: torch.from_numpy(one) for key, one in next_data.items()}, shape)}, shape
    )


def forward(network: nn.Module, values: Array, *, num_relus: int) -> Array:
    """Compute a network in NumPy: tanh after the layers of the body, then ReLUs, and no activation at the end."""
    layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    num_tanh = len(layers) - num_relus - 1
    for index, layer in enumerate(layers):
        values = values @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()
        if index < num_tanh:
            values = np.tanh(values)
        elif index < len(layers) - 1:
            values = np.maximum(values, 0)
    return values


def normalized(values: Array, seen: Array) -> Array:
    """Normalize observations by the mean and variance of those `seen`, and clip them to [-5, 5]."""
    flat = seen.reshape(-1, seen.shape[-1])
    return np.clip((values - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-8), -5, 5)


@pytest.fixture
def numpy_forward() -> Callable[..., Array]:
    return forward


@pytest.fixture
def numpy_normalized() -> Callable[[Array, Array], Array]:
    return normalized


@pytest.fixture
def rollouts() -> list[TensorDict]:
    """Two rollouts of the same episodes."""
    first = make_rollout(0)
    return [first, make_rollout(1, first)]


@pytest.fixture
def specs() -> dict[str, Any]:
    """The specs of the rollouts, and a body."""
    observation = Composite(observation=Unbounded((NUM_ENVS, SIZE)), shape=(NUM_ENVS,))
    action = Categorical(NUM_ACTIONS, (NUM_ENVS,))
    return {"observation_spec": observation, "action_spec": action, "body": partial(mlp, num_cells=(5,))}
