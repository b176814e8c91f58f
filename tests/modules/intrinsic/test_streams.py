"""Tests of the advantages of reward streams."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Categorical, Composite, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.features.bodies import mlp
from torchppo.modules.intrinsic.count import CountBonus
from torchppo.modules.intrinsic.reward_model import LossesWithRewardModels
from torchppo.modules.intrinsic.rnd import RND
from torchppo.modules.intrinsic.streams import add_advantages, write_rewards
from torchppo.modules.normalizers import no_reduce

NUM_STATES, GAMMA, LMBDA, WEIGHT = 7, 0.9, 0.8, 0.5


def make_rollout() -> TensorDict:
    """Return two environments of eight steps; episodes end at step 3 (terminated) and at step 5 (truncated)."""
    generator = torch.Generator().manual_seed(0)
    states = torch.randint(NUM_STATES, (2, 9), generator=generator)
    next_states = states[:, 1:].clone()
    terminated, truncated = torch.zeros(2, 8, 1, dtype=torch.bool), torch.zeros(2, 8, 1, dtype=torch.bool)
    terminated[0, 3] = truncated[1, 5] = True
    next_states[0, 3], next_states[1, 5] = 1, 2  # final observations
    next_data = {
        "observation": next_states,
        "terminated": terminated,
        "truncated": truncated,
        "done": terminated | truncated,
    }
    advantage = torch.randn(2, 8, 1, generator=generator)
    data = {"observation": states[:, :-1], "advantage": advantage, "next": TensorDict(next_data, (2, 8))}
    return TensorDict(data, (2, 8))


def numpy_advantages(rollout: TensorDict, values: np.ndarray, *, is_episodic: bool) -> np.ndarray:
    """Compute the advantages of the stream in a loop; `values` are those of all states."""
    reward = rollout["next", "reward_count"].squeeze(-1).double().numpy()
    state, next_state = rollout["observation"].numpy(), rollout["next", "observation"].numpy()
    done, terminated = (rollout["next", key].squeeze(-1).numpy() for key in ("done", "terminated"))
    advantage = np.zeros((2, 8))
    for env in range(2):
        trace = 0.0
        for step in reversed(range(8)):
            ends = is_episodic and done[env, step]
            following = next_state[env, step] if ends or step == 7 else state[env, step + 1]
            bootstrap = 0.0 if is_episodic and terminated[env, step] else values[following]
            delta = reward[env, step] + GAMMA * bootstrap - values[state[env, step]]
            trace = delta + (0.0 if ends else GAMMA * LMBDA * trace)
            advantage[env, step] = trace
    return advantage


@pytest.mark.parametrize("is_episodic", [False, True])
def test_weighted_advantages_of_a_stream_equal_a_loop(is_episodic: bool) -> None:
    torch.manual_seed(0)
    spec = Composite(observation=Categorical(NUM_STATES, (2,)), shape=(2,))
    body = partial(mlp, num_cells=(4,))
    model = CountBonus(spec, body=body, weight=WEIGHT, gamma=GAMMA, lmbda=LMBDA, is_episodic=is_episodic)
    rollout = make_rollout()
    before = rollout["advantage"].clone()
    metrics = write_rewards(rollout, [model], no_reduce)
    add_advantages(rollout, [model])
    with torch.no_grad():
        values = model.critic(TensorDict({"observation": torch.arange(NUM_STATES)}, NUM_STATES))["state_value_count"]
    expected = numpy_advantages(rollout, values.squeeze(-1).double().numpy(), is_episodic=is_episodic)
    added = (rollout["advantage"] - before).squeeze(-1).numpy()
    np.testing.assert_allclose(added, WEIGHT * expected, atol=1e-6)
    target = expected + values.squeeze(-1).numpy()[rollout["observation"].numpy()]
    np.testing.assert_allclose(rollout["value_target_count"].squeeze(-1).numpy(), target, atol=1e-6)
    assert metrics["rollout/reward_count"] == pytest.approx(rollout["next", "reward_count"].mean().item())


def test_critic_of_a_stream_does_not_depend_on_the_scale_of_floats() -> None:
    spec = Composite(observation=Unbounded((2, 3)), shape=(2,))
    values = []
    for scale in (1.0, 100.0):
        torch.manual_seed(0)
        model = RND(spec, body=partial(mlp, num_cells=(4,)))
        rollout = make_rollout()
        rollout["observation"] = scale * torch.randn(2, 8, 3)
        rollout["next", "observation"] = scale * torch.randn(2, 8, 3)
        write_rewards(rollout, [model], no_reduce)
        with torch.no_grad():
            values.append(model.critic(rollout.copy())["state_value_rnd"])
    torch.testing.assert_close(*values, rtol=1e-4, atol=1e-5)


def test_a_reward_of_another_shape_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = Composite(observation=Categorical(NUM_STATES, (2,)), shape=(2,))
    model = CountBonus(spec, body=partial(mlp, num_cells=(4,)))
    monkeypatch.setattr(model, "reward", lambda rollout: torch.zeros(rollout.shape))
    with pytest.raises(ConfigurationError, match=r"intrinsic\.count: .* \(2, 8\); return \(2, 8, 1\)"):
        write_rewards(make_rollout(), [model], no_reduce)


def test_loss_of_a_model_is_the_squared_error_of_its_critic() -> None:
    spec = Composite(observation=Categorical(NUM_STATES, (2,)), shape=(2,))
    model = CountBonus(spec, body=partial(mlp, num_cells=(4,)))
    rows = TensorDict({"observation": torch.arange(4), "value_target_count": torch.arange(4.0).unsqueeze(1)}, 4)
    objective = torch.nn.Identity()
    objective.forward = lambda _: TensorDict({"loss_objective": torch.zeros(())})  # type: ignore[method-assign]
    losses = LossesWithRewardModels(objective, [model])(rows)
    error = model.critic(rows.copy())["state_value_count"].detach().numpy() - np.arange(4.0)[:, None]
    assert losses["loss_count"].item() == pytest.approx((error**2).mean(), rel=1e-5)
    assert set(losses.keys()) == {"loss_objective", "loss_count"}
