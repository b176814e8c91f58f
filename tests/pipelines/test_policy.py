"""A loaded policy acts in a user's own loop as it does in `torchppo eval`."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torchrl.envs import ExplorationType, TransformedEnv, set_exploration_type
from torchrl.modules.utils import get_env_transforms_from_module
from torchrl.objectives import ClipPPOLoss as TorchRLClipPPOLoss

import torchppo
from torchppo.envs import VectorEnv, make_env
from torchppo.envs.wrappers import ActionMask
from torchppo.errors import CheckpointError, ConfigurationError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import GRU
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.episodes import evaluate
from torchppo.pipelines.evaluate import evaluate_checkpoint
from torchppo.pipelines.policy import Policy, load_policy
from torchppo.pipelines.saving.plain_checkpoints import load_checkpoint

RUNS = {
    "cartpole": ["experiment=cartpole", "policy.body.num_cells=[8]", "collector.frames_per_env=32"],
    "hopper": ["experiment=hopper", "collector.frames_per_env=64", "policy.body.num_cells=[8]"],
    "pong": [
        *("experiment=pong", "env.num_envs=2", "collector.frames_per_env=8", "policy.body.num_features=8"),
        "+env.max_num_frames_per_episode=200",
    ],
    "recall": [
        *("experiment=recall", "policy=transformer", "env.num_envs=2", "collector.frames_per_env=8", "+env.delay=4"),
        *("update.sequence_length=8", "policy.body.num_cells=[8]", "policy.memory.width=8"),
        *("policy.memory.num_layers=1", "policy.memory.num_heads=2", "policy.memory.context_length=8"),
    ],
    "lunarlander": [
        *("experiment=lunarlander", "+env.continuous=true", "env.num_envs=2", "collector.frames_per_env=32"),
        "policy.body.num_cells=[8]",
    ],
    "transforms": [
        *("experiment=cartpole", "policy.body.num_cells=[8]", "collector.frames_per_env=8"),
        "transforms=[{_target_: torchrl.envs.ObservationNorm, in_keys: [observation], loc: 0.0, scale: 2.0}]",
    ],
}
"""Tiny trainings of one or two rollouts."""
PACKAGES = {"hopper": "mujoco", "pong": "ale_py", "lunarlander": "Box2D"}
TRAINED: dict[str, Path] = {}


@pytest.fixture
def checkpoint_of(tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """A function that trains one of `RUNS`, once per session, and returns its checkpoint."""

    def train(name: str) -> Path:
        if importlib.util.find_spec(PACKAGES.get(name, "torch")) is None:
            pytest.skip(f"needs {PACKAGES[name]}")
        if name not in TRAINED:
            run_dir = tmp_path_factory.mktemp(name) / "run"
            quick = ["total_frames=1", "update.minibatch_size=16", "update.epochs=1", "eval.every_frames=null"]
            quick += ["eval.episodes=1", "eval.stop_at=null", "eval.video=false", "compile=false", "logger=[]"]
            assert main(["train", *RUNS[name], *quick, f"run_dir={run_dir}"]) == 0
            TRAINED[name] = run_dir / "checkpoints" / "last.ckpt"
        return TRAINED[name]

    return train


@pytest.fixture
def trained_from_python(make: Any, fit: Any, tmp_path: Path) -> Path:
    fit(*make(normalize_observation=True)).save_checkpoint(tmp_path / "python.ckpt")
    return tmp_path / "python.ckpt"


def new_actor(env: VectorEnv, **options: Any) -> Any:
    """Build an actor as the training from Python does."""
    options = {"body": partial(mlp, num_cells=[16]), "normalize_observation": True, **options}
    return make_actor_critic(env.observation_spec, env.full_action_spec["action"], **options).actor


def returns_of_own_loop(policy: Policy, env: gymnasium.Env[Any, Any], episodes: int, seed: int) -> list[float]:
    """Run episodes as a user does; the first one starts with the seed that a `VectorEnv` derives from `seed`."""
    returns = []
    derived: int | None = int(np.random.SeedSequence(seed).generate_state(1)[0] >> 2)
    for _ in range(episodes):
        observation, _ = env.reset(seed=derived)
        policy.reset()
        derived, done, total = None, False, 0.0
        while not done:
            action = policy(observation)
            assert env.action_space.contains(action)
            observation, reward, terminated, truncated, _ = env.step(action)
            done, total = terminated or truncated, total + float(reward)
        returns.append(total)
    env.close()
    return returns


class TestEvaluation:
    @pytest.mark.parametrize("name", RUNS)
    def test_three_lines_return_what_torchppo_eval_returns(self, name: str, checkpoint_of: Callable[..., Path]) -> None:
        path = checkpoint_of(name)
        expected = evaluate_checkpoint(path, episodes=3, seed=5, video=None)

        policy = torchppo.load_policy(path)
        env = policy.make_env(num_envs=3, seed=5)
        evaluation = torchppo.evaluate(policy.actor, env, episodes=3)

        env.close()
        assert evaluation.mean == expected["eval_return_mean"]
        assert evaluation.std == expected["eval_return_std"]
        assert np.mean(evaluation.lengths) == expected["eval_length_mean"]

    def test_torchrl_adds_the_recurrent_states_of_a_rollout(self, checkpoint_of: Callable[..., Path]) -> None:
        policy = load_policy(checkpoint_of("recall"))
        env = policy.make_env(num_envs=1, seed=5)
        returns = evaluate(policy.actor, env, episodes=1).returns
        env.set_seed(5)
        env = TransformedEnv(env, get_env_transforms_from_module(policy.actor), auto_unwrap=True)
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            rollout = env.rollout(100, policy.actor)
        env.close()
        assert rollout["actor_memory"].any(-1).any(-1)[0].tolist() == [False] + [True] * (rollout.shape[1] - 1)
        assert [float(rollout["next", "episode_reward"][0, -1])] == returns

    @pytest.mark.parametrize("name", ["cartpole", "hopper", "lunarlander", "recall"])
    def test_an_own_loop_with_the_same_seeds_has_the_same_returns(
        self, name: str, checkpoint_of: Callable[..., Path]
    ) -> None:
        policy = load_policy(checkpoint_of(name))
        env = policy.make_env(seed=5)
        expected = evaluate(policy.actor, env, episodes=3).returns
        env.close()
        assert returns_of_own_loop(policy, policy.make_gymnasium_env(), 3, seed=5) == pytest.approx(expected, rel=1e-6)

    def test_own_environment_may_have_other_keys(self, checkpoint_of: Callable[..., Path]) -> None:
        env = load_policy(checkpoint_of("recall")).make_gymnasium_env(delay=7, max_episode_steps=3)
        assert (env.unwrapped.delay, env.spec.max_episode_steps) == (7, 3)

    def test_atari_games_have_no_single_environment(self, checkpoint_of: Callable[..., Path]) -> None:
        with pytest.raises(ConfigurationError, match=r"ALE/Pong-v5.*make_env"):
            load_policy(checkpoint_of("pong")).make_gymnasium_env()

    def test_a_training_from_python_acts_as_in_its_evaluation(self, trained_from_python: Path) -> None:
        env = make_env("CartPole-v1")
        policy = load_policy(trained_from_python, actor=new_actor(env), env=env)
        env.set_seed(5)
        expected = evaluate(policy.actor, env, episodes=3).returns
        assert returns_of_own_loop(policy, gymnasium.make("CartPole-v1"), 3, seed=5) == expected


class TestCall:
    def test_samples_only_if_it_is_asked_to(self, checkpoint_of: Callable[..., Path]) -> None:
        policy = load_policy(checkpoint_of("lunarlander"))
        observation = np.zeros(8, np.float32)
        assert (policy(observation) == policy(observation)).all()
        assert (policy(observation, deterministic=False) != policy(observation, deterministic=False)).any()

    def test_uses_the_statistics_of_the_normalizer(self, checkpoint_of: Callable[..., Path]) -> None:
        policy = load_policy(checkpoint_of("hopper"))
        counts = [value.item() for name, value in policy.actor.state_dict().items() if name.endswith("moments.count")]
        assert counts == [64]

    @pytest.mark.parametrize("is_discrete", [True, False])
    def test_one_observation_of_images_text_and_numbers_or_a_batch(self, is_discrete: bool) -> None:
        observations = spaces.Dict(
            image=spaces.Box(0, 255, (2, 4, 4), np.uint8), level=spaces.Discrete(3, start=1), word=spaces.Text(4)
        )
        actions = spaces.Discrete(4, start=2) if is_discrete else spaces.Dict(push=spaces.Box(-1, 1, (2,)))
        env = SpacesEnv(observations, actions)
        policy = Policy(new_actor(make_env(lambda: env), normalize_observation=False), env)
        batch = {"image": np.zeros((2, 2, 4, 4), np.uint8), "level": np.array([1, 3]), "word": ("on", "off")}
        both = policy(batch)
        assert gymnasium.vector.utils.batch_space(actions, 2).contains(both)
        for index, element in enumerate([{"level": 1, "word": "on"}, {"level": 3, "word": "off"}]):
            single = policy({**element, "image": batch["image"][index]})
            assert actions.contains(single)
            if is_discrete:
                assert single == both[index]
            else:
                np.testing.assert_allclose(single["push"], both["push"][index], rtol=1e-5, atol=1e-6)

    @pytest.mark.parametrize(
        "space",
        [
            spaces.Box(-1, 1, (), np.float32),
            spaces.Box(100, 200, (2, 3), np.float64),
            spaces.Box(0, 255, (2,), np.uint8),
            spaces.Box(np.array([100, -1], np.float32), np.array([np.inf, 1], np.float32)),
            spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[1, 0], [-2, 0]]),
            spaces.Dict(a=spaces.MultiBinary((2, 2)), b=spaces.Tuple([spaces.Box(-3, 7, (), np.int32)])),
        ],
        ids=str,
    )
    def test_actions_of_any_shape_and_dtype_are_in_the_action_space(self, space: spaces.Space[Any]) -> None:
        env = SpacesEnv(spaces.Box(-1, 1, (3,)), space)
        policy = Policy(new_actor(make_env(lambda: env), normalize_observation=False), env)
        for deterministic in (True, False):
            assert space.contains(policy(np.zeros(3, np.float32), deterministic=deterministic))

    def test_a_recurrent_policy_does_not_need_the_observations_of_the_critic(self) -> None:
        parts = {"a": spaces.Box(-1, 1, (3,)), "b": spaces.Box(-1, 1, (2,))}
        env = SpacesEnv(spaces.Dict(parts), spaces.Discrete(2))
        options = {"actor_observations": ["a"], "critic_observations": ["b"], "memory": partial(GRU, width=4)}
        actor = new_actor(make_env(lambda: env), normalize_observation=False, **options)
        policy = Policy(actor, SpacesEnv(spaces.Dict(a=parts["a"]), spaces.Discrete(2)))
        for _ in range(2):
            assert env.action_space.contains(policy({"a": np.zeros(3, np.float32)}))

    def test_chooses_only_valid_actions(self) -> None:
        env = ActionMask(MaskedEnv())
        policy = Policy(new_actor(make_env(MaskedEnv, wrappers=[ActionMask]), normalize_observation=False), env)
        observation, _ = env.reset()
        assert policy(observation) == 2
        assert {policy(observation, deterministic=False) for _ in range(20)} == {2}

    @pytest.mark.parametrize("observation", [np.zeros(5), np.zeros((2, 5))])
    def test_an_observation_of_another_shape_raises(self, observation: Any, checkpoint_of: Callable[..., Path]) -> None:
        policy = load_policy(checkpoint_of("cartpole"))
        with pytest.raises(ConfigurationError) as raised:
            policy(observation)
        message = str(raised.value)
        assert str(observation.shape) in message
        assert "(4,)" in message
        assert "\n" not in message

    def test_transforms_are_not_skipped(self, checkpoint_of: Callable[..., Path]) -> None:
        path = checkpoint_of("transforms")
        with pytest.raises(ConfigurationError, match="transforms"):
            load_policy(path)(np.zeros(4))
        with pytest.raises(ConfigurationError, match=r"transforms.*policy\.make_env"):
            load_policy(path, env=gymnasium.make("CartPole-v1"))

    def test_without_spaces_raises(self, trained_from_python: Path) -> None:
        policy = load_policy(trained_from_python, actor=new_actor(make_env("CartPole-v1")))
        with pytest.raises(ConfigurationError, match=r"env=env.*policy\.actor"):
            policy(np.zeros(4))


class TestRecurrentState:
    @pytest.fixture
    def env(self) -> VectorEnv:
        return make_env("CartPole-v1", 2)

    @pytest.fixture
    def policies(self, env: VectorEnv) -> list[Policy]:
        """Return three policies with the same weights and separate states."""
        torch.manual_seed(0)
        actor = new_actor(env, memory=GRU)
        return [Policy(actor, env) for _ in range(3)]

    def state(self, policy: Policy) -> torch.Tensor:
        return policy._state["actor_memory"]

    def test_of_a_batch_is_reset_where_episodes_begin(self, policies: list[Policy]) -> None:
        batch, *singles = policies
        observations = np.random.default_rng(0).normal(size=(6, 2, 4))
        begins = np.array([[1, 1], [0, 0], [1, 0], [0, 0], [0, 1], [0, 0]], bool)
        for observation, is_init in zip(observations, begins, strict=True):
            batch(observation, is_init=is_init)
            for index, single in enumerate(singles):
                if is_init[index]:
                    single.reset()
                single(observation[index])
                torch.testing.assert_close(self.state(batch)[index], self.state(single)[0])

    def test_agrees_with_a_vector_environment_that_resets_automatically(self, checkpoint_of: Any) -> None:
        policy = load_policy(checkpoint_of("recall"))
        make_single = partial(gymnasium.make, "torchppo/Recall-v0", delay=4)
        vector = SyncVectorEnv([make_single] * 2, autoreset_mode=AutoresetMode.SAME_STEP)
        first = int(np.random.SeedSequence(3).generate_state(1)[0] >> 2)
        observation, _ = vector.reset(seed=first)
        is_init, returns = np.ones(2, bool), []
        while len(returns) < 6:
            observation, reward, terminated, truncated, _ = vector.step(policy(observation, is_init=is_init))
            is_init = terminated | truncated
            returns += reward[is_init].tolist()
        env = policy.make_env(num_envs=2, seed=3)
        assert returns == evaluate(policy.actor, env, episodes=6).returns

    def test_of_another_number_of_observations_raises(self, policies: list[Policy]) -> None:
        policy = policies[0]
        policy(np.zeros((2, 4)))
        with pytest.raises(ConfigurationError, match=r"memory of 2 episodes, but received 3 .*policy\.reset\(\)"):
            policy(np.zeros((3, 4)))
        policy(np.zeros((3, 4)), is_init=True)
        policy.reset()
        policy(np.zeros(4))

    def test_mask_of_another_length_raises(self, policies: list[Policy]) -> None:
        with pytest.raises(ConfigurationError, match=r"is_init has shape \(3,\); expected \(2,\)"):
            policies[0](np.zeros((2, 4)), is_init=np.ones(3, bool))


class TestMakeEnv:
    def test_keeps_the_keyword_arguments_and_wrappers_of_the_training(self, checkpoint_of: Any) -> None:
        policy = load_policy(checkpoint_of("recall"))
        env = policy.make_env()
        assert evaluate(policy.actor, env, episodes=1).lengths == [6]  # delay + 2

    def test_changes_keyword_arguments(self, checkpoint_of: Any) -> None:
        policy = load_policy(checkpoint_of("recall"))
        assert evaluate(policy.actor, policy.make_env(delay=1), episodes=1).lengths == [3]
        cartpole = load_policy(checkpoint_of("cartpole"))
        env = cartpole.make_env(2, max_episode_steps=3, render_mode="rgb_array")
        assert evaluate(cartpole.actor, env, episodes=2).lengths == [3, 3]
        assert env.vector.render_mode == "rgb_array"

    def test_without_configuration_raises(self, trained_from_python: Path) -> None:
        policy = load_policy(trained_from_python, actor=new_actor(make_env("CartPole-v1")))
        with pytest.raises(CheckpointError, match=r"torchppo\.make_env"):
            policy.make_env()


class TestLoadPolicy:
    def test_a_training_from_python_needs_the_actor(self, trained_from_python: Path) -> None:
        with pytest.raises(CheckpointError, match=r"python\.ckpt has no configuration.*actor="):
            load_policy(trained_from_python)

    def test_loads_the_weights_into_the_actor(self, trained_from_python: Path) -> None:
        saved = load_checkpoint(trained_from_python)["state_dict"]
        actor = new_actor(make_env("CartPole-v1"))
        assert load_policy(str(trained_from_python), actor=actor).actor is actor
        assert not actor.training
        for name, value in actor.state_dict().items():
            assert torch.equal(value, saved[f"objective.actor_network.{name}"])

    def test_loads_the_weights_of_a_functional_torchrl_loss(self, make: Any, fit: Any, tmp_path: Path) -> None:
        ppo, collector = make(objective=TorchRLClipPPOLoss)
        fit(ppo, collector).save_checkpoint(tmp_path / "functional.ckpt")
        actor = load_policy(
            tmp_path / "functional.ckpt", actor=new_actor(make_env("CartPole-v1"), normalize_observation=False)
        ).actor
        saved = load_checkpoint(tmp_path / "functional.ckpt")["state_dict"]
        for name, value in actor.state_dict().items():
            assert torch.equal(value, saved[f"objective.actor_network_params.{name}"])

    def test_an_actor_that_does_not_fit_raises_in_one_line(self, trained_from_python: Path) -> None:
        actor = new_actor(make_env("CartPole-v1"), body=partial(mlp, num_cells=[8]))
        with pytest.raises(CheckpointError, match=r"python\.ckpt does not fit the actor .*size mismatch") as raised:
            load_policy(trained_from_python, actor=actor)
        assert "\n" not in str(raised.value)

    @pytest.mark.parametrize("actor", [None, torch.nn.Linear(1, 1)])
    def test_a_missing_or_damaged_file_raises(self, actor: Any, tmp_path: Path) -> None:
        with pytest.raises(CheckpointError, match=r"no\.ckpt is not a file"):
            load_policy(tmp_path / "no.ckpt", actor=actor)
        (tmp_path / "damaged.ckpt").write_text("frames,return")
        with pytest.raises(CheckpointError, match=r"damaged\.ckpt is not a checkpoint"):
            load_policy(tmp_path / "damaged.ckpt", actor=actor)


class SpacesEnv(gymnasium.Env[Any, Any]):
    """Has the given spaces; it is never stepped."""

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


class MaskedEnv(gymnasium.Env[Any, Any]):
    """Allows only the third of four actions."""

    observation_space = spaces.Box(-1, 1, (2,))
    action_space = spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return np.zeros(2, np.float32), {"action_mask": np.array([0, 0, 1, 0], np.int8)}
