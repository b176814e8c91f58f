"""Natural gradient steps: Fisher-vector products, conjugate gradients, line search, and the epochs of the critic."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning import Trainer
from numpy.typing import NDArray
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded
from torchrl.modules import (
    MLP,
    NormalParamExtractor,
    ProbabilisticActor,
    TanhNormal,
    ValueOperator,
    set_recurrent_mode,
)
from torchrl.objectives import ClipPPOLoss as TorchRLClipPPOLoss

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import ActorCritic, make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.extractor import recurrent_state_shapes
from torchppo.modules.features.image_bodies import nature_cnn
from torchppo.modules.features.recurrent import GRU, LSTM
from torchppo.modules.features.transformer import Transformer
from torchppo.modules.heads.continuous import beta, gaussian, gsde, tanh_gaussian
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.symmetry import Symmetry
from torchppo.pipelines.advantages import RolloutBatch, kl_from_collection
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.updates.eager_step import LossWeights
from torchppo.pipelines.updates.natural_gradient import NaturalGradientUpdate, conjugate_gradient
from torchppo.pipelines.updates.policy_surrogate import PolicySurrogate
from torchppo.pipelines.updates.skipped import SkippedSteps

Array = NDArray[np.float64]
Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]
BODY = partial(mlp, num_cells=[4])
CONTINUOUS = Bounded(-1.0, 1.0, (2,))


class Learner:
    """An objective with the members that the update uses; `step` only counts."""

    def __init__(self, objective: Any) -> None:
        self.objective = objective
        self.normalize_advantage = "rollout"
        self.loss_weights = LossWeights()
        self.skipped = SkippedSteps(20)
        self.symmetry: Symmetry | None = None
        self.after_step: list[Callable[[], None]] = []
        self.trained: list[tuple[float, float]] = []

    def step(self, rows: TensorDictBase, indices: Tensor) -> dict[str, Tensor]:
        self.trained.append((float(self.loss_weights.policy), float(self.loss_weights.critic)))
        return {"grad_norm": torch.ones(())}

    def set_trainable(self, *, policy: bool, critic: bool) -> bool:
        self.loss_weights.policy.fill_(float(policy))
        self.loss_weights.critic.fill_(float(critic))
        return policy or critic


class Batch:
    def __init__(self, rows: TensorDictBase) -> None:
        self.rows = rows


def networks(action: TensorSpec, observation: TensorSpec | None = None, **options: Any) -> ActorCritic:
    torch.manual_seed(0)
    specs = Composite(observation=observation or Unbounded((3,)), shape=()).expand(8), action.expand(8, *action.shape)
    return make_actor_critic(*specs, **{"body": BODY} | options)


def collected(actor: Any, shape: tuple[int, ...] = (64,), observation: TensorSpec | None = None) -> TensorDictBase:
    """Return rows with the actions of the actor; sequences if `shape` has two dimensions."""
    torch.manual_seed(1)
    spec = observation or Unbounded((3,))
    rows = TensorDict({"observation": spec.expand(*shape, *spec.shape).rand()}, shape[:1])
    dtype = next(actor.parameters()).dtype
    rows = rows.apply(lambda one: one.to(dtype) if one.is_floating_point() else one)
    rows["is_init"] = torch.rand(*shape, 1) < 0.1
    for key, state_shape in recurrent_state_shapes(actor).items():
        rows[key] = torch.zeros(shape[0], *state_shape)
    with torch.no_grad(), set_recurrent_mode(len(shape) > 1):
        acted = actor(rows.copy())
    rows.update(acted.select(*[key for key in actor.out_keys if key[0] != "next"]))
    for key in ("advantage", "value_target", "state_value"):
        rows[key] = torch.randn(*shape, 1, dtype=dtype)
    return rows


def trained(update: NaturalGradientUpdate, objective: Any, rows: TensorDictBase) -> tuple[dict[str, float], Learner]:
    learner = Learner(objective)
    update.setup(cast(Any, learner))
    return update(cast(RolloutBatch, Batch(rows))), learner


def mean_kl(actor: Any, rows: TensorDictBase) -> float:
    with torch.no_grad(), set_recurrent_mode(rows["advantage"].dim() > 2):
        return float(kl_from_collection(actor, rows).mean())


def fisher_by_scores(actor: Any, rows: TensorDictBase, params: list[Tensor], scores: Callable[..., Any]) -> Array:
    """Return the mean over states of E[(d log p)(d log p)^T], with one gradient for each state and score."""
    total = np.zeros(2 * [sum(param.numel() for param in params)])
    for index in range(len(rows)):
        for weight, value in scores(actor.get_dist(rows[index : index + 1].copy())):
            gradients = torch.autograd.grad(value, params, retain_graph=True, materialize_grads=True)
            vector = torch.cat([gradient.reshape(-1) for gradient in gradients]).numpy()
            total += weight * np.outer(vector, vector) / len(rows)
    return total


def categorical_scores(distribution: Any) -> list[tuple[float, Tensor]]:
    """Every choice with its probability."""
    return [*zip(distribution.probs[0].tolist(), distribution.logits[0], strict=True)]


def gaussian_scores(distribution: Any) -> list[tuple[float, Tensor]]:
    """The Fisher matrix of N(m, s^2) is 1 / s^2 for m and 2 / s^2 for s."""
    base = distribution.base_dist
    return [
        (factor / scale**2, value)
        for factor, values in ((1, base.loc), (2, base.scale))
        for value, scale in zip(values[0], base.scale[0].tolist(), strict=True)
    ]


class TestFisherProduct:
    @pytest.mark.parametrize(
        ("action", "scores"), [(Categorical(3), categorical_scores), (CONTINUOUS, gaussian_scores)]
    )
    def test_equals_the_explicit_matrix(self, action: TensorSpec, scores: Callable[..., Any]) -> None:
        actor, critic = (module.double() for module in networks(action))
        rows, params = collected(actor, (6,)), [*actor.parameters()]
        product = PolicySurrogate(cast(Any, Learner(ClipPPOLoss(actor, critic))), rows, params).fisher_product(0.25)
        expected = fisher_by_scores(actor, rows, params, scores)
        found = torch.stack([product(row) for row in torch.eye(len(expected)).double()]).numpy()
        np.testing.assert_allclose(found, expected + 0.25 * np.eye(len(expected)), rtol=1e-9, atol=1e-12)
        assert np.linalg.matrix_rank(expected) > 4

    def test_without_a_closed_form_it_uses_the_actions_taken(self) -> None:
        actor, critic = torchrl_actor()
        rows = collected(actor, (6,))
        params = [*actor.parameters()]
        product = PolicySurrogate(cast(Any, Learner(ClipPPOLoss(actor, critic))), rows, params).fisher_product(0.0)
        actions = iter(rows["action"])
        expected = fisher_by_scores(actor, rows, params, lambda one: [(1.0, one.log_prob(next(actions)[None]).sum())])
        found = torch.stack([product(row) for row in torch.eye(len(expected))]).numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [1, 5, 30])
def test_conjugate_gradient_solves_a_known_system(size: int) -> None:
    generator = np.random.default_rng(0)
    root = generator.normal(size=(size, size))
    matrix, target = root @ root.T + np.eye(size), generator.normal(size=size)
    solution = conjugate_gradient(lambda v: torch.tensor(matrix) @ v, torch.tensor(target), 3 * size)
    np.testing.assert_allclose(solution.numpy(), np.linalg.solve(matrix, target), rtol=1e-3, atol=1e-5)


def torchrl_actor() -> ActorCritic:
    """Return TorchRL's modules, with a distribution whose KL divergence has no closed form."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(MLP(in_features=3, out_features=4, num_cells=[4]), NormalParamExtractor())
    actor = ProbabilisticActor(
        TensorDictModule(network, in_keys=["observation"], out_keys=["loc", "scale"]),
        in_keys=["loc", "scale"],
        distribution_class=TanhNormal,
        return_log_prob=True,
        log_prob_keys=["action_log_prob"],
    )
    return ActorCritic(actor, ValueOperator(MLP(in_features=3, out_features=1, num_cells=[4])))


