"""Tests of distributions that return samples and actions."""

from __future__ import annotations

import torch
from torch import distributions as D  # noqa: N812
from torch import nn
from torchrl.modules import IndependentNormal

from torchppo.modules.heads.action_heads import Head
from torchppo.modules.heads.sample_to_action import SampleToAction


class Double(nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return 2 * sample


class SplitInTwo(nn.Module):
    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return sample.chunk(2, -1)


class TestSampleToAction:
    LOC, SCALE = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 2.0]])

    def build(self, to_action: nn.Module, loc: torch.Tensor = LOC) -> SampleToAction:
        head = Head(nn.Identity(), ["loc", "scale"], IndependentNormal, to_action=to_action)
        return SampleToAction(head, loc=loc, scale=self.SCALE)

    def test_samples_are_followed_by_actions(self) -> None:
        for sample, action in (self.build(Double()).sample(), self.build(Double()).sample(torch.Size([3]))):
            assert torch.equal(action, 2 * sample)
        sample, left, right = self.build(SplitInTwo()).sample()
        assert torch.equal(torch.cat([left, right], -1), sample)
        assert [part.tolist() for part in self.build(SplitInTwo()).deterministic_sample] == [[[1, -2]], [[1]], [[-2]]]

    def test_log_prob_entropy_and_kl_are_those_of_the_base_distribution(self) -> None:
        base, other_base = (IndependentNormal(loc, self.SCALE) for loc in (self.LOC, self.LOC + 1))
        distribution = self.build(SplitInTwo())
        sample, *actions = distribution.sample()
        assert torch.equal(distribution.log_prob(sample, *actions), base.log_prob(sample))
        assert torch.equal(distribution.log_prob(sample), base.log_prob(sample))
        assert torch.equal(distribution.entropy(), base.entropy())
        kl = D.kl_divergence(distribution, self.build(Double(), self.LOC + 1))
        assert torch.equal(kl, D.kl_divergence(base, other_base))
