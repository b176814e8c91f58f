"""TorchRL's losses and actors train with eager and traced steps; docs/torchrl.md has the whole table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
import torchrl.objectives as torchrl_objectives
from lightning import Trainer, seed_everything
from tensordict.nn import TensorDictModule, TensorDictSequential
from torch import nn
from torchrl.modules import (
    ActorValueOperator,
    GRUModule,
    LSTMModule,
    NormalParamExtractor,
    OneHotCategorical,
    ProbabilisticActor,
    TanhNormal,
    TruncatedNormal,
    ValueOperator,
)
from torchrl.objectives.value import GAE

import torchppo
from torchppo.errors import ConfigurationError, GraphError
from torchppo.modules.objectives.ppo_loss import PPOLoss
from torchppo.pipelines.build import build_trainer, build_training
from torchppo.pipelines.cli.config import compose

Modules = tuple[Any, Any, Any]
NUMBERS = count()
THEIRS: dict[str, Any] = {"loss_critic_type": "l2", "functional": False}
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
}


def hidden(num_inputs: int, num_outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(num_inputs, 8), nn.Tanh(), nn.Linear(8, num_outputs))


def probabilistic(network: nn.Module, keys: list[str], distribution: type, **options: Any) -> ProbabilisticActor:
    return ProbabilisticActor(
        TensorDictModule(network, ["observation"], keys),
        in_keys=keys,
        distribution_class=distribution,
        distribution_kwargs=options,
        return_log_prob=True,
        log_prob_key="action_log_prob",
    )


def gaussian(distribution: type) -> Modules:
    env = torchppo.make_env("Pendulum-v1", num_envs=2)
    network = nn.Sequential(hidden(3, 2), NormalParamExtractor())
    actor = probabilistic(network, ["loc", "scale"], distribution, low=-2.0, high=2.0)
    return env, actor, ValueOperator(hidden(3, 1), ["observation"])


def categorical() -> Modules:
    env = torchppo.make_env("CartPole-v1", num_envs=2)
    actor = probabilistic(hidden(4, 2), ["logits"], torch.distributions.Categorical)
    return env, actor, ValueOperator(hidden(4, 1), ["observation"])


def one_hot() -> Modules:
    from torchrl.envs import GymEnv, SerialEnv

    env = torchppo.batched(SerialEnv(2, lambda: GymEnv("CartPole-v1", categorical_action_encoding=False)))
    actor = probabilistic(hidden(4, 2), ["logits"], OneHotCategorical)
    return env, actor, ValueOperator(hidden(4, 1), ["observation"])


def shared() -> Modules:
    env = torchppo.make_env("CartPole-v1", num_envs=2)
    common = TensorDictModule(nn.Linear(4, 8), ["observation"], ["hidden"])
    policy = ProbabilisticActor(
        TensorDictModule(nn.Linear(8, 2), ["hidden"], ["logits"]),
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
        log_prob_key="action_log_prob",
    )
    both = ActorValueOperator(common, policy, ValueOperator(nn.Linear(8, 1), ["hidden"]))
    return env, both.get_policy_operator(), both.get_value_operator()


def recurrent(module: type[LSTMModule | GRUModule]) -> Modules:
    from torchrl.envs import Compose, GymEnv, InitTracker, SerialEnv, TransformedEnv

    memory = module(input_size=4, hidden_size=8, in_key="observation", out_key="features")
    steps = Compose(InitTracker(), memory.make_tensordict_primer())
    env = TransformedEnv(torchppo.batched(SerialEnv(2, lambda: GymEnv("CartPole-v1"))), steps, auto_unwrap=True)
    network = TensorDictSequential(memory, TensorDictModule(nn.Linear(8, 2), ["features"], ["logits"]))
    actor = ProbabilisticActor(
        network,
        in_keys=["logits"],
        distribution_class=torch.distributions.Categorical,
        return_log_prob=True,
        log_prob_key="action_log_prob",
    )
    return env, actor, TensorDictSequential(memory, ValueOperator(nn.Linear(8, 1), ["features"]))


ACTORS: dict[str, Callable[[], Modules]] = {
    "Categorical": categorical,
    "OneHotCategorical": one_hot,
    "TanhNormal": partial(gaussian, TanhNormal),
    "TruncatedNormal": partial(gaussian, TruncatedNormal),
    "ActorValueOperator": shared,
    "LSTMModule": partial(recurrent, LSTMModule),
    "GRUModule": partial(recurrent, GRUModule),
}
LOSSES: dict[str, tuple[type, dict[str, Any]]] = {
    "torchppo ClipPPOLoss": (torchppo.ClipPPOLoss, {"clip_epsilon": (0.2, 0.28)}),
    "torchppo KLPENPPOLoss": (torchppo.KLPENPPOLoss, {}),
    "torchppo PPOLoss": (PPOLoss, {"entropy_coeff": 0.01}),
    "ClipPPOLoss": (torchrl_objectives.ClipPPOLoss, THEIRS),
    "PPOLoss": (torchrl_objectives.PPOLoss, THEIRS),
    "KLPENPPOLoss": (torchrl_objectives.KLPENPPOLoss, THEIRS),
    "A2CLoss": (torchrl_objectives.A2CLoss, THEIRS),
    "ReinforceLoss": (torchrl_objectives.ReinforceLoss, THEIRS),
    "functional ClipPPOLoss": (torchrl_objectives.ClipPPOLoss, THEIRS | {"functional": True}),
}
REFUSED_LOSSES = {"KLPENPPOLoss", "functional ClipPPOLoss"}
"""In a graph: TorchRL 0.14.1's KLPENPPOLoss branches on the KL divergence; a graph cannot train functional losses."""
REFUSED_ACTORS = {"TruncatedNormal", "LSTMModule", "GRUModule"}
"""In a graph: TorchRL 0.14.1's TruncatedNormal, LSTMModule and GRUModule branch on the values of tensors."""


