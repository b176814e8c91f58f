"""Several distributions as one are what they are one by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import distributions as D  # noqa: N812

from torchppo.modules.distributions.action import (
    Categorical,
    IndependentBernoulli,
    IndependentBeta,
    MultiCategorical,
    SquashedNormal,
)
from torchppo.modules.distributions.joint import JointComponent, JointDistribution

FACTORS = {
    "move": (Categorical, {"logits": 4}),
    "gears": (partial(MultiCategorical, nvec=[2, 3]), {"logits": 5}),
    "lamps": (IndependentBernoulli, {"logits": 3}),
    "steer": (partial(SquashedNormal, low=[-1.0, 0.0], high=[1.0, 2.0]), {"loc": 2, "scale": 2}),
    "brake": (IndependentBeta, {"alpha": 1, "beta": 1}),
}
DISCRETE = ["move", "gears", "lamps"]


def factors(names: list[str]) -> Callable[..., JointDistribution]:
    keywords = {name: {key: f"{name}_{key}" for key in FACTORS[name][1]} for name in names}
    return partial(JointDistribution, [JointComponent(FACTORS[name][0], keywords[name]) for name in names])


def parameters(names: list[str], seed: int = 0, batch: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}_{key}": torch.rand(batch, size, generator=generator) + 1
        for name in names
        for key, size in FACTORS[name][1].items()
    }


def separate(names: list[str], given: dict[str, torch.Tensor]) -> list[D.Distribution]:
    return [
        FACTORS[name][0](**{key: given[f"{name}_{key}"] for key in FACTORS[name][1]})  # type: ignore[operator]
        for name in names
    ]


class TestFactors:
    @pytest.mark.parametrize("names", [list(FACTORS), list(FACTORS)[::-1], DISCRETE, ["steer", "brake"], ["move"]])
    def test_log_probs_and_kls_are_sums_over_the_factors(self, names: list[str]) -> None:
        torch.manual_seed(0)
        old, new = parameters(names), parameters(names, seed=1)
        distribution = factors(names)(**new)
        samples = [one.sample() for one in separate(names, old)]
        flat = torch.cat([sample.reshape(6, -1).double() for sample in samples], -1)
        value = flat.to(distribution.sample().dtype)
        expected = sum(one.log_prob(sample) for one, sample in zip(separate(names, new), samples, strict=True))
        torch.testing.assert_close(distribution.log_prob(value), expected)
        kls = [D.kl_divergence(p, q) for p, q in zip(separate(names, old), separate(names, new), strict=True)]
        torch.testing.assert_close(D.kl_divergence(factors(names)(**old), distribution), sum(kls))

    def test_entropy_is_the_sum_over_the_factors(self) -> None:
        names = [*DISCRETE, "brake"]  # the tanh's is estimated
        given = parameters(names)
        expected = sum(one.entropy() for one in separate(names, given))
        torch.testing.assert_close(factors(names)(**given).entropy(), expected)

    def test_a_sample_is_float32_if_any_factor_is_continuous_and_else_int64(self) -> None:
        for names, dtype, size in ((list(FACTORS), torch.float32, 9), (DISCRETE, torch.int64, 6)):
            distribution = factors(names)(**parameters(names))
            for sample in (distribution.sample(), distribution.deterministic_sample):
                assert sample.dtype == dtype
                assert sample.shape == (6, size)
            assert distribution.sample(torch.Size([2])).shape == (2, 6, size)

    def test_every_factor_gets_its_own_part(self) -> None:
        given = parameters(list(FACTORS))
        expected = [one.deterministic_sample.reshape(6, -1) for one in separate(list(FACTORS), given)]  # type: ignore[attr-defined]
        actual = factors(list(FACTORS))(**given).deterministic_sample
        torch.testing.assert_close(actual, torch.cat([part.float() for part in expected], -1))

    def test_continuous_factors_alone_have_samples_with_gradients(self) -> None:
        given = parameters(["steer", "brake"])
        loc = given["steer_loc"].requires_grad_()
        continuous = factors(["steer", "brake"])(**given)
        continuous.rsample().sum().backward()
        assert loc.grad is not None
        assert continuous.has_rsample
        assert not factors(list(FACTORS))(**parameters(list(FACTORS))).has_rsample
