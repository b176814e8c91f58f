"""V-trace equals a loop in float64."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import InteractionType, set_interaction_type
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.objectives import value
from torchrl.objectives.value import TD1Estimator

from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.estimators.vtrace import VTrace
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import GRU

NUM_ENVS, NUM_STEPS = 3, 14
ACTIONS = {"discrete": Categorical(4, (NUM_ENVS,)), "continuous": Bounded(-1.0, 1.0, (NUM_ENVS, 2))}


def make_policy(action: str = "discrete", *, is_recurrent: bool = False) -> Any:
    spec = Composite(observation=Unbounded((NUM_ENVS, 5)), shape=[NUM_ENVS])
    memory = (lambda n: GRU(n, width=4)) if is_recurrent else None
    return make_actor_critic(spec, ACTIONS[action], body=partial(mlp, num_cells=[8]), memory=memory).actor


def make_rollout(actor: Any, shift: float, seed: int = 0) -> TensorDictBase:
    """A rollout of `actor` whose behaviour policy had log-probabilities that differ by about `shift`."""
    torch.manual_seed(seed)
    shape = (NUM_ENVS, NUM_STEPS)
    terminated, truncated = (torch.rand(*shape, 1) < 0.15 for _ in range(2))
    rollout = TensorDict({"observation": torch.randn(*shape, 5)}, shape)
    with torch.no_grad():
        rollout = actor(rollout)
    rollout["action_log_prob"] += shift * torch.randn(shape)
    rollout["state_value"] = torch.randn(*shape, 1)
    done = terminated | truncated
    following = rollout["state_value"].roll(-1, 1)
    last = done.clone()
    last[:, -1] = True
    rollout["next"] = TensorDict(
        {
            "reward": torch.randn(*shape, 1),
            "done": done,
            "terminated": terminated,
            "state_value": torch.where(last, torch.randn(*shape, 1), following),
        },
        shape,
    )
    return rollout


def loop(
    rollout: TensorDictBase, log_pi: torch.Tensor, gamma: float, rho_thresh: float, c_thresh: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Advantages and targets, `[num_envs, time]`, by equations 1 and 2 and the text below them in the paper."""
    following = rollout["next"]

    def array(tensor: torch.Tensor) -> NDArray[np.float64]:
        return tensor.reshape(rollout.shape).double().numpy()

    values, next_values = array(rollout["state_value"]), array(following["state_value"])
    rewards, terminated, done = (array(following[key]) for key in ("reward", "terminated", "done"))
    ratio = np.exp(array(log_pi) - array(rollout["action_log_prob"]))
    advantages, targets = np.zeros_like(values), np.zeros_like(values)
    for env in range(values.shape[0]):
        for step in reversed(range(values.shape[1])):
            rho, c = min(rho_thresh, ratio[env, step]), min(c_thresh, ratio[env, step])
            bootstrap = gamma * (1 - terminated[env, step]) * next_values[env, step]
            targets[env, step] = values[env, step] + rho * (rewards[env, step] + bootstrap - values[env, step])
            is_last = done[env, step] or step == values.shape[1] - 1
            if not is_last:
                targets[env, step] += gamma * c * (targets[env, step + 1] - values[env, step + 1])
                bootstrap = gamma * targets[env, step + 1]
            advantages[env, step] = rho * (rewards[env, step] + bootstrap - values[env, step])
    return advantages, targets


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("thresholds", [(1.0, 1.0), (2.0, 1.0), (1.5, 0.5), (1e9, 1e9)])
@pytest.mark.parametrize("gamma", [0.9, 0.0, 1.0])
def test_equals_a_loop_for_another_behaviour_policy(action: str, thresholds: tuple[float, float], gamma: float) -> None:
    actor = make_policy(action)
    rollout = make_rollout(actor, shift=0.7)
    log_pi = actor.get_dist(rollout.copy()).log_prob(rollout[actor.dist_sample_keys[0]]).detach()
    estimator = VTrace(gamma=gamma, actor_network=actor, rho_thresh=thresholds[0], c_thresh=thresholds[1])
    result = estimator(rollout.copy())
    advantages, targets = loop(rollout, log_pi, gamma, *thresholds)
    np.testing.assert_allclose(result["advantage"].squeeze(-1), advantages, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(result["value_target"].squeeze(-1), targets, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mode", [InteractionType.RANDOM, InteractionType.DETERMINISTIC])
def test_draws_no_action(mode: InteractionType) -> None:
    actor = make_policy("continuous")
    estimator = VTrace(gamma=0.9, actor_network=actor)
    rollout = make_rollout(actor, shift=0.7)
    state = torch.get_rng_state()
    with set_interaction_type(mode):
        first, second = (estimator(rollout.copy())["advantage"] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), state)


def test_is_td1_for_the_policy_that_collected() -> None:
    actor = make_policy()
    rollout = make_rollout(actor, shift=0.0)
    targets = [
        estimator(rollout.copy())["value_target"]
        for estimator in (VTrace(gamma=0.9, actor_network=actor), TD1Estimator(gamma=0.9, value_network=None))
    ]
    torch.testing.assert_close(*targets, rtol=1e-5, atol=1e-5)


def test_recomputes_the_states_of_a_recurrent_policy_from_the_first_step() -> None:
    actor = make_policy(is_recurrent=True)
    torch.manual_seed(0)
    rollout = TensorDict({"observation": torch.randn(NUM_ENVS, NUM_STEPS, 5)}, (NUM_ENVS, NUM_STEPS))
    rollout["is_init"] = torch.rand(NUM_ENVS, NUM_STEPS, 1) < 0.3
    states = {key: torch.randn(NUM_ENVS, 1, 4) for key in ("actor_memory", "critic_memory")}
    steps = []
    for step in range(NUM_STEPS):
        data = rollout[:, step].clone().update(states)
        steps.append(actor(data).detach())
        states = {key: data["next", key] for key in states}
    played = torch.stack(steps, 1)
    log_prob = VTrace(gamma=0.9, actor_network=actor)._log_prob(played)
    torch.testing.assert_close(log_prob, played["action_log_prob"], rtol=1e-5, atol=1e-5)


def test_is_torchrls_class_with_its_arguments() -> None:
    actor = make_policy()
    estimator = VTrace(gamma=0.9, actor_network=actor, average_adv=True, differentiable=False)
    assert isinstance(estimator, value.VTrace)
    advantage = estimator(make_rollout(actor, shift=0.7))["advantage"]
    assert abs(advantage.mean()) < 1e-6
    assert advantage.std().item() == pytest.approx(1.0, abs=1e-5)