IMAGE = Bounded(0, 255, (36, 36, 3), dtype=torch.uint8)
COMPOSITE = Composite(move=Categorical(3), gears=MultiCategorical([2, 3]), lamps=Binary(2), steer=CONTINUOUS)
SEQUENCES = {"shape": (8, 8)}
POLICIES: dict[str, tuple[Callable[[], ActorCritic], dict[str, Any]]] = {
    "categorical": (partial(networks, Categorical(3)), {}),
    "multi-categorical": (partial(networks, MultiCategorical([2, 3])), {}),
    "bernoulli": (partial(networks, Binary(3)), {}),
    "gaussian": (partial(networks, CONTINUOUS), {}),
    "tanh": (partial(networks, CONTINUOUS, head=tanh_gaussian), {}),
    "beta": (partial(networks, CONTINUOUS, head=beta), {}),
    "gsde": (partial(networks, CONTINUOUS, head=gsde), {}),
    "state-dependent scale": (partial(networks, CONTINUOUS, head=partial(gaussian, state_dependent=True)), {}),
    "composite": (partial(networks, COMPOSITE), {}),
    "image": (partial(networks, Categorical(3), IMAGE, body=nature_cnn), {"observation": IMAGE, "shape": (16,)}),
    "LSTM": (partial(networks, Categorical(3), memory=partial(LSTM, width=4)), SEQUENCES),
    "GRU": (partial(networks, CONTINUOUS, memory=partial(GRU, width=4)), SEQUENCES),
    "transformer": (
        partial(networks, Categorical(3), memory=partial(Transformer, width=8, num_heads=2, context_length=4)),
        SEQUENCES,
    ),
    "TorchRL's TanhNormal": (torchrl_actor, {}),
}


