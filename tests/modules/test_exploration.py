"""Generalised state-dependent exploration: noise that goes on."""

from __future__ import annotations

from functools import partial

import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import ExplorationType, set_exploration_type

from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.heads import gsde
from torchppo.modules.networks import mlp

N = 5


def build() -> ActorCritic:
    torch.manual_seed(0)
    return make_actor_critic(
        Composite(observation=Unbounded((N, 3)), shape=(N,)),
        Bounded(-torch.ones(N, 2), torch.ones(N, 2), (N, 2), dtype=torch.float32),
        body=partial(mlp, num_cells=(4,)),
        head=partial(gsde, num_steps=10**9),
    )


def step(actor: torch.nn.Module, noise: torch.Tensor, is_init: list[bool]) -> TensorDict:
    with set_exploration_type(ExplorationType.RANDOM), torch.no_grad():
        begins = torch.tensor(is_init).unsqueeze(-1)
        return actor(TensorDict({"observation": torch.ones(N, 3), "is_init": begins, "gsde_noise": noise}, [N]))


def test_noise_is_drawn_where_an_episode_begins_and_kept_elsewhere() -> None:
    actor = build().actor
    first = step(actor, torch.zeros(N, 1, 8), [True] * N)["next", "gsde_noise"]
    later = step(actor, first, [False, True, False, False, False])["next", "gsde_noise"]
    kept = (later == first).flatten(1).all(1)
    assert kept.tolist() == [True, False, True, True, True]


def test_the_action_is_the_mean_and_what_the_noise_makes_of_the_features() -> None:
    actor = build().actor
    data = step(actor, torch.randn(N, 1, 8), [False] * N)
    with torch.no_grad():
        features = actor.module[0].module[0](TensorDict({"observation": torch.ones(N, 3)}, [N]))["actor_features"]
    noise = data["next", "gsde_noise"].reshape(N, 4, 2)
    expected = torch.einsum("nf,nfa->na", features, noise)
    torch.testing.assert_close(data["action"] - data["loc"], expected)


def test_learning_without_the_noise_sees_the_same_distribution() -> None:
    actor = build().actor
    data = step(actor, torch.randn(N, 1, 8), [False] * N)
    again = actor.get_dist(data.select("observation", "is_init"))
    torch.testing.assert_close(again.log_prob(data["action"]), data["action_log_prob"])
