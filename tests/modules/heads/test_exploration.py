"""Tests of persistent exploration noise (gSDE)."""

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

NUM_ENVS = 5


def build(num_steps: int = 10**9) -> ActorCritic:
    torch.manual_seed(0)
    return make_actor_critic(
        Composite(observation=Unbounded((NUM_ENVS, 3)), shape=(NUM_ENVS,)),
        Bounded(-torch.ones(NUM_ENVS, 2), torch.ones(NUM_ENVS, 2), (NUM_ENVS, 2), dtype=torch.float32),
        body=partial(mlp, num_cells=(4,)),
        head=partial(gsde, num_steps=num_steps),
    )


def get_log_std(actor: torch.nn.Module) -> torch.nn.Parameter:
    (log_std,) = {p for name, p in actor.named_parameters() if name.endswith("log_std")}
    return log_std


def step(actor: torch.nn.Module, noise: torch.Tensor, is_init: list[bool]) -> TensorDict:
    with set_exploration_type(ExplorationType.RANDOM), torch.no_grad():
        is_first = torch.tensor(is_init).unsqueeze(-1)
        return actor(
            TensorDict({"observation": torch.ones(NUM_ENVS, 3), "is_init": is_first, "gsde_noise": noise}, [NUM_ENVS])
        )


def test_noise_is_resampled_when_an_episode_begins() -> None:
    actor = build().actor
    first = step(actor, torch.zeros(NUM_ENVS, 1, 8), [True] * NUM_ENVS)["next", "gsde_noise"]
    later = step(actor, first, [False, True, False, False, False])["next", "gsde_noise"]
    kept = (later == first).flatten(1).all(1)
    assert kept.tolist() == [True, False, True, True, True]


def test_action_is_the_mean_plus_noise_times_features() -> None:
    actor = build().actor
    data = step(actor, torch.randn(NUM_ENVS, 1, 8), [False] * NUM_ENVS)
    with torch.no_grad():
        features = actor.module[0].module[0](TensorDict({"observation": torch.ones(NUM_ENVS, 3)}, [NUM_ENVS]))[
            "actor_features"
        ]
    noise = data["next", "gsde_noise"].reshape(NUM_ENVS, 4, 2) * get_log_std(actor).exp()
    expected = torch.einsum("nf,nfa->na", features, noise)
    torch.testing.assert_close(data["action"] - data["loc"], expected)


def test_noise_is_constant_within_an_episode() -> None:
    actor = build().actor
    noise = [torch.zeros(NUM_ENVS, 1, 8)]
    for time in range(6):
        noise.append(step(actor, noise[-1], [time == 0, time == 3, *[False] * 3])["next", "gsde_noise"])
    changed = [[not torch.equal(a, b) for a, b in zip(*pair, strict=True)] for pair in pairwise(noise)]
    assert [[time for time in range(6) if changed[time][row]] for row in range(3)] == [[0], [3], []]


def test_num_steps_1_resamples_noise_at_every_step() -> None:
    first = torch.randn(NUM_ENVS, 1, 8)
    later = step(build(num_steps=1).actor, first, [False] * NUM_ENVS)["next", "gsde_noise"]
    assert (later != first).all()


def test_old_noise_is_scaled_by_the_current_log_std() -> None:
    actor = build().actor
    before = step(actor, torch.zeros(NUM_ENVS, 1, 8), [True] * NUM_ENVS)
    with torch.no_grad():
        get_log_std(actor)[:, 1] += 3.0
    after = step(actor, before["next", "gsde_noise"], [False] * NUM_ENVS)
    by_old, by_new = ((data["action"] - data["loc"]) / data["scale"] for data in (before, after))
    torch.testing.assert_close(by_new, by_old, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(after["perturbation"][:, 1], before["perturbation"][:, 1] * np.exp(3.0), rtol=1e-5)


def test_distribution_does_not_depend_on_the_noise() -> None:
    actor = build().actor
    data = step(actor, torch.randn(NUM_ENVS, 1, 8), [False] * NUM_ENVS)
    again = actor.get_dist_params(data.select("observation", "is_init"))
    assert data["perturbation"].abs().min() > 0
    assert not again["perturbation"].any()
    for key in ("loc", "scale"):
        assert torch.equal(again[key], data[key])
    log_prob = actor.get_dist(data.select("observation", "is_init")).log_prob(data["action"])
    torch.testing.assert_close(log_prob, data["action_log_prob"])


def test_sequences_without_noise_are_supported() -> None:
    actor = build().actor
    data = TensorDict(
        {"observation": torch.randn(NUM_ENVS, 7, 3), "is_init": torch.zeros(NUM_ENVS, 7, 1, dtype=torch.bool)},
        [NUM_ENVS, 7],
    )
    whole = actor.get_dist_params(data.copy())
    torch.testing.assert_close(whole["loc"][:, 4], actor.get_dist_params(data[:, 4].clone())["loc"])
