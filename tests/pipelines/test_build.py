"""From a configuration to objects: every choice of every group trains, and so do the user's own parts."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

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
    build_env,
    build_ppo,
    build_trainer,
    build_training,
    call,
    env_name,
    schedules_of,
    seed_for_rank,
)
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.collectors.collector import seconds_of
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
    """Noise of 36x36 pixels, channels first; the action that is the sign of the mean pays."""

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


class Nested(gymnasium.Env[Any, Any]):
    """Random observations of every kind, one within another; one part of the action pays."""

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
    """A TorchRL environment: the observation counts the steps, each pays 2, an episode takes `length`."""

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
    """A part with a mistake of its own."""
    raise TypeError("unsupported operand type(s) for +: 'int' and 'str'")


class Rates(Callback):
    """Notes the learning rate that each rollout was learnt with."""

    def __init__(self) -> None:
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As `torchppo train` has it: with more, networks this small take ten times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """This file under a name that a configuration can use, its environment under one that Gymnasium knows."""
    monkeypatch.setitem(sys.modules, "ours", sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    for made in (Images, Nested):
        gymnasium.register(f"{made.__name__}-v0", entry_point=made)  # type: ignore[arg-type]
    yield
    for made in (Images, Nested):
        del gymnasium.registry[f"{made.__name__}-v0"]


class PlainCollector:
    """What is asked of a collector, and no more."""

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


def small(*overrides: str) -> DictConfig:
    """A configuration with a folder of its own; TorchRL's environments have no `num_envs`."""
    words = [word for word in SMALL if "env=torchrl" not in overrides or not word.startswith("env.")]
    return compose([*words, f"run_dir=run{next(NUMBERS)}", *overrides])


def learn(cfg: DictConfig, *callbacks: Callback) -> Training:
    """Two rollouts of learning, after which every weight is another one, and none is lost."""
    torch.manual_seed(0)
    training = build_training(cfg, rank=0)
    before = [param.detach().clone() for param in training.ppo.parameters()]
    build_trainer(cfg, list(callbacks)).fit(training.ppo, train_dataloaders=training.collector)
    training.env.close()  # or TorchRL's would take more threads whenever it is thrown away
    after = list(training.ppo.parameters())
    assert training.ppo.num_rollouts == 2
    assert training.ppo.frames == cfg.total_frames
    assert all(param.isfinite().all() for param in after)
    assert all(not torch.equal(new, old) for new, old in zip(after, before, strict=True))
    return training


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


def rewards(cfg: DictConfig, steps: int) -> list[float]:
    """What one environment pays in its first steps."""
    rollout = build_env(cfg, seed=0).rollout(steps, break_when_any_done=False)
    return [float(reward) for reward in rollout["next", "reward"][0].flatten()]


def test_what_an_environment_of_torchrl_raises_is_its_own_failure(capfd: pytest.CaptureFixture[str]) -> None:
    cfg = small(*GYM_ENV)
    cfg.env.env_name = "Nowhere-v1"
    with pytest.raises(EnvironmentFailure, match=r"GymEnv failed: NameNotFound: .*Nowhere"):
        build_env(cfg, seed=0)
    assert "Traceback" in capfd.readouterr().err


