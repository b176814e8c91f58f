"""Objects are built from a configuration: every choice of every group trains, and so do a user's components."""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.wrappers import TransformReward
from hydra.utils import get_object
from lightning import Callback, Trainer
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import nn
from torchrl.data import Bounded, Composite, Unbounded
from torchrl.envs import EnvBase

from torchppo.envs import VectorEnv
from torchppo.errors import ConfigurationError, EnvironmentFailure
from torchppo.modules.features.extractor import memory_keys
from torchppo.modules.heads.value_heads import ValueHead
from torchppo.pipelines.build import (
    EVALUATION_RANK,
    Training,
    build_controllers,
    build_trainer,
    build_training,
    env_name,
)
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.collectors.collector import seconds_of
from torchppo.pipelines.components.instantiate import build_env, call, seed_for_rank
from torchppo.pipelines.step_factory import Compile

CONF = Path(__file__).parents[2] / "conf"
NUMBERS = count()
GYM_ENV = ("env=torchrl", "env._target_=torchrl.envs.GymEnv", "+env.env_name=CartPole-v1", "total_frames=32")
SMALL = (
    *("total_frames=64", "env.num_envs=2", "collector.frames_per_env=16", "update.epochs=2"),
    *("update.minibatch_size=16", "optimizer.lr=0.003", "logger=csv", "trainer.accelerator=cpu", "compile=false"),
)
"""Two rollouts of 32 frames, two minibatches and two epochs each."""


class Images(gymnasium.Env[Any, Any]):
    """Random images of 36x36 pixels, channels first; the reward is the action."""

    observation_space = spaces.Box(0, 255, (2, 36, 36), np.uint8)
    action_space = spaces.Discrete(2)

    def __init__(self, **_: Any) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> Any:
        return self.np_random.integers(0, 256, (2, 36, 36), np.uint8)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observe(), float(action), self.steps == 5, False, {}


class FewIntegers(Images):
    """Its integer actions have one logit for each value, like discrete ones."""

    action_space = spaces.Box(0, 5, (), np.int64)  # type: ignore[assignment]


class ManyIntegers(Images):
    action_space = spaces.Box(0, 500, (), np.int64)  # type: ignore[assignment]


class Nested(gymnasium.Env[Any, Any]):
    """Nested observations and actions of every kind; the reward is one part of the action."""

    observation_space = spaces.Dict(
        camera=spaces.Dict(image=spaces.Box(0, 255, (3, 36, 36), np.uint8), zoom=spaces.Discrete(3, start=1)),
        joints=spaces.Box(-5, 5, (4,)),
        mission=spaces.Text(8, charset="ab "),
    )
    action_space = spaces.Dict(push=spaces.Box(-1, 1, (2,)), gear=spaces.MultiDiscrete([3, 2]))

    def __init__(self, **_: Any) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        if seed is not None:
            self.observation_space = spaces.Dict(dict(Nested.observation_space.items()), seed=seed)
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space["gear"].contains(action["gear"])
        self.steps += 1
        return self.observation_space.sample(), float(action["gear"][1]), self.steps == 5, False, {}


class Walk(EnvBase):  # type: ignore[misc]
    """A TorchRL environment that observes its number of steps; the reward is 2, an episode has `length` steps."""

    def __init__(self, batch: tuple[int, ...] = (), length: int = 5) -> None:
        super().__init__(batch_size=torch.Size(batch))
        batch, self.length, self.steps = tuple(batch), length, 0
        self.observation_spec = Composite(observation=Unbounded((*batch, 3)), shape=batch)
        self.action_spec = Bounded(-1.0, 1.0, (*batch, 1))
        self.reward_spec = Unbounded((*batch, 1))

    def observe(self) -> torch.Tensor:
        return torch.full((*self.batch_size, 3), float(self.steps))

    def _reset(self, tensordict: TensorDictBase | None, **_: Any) -> TensorDictBase:
        self.steps = 0
        return TensorDict({"observation": self.observe()}, self.batch_size)

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        self.steps += 1
        reward = torch.full((*self.batch_size, 1), 2.0)
        done = torch.full_like(reward, self.steps == self.length, dtype=torch.bool)
        return TensorDict({"observation": self.observe(), "reward": reward, "done": done}, self.batch_size)

    def _set_seed(self, seed: int | None) -> None: ...


plus_one = partial(TransformReward, func=lambda reward: float(reward) + 1)
times_ten = partial(TransformReward, func=lambda reward: float(reward) * 10)


def buggy(*_: Any, **__: Any) -> None:
    """A component that raises."""
    raise TypeError("unsupported operand type(s) for +: 'int' and 'str'")