class TestStep:
    @pytest.mark.parametrize("name", POLICIES)
    def test_improves_the_surrogate_within_the_limit_for_every_policy(self, name: str) -> None:
        make_networks, options = POLICIES[name]
        actor, critic = make_networks()
        rows = collected(actor, **options)
        objective = ClipPPOLoss(actor, critic)
        update = NaturalGradientUpdate(target_kl=0.02, epochs=1, minibatch_size=rows["advantage"].numel())
        metrics, _ = trained(update, objective, rows)
        with torch.no_grad(), set_recurrent_mode("shape" in options and len(options["shape"]) > 1):
            losses = objective(rows)
        before = -float(rows["advantage"].mean())
        assert 0.002 < mean_kl(actor, rows) <= 0.02
        assert metrics["kl"] == pytest.approx(mean_kl(actor, rows), abs=1e-7)
        assert metrics["loss_improvement"] == pytest.approx(before - float(losses["loss_objective"]), abs=1e-5)
        assert metrics["loss_improvement"] > 0

    def test_epochs_of_the_critic_leave_the_policy_frozen(self) -> None:
        actor, critic = networks(CONTINUOUS)
        metrics, learner = trained(
            NaturalGradientUpdate(epochs=7, critic_epochs=3, minibatch_size=16),
            ClipPPOLoss(actor, critic),
            collected(actor),
        )
        assert learner.trained == [(0.0, 1.0)] * 12
        assert metrics["num_steps"] == 12
        assert "first_kl" not in metrics, "the policy has changed before the first step of the critic"
        assert (float(learner.loss_weights.policy), float(learner.loss_weights.critic)) == (1.0, 1.0)

    def test_objectives_of_torchrl_give_the_same_step(self) -> None:
        weights = []
        for loss in (ClipPPOLoss, partial(TorchRLClipPPOLoss, functional=False, entropy_coeff=0.0)):
            actor, critic = networks(CONTINUOUS)
            trained(NaturalGradientUpdate(minibatch_size=64), loss(actor, critic), collected(actor))
            weights.append(torch.cat([param.detach().reshape(-1) for param in actor.parameters()]))
        torch.testing.assert_close(*weights, rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize("advantage", [0.0, float("nan")])
    def test_policy_stays_without_a_finite_gradient(self, advantage: float) -> None:
        actor, critic = networks(CONTINUOUS)
        rows = collected(actor)
        rows["advantage"].fill_(advantage)
        before = [param.clone() for param in actor.parameters()]
        metrics, learner = trained(NaturalGradientUpdate(minibatch_size=64), ClipPPOLoss(actor, critic), rows)
        assert all(torch.equal(*pair) for pair in zip(before, actor.parameters(), strict=True))
        assert (metrics["kl"], metrics["step_fraction"]) == (0.0, 0.0)
        learner.skipped.count(rows, 64, is_last=False)
        assert learner.skipped.number == (advantage != 0)

    def test_step_is_undone_if_no_length_is_accepted(self) -> None:
        actor, critic = networks(CONTINUOUS)
        rows = collected(actor)
        before = [param.clone() for param in actor.parameters()]
        # The damping is so small that the quadratic approximation of the KL divergence is wrong.
        update = NaturalGradientUpdate(target_kl=50.0, damping=0.0, minibatch_size=64, line_search_steps=1, epochs=1)
        metrics, _ = trained(update, ClipPPOLoss(actor, critic), rows)
        assert metrics["step_fraction"] == 0.0
        assert all(torch.equal(*pair) for pair in zip(before, actor.parameters(), strict=True))

    def test_without_a_line_search_the_whole_step_is_taken(self) -> None:
        vectors = []
        for _ in range(2):
            actor, critic = networks(CONTINUOUS)
            rows, objective, params = collected(actor), ClipPPOLoss(actor, critic), [*actor.parameters()]
            if vectors:
                update = NaturalGradientUpdate(line_search_steps=0, minibatch_size=64)
                metrics, _ = trained(update, objective, rows)
            else:
                product = PolicySurrogate(cast(Any, Learner(objective)), rows, params).fisher_product(0.1)
            vectors.append(torch.cat([param.detach().reshape(-1) for param in params]))
        step = vectors[1] - vectors[0]
        assert metrics["step_fraction"] == 1.0
        assert float(step @ product(step)) / 2 == pytest.approx(0.01, rel=1e-3)

    def test_advantages_of_the_whole_rollout_are_normalized_on_request(self) -> None:
        steps = []
        for shift, mode in ((0.0, "rollout"), (5.0, "minibatch")):
            actor, critic = networks(CONTINUOUS)
            rows, update = collected(actor), NaturalGradientUpdate(minibatch_size=64, epochs=1)
            advantage = rows["advantage"]
            rows["advantage"] = (advantage - advantage.mean()) / advantage.std(correction=0) + shift
            learner = Learner(ClipPPOLoss(actor, critic))
            learner.normalize_advantage = mode
            update.setup(cast(Any, learner))
            update(cast(RolloutBatch, Batch(rows)))
            steps.append(torch.cat([param.detach().reshape(-1) for param in actor.parameters()]))
        torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-5)