class TestEveryChoiceTrains:
    @pytest.mark.parametrize("memory", ["none", "gru"])
    @pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
    @pytest.mark.parametrize("objective", choices("objective"))
    def test_objective(self, objective: str, env: str, memory: str) -> None:
        cfg = small(f"objective={objective}", f"env.id={env}", f"memory={memory}")
        assert type(learn(cfg).ppo.objective) is get_object(cfg.objective._target_)

    @pytest.mark.parametrize("critic", ["huber", "popart", "hl_gauss"])
    def test_an_objective_that_would_not_ask_the_critic_for_its_error_is_refused(self, critic: str) -> None:
        with pytest.raises(ConfigurationError, match=r"ClipPPOLoss judges values .*choose critic=mse"):
            build_training(small("objective=torchrl_clip", f"critic={critic}"), rank=0)

    def test_an_objective_that_looks_at_values_is_no_graph_unless_it_is_asked_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("torchppo.pipelines.build.STEPS_TO_TRACE", 0)
        training = learn(small("objective=torchrl_clip", "compile=auto"))
        assert training.ppo.compile_step is False

    @pytest.mark.parametrize("policy", choices("policy"))
    def test_policy(self, policy: str) -> None:
        sees = policy in ("cnn", "resnet")
        ppo = learn(small(f"policy={policy}", f"env.id={'Images-v0' if sees else 'CartPole-v1'}")).ppo
        assert any(isinstance(module, nn.Conv2d) for module in ppo.actor.modules()) == sees

    @pytest.mark.parametrize("words", [("env.id=CartPole-v1",), ("env.id=Images-v0", "policy=cnn")], ids=["mlp", "cnn"])
    @pytest.mark.parametrize("memory", choices("memory"))
    def test_memory_shared_and_in_mixed_precision(self, memory: str, words: tuple[str, ...]) -> None:
        cfg = small(*words, f"memory={memory}", "policy.shared=true", "trainer.precision=bf16-mixed")
        assert memory_keys(learn(cfg).ppo.actor) == ([] if memory == "none" else ["actor_memory"])

    @pytest.mark.parametrize("memory", ["none", "gru"])
    @pytest.mark.parametrize("head", choices("head"))
    def test_head(self, head: str, memory: str) -> None:
        learn(small("env.id=Pendulum-v1", f"head={head}", f"memory={memory}"))

    @pytest.mark.parametrize("memory", ["none", "gru"])
    @pytest.mark.parametrize("critic", choices("critic"))
    def test_critic(self, critic: str, memory: str) -> None:
        cfg = small(f"critic={critic}", f"memory={memory}")
        heads = [module for module in learn(cfg).ppo.critic.modules() if isinstance(module, ValueHead)]
        assert [type(head) for head in heads] == [get_object(cfg.critic.head._target_)]

    @pytest.mark.parametrize("memory", ["none", "gru"])
    @pytest.mark.parametrize("collector", choices("collector"))
    def test_collector(self, collector: str, memory: str) -> None:
        assert {"collect"} <= {*seconds_of(learn(small(f"collector={collector}", f"memory={memory}")).collector)}

    def test_a_collector_of_a_users_own(self) -> None:
        cfg = small()
        cfg.collector = {"_target_": "ours.PlainCollector", "frames_per_env": 16}
        assert isinstance(learn(cfg).collector, PlainCollector)

    @pytest.mark.parametrize("estimator", choices("estimator"))
    def test_estimator(self, estimator: str) -> None:
        cfg = small(f"estimator={estimator}", "estimator.gamma=0.5")
        trained = learn(cfg).ppo.estimator
        assert type(trained) is get_object(cfg.estimator._target_)
        assert float(trained.gamma) == 0.5

    @pytest.mark.parametrize("words", [("estimator.lmbda=0",), ("estimator.gamma=0",), ("critic.lmbda=0",)])
    def test_no_discount_at_all_is_one_step_ahead(self, words: tuple[str, ...]) -> None:
        trained = learn(small(*words)).ppo
        estimator = trained.critic_estimator or trained.estimator
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
        trained = learn(cfg).ppo.optimizers(use_pl_optimizer=False)
        assert type(trained) is get_object(cfg.optimizer._target_)
        assert trained.param_groups[0]["eps"] == 1e-5

    @pytest.mark.parametrize("reward", choices("reward"))
    def test_reward(self, reward: str) -> None:
        normalizer = learn(small(f"reward={reward}")).ppo.reward_normalizer
        names = {"raw": "NoneType", "clipped": "RewardClipper", "normalized": "RewardNormalizer"}
        assert type(normalizer).__name__ == names[reward]

    @pytest.mark.parametrize("schedule", choices("schedule"))
    def test_schedule(self, schedule: str) -> None:
        """The second rollout is learnt from at half of the training, which is the end of the second of four parts."""
        factor = {"constant": 1.0, "linear": 0.5, "cosine": 0.5, "step": 0.25}[schedule]
        places = ("lr", "clip_epsilon", "entropy_coeff")
        words = [f"schedule@schedule.{place}={schedule}" for place in places]
        seen = Rates()
        ppo = learn(small(*words, "objective.entropy_coeff=0.1"), seen).ppo
        assert seen.rates == pytest.approx([0.003, 0.003 * factor])
        assert float(ppo.objective.clip_epsilon) == pytest.approx(0.2 * factor)
        assert float(ppo.objective.entropy_coeff) == pytest.approx(0.1 * factor)

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
        learn(small(override))

    @pytest.mark.parametrize("memory", ["none", "transformer"])
    @pytest.mark.parametrize("workers", ["0", "2"])
    def test_spaces_within_spaces(self, workers: str, memory: str) -> None:
        normalized = "policy.normalize_observation=true"
        learn(small("env.id=Nested-v0", f"env.num_workers={workers}", f"memory={memory}", normalized))

    @pytest.mark.parametrize(
        ("memory", "size"), [("gru", "policy.memory.width=8"), ("transformer_xl", "policy.memory.num_layers=1")]
    )
    @pytest.mark.parametrize("graph", ["trace", "true"])
    def test_a_memory_learns_the_same_with_a_graph(self, graph: str, memory: str, size: str) -> None:
        short = ["env.num_envs=4", "collector.frames_per_env=4", "total_frames=32", "policy.shared=true"]
        words = [*short, f"memory={memory}", size, "policy.body.num_cells=[8]", "optimizer.eps=1e-2"]
        by_graph, eager = (learn(small(*words, f"compile={choice}")).ppo for choice in (graph, "false"))
        assert by_graph.compile_step in ("trace", True)
        for one, other in zip(by_graph.parameters(), eager.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


class TestGymnasiumEnvironments:
    def test_wrappers_of_the_users_apply_in_the_order_of_the_list(self) -> None:
        first, second = ("{_target_: ours." + name + ", _partial_: true}" for name in ("plus_one", "times_ten"))
        assert rewards(small(f"env.wrappers=[{first},{second}]"), 2) == [20.0, 20.0]
        assert rewards(small(f"env.wrappers=[{second},{first}]"), 2) == [11.0, 11.0]

    def test_transforms_of_torchrl_apply_in_the_order_of_the_list(self) -> None:
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
        ppo = learn(cfg).ppo
        assert ppo.episodes
        assert all(episode_reward == length for episode_reward, length in ppo.episodes)

    def test_without_transforms_they_are_stepped_on_arrays(self) -> None:
        assert isinstance(build_training(small(), rank=0).env, VectorEnv)

    def test_are_called_by_their_id(self) -> None:
        assert env_name(small()) == "CartPole-v1"


class TestTorchRLEnvironments:
    @pytest.mark.parametrize(
        ("words", "num_envs"),
        [(["env._target_=ours.Walk", "+env.batch=[2]"], 2), (["env._target_=ours.Walk"], 1)],
        ids=["batched", "alone"],
    )
    def test_train_with_raw_returns_and_lengths(self, words: list[str], num_envs: int) -> None:
        cfg = small("env=torchrl", *words, f"total_frames={32 * num_envs}", "reward=normalized")
        training = learn(cfg)
        assert training.env.batch_size == (num_envs,)
        # two rollouts of 16 steps hold six episodes of five steps, each of which pays 2
        assert list(training.ppo.episodes) == [(10.0, 5)] * (6 * num_envs)

    def test_of_torchrl_itself_train(self) -> None:
        assert learn(small(*GYM_ENV)).ppo.episodes

    def test_without_an_observation_train_with_transforms_that_make_one(self) -> None:
        keys = "in_keys: [th, thdot]"
        transforms = (
            f"transforms=[{{_target_: torchrl.envs.UnsqueezeTransform, dim: -1, {keys}, in_keys_inv: [th, thdot]}},"
            f"{{_target_: torchrl.envs.CatTensors, {keys}, out_key: observation, del_keys: false}},"
            "{_target_: torchrl.envs.StepCounter, max_steps: 5}]"
        )
        training = learn(small("env=torchrl", "env._target_=torchrl.envs.PendulumEnv", transforms, "total_frames=32"))
        assert {length for _, length in training.ppo.episodes} == {5}

    def test_without_an_observation_are_told_what_they_have_instead(self) -> None:
        with pytest.raises(ConfigurationError, match=r"observation.*thdot") as told:
            build_training(small("env=torchrl", "env._target_=torchrl.envs.PendulumEnv"), rank=0)
        assert "\n" not in str(told.value)

    def test_are_called_by_their_class(self) -> None:
        assert env_name(small("env=torchrl", "env._target_=ours.Walk")) == "ours.Walk"

    def test_keys_that_only_others_have_are_left_out(self) -> None:
        env = build_env(small("env=torchrl", "env._target_=ours.Walk"), seed=0, num_envs=7, render_mode="rgb_array")
        assert env.batch_size == (1,)


class TestSeeds:
    def test_differ_for_every_run_and_rank(self) -> None:
        grid = [(seed, rank) for seed in range(20) for rank in (*range(20), EVALUATION_RANK)]
        assert len({seed_for_rank(seed, rank) for seed, rank in grid}) == len(grid)

    def test_are_the_same_every_time(self) -> None:
        assert seed_for_rank(3, 1) == seed_for_rank(3, 1)
        assert 0 <= seed_for_rank(3, 1) < 2**32

    @pytest.mark.parametrize("words", [(), GYM_ENV], ids=["gymnasium", "torchrl"])
    def test_make_the_environments_of_every_rank_others_and_each_repeatable(self, words: tuple[str, ...]) -> None:
        cfg = small(*words)
        envs = [build_training(cfg, rank).env for rank in (0, 0, 1)]
        first, again, other = (env.reset()["observation"] for env in envs)
        for env in envs:
            env.close()
        assert torch.equal(first, again)
        assert not torch.isclose(first, other).any()

    def test_repeat_a_whole_training(self) -> None:
        one, two = (learn(small("policy.normalize_observation=true")).ppo.state_dict() for _ in range(2))
        assert all(torch.equal(one[name], two[name]) for name in one)

    def test_must_not_be_negative(self) -> None:
        with pytest.raises(ConfigurationError, match="seed=-1"):
            build_training(small("seed=-1"), rank=0)


class TestMinibatches:
    @pytest.mark.parametrize("compile_", ["auto", "false"])
    @pytest.mark.parametrize(
        ("size", "nearest"),
        [(64, ["larger", "32"]), (20, ["does not divide", "16", "32"]), (5, ["does not divide", "4", "8"]), (0, ["1"])],
    )
    def test_must_divide_the_rollout_of_the_environments(self, size: int, nearest: list[str], compile_: str) -> None:
        with pytest.raises(ConfigurationError, match=rf"minibatch_size={size} ") as told:
            build_training(small(f"update.minibatch_size={size}", f"compile={compile_}"), rank=0)
        assert all(word in str(told.value) for word in nearest)

    @pytest.mark.parametrize("compile_", ["auto", "false"])
    def test_cannot_divide_a_rollout_of_nothing(self, compile_: str) -> None:
        with pytest.raises(ConfigurationError, match=r"collector\.frames_per_env=0 must be at least 1"):
            build_training(small("collector.frames_per_env=0", f"compile={compile_}"), rank=0)

    def test_need_a_length_of_a_rollout_whatever_the_collector(self) -> None:
        cfg = small()
        del cfg.collector.frames_per_env
        with pytest.raises(ConfigurationError, match=r"collector\.frames_per_env.* is missing"):
            build_training(cfg, rank=0)


class TestCall:
    @pytest.mark.parametrize("arguments", [{}, {"num_envs": 1}], ids=["alone", "with objects"])
    @pytest.mark.parametrize(
        ("node", "error", "words"),
        [
            ({"_target_": "ours.nothing"}, ConfigurationError, ["ours.nothing"]),
            ({"_target_": "no_such_module.thing"}, ConfigurationError, ["no_such_module.thing"]),
            ({"_target_": "ours.Images.observation_space"}, ConfigurationError, ["ours.Images.observation_space"]),
            ({"size": 3}, ConfigurationError, ["_target_", "size"]),
            ({"_target_": "torchppo.envs.make_vector_env"}, ConfigurationError, ["make_vector_env", "id"]),
            (
                {"_target_": "torchppo.envs.make_vector_env", "id": "No-v0", "num_envs": 1},
                EnvironmentFailure,
                ["No-v0"],
            ),
        ],
        ids=["an unknown name", "an unknown module", "no callable", "no target", "a missing key", "a refusal"],
    )
    def test_tells_a_mistake_in_one_line(
        self, node: dict[str, Any], error: type[Exception], words: list[str], arguments: dict[str, Any]
    ) -> None:
        with pytest.raises(error) as told:
            call(OmegaConf.create(node), **arguments)
        assert "\n" not in str(told.value)
        assert all(word in str(told.value) for word in words)

    @pytest.mark.parametrize(
        "override",
        [
            *("+policy.foo=1", "+policy.body.foo=1", "+objective.foo=1", "+estimator.foo=1", "+update.foo=1"),
            *("+collector.foo=1", "+optimizer.foo=1", "+schedule.lr.foo=1", "+ppo.foo=1", "+trainer.foo=1"),
            "transforms=[{_target_: torchrl.envs.RewardScaling, loc: 0, scale: 1, foo: 1}]",
        ],
    )
    def test_an_unknown_keyword_is_named_before_anything_runs(self, override: str) -> None:
        cfg = small(override)
        with pytest.raises(ConfigurationError, match="foo") as told:
            build_trainer(cfg, []), build_training(cfg, rank=0)
        assert "\n" not in str(told.value)

    def test_a_bug_of_the_users_part_keeps_its_traceback(self) -> None:
        with pytest.raises(TypeError, match="unsupported operand"):
            build_training(small("policy._target_=ours.buggy"), rank=0)

    def test_lists_and_dictionaries_arrive_as_pythons_own(self) -> None:
        made = call(OmegaConf.create({"_target_": "builtins.dict", "a": [1, {"b": 2}]}), c=(3,))
        assert (type(made["a"]), type(made["a"][1]), made["c"]) == (list, dict, (3,))


class TestTrainer:
    @pytest.mark.parametrize(
        "override", ["trainer.precision=64-bits", "trainer.devices=0", "trainer.accelerator=abacus"]
    )
    def test_refuses_in_one_line_what_lightning_refuses(self, override: str) -> None:
        with pytest.raises(ConfigurationError, match=override.split("=")[1]) as told:
            build_trainer(small(override), [])
        assert "\n" not in str(told.value)

    @pytest.mark.parametrize(
        ("logger", "names"),
        [("csv", ["CSVLogger"]), ("[csv,tensorboard]", ["CSVLogger", "TensorBoardLogger"]), ("[]", [])],
    )
    def test_has_the_loggers_that_were_chosen(self, logger: str, names: list[str]) -> None:
        trainer = build_trainer(small(f"logger={logger}"), [])
        assert [type(one).__name__ for one in trainer.loggers] == names

    def test_has_the_callbacks_of_the_configuration_beside_ours(self) -> None:
        ours = Callback()
        own = "+trainer.callbacks=[{_target_: lightning.pytorch.callbacks.DeviceStatsMonitor, cpu_stats: false}]"
        callbacks = build_trainer(small(own), [ours]).callbacks  # type: ignore[attr-defined, unused-ignore]
        assert ours in callbacks
        assert "DeviceStatsMonitor" in [type(one).__name__ for one in callbacks]

    def test_refuses_a_logger_of_its_own(self) -> None:
        with pytest.raises(ConfigurationError, match=r"trainer.logger is not read; choose with logger=csv"):
            build_trainer(small("+trainer.logger=true"), [])


class TestSchedules:
    def test_are_those_of_the_coefficients_that_the_objective_has(self) -> None:
        assert set(schedules_of(small())) == {"lr", "clip_epsilon", "entropy_coeff"}
        assert set(schedules_of(small("objective=kl_penalty"))) == {"lr", "entropy_coeff"}

    def test_take_their_own_options(self) -> None:
        cfg: Callable[..., DictConfig] = small
        words = ("schedule@schedule.lr=cosine", "schedule.lr.final=0.2")
        quarter = 0.2 + 0.8 * (1 + math.cos(math.pi / 4)) / 2
        assert schedules_of(cfg(*words))["lr"](0.25) == pytest.approx(quarter)


@pytest.mark.parametrize(
    ("total_frames", "compile_", "expected"),
    [
        *((512, "auto", False), (10_000, "auto", "trace"), (10_000_000, "auto", True)),
        *((512, "true", True), (512, "trace", "trace"), (10_000_000, "false", False)),
    ],
)
def test_long_trainings_run_on_graphs_unless_told_otherwise(
    total_frames: int, compile_: str, expected: Compile
) -> None:
    cfg = small(f"total_frames={total_frames}", f"compile={compile_}")
    assert build_ppo(cfg, build_env(cfg, seed=0)).compile_step == expected


@pytest.mark.parametrize("optimizer", ["optimizer._target_=torch.optim.RMSprop", "+optimizer.amsgrad=true"])
def test_an_optimiser_that_graphs_do_not_know_is_run_as_it_is(optimizer: str) -> None:
    cfg = small("total_frames=10_000_000", "compile=auto", optimizer)
    assert build_ppo(cfg, build_env(cfg, seed=0)).compile_step is False
