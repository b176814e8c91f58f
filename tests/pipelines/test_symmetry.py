"""Tests of mirrored samples and of the mirror loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from lightning import Trainer
from tensordict import TensorDictBase

from torchppo.envs import make_env
from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import GRU
from torchppo.modules.heads.continuous import gaussian, gsde, tanh_gaussian
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.symmetry import SymmetricObjective, Symmetry
from torchppo.pipelines.build import build_training
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]
SIGNS = torch.tensor([1.0, -1.0, -1.0])  # of Pendulum: cos, sin, angular velocity


def mirror(data: TensorDictBase) -> TensorDictBase:
    """Mirror a pendulum."""
    data["observation"] = data["observation"] * SIGNS
    data["action"] = -data["action"]
    return data


def mirror_in_place(data: TensorDictBase) -> TensorDictBase:
    data["observation"].mul_(SIGNS)
    data["action"].neg_()
    return data


def mirror_cartpole(data: TensorDictBase) -> TensorDictBase:
    data["observation"], data["action"] = -data["observation"], 1 - data["action"]
    return data


def minibatch(make: Make, **options: Any) -> tuple[PPO, TensorDictBase]:
    """Return a module and the rows of a rollout, with other weights than at collection."""
    ppo, collector = make("Pendulum-v1", **options)
    batch = ppo.make_batch(next(iter(collector)))
    batch.estimate()
    with torch.no_grad():
        for param in ppo.actor.parameters():
            param.add_(0.2 * torch.randn_like(param))
    return ppo, batch.rows


def test_augmented_losses_are_those_of_both_halves(make: Make) -> None:
    ppo, rows = minibatch(make)
    losses = SymmetricObjective(ppo.objective, Symmetry(mirror))(rows.copy())
    original = rows.exclude("loc", "scale")
    halves = [ppo.objective(original.copy()), ppo.objective(mirror(original.copy()))]
    for name in ("loss_objective", "loss_critic", "entropy", "kl_approx"):
        expected = np.mean([half[name].item() for half in halves])
        assert losses[name].item() == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert halves[0]["loss_objective"].item() != pytest.approx(halves[1]["loss_objective"].item(), abs=1e-4)
    assert rows["observation"].shape[0] == len(rows), "the rows are unchanged"


def test_a_function_may_change_its_argument(make: Make) -> None:
    ppo, rows = minibatch(make)
    pure, in_place = (SymmetricObjective(ppo.objective, Symmetry(one)) for one in (mirror, mirror_in_place))
    for name, value in pure(rows.copy()).items():
        assert torch.equal(in_place(rows.copy())[name], value), name


def test_persistent_noise_is_not_mirrored(make: Make, fit: Fit) -> None:
    def checked(data: TensorDictBase) -> TensorDictBase:
        assert {*data.keys()} == {"observation", "action"}
        return mirror(data)

    ppo, collector = make("Pendulum-v1", symmetry=Symmetry(checked), head=gsde)
    assert float(fit(ppo, collector).callback_metrics["train/grad_norm"]) > 0


def test_mirror_loss_equals_numpy_and_has_no_gradient_through_its_target(make: Make) -> None:
    ppo, rows = minibatch(make)
    losses = SymmetricObjective(ppo.objective, Symmetry(mirror, augment=False, mirror_coeff=0.5))(rows.copy())
    plain = ppo.objective(rows.copy())
    assert torch.equal(losses["loss_objective"], plain["loss_objective"])
    with torch.no_grad():
        loc = ppo.actor.get_dist_params(rows.copy())["loc"].double().numpy()
        mirrored = ppo.actor.get_dist_params(mirror(rows.copy()))["loc"].double().numpy()
    assert losses["loss_mirror"].item() == pytest.approx(0.5 * np.mean((mirrored + loc) ** 2), rel=1e-5)
    bias = [param for name, param in ppo.actor.named_parameters() if name.endswith("bias")][-1]
    (gradient,) = torch.autograd.grad(losses["loss_mirror"], bias)
    assert gradient.numpy() == pytest.approx([0.5 * 2 * np.mean(mirrored + loc)], rel=1e-4)


@pytest.mark.parametrize("compile_", [False, "trace"])
def test_training_makes_the_policy_symmetric_eagerly_and_in_a_graph(compile_: Any, make: Make, fit: Fit) -> None:
    symmetry = Symmetry(mirror, mirror_coeff=100.0)
    adam = partial(torch.optim.Adam, lr=3e-3)
    ppo, collector = make("Pendulum-v1", symmetry=symmetry, rollouts=6, compile=compile_, optimizer=adam)
    trainer = fit(ppo, collector)
    final = float(trainer.callback_metrics["train/loss_mirror"])
    rows = ppo.make_batch(next(iter(Collector(collector.env, ppo.actor, frames_per_env=16, total_frames=32)))).rollout
    with torch.no_grad():
        loc = ppo.actor.get_dist_params(rows.copy())["loc"]
        mirrored = ppo.actor.get_dist_params(mirror(rows.copy()))["loc"]
    assert (mirrored + loc).abs().max() < 0.2
    assert 0 < final < 1


def test_a_graph_gives_the_weights_of_eager_steps(make: Make, fit: Fit) -> None:
    weights = []
    for compile_ in (False, "trace"):
        ppo, collector = make("Pendulum-v1", symmetry=Symmetry(mirror, mirror_coeff=0.1), compile=compile_)
        fit(ppo, collector)
        weights.append(torch.cat([param.detach().flatten() for param in ppo.parameters()]))
    torch.testing.assert_close(*weights, rtol=0, atol=1e-6)  # gradients of several passes are summed in another order


def test_discrete_actions_can_be_augmented_but_have_no_mirror_loss(make: Make, fit: Fit) -> None:
    ppo, collector = make(symmetry=Symmetry(mirror_cartpole))
    assert float(fit(ppo, collector).callback_metrics["train/grad_norm"]) > 0
    ppo, collector = make(symmetry=Symmetry(mirror_cartpole, mirror_coeff=1.0))
    with pytest.raises(ConfigurationError, match="mirror_coeff"):
        fit(ppo, collector)


def test_what_cannot_be_mirrored_is_refused(make: Make) -> None:
    for options in ({"mirror_coeff": -1.0}, {"augment": False}):
        with pytest.raises(ConfigurationError, match=r"ppo\.symmetry\.mirror_coeff"):
            Symmetry(mirror, **options)
    env = make_env("Pendulum-v1", 1)
    specs = env.observation_spec, env.action_spec
    actor, critic = make_actor_critic(*specs, body=mlp, head=tanh_gaussian)
    with pytest.raises(ConfigurationError, match="head=gaussian"):
        SymmetricObjective(ClipPPOLoss(actor, critic), Symmetry(mirror))
    actor, critic = make_actor_critic(*specs, body=mlp, head=gaussian)
    objective = SymmetricObjective(ClipPPOLoss(actor, critic), Symmetry(lambda data: data[..., None]))
    _, rows = minibatch(make)
    with pytest.raises(ConfigurationError, match="shape of observation"):
        objective(rows)
    nothing = Symmetry(cast(Any, lambda _: None))
    with pytest.raises(ConfigurationError, match=r"ppo\.symmetry\.mirror returns NoneType"):
        SymmetricObjective(ClipPPOLoss(actor, critic), nothing)(rows)


def shifted(data: TensorDictBase) -> TensorDictBase:
    return data.set("observation", data["observation"] + 1)


def misspelled(data: TensorDictBase) -> TensorDictBase:
    return data.set("obs", -data["observation"])


def forgotten(data: TensorDictBase) -> TensorDictBase:
    return data.select("observation")


@pytest.mark.parametrize(
    ("function", "word"), [(shifted, "own inverse"), (misspelled, "writes obs"), (forgotten, "returns no action")]
)
def test_a_function_that_is_no_symmetry_is_refused(
    function: Callable[..., Any], word: str, make: Make, fit: Fit
) -> None:
    ppo, collector = make(symmetry=Symmetry(function))
    with pytest.raises(ConfigurationError, match=word):
        fit(ppo, collector)
    assert ppo.num_rollouts == 0


def test_a_policy_that_cannot_be_mirrored_is_refused_before_the_training(make: Make, fit: Fit) -> None:
    ppo, collector = make(symmetry=Symmetry(mirror_cartpole), memory=partial(GRU, width=4))
    with pytest.raises(ConfigurationError, match="memory"):
        fit(ppo, collector)


def test_a_function_of_the_user_is_selected_from_the_command_line() -> None:
    name = f"{__name__}.mirror_cartpole"
    overrides = ["symmetry=mirror", f"ppo.symmetry.mirror._target_={name}", "ppo.symmetry.mirror_coeff=0"]
    training = build_training(compose([*overrides, "logger=[]", "run_dir=unused"]), 0)
    symmetry = training.ppo.symmetry
    assert isinstance(symmetry, Symmetry)
    assert (symmetry.augment, symmetry.mirror_coeff) == (True, 0.0)
    training.close()