class TestTraining:
    def test_every_step_satisfies_the_limit_and_hooks_run_only_after_it(self, make: Make, fit: Fit) -> None:
        kls: list[float] = []

        class Measuring(NaturalGradientUpdate):
            def __call__(self, batch: RolloutBatch) -> dict[str, float]:
                old = batch.rows["logits"].double().numpy()
                metrics = super().__call__(batch)
                with torch.no_grad():
                    new = self.learner.objective.actor_network.get_dist(batch.rows.copy()).logits.double().numpy()
                p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (old, new))
                kls.append(float((np.exp(p) * (p - q)).sum(-1).mean()))
                return metrics

        ppo, collector = make(
            frames_per_env=64, rollouts=8, update=Measuring(target_kl=0.005, minibatch_size=32, epochs=2)
        )
        ppo.after_step.append(lambda: hooks.append(1))
        hooks: list[int] = []
        trainer = fit(ppo, collector)
        assert len(kls) == 8
        assert all(0 < kl <= 0.005 + 1e-7 for kl in kls)
        assert float(trainer.callback_metrics["train/kl"]) == pytest.approx(kls[-1], abs=1e-6)
        assert len(hooks) == 8, "not after the steps of the critic"

    def test_traced_equals_eager(self, make: Make, fit: Fit) -> None:
        weights = []
        for compile_ in (False, "trace"):
            ppo, collector = make(update=NaturalGradientUpdate(minibatch_size=8, epochs=2), compile=compile_)
            fit(ppo, collector)
            weights.append([param.detach().clone() for param in ppo.objective.parameters()])
        for eager, traced in zip(*weights, strict=True):
            torch.testing.assert_close(traced, eager, rtol=0, atol=1e-6)

    def test_value_pretraining_leaves_the_policy(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(update=NaturalGradientUpdate(minibatch_size=8, epochs=2), value_pretraining=2)
        before = [param.clone() for param in ppo.actor.parameters()]
        trainer = fit(ppo, collector)
        assert all(torch.equal(*pair) for pair in zip(before, ppo.actor.parameters(), strict=True))
        assert "train/step_fraction" not in trainer.callback_metrics

    def test_shared_networks_are_refused(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(update=NaturalGradientUpdate(minibatch_size=8), shared=True)
        with pytest.raises(ConfigurationError, match=r"policy\.shared=false"):
            fit(ppo, collector)

    def test_a_symmetry_is_refused(self, make: Make, fit: Fit) -> None:
        symmetry = Symmetry(lambda data: data)
        ppo, collector = make(update=NaturalGradientUpdate(minibatch_size=8), symmetry=symmetry)
        with pytest.raises(ConfigurationError, match="symmetry"):
            fit(ppo, collector)

    def test_a_run_with_an_interruption_is_equal_bit_by_bit(self) -> None:
        words = ("env=cartpole", "env.num_envs=2", "collector.frames_per_env=32", "update.minibatch_size=32")
        assert main(["verify-resume", "update=natural_gradient", *words, "compile=false", "--rollouts", "1"]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target_kl": 0.0}, "update.target_kl=0.0"),
        ({"target_kl": None}, "update.target_kl=null"),
        ({"cg_steps": 0}, "update.cg_steps=0"),
        ({"damping": -1.0}, "update.damping=-1.0"),
        ({"line_search_steps": -1}, "update.line_search_steps=-1"),
        ({"backtrack": 1.0}, "update.backtrack=1.0"),
        ({"critic_epochs": 0}, "critic.epochs=0"),
        ({"epochs": 0}, "update.epochs=0"),
        ({"minibatch_size": 0}, "update.minibatch_size=0"),
    ],
)
def test_values_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        NaturalGradientUpdate(**options)
