"""Distributions whose samples stand for actions."""

from __future__ import annotations

import torch
from torch import distributions as D  # noqa: N812
from torch import nn
from torchrl.modules import IndependentNormal

from torchppo.modules.heads.action_heads import Head
from torchppo.modules.heads.sample_to_action import SampleToAction


class Doubled(nn.Module):
    def forward(self, sample: torch.Tensor) -> torch.Tensor:
        return 2 * sample


class Halves(nn.Module):
    def forward(self, sample: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return sample.chunk(2, -1)


class TestActing:
    LOC, SCALE = torch.tensor([[1.0, -2.0]]), torch.tensor([[0.5, 2.0]])

    def build(self, to_action: nn.Module, loc: torch.Tensor = LOC) -> SampleToAction:
        head = Head(nn.Identity(), ["loc", "scale"], IndependentNormal, to_action=to_action)
        return SampleToAction(head, loc=loc, scale=self.SCALE)

    def test_gives_out_actions_beside_the_sample(self) -> None:
        for sample, action in (self.build(Doubled()).sample(), self.build(Doubled()).sample(torch.Size([3]))):
            assert torch.equal(action, 2 * sample)
        sample, left, right = self.build(Halves()).sample()
        assert torch.equal(torch.cat([left, right], -1), sample)
        assert [part.tolist() for part in self.build(Halves()).deterministic_sample] == [[[1, -2]], [[1]], [[-2]]]

    def test_all_else_is_the_distributions(self) -> None:
        inner, other = (IndependentNormal(loc, self.SCALE) for loc in (self.LOC, self.LOC + 1))
        acting = self.build(Halves())
        sample, *actions = acting.sample()
        assert torch.equal(acting.log_prob(sample, *actions), inner.log_prob(sample))
        assert torch.equal(acting.log_prob(sample), inner.log_prob(sample))
        assert torch.equal(acting.entropy(), inner.entropy())
        kl = D.kl_divergence(acting, self.build(Doubled(), self.LOC + 1))
        assert torch.equal(kl, D.kl_divergence(inner, other))
