"""Tests of the count-based bonus."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.data import Binary, Categorical, Composite, MultiCategorical, OneHot, TensorSpec, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.features.bodies import mlp
from torchppo.modules.intrinsic.count import CountBonus
from torchppo.modules.normalizers import no_reduce

BODY = partial(mlp, num_cells=(4,))


def make_bonus(spec: TensorSpec, **options: float) -> CountBonus:
    return CountBonus(Composite(observation=spec, shape=(2,)), body=BODY, **options)


def rollout_of(observation: Tensor) -> TensorDict:
    return TensorDict({"next": TensorDict({"observation": observation}, observation.shape[:2])}, observation.shape[:2])


def test_bonus_is_the_inverse_root_of_all_visits() -> None:
    bonus = make_bonus(Categorical(5, (2,)))
    first, second = torch.tensor([[0, 1, 1], [1, 1, 4]]), torch.tensor([[0, 0, 3], [0, 4, 4]])
    for observation, counts in ((first, [1, 4, 0, 0, 1]), (second, [4, 4, 0, 1, 3])):
        bonus.update(rollout_of(observation), no_reduce)
        assert bonus.counts.tolist() == counts
        expected = np.array(counts)[observation.numpy()].astype(float) ** -0.5
        np.testing.assert_allclose(bonus.reward(rollout_of(observation)).squeeze(-1).numpy(), expected, rtol=1e-6)


def test_visits_of_all_ranks_are_counted() -> None:
    bonus = make_bonus(Categorical(3, (2,)))
    bonus.update(rollout_of(torch.tensor([[0], [2]])), lambda visits, use: use(visits.expand(3, -1)))
    assert bonus.counts.tolist() == [3, 0, 3]


def test_every_combination_of_a_multidiscrete_observation_has_its_counter() -> None:
    bonus = make_bonus(MultiCategorical([2, 3], (2, 2)))
    observation = torch.tensor([[[0, 0], [0, 2]], [[1, 1], [1, 1]]])
    bonus.update(rollout_of(observation), no_reduce)
    assert bonus.counts.tolist() == [1, 0, 1, 0, 2, 0]


def test_counts_are_in_the_state_dict() -> None:
    bonus, other = make_bonus(Categorical(3, (2,))), make_bonus(Categorical(3, (2,)))
    bonus.update(rollout_of(torch.tensor([[0], [2]])), no_reduce)
    other.load_state_dict(bonus.state_dict())
    assert other.counts.tolist() == [1, 0, 1]


@pytest.mark.parametrize("spec", [Unbounded((2, 3)), OneHot(3, (2, 3)), Categorical(20_000_000, (2,))])
def test_rejects_observations_that_cannot_be_counted(spec: TensorSpec) -> None:
    with pytest.raises(ConfigurationError, match="intrinsic=rnd"):
        make_bonus(spec)


@pytest.mark.parametrize("options", [{"weight": -1.0}, {"gamma": 1.1}, {"lmbda": -0.1}])
def test_rejects_options_out_of_range(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match=rf"intrinsic\.count\.{next(iter(options))}="):
        make_bonus(Categorical(3, (2,)), **options)


@pytest.mark.parametrize("spec", [Binary(4, (2, 4)), Categorical(3, (2, 2))])
def test_rejects_several_values_without_their_own_sizes(spec: TensorSpec) -> None:
    with pytest.raises(ConfigurationError, match="intrinsic=rnd"):
        make_bonus(spec)