def train(
    loss: str, actor: str, compile_: Any, epochs: int = 2, minibatch_size: int = 16
) -> tuple[list[torch.Tensor], list[torch.Tensor], Trainer]:
    """Train for three rollouts; return the weights before and after."""
    seed_everything(0, verbose=False)
    env, policy, critic = ACTORS[actor]()
    env.set_seed(0)
    parameters = list({*policy.parameters(), *critic.parameters()})
    parameters.sort(key=lambda param: [*param.shape, float(param.detach().sum())])
    before = [param.detach().clone() for param in parameters]
    cls, options = LOSSES[loss]
    ppo = torchppo.PPO(
        cls(policy, critic, **options),
        GAE(gamma=0.98, lmbda=0.8, value_network=None),
        torchppo.MinibatchUpdate(epochs, minibatch_size),
        partial(torch.optim.Adam, lr=1e-3),
        total_frames=96,
        compile=compile_,
    )
    trainer = Trainer(max_epochs=-1, **QUIET)
    collector = torchppo.Collector(env, policy, frames_per_env=16, total_frames=96, compile=compile_)
    trainer.fit(ppo, train_dataloaders=collector)
    env.close()
    return before, [param.detach().clone() for param in parameters], trainer


@pytest.mark.parametrize(
    ("loss", "actor"),
    [*((loss, "Categorical") for loss in LOSSES), *((loss, "TanhNormal") for loss in LOSSES)]
    + [("torchppo ClipPPOLoss", actor) for actor in ACTORS if actor not in ("Categorical", "TanhNormal")]
    + [("ClipPPOLoss", actor) for actor in ("OneHotCategorical", "TruncatedNormal", "ActorValueOperator")],
)
@pytest.mark.filterwarnings("ignore:No analytic entropy", "ignore:No analytic KL")
def test_traced_weights_equal_eager_ones_or_a_graph_is_refused(loss: str, actor: str, graph: Any) -> None:
    before, eager, trainer = train(loss, actor, False)
    assert all(not torch.equal(new, old) for new, old in zip(eager, before, strict=True))
    assert float(trainer.callback_metrics["train/grad_norm"]) > 0
    if loss in REFUSED_LOSSES or actor in REFUSED_ACTORS:
        with pytest.raises(GraphError, match="compile=false"):
            train(loss, actor, graph)
        return
    _, traced, _ = train(loss, actor, graph)
    for one, other in zip(traced, eager, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize("actor", ["LSTMModule", "GRUModule"])
def test_sequences_of_torchrls_memories_reproduce_the_policy_at_collection(actor: str) -> None:
    _, _, trainer = train("torchppo ClipPPOLoss", actor, False, epochs=1, minibatch_size=32)
    assert abs(float(trainer.callback_metrics["train/approx_kl"])) < 1e-7
    assert float(trainer.callback_metrics["train/max_ratio"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("objective", ["torchrl_clip", "torchrl_ppo", "torchrl_kl_penalty"])
def test_torchrls_losses_train_from_yaml(objective: str) -> None:
    cfg = compose(
        [
            *("env.num_envs=2", "collector.frames_per_env=16", "update.minibatch_size=16", "total_frames=64"),
            *("compile=false", "trainer.accelerator=cpu", "logger=[]", f"objective={objective}"),
            f"run_dir=torchrl{next(NUMBERS)}",
        ]
    )
    training = build_training(cfg, rank=0)
    before = [param.detach().clone() for param in training.ppo.parameters()]
    build_trainer(cfg, []).fit(training.ppo, train_dataloaders=training.collector)
    training.close()
    assert all(not torch.equal(new, old) for new, old in zip(training.ppo.parameters(), before, strict=True))


def test_a_loss_named_by_its_path_is_not_functional_and_unknown_keys_are_refused() -> None:
    words = ["objective=torchrl_clip", "objective._target_=torchrl.objectives.A2CLoss", "~objective.functional"]
    cut = [*words, "~objective.clip_epsilon", "~objective.normalize_advantage"]
    training = build_training(compose([*cut, "logger=[]", "run_dir=a2c"]), rank=0)
    training.close()
    assert training.ppo.objective.functional is False
    with pytest.raises(ConfigurationError, match=r"objective\.normalise_advantage is not an argument"):
        build_training(compose(["objective=torchrl_ppo", "+objective.normalise_advantage=true", "run_dir=b"]), rank=0)
