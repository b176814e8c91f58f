"""Recurrent states of a rollout."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torchrl.envs import ExplorationType, set_exploration_type

from torchppo.envs import make_env
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import GRU, LSTM
from torchppo.modules.features.transformer import Transformer
from torchppo.pipelines.collectors.recurrent_context import RecurrentContext, context_windows
from torchppo.pipelines.collectors.vector import VectorRollouts

CPU = torch.device("cpu")
NUM_ENVS, NUM_STEPS, LENGTH = 3, 4, 2
MEMORIES: dict[str, Callable[[int], Any]] = {
    "lstm": partial(LSTM, width=8),
    "gru": partial(GRU, width=8),
    "transformer": partial(Transformer, width=8, context_length=5),
}


def make_context(previous: RecurrentContext | None = None) -> RecurrentContext:
    states = None if previous is None else previous.last_states()
    return RecurrentContext({"state": (LENGTH, 1)}, NUM_STEPS, NUM_ENVS, CPU, states)


def filled(start: int, previous: RecurrentContext | None = None) -> RecurrentContext:
    """The state after step `t` of environment `e` is `start + 10 t + e`."""
    context = make_context(previous)
    for step in range(NUM_STEPS):
        for env_slice in (slice(0, 2), slice(2, 3)):
            state = start + 10.0 * step + torch.arange(NUM_ENVS)[env_slice].unsqueeze(-1)
            context.write(step, env_slice, [state])
    return context


def read(context: RecurrentContext, step: int, env_slice: slice = slice(None)) -> torch.Tensor:
    is_init = np.zeros(NUM_ENVS, np.bool_)[env_slice]
    return context.read(step, env_slice, is_init)["state"].squeeze(-1)


class TestRecurrentContext:
    def test_first_rollout_starts_with_zeros(self) -> None:
        assert read(make_context(), 0).tolist() == [[0, 0]] * NUM_ENVS

    def test_read_returns_the_states_of_the_steps_before(self) -> None:
        context = filled(100)
        assert read(context, 1).tolist() == [[0, 100], [0, 101], [0, 102]]
        assert read(context, 3, slice(2, 3)).tolist() == [[112, 122]]

    def test_read_returns_is_init_as_a_column(self) -> None:
        is_init = np.array([True, False])
        data = make_context().read(0, slice(0, 2), is_init)
        assert list(data) == ["is_init", "state"]
        assert data["is_init"].tolist() == [[True], [False]]

    def test_next_rollout_starts_with_the_last_states(self) -> None:
        assert read(make_context(filled(100)), 0).tolist() == [[120, 130], [121, 131], [122, 132]]

    def test_windows_are_the_states_before_every_step_and_after_the_last(self) -> None:
        context = filled(100, filled(0))
        windows = context.windows()["state"]
        assert windows.shape == (NUM_STEPS + 1, NUM_ENVS, LENGTH, 1)
        for step in range(NUM_STEPS + 1):
            assert torch.equal(windows[step].squeeze(-1), read(context, step))

    def test_windows_share_one_copy_of_the_states(self) -> None:
        windows = make_context().windows()["state"]
        assert windows.untyped_storage().nbytes() == 4 * (LENGTH + NUM_STEPS) * NUM_ENVS


@pytest.mark.parametrize("shared", [False, True], ids=["separate", "shared"])
@pytest.mark.parametrize("name", MEMORIES)
def test_states_continue_in_the_next_rollout_and_are_stored_once(name: str, shared: bool) -> None:
    torch.manual_seed(0)
    env = make_env("CartPole-v1", 3)
    actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=mlp, memory=MEMORIES[name], shared=shared)
    rollouts = VectorRollouts(env, actor, 24)
    with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
        first, second = rollouts(), rollouts()
    assert torch.equal(second["actor_memory"][:, 0], first["next", "actor_memory"][:, -1])
    assert first["actor_memory"][:, 0].abs().sum() == 0
    assert second["actor_memory"][:, 0].abs().sum() > 0
    states = first["actor_memory"]
    num_envs, num_steps, context_length, state_size = states.shape
    assert states.untyped_storage().nbytes() == 4 * num_envs * (num_steps + context_length) * state_size


def test_context_windows_are_views() -> None:
    states = torch.arange(24.0).reshape(2, 6, 2)
    contexts = context_windows(states, 3, dim=1)
    assert contexts.shape == (2, 4, 3, 2)
    assert contexts.untyped_storage().data_ptr() == states.untyped_storage().data_ptr()
    np.testing.assert_array_equal(contexts[:, 1], states[:, 1:4])