class RecordLearningRates(Callback):
    """Records the learning rate of every rollout."""

    def __init__(self) -> None:
        self.learning_rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.learning_rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.fixture(autouse=True)
def components(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Make this file importable as `ours`, and register its environments with Gymnasium."""
    monkeypatch.setitem(sys.modules, "ours", sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    for env_class in (Images, Nested):
        gymnasium.register(f"{env_class.__name__}-v0", entry_point=env_class)  # type: ignore[arg-type]
    yield
    for env_class in (Images, Nested):
        del gymnasium.registry[f"{env_class.__name__}-v0"]


class PlainCollector:
    """A collector with only what the contract requires."""

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        *,
        frames_per_env: int,
        total_frames: int,
        compile: Compile,  # noqa: A002
    ) -> None:
        self.rollout = partial(env.rollout, frames_per_env, policy, break_when_any_done=False)
        self.num_rollouts = total_frames // (env.numel() * frames_per_env)

    def __len__(self) -> int:
        return self.num_rollouts

    def __iter__(self) -> Iterator[TensorDictBase]:
        for _ in range(len(self)):
            with torch.no_grad():
                rollout = self.rollout()
            yield rollout


class SavedRollouts:
    """A sized iterable of rollouts."""

    def __init__(self, rollouts: list[TensorDictBase]) -> None:
        self.rollouts = rollouts

    def __len__(self) -> int:
        return len(self.rollouts)

    def __iter__(self) -> Iterator[TensorDictBase]:
        return iter(self.rollouts)


def small(*overrides: str) -> DictConfig:
    """Compose a small training with its own run directory; TorchRL's environments have no `num_envs`."""
    defaults = [word for word in SMALL if "env=torchrl" not in overrides or not word.startswith("env.")]
    return compose([*defaults, f"run_dir=run{next(NUMBERS)}", *overrides])


def fit_two_rollouts(cfg: DictConfig, *callbacks: Callback) -> Training:
    """Train on two rollouts and check that every weight has changed and is finite, but no frozen one."""
    torch.manual_seed(0)
    training = build_training(cfg, rank=0)
    before = [param.detach().clone() for param in training.ppo.parameters()]
    build_trainer(cfg, list(callbacks)).fit(training.ppo, train_dataloaders=training.collector)
    training.close()  # otherwise TorchRL's changes the number of threads when it is garbage-collected
    after = list(training.ppo.parameters())
    assert training.ppo.num_rollouts == 2
    assert training.ppo.frames == cfg.total_frames
    assert all(param.isfinite().all() for param in after)
    assert all(torch.equal(new, old) != new.requires_grad for new, old in zip(after, before, strict=True))
    return training


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def rewards(cfg: DictConfig, steps: int) -> list[float]:
    """Return the rewards of the first steps of one environment."""
    rollout = build_env(cfg, seed=0).rollout(steps, break_when_any_done=False)
    return [float(reward) for reward in rollout["next", "reward"][0].flatten()]


def test_an_error_of_a_torchrl_environment_is_an_environment_failure(capfd: pytest.CaptureFixture[str]) -> None:
    cfg = small(*GYM_ENV)
    cfg.env.env_name = "Nowhere-v1"
    with pytest.raises(EnvironmentFailure, match=r"GymEnv.*NameNotFound.*Nowhere"):
        build_env(cfg, seed=0)
    assert "Traceback" in capfd.readouterr().err


class TestEveryChoiceTrains:
    @pytest.mark.parametrize(("env", "memory"), [("CartPole-v1", "none"), ("Pendulum-v1", "gru")])
    @pytest.mark.parametrize("objective", choices("objective"))
    def test_objective(self, objective: str, env: str, memory: str) -> None:
        cfg = small(f"objective={objective}", f"env.id={env}", f"memory={memory}")
        assert type(fit_two_rollouts(cfg).ppo.objective) is get_object(cfg.objective._target_)

    @pytest.mark.parametrize("critic", ["huber", "popart", "hl_gauss"])
    def test_an_objective_that_ignores_the_loss_of_the_critic_is_rejected(self, critic: str) -> None:
        with pytest.raises(ConfigurationError, match=r"objective=.*ClipPPOLoss .*critic=mse"):
            build_training(small("objective=torchrl_clip", f"critic={critic}"), rank=0)

    @pytest.mark.parametrize("policy", choices("policy"))
    def test_policy(self, policy: str) -> None:
        is_convolutional = policy in ("cnn", "resnet")
        ppo = fit_two_rollouts(
            small(f"policy={policy}", f"env.id={'Images-v0' if is_convolutional else 'CartPole-v1'}")
        ).ppo
        assert any(isinstance(module, nn.Conv2d) for module in ppo.actor.modules()) == is_convolutional

    @pytest.mark.parametrize("words", [("env.id=CartPole-v1",), ("env.id=Images-v0", "policy=cnn")], ids=["mlp", "cnn"])
    @pytest.mark.parametrize("memory", choices("memory"))
    def test_memory_shared_by_actor_and_critic_in_mixed_precision(self, memory: str, words: tuple[str, ...]) -> None:
        cfg = small(*words, f"memory={memory}", "policy.shared=true", "trainer.precision=bf16-mixed")
        assert memory_keys(fit_two_rollouts(cfg).ppo.actor) == ([] if memory == "none" else ["actor_memory"])

    @pytest.mark.parametrize("memory", ["none", "gru"])
    @pytest.mark.parametrize("head", choices("head"))
    def test_head(self, head: str, memory: str) -> None:
        fit_two_rollouts(small("env.id=Pendulum-v1", f"head={head}", f"memory={memory}"))

    @pytest.mark.parametrize("memory", ["none", "gru"])
    @pytest.mark.parametrize("critic", choices("critic"))
    def test_critic(self, critic: str, memory: str) -> None:
        env_id = "Pendulum-v1" if critic == "quadratic_advantage" else "CartPole-v1"
        cfg = small(f"env.id={env_id}", f"critic={critic}", f"memory={memory}")
        heads = [module for module in fit_two_rollouts(cfg).ppo.critic.modules() if isinstance(module, ValueHead)]
        assert [type(head) for head in heads] == [get_object(cfg.critic.head._target_)]

    @pytest.mark.parametrize("memory", ["none", "gru"])
    @pytest.mark.parametrize("collector", ["vector", "torchrl"])  # test_torchrl_environments.py has `torchrl_multi`
    def test_collector(self, collector: str, memory: str) -> None:
        assert {"collect"} <= {
            *seconds_of(fit_two_rollouts(small(f"collector={collector}", f"memory={memory}")).collector)
        }

    def test_a_users_collector(self) -> None:
        cfg = small()
        cfg.collector = {"_target_": "ours.PlainCollector", "frames_per_env": 16}
        assert isinstance(fit_two_rollouts(cfg).collector, PlainCollector)

    @pytest.mark.parametrize("estimator", choices("estimator"))
    def test_estimator(self, estimator: str) -> None:
        cfg = small(f"estimator={estimator}", "estimator.gamma=0.5")
        trained = fit_two_rollouts(cfg).ppo.estimator
        assert type(trained) is get_object(cfg.estimator._target_)
        assert float(trained.gamma) == 0.5

    @pytest.mark.parametrize("name", ["TD0Estimator", "TD1Estimator", "TDLambdaEstimator", "GAE"])
    def test_an_estimator_of_torchrl_receives_only_the_keys_that_it_accepts(self, name: str) -> None:
        cfg = small(f"estimator._target_=torchrl.objectives.value.{name}", "+estimator.differentiable=false")
        assert type(fit_two_rollouts(cfg).ppo.estimator).__name__ == name

    def test_an_estimator_receives_the_actor(self) -> None:
        ppo = fit_two_rollouts(small("estimator=vtrace")).ppo
        assert ppo.estimator.actor_network is ppo.actor

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["estimator._target_=torchrl.objectives.value.VTrace"], r"VTrace .*new action.*; use estimator=vtrace"),
            (["estimator=td0", "critic.lmbda=0.9"], r"critic.lmbda=0.9 needs .*; use estimator=gae or td_lambda"),
            (["estimator=monte_carlo", "estimator.gamma=0"], r"estimator.gamma=0 .*; use estimator=td0"),
            (["+estimator.lambda=0.9"], r"lambda"),
        ],
    )
    def test_an_estimator_that_cannot_work_is_refused(self, words: list[str], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message) as raised:
            build_training(small(*words), rank=0)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["collector=torchrl_multi", "collector.num_workers=3"], r"num_workers=3 does not divide env.num_envs=2"),
            (["+collector.frames_per_batch=32"], r"frames_per_env and .*frames_per_batch are both set"),
        ],
    )
    def test_a_collector_that_cannot_work_is_refused(self, words: list[str], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            build_training(small(*words), rank=0)

    @pytest.mark.parametrize("collector", ["vector", "torchrl"])
    def test_frames_per_batch_replaces_frames_per_env(self, collector: str) -> None:
        cfg = small(f"collector={collector}", "+collector.frames_per_batch=32")
        del cfg.collector.frames_per_env
        assert fit_two_rollouts(cfg).collector.frames_per_batch == 32  # type: ignore[attr-defined]
        cfg.collector.frames_per_batch = 33
        with pytest.raises(ConfigurationError, match=r"\(2\); use 32 or 34"):
            build_training(cfg, rank=0)

    @pytest.mark.parametrize(
        ("missing", "transform", "words"),
        [
            (("next", "episode_reward"), "RewardSum", ()),
            (("next", "step_count"), "StepCounter", ()),
            ("is_init", "InitTracker", ("reward=normalized",)),
        ],
    )
    def test_a_rollout_without_an_entry_names_its_transform(
        self, missing: str | tuple[str, ...], transform: str, words: tuple[str, ...]
    ) -> None:
        cfg = small(*words)
        training = build_training(cfg, rank=0)
        collected = [rollout.exclude(missing) for rollout in training.collector]
        name = missing if isinstance(missing, str) else missing[-1]
        with pytest.raises(ConfigurationError, match=rf"no {name}; .*torchrl.envs.{transform} "):
            build_trainer(cfg, []).fit(training.ppo, train_dataloaders=SavedRollouts(collected))

    @pytest.mark.parametrize("words", [("estimator.lmbda=0",), ("estimator.gamma=0",), ("critic.lmbda=0",)])
    def test_gamma_or_lambda_of_zero_gives_one_step_targets(self, words: tuple[str, ...]) -> None:
        ppo = fit_two_rollouts(small(*words)).ppo
        estimator = ppo.critic_estimator or ppo.estimator
        step = TensorDict(
            {
                "state_value": torch.tensor([[[1.0], [2.0]]]),
                "next": {
                    "state_value": torch.tensor([[[2.0], [3.0]]]),
                    "reward": torch.ones(1, 2, 1),
                    **{key: torch.zeros(1, 2, 1, dtype=torch.bool) for key in ("done", "terminated", "truncated")},
                },
            },
            [1, 2],
        )
        gamma = float(estimator.gamma)
        targets = estimator(step)["value_target"].flatten().tolist()
        assert targets == pytest.approx([1 + 2 * gamma, 1 + 3 * gamma])

    @pytest.mark.parametrize("optimizer", choices("optimizer"))
    def test_optimizer(self, optimizer: str) -> None:
        cfg = small(f"optimizer={optimizer}")
        trained = fit_two_rollouts(cfg).ppo.optimizers(use_pl_optimizer=False)
        assert type(trained) is get_object(cfg.optimizer._target_)
        assert trained.param_groups[0]["eps"] == 1e-5

    @pytest.mark.parametrize("intrinsic", ["rnd", "noveld", "e3b", "icm"])
    def test_intrinsic_reward_of_images_or_of_nested_observations_and_actions(self, intrinsic: str) -> None:
        images, nested = ("env.id=Images-v0", "policy=cnn"), ("env.id=Nested-v0", "policy=gru")
        words = images if intrinsic in ("rnd", "e3b") else nested
        lr = f"+intrinsic.{intrinsic}.optimizer.lr=0.006"
        training = fit_two_rollouts(small(*words, f"intrinsic={intrinsic}", lr))
        groups = {group["part"]: group for group in training.ppo.optimizers(use_pl_optimizer=False).param_groups}
        assert groups[intrinsic]["lr"] == 0.006
        trained = [param for param in training.ppo.reward_models[intrinsic].parameters() if param.requires_grad]
        assert {*groups[intrinsic]["params"]} == {*trained}

    @pytest.mark.parametrize("reward", choices("reward"))
    def test_reward(self, reward: str) -> None:
        normalizer = fit_two_rollouts(small(f"reward={reward}")).ppo.reward_normalizer
        names = {"raw": "NoneType", "clipped": "RewardClipper", "normalized": "RewardNormalizer"}
        assert type(normalizer).__name__ == names[reward]

    @pytest.mark.parametrize(
        ("controller", "factor", "final"),
        [("constant", 1.0, 1.0), ("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("step", 0.25, 0.125)],
    )
    def test_controller(self, controller: str, factor: float, final: float) -> None:
        """After the first of two rollouts, the step schedule has halved the value twice."""
        names = ("lr", "clip_epsilon", "entropy_coeff")
        words = [f"controller@controller.{name}={controller}" for name in names]
        recorded = RecordLearningRates()
        ppo = fit_two_rollouts(small(*words, "objective.entropy_coeff=0.1"), recorded).ppo
        assert recorded.learning_rates == pytest.approx([0.003 * factor, 0.003 * final], abs=1e-12)
        assert float(ppo.objective.clip_epsilon) == pytest.approx(0.2 * final, abs=1e-7)
        assert float(ppo.objective.entropy_coeff) == pytest.approx(0.1 * final, abs=1e-7)

    def test_kl_adaptive_controller_moves_the_learning_rate_after_the_first_rollout(self) -> None:
        recorded = RecordLearningRates()
        words = ["controller@controller.lr=kl_adaptive", "controller.lr.target_kl=1000", "controller.lr.maximum=1.0"]
        fit_two_rollouts(small(*words), recorded)
        assert recorded.learning_rates == pytest.approx([0.0045, 0.00675])

    @pytest.mark.parametrize(
        "override",
        [
            "policy.shared=true",
            "policy.normalize_observation=true",
            "policy.body.layer_norm=true",
            "update.target_kl=0.01",
            "objective.clip_value=0.2",
            "ppo.value_pretraining=1",
            "ppo.normalize_advantage=null",
            "trainer.precision=bf16-mixed",
        ],
    )
    def test_option(self, override: str) -> None:
        fit_two_rollouts(small(override))

    @pytest.mark.parametrize("memory", ["none", "transformer"])
    @pytest.mark.parametrize("workers", ["0", "2"])
    def test_nested_spaces(self, workers: str, memory: str) -> None:
        normalized = "policy.normalize_observation=true"
        fit_two_rollouts(small("env.id=Nested-v0", f"env.num_workers={workers}", f"memory={memory}", normalized))

    @pytest.mark.parametrize(
        ("graph", "memory", "size"),
        [
            ("trace", "gru", "policy.memory.width=8"),
            ("trace", "transformer_xl", "policy.memory.num_layers=1"),
            ("true", "transformer_xl", "policy.memory.num_layers=1"),  # takes ten seconds
        ],
    )
    def test_a_memory_trains_the_same_eagerly_and_as_a_graph(self, graph: str, memory: str, size: str) -> None:
        short = ["env.num_envs=4", "collector.frames_per_env=4", "total_frames=32", "policy.shared=true"]
        words = [*short, f"memory={memory}", size, "policy.body.num_cells=[8]", "optimizer.eps=1e-2"]
        graph_ppo, eager_ppo = (fit_two_rollouts(small(*words, f"compile={choice}")).ppo for choice in (graph, "false"))
        assert graph_ppo.compile_mode in ("trace", True)
        for one, other in zip(graph_ppo.parameters(), eager_ppo.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


class TestGymnasiumEnvironments:
    def test_wrappers_apply_in_the_order_of_the_list(self) -> None:
        first, second = ("{_target_: ours." + name + ", _partial_: true}" for name in ("plus_one", "times_ten"))
        assert rewards(small(f"env.wrappers=[{first},{second}]"), 2) == [20.0, 20.0]
        assert rewards(small(f"env.wrappers=[{second},{first}]"), 2) == [11.0, 11.0]

    def test_transforms_apply_in_the_order_of_the_list(self) -> None:
        plus, times = (
            f"{{_target_: torchrl.envs.RewardScaling, loc: {loc}, scale: {scale}}}" for loc, scale in ((1, 1), (0, 10))
        )
        assert rewards(small(f"transforms=[{plus},{times}]"), 2) == [20.0, 20.0]
        assert rewards(small(f"transforms=[{times},{plus}]"), 2) == [11.0, 11.0]

    def test_wrappers_apply_before_transforms_and_returns_stay_raw(self) -> None:
        cfg = small(
            "env.wrappers=[{_target_: ours.plus_one, _partial_: true}]",
            "transforms=[{_target_: torchrl.envs.RewardScaling, loc: 0, scale: 10}]",
        )
        assert rewards(cfg, 2) == [20.0, 20.0]
        ppo = fit_two_rollouts(cfg).ppo
        assert ppo.episodes.episodes
        assert all(episode_reward == length for episode_reward, length in ppo.episodes.episodes)

    def test_an_environment_without_transforms_is_a_vector_env(self) -> None:
        assert isinstance(build_training(small(), rank=0).env, VectorEnv)

    def test_the_name_is_the_id(self) -> None:
        assert env_name(small()) == "CartPole-v1"


class TestTorchRLEnvironments:
    @pytest.mark.parametrize(
        ("words", "num_envs"),
        [(["env._target_=ours.Walk", "+env.batch=[2]"], 2), (["env._target_=ours.Walk"], 1)],
        ids=["batched", "single"],
    )
    def test_returns_and_lengths_are_raw(self, words: list[str], num_envs: int) -> None:
        cfg = small("env=torchrl", *words, f"total_frames={32 * num_envs}", "reward=normalized")
        training = fit_two_rollouts(cfg)
        assert training.env.batch_size == (num_envs,)
        # Two rollouts of 16 steps contain six episodes of five steps with a reward of 2.
        assert list(training.ppo.episodes.episodes) == [(10.0, 5)] * (6 * num_envs)

    def test_an_environment_of_torchrl_trains(self) -> None:
        assert fit_two_rollouts(small(*GYM_ENV)).ppo.episodes.episodes

    def test_transforms_can_make_the_observation(self) -> None:
        keys = "in_keys: [th, thdot]"
        transforms = (
            f"transforms=[{{_target_: torchrl.envs.UnsqueezeTransform, dim: -1, {keys}, in_keys_inv: [th, thdot]}},"
            f"{{_target_: torchrl.envs.CatTensors, {keys}, out_key: observation, del_keys: false}},"
            "{_target_: torchrl.envs.StepCounter, max_steps: 5}]"
        )
        training = fit_two_rollouts(
            small("env=torchrl", "env._target_=torchrl.envs.PendulumEnv", transforms, "total_frames=32")
        )
        assert {length for _, length in training.ppo.episodes.episodes} == {5}

    def test_all_entries_are_observed_if_none_is_named_observation(self) -> None:
        pendulum = ("env=torchrl", "env._target_=torchrl.envs.PendulumEnv")
        transforms = "transforms=[{_target_: torchrl.envs.StepCounter, max_steps: 5}]"
        actor = fit_two_rollouts(small(*pendulum, transforms, "total_frames=32")).ppo.actor
        keys = {key if isinstance(key, str) else key[0] for key in actor.in_keys}
        assert keys == {"th", "thdot", "params"}

    def test_the_name_is_the_class(self) -> None:
        assert env_name(small("env=torchrl", "env._target_=ours.Walk")) == "ours.Walk"

    def test_changes_of_keys_that_the_environment_lacks_are_ignored(self) -> None:
        env = build_env(small("env=torchrl", "env._target_=ours.Walk"), seed=0, num_envs=7, render_mode="rgb_array")
        assert env.batch_size == (1,)


class TestSeeds:
    def test_differ_by_run_and_rank(self) -> None:
        grid = [(seed, rank) for seed in range(20) for rank in (*range(20), EVALUATION_RANK)]
        assert len({seed_for_rank(seed, rank) for seed, rank in grid}) == len(grid)

    def test_are_reproducible_32_bit_numbers(self) -> None:
        assert seed_for_rank(3, 1) == seed_for_rank(3, 1)
        assert 0 <= seed_for_rank(3, 1) < 2**32

    @pytest.mark.parametrize("words", [(), GYM_ENV], ids=["gymnasium", "torchrl"])
    def test_environments_differ_by_rank_and_are_reproducible(self, words: tuple[str, ...]) -> None:
        cfg = small(*words)
        envs = [build_training(cfg, rank).env for rank in (0, 0, 1)]
        first, repeated, other_rank = (env.reset()["observation"] for env in envs)
        for env in envs:
            env.close()
        assert torch.equal(first, repeated)
        assert not torch.isclose(first, other_rank).any()

    def test_training_is_bitwise_reproducible(self) -> None:
        one, two = (fit_two_rollouts(small("policy.normalize_observation=true")).ppo.state_dict() for _ in range(2))
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_must_not_be_negative(self) -> None:
        with pytest.raises(ConfigurationError, match="seed=-1"):
            build_training(small("seed=-1"), rank=0)


class TestMinibatches:
    @pytest.mark.parametrize("compile_mode", ["auto", "false"])
    @pytest.mark.parametrize(
        ("size", "suggested"),
        [(64, ["32"]), (20, ["16", "32"]), (5, ["4", "8"]), (0, ["1"])],
    )
    def test_must_divide_the_rollout(self, size: int, suggested: list[str], compile_mode: str) -> None:
        with pytest.raises(ConfigurationError, match=rf"minibatch_size={size} ") as raised:
            build_training(small(f"update.minibatch_size={size}", f"compile={compile_mode}"), rank=0)
        assert all(word in str(raised.value) for word in suggested)

    @pytest.mark.parametrize("compile_mode", ["auto", "false"])
    def test_an_empty_rollout_is_rejected(self, compile_mode: str) -> None:
        with pytest.raises(ConfigurationError, match=r"collector\.frames_per_env=0"):
            build_training(small("collector.frames_per_env=0", f"compile={compile_mode}"), rank=0)

    def test_a_missing_length_of_the_rollout_is_rejected(self) -> None:
        cfg = small()
        del cfg.collector.frames_per_env
        with pytest.raises(ConfigurationError, match=r"collector\.frames_per_env"):
            build_training(cfg, rank=0)


class TestCall:
    @pytest.mark.parametrize("arguments", [{}, {"num_envs": 1}], ids=["without arguments", "with arguments"])
    @pytest.mark.parametrize(
        ("node", "error", "words"),
        [
            ({"_target_": "ours.nothing"}, ConfigurationError, ["ours.nothing"]),
            ({"_target_": "no_such_module.thing"}, ConfigurationError, ["no_such_module.thing"]),
            ({"_target_": "ours.Images.observation_space"}, ConfigurationError, ["ours.Images.observation_space"]),
            ({"size": 3}, ConfigurationError, ["_target_", "size"]),
            ({"_target_": "torchppo.envs.make_env"}, ConfigurationError, ["make_env", "id"]),
            (
                {"_target_": "torchppo.envs.make_env", "id": "No-v0", "num_envs": 1},
                EnvironmentFailure,
                ["No-v0"],
            ),
        ],
        ids=["unknown name", "unknown module", "not callable", "no target", "missing key", "error of the target"],
    )
    def test_reports_a_mistake_in_one_line(
        self, node: dict[str, Any], error: type[Exception], words: list[str], arguments: dict[str, Any]
    ) -> None:
        with pytest.raises(error) as raised:
            call(OmegaConf.create(node), **arguments)
        assert "\n" not in str(raised.value)
        assert all(word in str(raised.value) for word in words)

    @pytest.mark.parametrize(
        "override",
        [
            *("+policy.foo=1", "+policy.body.foo=1", "+objective.foo=1", "+estimator.foo=1", "+update.foo=1"),
            *("+collector.foo=1", "+optimizer.foo=1", "+controller.lr.foo=1", "+ppo.foo=1", "+trainer.foo=1"),
            "transforms=[{_target_: torchrl.envs.RewardScaling, loc: 0, scale: 1, foo: 1}]",
        ],
    )
    def test_an_unknown_key_is_named_before_anything_runs(self, override: str) -> None:
        with pytest.raises(ConfigurationError, match="foo") as raised:
            build_trainer(small(override), []), build_training(small(override), rank=0)
        assert "\n" not in str(raised.value)

    def test_an_error_of_a_users_component_is_raised_unchanged(self) -> None:
        with pytest.raises(TypeError, match="unsupported operand"):
            build_training(small("policy._target_=ours.buggy"), rank=0)

    def test_lists_and_dictionaries_are_converted_to_python_types(self) -> None:
        made = call(OmegaConf.create({"_target_": "builtins.dict", "a": [1, {"b": 2}]}), c=(3,))
        assert (type(made["a"]), type(made["a"][1]), made["c"]) == (list, dict, (3,))


class TestEffects:
    @pytest.mark.parametrize(
        "words",
        [
            ["head=beta", "env.id=ours.FewIntegers"],
            ["policy.normalize_observation=true", "env.id=FrozenLake-v1"],
            ["controller@controller.clip_epsilon=linear", "objective=kl_penalty"],
            ["controller@controller.entropy_coeff=linear"],
        ],
        ids=" ".join,
    )
    def test_an_override_that_changes_nothing_is_refused(self, words: list[str]) -> None:
        with pytest.raises(ConfigurationError, match=re.escape(words[0])):
            build_training(small(*words), rank=0, overrides=words)
        build_training(small(*words), rank=0).close()  # as part of an experiment, it may have no effect

    @pytest.mark.parametrize(
        "words",
        [
            ["head=beta", "env=pendulum"],
            ["head=beta", "env.id=ours.ManyIntegers"],
            ["policy.normalize_observation=true"],
            ["controller@controller.entropy_coeff=linear", "objective.entropy_coeff=0.1"],
        ],
        ids=" ".join,
    )
    def test_other_overrides_are_accepted(self, words: list[str]) -> None:
        build_training(small(*words), rank=0, overrides=words).close()

    def test_fewer_frames_than_a_rollout_are_reported(self, caplog: pytest.LogCaptureFixture) -> None:
        build_training(small("total_frames=10"), rank=0).close()
        assert "total_frames=10" in caplog.text
        assert "32" in caplog.text


class TestTrainer:
    @pytest.mark.parametrize(
        "override",
        [
            *("trainer.precision=64-bits", "trainer.devices=0", "trainer.accelerator=abacus", "trainer.devices=[1]"),
            *("trainer.devices=-1", "trainer.devices='x,y'"),
        ],
    )
    def test_reports_an_error_of_lightning_in_one_line(self, override: str) -> None:
        with pytest.raises(ConfigurationError, match=re.escape(override.split("=")[1].strip("'"))) as raised:
            build_trainer(small(override), [])
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize(
        ("logger", "names"),
        [("csv", ["CSVLogger"]), ("[csv,tensorboard]", ["CSVLogger", "TensorBoardLogger"]), ("[]", [])],
    )
    def test_has_the_chosen_loggers(self, logger: str, names: list[str]) -> None:
        trainer = build_trainer(small(f"logger={logger}"), [])
        assert [type(one).__name__ for one in trainer.loggers] == names

    def test_reads_and_writes_nothing_in_the_current_directory(self) -> None:
        cfg = small()
        assert build_trainer(cfg, []).default_root_dir == cfg.run_dir

    def test_has_the_callbacks_of_the_configuration_and_those_of_the_caller(self) -> None:
        callback = Callback()
        override = "+trainer.callbacks=[{_target_: lightning.pytorch.callbacks.DeviceStatsMonitor, cpu_stats: false}]"
        callbacks = build_trainer(small(override), [callback]).callbacks  # type: ignore[attr-defined, unused-ignore]
        assert callback in callbacks
        assert "DeviceStatsMonitor" in [type(one).__name__ for one in callbacks]


class TestControllers:
    def test_are_built_for_the_coefficients_that_the_objective_has(self) -> None:
        words = [f"controller@controller.{name}=linear" for name in ("lr", "clip_epsilon", "entropy_coeff")]
        assert set(build_controllers(small(*words))) == {"lr", "clip_epsilon", "entropy_coeff"}
        assert set(build_controllers(small(*words, "objective=kl_penalty"))) == {"lr", "entropy_coeff"}

    def test_a_constant_coefficient_has_no_controller(self) -> None:
        assert (
            build_controllers(small(*(f"controller@controller.{name}=constant" for name in ("lr", "clip_epsilon"))))
            == {}
        )

    def test_take_their_own_options(self) -> None:
        cfg = small("controller@controller.lr=cosine", "controller.lr.final=0.2")
        quarter = 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2
        assert build_controllers(cfg)["lr"](0.25, {}, 1.0) == pytest.approx(quarter)


class DivideLearningRates(Callback):
    """Divides the learning rate by 1.5 after every rollout, and records the rates that were used."""

    used: ClassVar[list[float]] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.used.append(float(trainer.callback_metrics["train/lr"]))
        for group in trainer.optimizers[0].param_groups:
            group["lr"] /= 1.5


class TestSeams:
    def test_a_callback_may_set_the_learning_rate_of_eager_and_traced_steps(self) -> None:
        weights = []
        for mode in ("false", "trace"):
            DivideLearningRates.used.clear()
            callbacks = "+trainer.callbacks=[{_target_: ours.DivideLearningRates}]"
            training = fit_two_rollouts(small(f"compile={mode}", "controller@controller.lr=constant", callbacks))
            assert DivideLearningRates.used == pytest.approx([0.003, 0.002])
            weights.append(list(training.ppo.parameters()))
        for eager, traced in zip(*weights, strict=True):
            torch.testing.assert_close(traced, eager, rtol=0, atol=1e-6)

    @pytest.mark.parametrize("mode", ["false", "trace"])
    def test_count_bonus_and_kl_adaptive_learning_rate_continue_from_a_checkpoint(
        self, mode: str, tmp_path: Path
    ) -> None:
        words = ["env.id=FrozenLake-v1", "intrinsic=count", "controller@controller.lr=kl_adaptive", f"compile={mode}"]
        words += ["controller.lr.target_kl=1000", "controller.lr.maximum=1.0"]
        cfg = small(*words)
        training, trainer = build_training(cfg, rank=0), build_trainer(cfg, [])
        trainer.fit(training.ppo, train_dataloaders=training.collector)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        training.close()
        cfg = small(*words, f"total_frames={2 * cfg.total_frames}")
        resumed, trainer = build_training(cfg, rank=0), build_trainer(cfg, [])
        trainer.fit(resumed.ppo, train_dataloaders=resumed.collector, ckpt_path=tmp_path / "last.ckpt")
        resumed.close()
        bonus = resumed.ppo.reward_models["count"]
        assert int(bonus.counts.sum()) == resumed.ppo.frames == cfg.total_frames
        assert resumed.ppo.optimizer.param_groups[0]["lr"] == pytest.approx(0.003 * 1.5**4)
        assert {"train/kl", "train/loss_count", "rollout/reward_count"} <= set(trainer.callback_metrics)
