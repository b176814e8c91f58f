"""Generalised state-dependent exploration: noise that goes on."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import numpy as np
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import ExplorationType, set_exploration_type

from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.heads.continuous import gsde

N = 5


def build(num_steps: int = 10**9) -> ActorCritic:
    torch.manual_seed(0)
    return make_actor_critic(
        Composite(observation=Unbounded((N, 3)), shape=(N,)),
        Bounded(-torch.ones(N, 2), torch.ones(N, 2), (N, 2), dtype=torch.float32),
        body=partial(mlp, num_cells=(4,)),
        head=partial(gsde, num_steps=num_steps),
    )


def log_std_of(actor: torch.nn.Module) -> torch.nn.Parameter:
    (log_std,) = {p for name, p in actor.named_parameters() if name.endswith("log_std")}
    return log_std


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
    noise = data["next", "gsde_noise"].reshape(N, 4, 2) * log_std_of(actor).exp()
    expected = torch.einsum("nf,nfa->na", features, noise)
    torch.testing.assert_close(data["action"] - data["loc"], expected)


def test_noise_lasts_as_long_as_the_episode() -> None:
    actor = build().actor
    noise = [torch.zeros(N, 1, 8)]
    for time in range(6):
        noise.append(step(actor, noise[-1], [time == 0, time == 3, *[False] * 3])["next", "gsde_noise"])
    changed = [[not torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in pairwise(noise)]
    assert [[time for time in range(6) if changed[time][row]] for row in range(3)] == [[0], [3], []]


def test_noise_is_drawn_at_every_step_if_asked() -> None:
    first = torch.randn(N, 1, 8)
    later = step(build(num_steps=1).actor, first, [False] * N)["next", "gsde_noise"]
    assert (later != first).all()


def test_noise_is_of_the_scale_that_the_head_has_learnt_also_where_it_was_drawn_before() -> None:
    actor = build().actor
    before = step(actor, torch.zeros(N, 1, 8), [True] * N)
    with torch.no_grad():
        log_std_of(actor)[:, 1] += 3.0
    after = step(actor, before["next", "gsde_noise"], [False] * N)
    by_old, by_new = ((data["action"] - data["loc"]) / data["scale"] for data in (before, after))
    torch.testing.assert_close(by_new, by_old, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(after["perturbation"][:, 1], before["perturbation"][:, 1] * np.exp(3.0), rtol=1e-5)


def test_learning_without_the_noise_sees_the_same_distribution() -> None:
    actor = build().actor
    data = step(actor, torch.randn(N, 1, 8), [False] * N)
    again = actor.get_dist_params(data.select("observation", "is_init"))
    assert data["perturbation"].abs().min() > 0
    assert not again["perturbation"].any()
    for key in ("loc", "scale"):
        assert torch.equal(again[key], data[key])
    log_prob = actor.get_dist(data.select("observation", "is_init")).log_prob(data["action"])
    torch.testing.assert_close(log_prob, data["action_log_prob"])


def test_learning_takes_sequences_of_any_number_of_dimensions() -> None:
    actor = build().actor
    data = TensorDict({"observation": torch.randn(N, 7, 3), "is_init": torch.zeros(N, 7, 1, dtype=torch.bool)}, [N, 7])
    whole = actor.get_dist_params(data.copy())
    torch.testing.assert_close(whole["loc"][:, 4], actor.get_dist_params(data[:, 4].clone())["loc"])
