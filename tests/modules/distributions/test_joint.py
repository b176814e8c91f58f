"""Tests of the joint distribution."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import distributions as D  # noqa: N812

from torchppo.modules.distributions.action import Categorical, IndependentBernoulli, MultiCategorical
from torchppo.modules.distributions.continuous import IndependentBeta, SquashedNormal
from torchppo.modules.distributions.joint import JointComponent, JointDistribution

COMPONENTS = {
    "move": (Categorical, {"logits": 4}),
    "gears": (partial(MultiCategorical, nvec=[2, 3]), {"logits": 5}),
    "lamps": (IndependentBernoulli, {"logits": 3}),
    "steer": (partial(SquashedNormal, low=[-1.0, 0.0], high=[1.0, 2.0]), {"loc": 2, "scale": 2}),
    "brake": (IndependentBeta, {"alpha": 1, "beta": 1}),
}
DISCRETE = ["move", "gears", "lamps"]


def joint_class(names: list[str]) -> Callable[..., JointDistribution]:
    keywords = {name: {key: f"{name}_{key}" for key in COMPONENTS[name][1]} for name in names}
    return partial(JointDistribution, [JointComponent(COMPONENTS[name][0], keywords[name]) for name in names])


def parameters(names: list[str], seed: int = 0, batch: int = 6) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{name}_{key}": torch.rand(batch, size, generator=generator) + 1
        for name in names
        for key, size in COMPONENTS[name][1].items()
    }


def make_components(names: list[str], params: dict[str, torch.Tensor]) -> list[D.Distribution]:
    return [
        COMPONENTS[name][0](**{key: params[f"{name}_{key}"] for key in COMPONENTS[name][1]})  # type: ignore[operator]
        for name in names
    ]


class TestJointDistribution:
    @pytest.mark.parametrize(
        "names", [list(COMPONENTS), list(COMPONENTS)[::-1], DISCRETE, ["steer", "brake"], ["move"]]
    )
    def test_log_prob_and_kl_are_sums_over_the_components(self, names: list[str]) -> None:
        torch.manual_seed(0)
        old, new = parameters(names), parameters(names, seed=1)
        distribution = joint_class(names)(**new)
        samples = [one.sample() for one in make_components(names, old)]
        flat = torch.cat([sample.reshape(6, -1).double() for sample in samples], -1)
        value = flat.to(distribution.sample().dtype)
        expected = sum(one.log_prob(sample) for one, sample in zip(make_components(names, new), samples, strict=True))
        torch.testing.assert_close(distribution.log_prob(value), expected)
        kls = [
            D.kl_divergence(p, q) for p, q in zip(make_components(names, old), make_components(names, new), strict=True)
        ]
        torch.testing.assert_close(D.kl_divergence(joint_class(names)(**old), distribution), sum(kls))

    def test_entropy_is_the_sum_over_the_components(self) -> None:
        names = [*DISCRETE, "brake"]  # the entropy of SquashedNormal is estimated
        params = parameters(names)
        expected = sum(one.entropy() for one in make_components(names, params))
        torch.testing.assert_close(joint_class(names)(**params).entropy(), expected)

    def test_sample_is_float32_if_any_component_is_continuous_else_int64(self) -> None:
        for names, dtype, size in ((list(COMPONENTS), torch.float32, 9), (DISCRETE, torch.int64, 6)):
            distribution = joint_class(names)(**parameters(names))
            for sample in (distribution.sample(), distribution.deterministic_sample):
                assert sample.dtype == dtype
                assert sample.shape == (6, size)
            assert distribution.sample(torch.Size([2])).shape == (2, 6, size)

    def test_samples_are_concatenated_in_order(self) -> None:
        params = parameters(list(COMPONENTS))
        expected = [one.deterministic_sample.reshape(6, -1) for one in make_components(list(COMPONENTS), params)]  # type: ignore[attr-defined]
        actual = joint_class(list(COMPONENTS))(**params).deterministic_sample
        torch.testing.assert_close(actual, torch.cat([part.float() for part in expected], -1))

    def test_rsample_requires_continuous_components(self) -> None:
        params = parameters(["steer", "brake"])
        loc = params["steer_loc"].requires_grad_()
        continuous = joint_class(["steer", "brake"])(**params)
        continuous.rsample().sum().backward()
        assert loc.grad is not None
        assert continuous.has_rsample
        assert not joint_class(list(COMPONENTS))(**parameters(list(COMPONENTS))).has_rsample
