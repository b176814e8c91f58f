"""Tests of the clipped objective around averaged weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict
from torchrl.data import Categorical, Composite, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.objectives.ppo_ewma import PPOEWMALoss

Array = NDArray[np.float64]
DECAY, EPSILON, NUM_FRAMES = 0.75, 0.2, 30


def make_loss(**options: Any) -> PPOEWMALoss:
    specs = Composite(observation=Unbounded((1, 3)), shape=(1,)), Categorical(4, (1,), dtype=torch.int64)
    torch.manual_seed(0)
    networks = make_actor_critic(*specs, body=partial(mlp, num_cells=(5,)))
    for network in networks:
        network.double()
    return PPOEWMALoss(*networks, decay=DECAY, clip_epsilon=EPSILON, **options).double()


def move_weights(loss: PPOEWMALoss) -> list[Array]:
    """Change the weights of the policy at random and return them."""
    with torch.no_grad():
        for param in loss.actor_network.parameters():
            param.add_(0.3 * torch.randn_like(param))
    return [param.detach().numpy().copy() for param in loss.actor_network.parameters()]


def log_prob(weights: list[Array], x: Array, action: NDArray[np.int64]) -> Array:
    w1, b1, w2, b2 = weights
    logits = np.tanh(x @ w1.T + b1) @ w2.T + b2
    return np.asarray(logits[np.arange(len(x)), action] - np.log(np.exp(logits).sum(-1)))


def surrogate(weights: list[Array], average: list[Array], data: TensorDict, limit: float = np.inf) -> float:
    """(proximal / old) min(r A, clip(r) A) with r = new / proximal; new / old is truncated at `limit`."""
    x, action, old = (data[key].numpy() for key in ("observation", "action", "action_log_prob"))
    proximal, new = log_prob(average, x, action), log_prob(weights, x, action)
    ratio, advantage = np.exp(new - proximal), data["advantage"].numpy()[:, 0]
    factor = np.exp(proximal - old) * np.minimum(1, limit / np.exp(new - old))
    return float((factor * np.minimum(ratio * advantage, np.clip(ratio, 1 - EPSILON, 1 + EPSILON) * advantage)).mean())


def make_batch() -> TensorDict:
    batch = {
        "observation": torch.randn(NUM_FRAMES, 3, dtype=torch.float64),
        "action": torch.randint(4, (NUM_FRAMES,)),
        "action_log_prob": torch.rand(NUM_FRAMES, dtype=torch.float64).add(0.1).log(),
        **{key: torch.randn(NUM_FRAMES, 1, dtype=torch.float64) for key in ("advantage", "value_target")},
    }
    return TensorDict(batch, [NUM_FRAMES])


def moved_loss(**options: Any) -> tuple[PPOEWMALoss, list[Array], list[Array]]:
    """Return a loss after three steps, the current weights, and their average."""
    loss = make_loss(**options)
    history = [[param.detach().numpy().copy() for param in loss.actor_network.parameters()]]
    for _ in range(3):
        history.append(move_weights(loss))
        for hook in loss.after_step:
            hook()
    factors = DECAY ** np.arange(len(history))[::-1]
    average = [
        sum(f * w for f, w in zip(factors, same, strict=True)) / factors.sum() for same in zip(*history, strict=True)
    ]
    return loss, move_weights(loss), average


@pytest.mark.parametrize("limit", [None, 0.8])
def test_loss_and_gradient_equal_numpy(limit: float | None) -> None:
    loss, weights, average = moved_loss(max_importance_ratio=limit)
    data = make_batch()
    output = loss(data)
    cap = np.inf if limit is None else limit
    assert output["loss_objective"].item() == pytest.approx(-surrogate(weights, average, data, cap), rel=1e-6)
    assert 0.1 < output["clip_fraction"].item() < 0.9
    if limit is not None:
        return  # the factor has no gradient
    gradients = torch.autograd.grad(output["loss_objective"], list(loss.actor_network.parameters()))
    for index, gradient in enumerate(gradients):
        for place in np.ndindex(weights[index].shape):
            values = []
            for step in (1e-6, -1e-6):
                moved = [weight.copy() for weight in weights]
                moved[index][place] += step
                values.append(-surrogate(moved, average, data))
            assert gradient[place].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-8)


def test_average_is_saved_and_no_parameter() -> None:
    loss, _, average = moved_loss()
    for found, expected in zip(loss.average.weights, average, strict=True):
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12)
    assert not list(loss.average.parameters())
    restored = make_loss()
    restored.load_state_dict(loss.state_dict())
    data = make_batch()
    assert torch.equal(restored(data)["loss_objective"], loss(data)["loss_objective"])
    for one in (loss, restored):
        one.average.update()
    assert all(torch.equal(*pair) for pair in zip(loss.average.weights, restored.average.weights, strict=True))


def test_average_without_memory_is_the_current_policy() -> None:
    loss = make_loss()
    loss.average.decay = 0.0
    move_weights(loss)
    loss.average.update()
    data = make_batch()
    assert loss(data)["max_ratio"].item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_rejects_a_decay_out_of_range(decay: float) -> None:
    loss = make_loss()
    with pytest.raises(ConfigurationError, match=rf"objective\.decay={decay}"):
        PPOEWMALoss(loss.actor_network, loss.critic_network, decay=decay)
