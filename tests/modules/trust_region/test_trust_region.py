"""Tests of trust regions: bounds, no change within them, optimality, gradients, and the losses of objectives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Binary, Bounded, Composite, MultiCategorical, OneHot, TensorSpec, Unbounded
from torchrl.data import Categorical as CategoricalSpec
from torchrl.modules import IndependentNormal
from torchrl.objectives import A2CLoss, ReinforceLoss
from torchrl.objectives import ClipPPOLoss as TorchRLClipPPOLoss

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.distributions.action import Categorical, OneHotCategorical
from torchppo.modules.distributions.action import MultiCategorical as MultiCategoricalDistribution
from torchppo.modules.distributions.continuous import SquashedNormal
from torchppo.modules.features.bodies import mlp
from torchppo.modules.heads.continuous import beta, gaussian, gsde, tanh_gaussian
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.objectives.kl_penalty import KLPENPPOLoss
from torchppo.modules.trust_region.frobenius import FrobeniusTrustRegion
from torchppo.modules.trust_region.kl import KLTrustRegion
from torchppo.modules.trust_region.trust_region import TrustRegion
from torchppo.modules.trust_region.wasserstein import WassersteinTrustRegion

Array = NDArray[np.float64]
Pair = tuple[Array, Array]
NUM_PAIRS, NUM_DIMS = 1000, 3
MEAN_BOUND, COV_BOUND = 0.03, 0.01
ALL = (FrobeniusTrustRegion, WassersteinTrustRegion, KLTrustRegion)
DISCRETE = (FrobeniusTrustRegion, KLTrustRegion)


def gaussian_distances(kind: type[TrustRegion], new: Pair, old: Pair) -> Pair:
    """Distances of mean and covariance with full matrices, state by state."""
    of_mean, of_cov = [], []
    for loc, scale, old_loc, old_scale in zip(*new, *old, strict=True):
        cov, old_cov, change = np.diag(scale**2), np.diag(old_scale**2), loc - old_loc
        precision = np.linalg.inv(old_cov)
        of_mean.append(change @ precision @ change * (0.5 if kind is KLTrustRegion else 1.0))
        if kind is FrobeniusTrustRegion:
            of_cov.append(np.linalg.norm(cov - old_cov, "fro") ** 2)
        elif kind is WassersteinTrustRegion:
            root, old_root = np.diag(scale), np.diag(old_scale)
            of_cov.append(np.trace(precision @ (cov + old_cov - 2 * root @ old_root)))
        else:
            ratio = np.trace(precision @ cov) - len(loc)
            of_cov.append(0.5 * (ratio + np.linalg.slogdet(old_cov)[1] - np.linalg.slogdet(cov)[1]))
    return np.array(of_mean), np.array(of_cov)


def categorical_distance(kind: type[TrustRegion], new: Array, old: Array) -> Array:
    """Distances of probabilities."""
    return ((new - old) ** 2).sum(-1) if kind is FrobeniusTrustRegion else (new * np.log(new / old)).sum(-1)


def pairs(spread: float, dtype: torch.dtype = torch.float64) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, NUM_PAIRS, NUM_DIMS, generator=generator, dtype=dtype)
    old = draw(), (0.5 * draw()).exp()
    return (old[0] + spread * old[1] * draw(), old[1] * (spread * draw()).exp()), old


def logits_pairs(spread: float, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    old = torch.randn(NUM_PAIRS, 4, generator=generator, dtype=dtype)
    return old + spread * torch.randn(NUM_PAIRS, 4, generator=generator, dtype=dtype), old


def numpy(tensors: tuple[Tensor, Tensor]) -> Pair:
    return tensors[0].double().numpy(), tensors[1].double().numpy()


def make(kind: type[TrustRegion], **options: float) -> TrustRegion:
    return kind(**{"mean_bound": MEAN_BOUND, "cov_bound": COV_BOUND, "alpha": 2.0} | options)  # type: ignore[arg-type]


def project_gaussian(region: TrustRegion, new: tuple[Tensor, Tensor], old: tuple[Tensor, Tensor]) -> tuple[Tensor, Any]:
    projected, distance = region.project(IndependentNormal(*new), IndependentNormal(*old))
    return (projected.base_dist.loc, projected.base_dist.scale), distance


class TestGaussian:
    @pytest.mark.parametrize("kind", ALL)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_projections_are_on_the_bound_or_inside(self, kind: type[TrustRegion], dtype: torch.dtype) -> None:
        for spread in (0.03, 0.3, 3.0):
            new, old = pairs(spread, dtype)
            projected, _ = project_gaussian(make(kind), new, old)
            before = gaussian_distances(kind, numpy(new), numpy(old))
            after = gaussian_distances(kind, numpy(projected), numpy(old))
            for one, other, bound in zip(before, after, (MEAN_BOUND, COV_BOUND), strict=True):
                np.testing.assert_allclose(other, np.minimum(one, bound), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("kind", ALL)
    def test_distributions_inside_do_not_change_and_have_no_loss(self, kind: type[TrustRegion]) -> None:
        new, old = pairs(0.01)
        projected, distance = project_gaussian(make(kind, mean_bound=1.0, cov_bound=1.0), new, old)
        assert torch.equal(projected[0], new[0])
        assert torch.equal(projected[1], new[1])
        assert not distance.any()

    @pytest.mark.parametrize("kind", ALL)
    def test_no_other_distribution_within_the_bounds_is_closer(self, kind: type[TrustRegion]) -> None:
        """Closeness is in the distance of the paper: for KL, KL(projection || new)."""
        tensors = [(loc[:20], scale[:20]) for loc, scale in pairs(0.5)]
        projected = numpy(project_gaussian(make(kind), *tensors)[0])
        new, old = map(numpy, tensors)
        generator = np.random.default_rng(0)
        best = closeness(kind, projected, new, old)
        for size in (0.2, 0.02, 0.002):
            for _ in range(30):
                other = projected[0], projected[1] * np.exp(size * generator.normal(size=projected[1].shape))
                is_feasible = gaussian_distances(kind, other, old)[1] <= COV_BOUND
                assert (closeness(kind, other, new, old) >= best - 1e-7)[is_feasible].all()

    @pytest.mark.parametrize("kind", ALL)
    @pytest.mark.parametrize("spread", [0.02, 1.0])
    def test_gradients_equal_finite_differences(self, kind: type[TrustRegion], spread: float) -> None:
        new, old = ([one[:5] for one in both] for both in pairs(spread))
        inputs = [one.clone().requires_grad_() for one in new]
        region = make(kind)
        assert torch.autograd.gradcheck(lambda *both: project_gaussian(region, both, old)[0], inputs)  # type: ignore[arg-type]

    @pytest.mark.parametrize("kind", ALL)
    def test_loss_pulls_only_the_network(self, kind: type[TrustRegion]) -> None:
        new, old = pairs(1.0)
        loc, scale = (one.clone().requires_grad_() for one in new)
        projected, distance = project_gaussian(make(kind), (loc, scale), old)
        target = numpy((projected[0].detach(), projected[1].detach()))
        np.testing.assert_allclose(distance.detach(), sum(gaussian_distances(kind, numpy(new), target)), rtol=1e-9)
        distance.sum().backward()
        factor = 1.0 if kind is KLTrustRegion else 2.0
        np.testing.assert_allclose(loc.grad, factor * (numpy(new)[0] - target[0]) / target[1] ** 2, rtol=1e-9)

    def test_extreme_covariances_stay_finite(self) -> None:
        old = torch.zeros(4, 2), torch.tensor([1e-4, 1.0, 1.0, 1e3]).unsqueeze(-1).expand(4, 2)
        new = torch.zeros(4, 2), torch.tensor([1.0, 1e-4, 1e4, 1e-3]).unsqueeze(-1).expand(4, 2).clone()
        for kind in ALL:
            scale = new[1].clone().requires_grad_()
            projected, _ = project_gaussian(make(kind), (new[0], scale), old)
            projected[1].sum().backward()
            assert scale.grad is not None
            assert scale.grad.isfinite().all()
            _, of_cov = gaussian_distances(kind, numpy((new[0], projected[1].detach())), numpy(old))
            np.testing.assert_allclose(of_cov[:3], COV_BOUND, atol=1e-5)
            assert of_cov[3] <= COV_BOUND + 1e-5, "float32 has no variance near 1e6 +- 0.1"


def closeness(kind: type[TrustRegion], other: Pair, new: Pair, old: Pair) -> Array:
    if kind is WassersteinTrustRegion:
        return (((other[1] - new[1]) / old[1]) ** 2).sum(-1)
    return gaussian_distances(kind, other, new)[1]


class TestCategorical:
    @pytest.mark.parametrize("kind", DISCRETE)
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_projections_are_on_the_bound_or_inside(self, kind: type[TrustRegion], dtype: torch.dtype) -> None:
        for spread in (0.1, 1.0, 10.0):
            new, old = (Categorical(logits=logits) for logits in logits_pairs(spread, dtype))
            projected, _ = make(kind).project(new, old)
            before, after = (
                categorical_distance(kind, one.probs.double().numpy(), old.probs.double().numpy())
                for one in (new, projected)
            )
            np.testing.assert_allclose(after, np.minimum(before, MEAN_BOUND), rtol=0, atol=1e-5)

    @pytest.mark.parametrize("kind", DISCRETE)
    def test_no_other_distribution_within_the_bound_is_closer(self, kind: type[TrustRegion]) -> None:
        new, old = (Categorical(logits=logits) for logits in logits_pairs(1.0))
        projected, _ = make(kind).project(new, old)
        p, q, o = (one.probs.numpy() for one in (projected, new, old))
        generator = np.random.default_rng(0)
        for size in (0.2, 0.02, 0.002):
            for _ in range(50):
                other = p * np.exp(size * generator.normal(size=p.shape))
                other /= other.sum(-1, keepdims=True)
                is_feasible = categorical_distance(kind, other, o) <= MEAN_BOUND
                difference = categorical_distance(kind, other, q) - categorical_distance(kind, p, q)
                assert (difference >= -1e-7)[is_feasible].all()

    @pytest.mark.parametrize("kind", DISCRETE)
    def test_gradients_equal_finite_differences(self, kind: type[TrustRegion]) -> None:
        new, old = (logits[:5] for logits in logits_pairs(1.0))
        region = make(kind)

        def project(logits: Tensor) -> Tensor:
            return region.project(Categorical(logits=logits), Categorical(logits=old))[0].probs

        assert torch.autograd.gradcheck(project, [new.clone().requires_grad_()])

    @pytest.mark.parametrize("kind", DISCRETE)
    def test_forbidden_choices_stay_forbidden(self, kind: type[TrustRegion]) -> None:
        new, old = logits_pairs(2.0, torch.float32)
        new[:, 1] = old[:, 1] = torch.finfo(torch.float32).min / 4
        new.requires_grad_()
        projected, distance = make(kind).project(Categorical(logits=new), Categorical(logits=old))
        assert (projected.probs[:, 1] < 1e-30).all()
        (projected.log_prob(projected.sample()).sum() + distance.sum()).backward()
        assert new.grad is not None
        assert new.grad.isfinite().all()

    @pytest.mark.parametrize("kind", DISCRETE)
    def test_variables_of_a_multi_categorical_are_projected_one_by_one(self, kind: type[TrustRegion]) -> None:
        logits, old = logits_pairs(2.0)
        joint, distance = make(kind).project(*(MultiCategoricalDistribution(one, [2, 2]) for one in (logits, old)))
        singles = [
            make(kind).project(*(Categorical(logits=one[:, part]) for one in (logits, old)))
            for part in (slice(0, 2), slice(2, 4))
        ]
        for index, (single, _) in enumerate(singles):
            torch.testing.assert_close(joint.base_dist.probs[:, index], single.probs)
        torch.testing.assert_close(distance, singles[0][1] + singles[1][1])

    def test_wasserstein_is_refused(self) -> None:
        new, old = (OneHotCategorical(logits=logits) for logits in logits_pairs(1.0))
        with pytest.raises(ConfigurationError, match="trust_region=kl or frobenius"):
            make(WassersteinTrustRegion).project(new, old)


def test_subclasses_keep_their_densities() -> None:
    new, old = pairs(1.0)
    bounds = {"low": [-1.0] * NUM_DIMS, "high": [3.0] * NUM_DIMS}
    projected, _ = make(KLTrustRegion).project(SquashedNormal(*new, **bounds), SquashedNormal(*old, **bounds))
    value = projected.sample()
    expected = SquashedNormal(projected.base_dist.loc, projected.base_dist.scale, **bounds).log_prob(value)
    assert torch.equal(projected.log_prob(value), expected)
    assert isinstance(projected, SquashedNormal)


CONTINUOUS = Bounded(-1.0, 1.0, (2,))


def networks(action: TensorSpec, **options: Any) -> ActorCritic:
    torch.manual_seed(0)
    specs = Composite(observation=Unbounded((3,)), shape=()).expand(8), action.expand(8, *action.shape)
    return make_actor_critic(*specs, body=partial(mlp, num_cells=[4]), **options)


def minibatch(actor: Any, change: float = 0.5) -> TensorDictBase:
    """Return frames with the actions of the actor, and change its weights afterwards."""
    torch.manual_seed(1)
    rows = TensorDict({"observation": torch.randn(64, 3), "is_init": torch.zeros(64, 1, dtype=torch.bool)}, [64])
    for module in actor.modules():
        if hasattr(module, "state_shape"):
            rows[module.key] = torch.zeros(64, *module.state_shape)
    with torch.no_grad():
        rows = actor(rows)
        for param in actor.parameters():
            param.add_(change * torch.randn_like(param))
    for key in ("advantage", "value_target", "state_value"):
        rows[key] = torch.randn(64, 1)
    return rows


COMPOSITE = Composite(move=CategoricalSpec(3), gears=MultiCategorical([2, 3]), steer=CONTINUOUS)
THEIRS = {"functional": False, "entropy_coeff": 0.01}


class TestObjectives:
    @pytest.mark.parametrize(
        ("action", "options"),
        [
            (CategoricalSpec(3), {}),
            (OneHot(3), {}),
            (MultiCategorical([2, 3]), {}),
            (CONTINUOUS, {}),
            (CONTINUOUS, {"head": partial(gaussian, state_dependent=True)}),
            (CONTINUOUS, {"head": tanh_gaussian}),
            (CONTINUOUS, {"head": gsde}),
            (COMPOSITE, {}),
        ],
    )
    def test_every_supported_policy_is_used_within_the_bounds(
        self, action: TensorSpec, options: dict[str, Any]
    ) -> None:
        actor, critic = networks(action, **options)
        rows = minibatch(actor)
        losses = make(KLTrustRegion).apply_to(ClipPPOLoss(actor, critic))(rows)
        assert 0 < losses["kl_approx"] < 4 * (MEAN_BOUND + COV_BOUND)
        assert losses["projected_fraction"] > 0.5
        losses["loss_trust_region"].backward()
        assert any(param.grad is not None and param.grad.any() for param in actor.parameters())

    @pytest.mark.parametrize(
        "objective",
        [
            ClipPPOLoss,
            KLPENPPOLoss,
            partial(TorchRLClipPPOLoss, **THEIRS),
            partial(A2CLoss, **THEIRS),
            partial(ReinforceLoss, functional=False),
        ],
    )
    def test_every_objective_uses_the_projected_distribution(self, objective: Callable[..., Any]) -> None:
        """Losses do not change within the bounds; outside of them, the policy loss is that of the projection."""
        actor, critic = networks(CONTINUOUS)
        rows = minibatch(actor)
        name = "loss_actor" if "Reinforce" in str(objective) else "loss_objective"
        plain, wide, narrow = (
            region.apply_to(objective(actor, critic))(rows.copy()) if region else objective(actor, critic)(rows.copy())
            for region in (None, make(KLTrustRegion, mean_bound=1e9, cov_bound=1e9), make(KLTrustRegion))
        )
        assert torch.equal(plain[name], wide[name])
        assert not torch.isclose(plain[name], narrow[name])
        assert wide["loss_trust_region"] == 0
        assert (wide["projected_fraction"], narrow["projected_fraction"]) == (0, 1)
        assert "get_dist" not in vars(actor), "the network acts"

    def test_regression_loss_is_alpha_times_the_mean_distance(self) -> None:
        actor, critic = networks(CONTINUOUS)
        rows = minibatch(actor)
        losses = make(WassersteinTrustRegion, alpha=3.0).apply_to(ClipPPOLoss(actor, critic))(rows)
        old = numpy((rows["loc"], rows["scale"]))
        with torch.no_grad():
            base = actor.get_dist(rows.copy()).base_dist
        new = numpy((base.loc, base.scale))
        of_mean, of_cov = gaussian_distances(WassersteinTrustRegion, new, old)
        mix = [np.minimum(1, np.sqrt(bound / d))[:, None] for d, bound in ((of_mean, MEAN_BOUND), (of_cov, COV_BOUND))]
        projected = [o + m * (n - o) for o, n, m in zip(old, new, mix, strict=True)]
        distance = (((new[0] - projected[0]) / projected[1]) ** 2 + (new[1] / projected[1] - 1) ** 2).sum(-1)
        assert losses["loss_trust_region"].item() == pytest.approx(3 * distance.mean(), rel=1e-4)

    @pytest.mark.parametrize(("action", "head"), [(CONTINUOUS, beta), (Binary(3), gaussian)])
    def test_other_distributions_are_refused_and_the_actor_stays_as_it_is(self, action: TensorSpec, head: Any) -> None:
        actor, critic = networks(action, head=head)
        rows = minibatch(actor)
        with pytest.raises(ConfigurationError, match="trust_region=none"):
            make(KLTrustRegion).apply_to(ClipPPOLoss(actor, critic))(rows)
        assert "get_dist" not in vars(actor)

    def test_missing_parameters_are_reported(self) -> None:
        actor, critic = networks(CONTINUOUS)
        rows = minibatch(actor).exclude("loc")
        with pytest.raises(ConfigurationError, match="loc, scale"):
            make(KLTrustRegion).apply_to(ClipPPOLoss(actor, critic))(rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"mean_bound": 0.0}, "mean_bound=0.0"), ({"cov_bound": -1.0}, "cov_bound=-1.0"), ({"alpha": -1.0}, "alpha=-1.0")],
)
def test_values_out_of_range_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"trust_region.{message}"):
        make(KLTrustRegion, **options)
