"""A custom head for continuous actions: a Laplace distribution, which has heavier tails than a Gaussian.

A head is built by a function from the number of features and an action spec to a `Head`: a network, the names of the
distribution parameters that it writes, and the distribution that accepts them.

    python examples/own_head.py
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributions as D  # noqa: N812
from torchrl.data import TensorSpec

from torchppo.modules.features.bodies import FullPrecision, orthogonal_
from torchppo.modules.heads.action_heads import Head, Unmasked
from torchppo.modules.heads.networks import StateIndependentScale
from torchppo.pipelines.cli.main import main


class IndependentLaplace(D.Independent[D.Laplace]):
    def __init__(self, loc: Tensor, scale: Tensor, **options: Any) -> None:
        super().__init__(D.Laplace(loc, scale, **options), 1, **options)

    @property
    def deterministic_sample(self) -> Tensor:
        return self.base_dist.loc


def laplace(width: int, spec: TensorSpec, *, log_scale: float = 0.0) -> Head:
    loc = orthogonal_(nn.Linear(width, spec.shape[-1]), gain=0.01)
    network = FullPrecision(Unmasked(StateIndependentScale(loc, spec.shape[-1], log_scale)))
    return Head(network, ["loc", "scale"], partial(IndependentLaplace, validate_args=False))


@D.register_kl(IndependentLaplace, IndependentLaplace)  # type: ignore[untyped-decorator]
def analytic_kl(old: IndependentLaplace, new: IndependentLaplace) -> Tensor:
    return torch.distributions.kl_divergence(old.base_dist, new.base_dist).sum(-1)


if __name__ == "__main__":
    conf = Path(__file__).parent / "conf"  # contains head/laplace.yaml, which names the function laplace
    sys.exit(main(["train", "experiment=pendulum", "head=laplace", "--config-dir", str(conf), *sys.argv[1:]]))
