"""Whole episodes are evaluated fairly and reproducibly, and the policy does not change."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv
from gymnasium.wrappers import TimeLimit
from lightning import Trainer
from torch import Tensor, nn
from torchrl.envs import ExplorationType, RewardScaling, StepCounter, TransformedEnv, exploration_type

from torchppo.envs import SerialVectorEnv, VectorEnv, make_env
from torchppo.errors import ConfigurationError, EnvironmentFailure
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import Memory
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.episodes import EvaluateAndSave, Evaluation, default_max_steps, evaluate, rollout_episodes
from torchppo.pipelines.ppo import PPO

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]
LENGTHS = (2, 3, 7)
FRAMES = 32
"""Frames of one rollout of the training that `make` returns."""


class ConstantReward(gymnasium.Env[Any, Any]):
    """Random observations and episodes of `length` steps with a constant reward."""

    observation_space = spaces.Box(-10, 10, (3,))

    def __init__(self, length: int, reward: float, action_space: spaces.Space[Any]) -> None:
        self.length, self.reward, self.action_space = length, reward, action_space
        self.steps = 0

    def observe(self) -> Any:
        return self.np_random.normal(size=3).astype(np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.observe(), self.reward, False, self.steps == self.length, {}


class DropoutBody(nn.Module):
    """A body with dropout that records in which modes it was called."""

    def __init__(self) -> None:
        super().__init__()
        self.modes: set[bool] = set()
        self.layer, self.dropout, self.frozen = nn.Linear(3, 8), nn.Dropout(0.5), nn.BatchNorm1d(8).eval()

    def forward(self, x: Tensor) -> Tensor:
        self.modes.add(self.dropout.training)
        return self.frozen(self.dropout(self.layer(x)))


class FirstObservation(Memory):
    """A memory whose state is the first observation of the episode."""

    context_length = 1

    def __init__(self, num_inputs: int) -> None:
        super().__init__()
        self.num_features = self.state_size = num_inputs

    def forward(self, features: Tensor, is_init: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        states = [past[:, 0]]
        for feature, is_first in zip(features.unbind(1), is_init.unbind(1), strict=True):
            states.append(torch.where(is_first, feature, states[-1]))
        stacked = torch.stack(states, 1)
        return stacked[:, 1:], stacked


ActorAndEnv = tuple[Any, VectorEnv]


@pytest.fixture
def make_actor_and_env() -> Callable[..., ActorAndEnv]:
    """Return a function that makes a policy and environments with different lengths and rewards of 1, 10 and 100."""

    def make(action_space: spaces.Space[Any] | None = None) -> ActorAndEnv:
        torch.manual_seed(0)
        factories = [
            partial(ConstantReward, length, 10.0**number, action_space or spaces.Discrete(4))
            for number, length in enumerate(LENGTHS)
        ]
        env = VectorEnv(SerialVectorEnv(factories))
        env.set_seed(0)
        actor, _ = make_actor_critic(
            env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8]), normalize_observation=True
        )
        return actor, env

    return make


class TestEpisodes:
    @pytest.mark.parametrize(("episodes", "per_env"), [(3, (1, 1, 1)), (6, (2, 2, 2)), (7, (3, 2, 2)), (1, (1, 0, 0))])
    def test_are_distributed_equally_over_the_environments(
        self, episodes: int, per_env: tuple[int, ...], make_actor_and_env: Callable[..., ActorAndEnv]
    ) -> None:
        returns, lengths, num_cut, _ = evaluate(*make_actor_and_env(), episodes)
        expected = [length for length, number in zip(LENGTHS, per_env, strict=True) for _ in range(number)]
        assert (sorted(lengths), num_cut) == (expected, 0)
        return_by_length = {2: 2.0, 3: 30.0, 7: 700.0}
        assert returns == [return_by_length[length] for length in lengths]

    def test_are_the_same_eagerly_and_as_a_graph(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        assert evaluate(*make_actor_and_env(), 7, compile="trace") == evaluate(*make_actor_and_env(), 7)

    def test_start_with_a_reset(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        """The previous evaluation may have stopped in the middle of an episode."""
        actor, env = make_actor_and_env()
        assert evaluate(actor, env, 1).lengths == [2]
        assert sorted(evaluate(actor, env, 3).lengths) == list(LENGTHS)

    def test_that_do_not_end_are_cut_with_a_warning(
        self, make_actor_and_env: Callable[..., ActorAndEnv], caplog: pytest.LogCaptureFixture
    ) -> None:
        """An episode that is cut is the last one of its environment."""
        result = evaluate(*make_actor_and_env(), 9, max_steps=5)
        assert sorted(zip(result.lengths, result.returns, strict=True)) == [
            *[(2, 2.0)] * 3,
            *[(3, 30.0)] * 3,
            (5, 500.0),
        ]
        assert result.num_cut == 1
        (message,) = caplog.messages
        for words in ("1 of the 7", "5 steps", "max_episode_steps", "eval.max_steps"):
            assert words in message

    @pytest.mark.parametrize(
        ("env_id", "options", "limit"),
        [
            ("CartPole-v1", {}, 500),
            ("CartPole-v1", {"max_episode_steps": 70_000, "num_workers": 1}, 70_000),
            ("torchppo.envs:torchppo/Recall-v0", {}, 5_000),
            ("ALE/Pong-v5", {}, 27_000),
            (CartPoleEnv, {"max_episode_steps": 10_000}, 10_000),
            (CartPoleEnv, {"wrappers": [partial(TimeLimit, max_episode_steps=70)], "num_workers": 1}, 70),
        ],
    )
    def test_have_the_time_limit_of_the_environment_by_default(
        self, env_id: Any, options: dict[str, Any], limit: int
    ) -> None:
        if str(env_id).startswith("ALE/"):
            pytest.importorskip("ale_py")
        env = TransformedEnv(make_env(env_id, **options), StepCounter())
        assert default_max_steps(env) == limit
        env.close()

    @pytest.mark.parametrize("has_transform", [False, True])
    def test_in_which_the_environment_fails_do_not_count(
        self, has_transform: bool, capfd: pytest.CaptureFixture[str]
    ) -> None:
        failures: list[int] = []

        class FailsOnce(ConstantReward):
            def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
                if self.steps == 4 and not failures:
                    failures.append(1)
                    raise ValueError("broken")
                return super().step(action)

        env = make_env(FailsOnce, 1, on_failure="restart", length=10, reward=1.0, action_space=spaces.Discrete(4))
        actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=partial(mlp, num_cells=[8]))
        evaluated = TransformedEnv(env, RewardScaling(0.0, 2.0)) if has_transform else env
        assert evaluate(actor, evaluated, 2).lengths == [10, 10]
        assert failures
        capfd.readouterr()

    def test_with_a_reward_that_is_not_finite_are_rejected_at_that_step(
        self, make_actor_and_env: Callable[..., ActorAndEnv]
    ) -> None:
        actor, env = make_actor_and_env()
        env.vector.envs[1].reward = float("nan")
        before = exploration_type()
        with pytest.raises(EnvironmentFailure, match="reward of environment 1 is nan at step 0") as caught:
            evaluate(actor, env, 3)
        assert caught.tb is not None  # keeps the frames of the evaluation alive
        assert exploration_type() == before
        assert torch.is_grad_enabled()

    @pytest.mark.parametrize("episodes", [0, -1])
    def test_must_be_at_least_one(self, episodes: int, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        with pytest.raises(ConfigurationError, match=rf"eval\.episodes={episodes}"):
            evaluate(*make_actor_and_env(), episodes)


class TestPolicy:
    def test_takes_the_mode_of_the_distribution(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        actor, env = make_actor_and_env(spaces.Box(-5, 5, (2,)))
        for step in islice(rollout_episodes(actor, env), 5):
            torch.testing.assert_close(step["action"], actor.get_dist(step.select("observation")).mode)

    def test_samples_actions_if_it_is_stochastic(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        actor, env = make_actor_and_env(spaces.Box(-5, 5, (2,)))
        step = next(rollout_episodes(actor, env, deterministic=False))
        assert (step["action"] != actor.get_dist(step.select("observation")).mode).all()

    def test_memory_is_reset_with_every_episode(self) -> None:
        """The reward of the last step depends on the first observation of the same episode."""
        env = make_env("torchppo.envs:torchppo/Recall-v0", 3, num_cues=4, delay=3)
        env.set_seed(0)
        actor, _ = make_actor_critic(
            env.observation_spec, env.action_spec, body=lambda _: nn.Identity(), memory=FirstObservation, shared=True
        )
        (head,) = [module for module in actor.modules() if isinstance(module, nn.Linear) and module.out_features == 4]
        head.weight.data, head.bias.data = torch.eye(4, 6), torch.zeros(4)
        for compile_mode in (False, "trace"):
            assert evaluate(actor, env, 15, compile=compile_mode) == Evaluation([1.0] * 15, [5] * 15)

    def test_draws_no_random_numbers(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        actor, env = make_actor_and_env()
        before = torch.get_rng_state()
        evaluate(actor, env, 3)
        assert torch.equal(torch.get_rng_state(), before)

    def test_episodes_are_reproducible_by_the_seed(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        actor, env = make_actor_and_env()
        observations = []
        for seed in (1, 1, 2):
            env.set_seed(seed)
            steps = list(islice(rollout_episodes(actor, env), 9))
            observations.append(torch.stack([step["observation"] for step in steps]))
        assert torch.equal(observations[0], observations[1])
        assert not torch.equal(observations[0], observations[2])

    def test_weights_and_statistics_do_not_change(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        actor, env = make_actor_and_env()
        before = {name: value.clone() for name, value in actor.state_dict().items()}
        assert any("moments" in name for name in before)
        evaluate(actor, env, 6)
        assert all(torch.equal(value, before[name]) for name, value in actor.state_dict().items())
        assert all(param.grad is None for param in actor.parameters())

    def test_exploration_and_gradients_are_restored(self, make_actor_and_env: Callable[..., ActorAndEnv]) -> None:
        before = exploration_type()
        evaluate(*make_actor_and_env(), 3)
        assert exploration_type() == before != ExplorationType.DETERMINISTIC
        assert torch.is_grad_enabled()


class TestEvaluationStatistics:
    def test_mean_and_standard_deviation_are_over_all_episodes(self) -> None:
        result = Evaluation([1.0, 2.0, 6.0], [1, 1, 1])
        assert result.mean == 3.0
        assert result.std == pytest.approx((14 / 3) ** 0.5)

    def test_are_python_floats_also_for_one_episode(self) -> None:
        result = Evaluation([5.0], [1])
        assert (result.mean, result.std) == (5.0, 0.0)
        assert (type(result.mean), type(result.std)) == (float, float)


def test_dropout_is_disabled_and_every_module_keeps_its_mode() -> None:
    env = make_env("Pendulum-v1", 2)
    bodies: list[DropoutBody] = []

    def body(_: torch.Size) -> nn.Module:
        bodies.append(DropoutBody())
        return bodies[-1]

    actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=body)
    bodies[0].modes.clear()
    env.set_seed(0)
    list(islice(rollout_episodes(actor, env), 3))
    assert bodies[0].modes == {False}
    assert (bodies[0].dropout.training, bodies[0].frozen.training) == (True, False)


class FixedEvaluations:
    """Returns evaluations with given means, and records the weights of the evaluated policies."""

    def __init__(self, means: Sequence[float]) -> None:
        self.means: Iterator[float] = iter(means)
        self.policies: list[list[torch.Tensor]] = []

    def __call__(self, actor: Any) -> Evaluation:
        self.policies.append([param.detach().clone() for param in actor.parameters()])
        return Evaluation([next(self.means)], [1])


def make_callback(means: Sequence[float], folder: Path, **options: Any) -> EvaluateAndSave:
    every_frames, stop_at = options.get("every_frames", FRAMES), options.get("stop_at")
    return EvaluateAndSave(FixedEvaluations(means), folder, every_frames, stop_at)


def frames_of(checkpoint: Path) -> int:
    frames: int = torch.load(checkpoint, weights_only=True)["torchppo"]["frames"]
    return frames


class TestEvaluationDuringTraining:
    @pytest.mark.parametrize(
        ("every_frames", "num"), [(FRAMES, 4), (FRAMES + 1, 2), (2 * FRAMES, 2), (3 * FRAMES, 2), (None, 1)]
    )
    def test_runs_every_so_many_frames_and_at_the_end(
        self, every_frames: int | None, num: int, make: Make, fit: Fit, tmp_path: Path
    ) -> None:
        callback = make_callback(range(num), tmp_path, every_frames=every_frames)
        fit(*make(rollouts=4), callbacks=[callback])
        assert callback.last is not None
        assert callback.last.mean == num - 1
        assert frames_of(tmp_path / "last.ckpt") == 4 * FRAMES

    def test_uses_the_current_policy(self, make: Make, fit: Fit, tmp_path: Path) -> None:
        callback = make_callback([0.0, 0.0], tmp_path)
        ppo, collector = make(rollouts=2)
        fit(ppo, collector, callbacks=[callback])
        first, last = callback.run_evaluation.policies  # type: ignore[attr-defined]
        assert all(torch.equal(one, other) for one, other in zip(last, ppo.actor.parameters(), strict=True))
        assert not any(torch.equal(one, other) for one, other in zip(first, last, strict=True))


class TestBestCheckpoint:
    def test_is_the_first_with_the_highest_mean(self, make: Make, fit: Fit, tmp_path: Path) -> None:
        fit(*make(rollouts=4), callbacks=[make_callback([1.0, 5.0, 5.0, 3.0], tmp_path)])
        assert frames_of(tmp_path / "best.ckpt") == 2 * FRAMES
        assert frames_of(tmp_path / "last.ckpt") == 4 * FRAMES

    def test_follows_the_training_return_without_evaluations(self, make: Make, fit: Fit, tmp_path: Path) -> None:
        callback = EvaluateAndSave(None, tmp_path, FRAMES, None)
        trainer = fit(*make(rollouts=4), callbacks=[callback])
        assert callback.best >= float(trainer.callback_metrics["rollout/ep_rew_mean"]) > 0
        assert callback.last is None
        assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "best.ckpt", "previous.ckpt"}

    @pytest.mark.parametrize("means", [(5.0, 0.0), (0.0, 5.0)])
    @pytest.mark.parametrize(("mean", "is_better"), [(4.0, False), (6.0, True)])
    def test_is_compared_with_the_best_before_resuming(
        self, means: tuple[float, float], mean: float, is_better: bool, make: Make, fit: Fit, tmp_path: Path
    ) -> None:
        fit(*make(rollouts=2), callbacks=[make_callback(means, tmp_path)])
        best = frames_of(tmp_path / "best.ckpt")
        ppo, collector = make(rollouts=1)
        ppo.total_frames = 3 * FRAMES
        options: dict[str, Any] = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
        trainer = Trainer(max_epochs=-1, accelerator="cpu", callbacks=[make_callback([mean], tmp_path)], **options)
        trainer.fit(ppo, train_dataloaders=collector, ckpt_path=tmp_path / "last.ckpt")
        assert frames_of(tmp_path / "best.ckpt") == (3 * FRAMES if is_better else best)


def test_a_full_disk_does_not_destroy_the_previous_checkpoint(
    make: Make, fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, paths = Trainer.save_checkpoint, []

    def save_on_full_disk(trainer: Trainer, path: Path) -> None:
        paths.append(path)
        if len(paths) > 3:
            path.write_bytes(b"first half")
            raise OSError(errno.ENOSPC, "No space left on device", "elsewhere")
        save(trainer, path)

    monkeypatch.setattr(Trainer, "save_checkpoint", save_on_full_disk)
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "last.ckpt"))):
        fit(*make(rollouts=2), callbacks=[make_callback([0.0, 0.0], tmp_path)])
    assert frames_of(tmp_path / "last.ckpt") == FRAMES
    assert {path.name for path in tmp_path.iterdir()} == {"last.ckpt", "previous.ckpt", "best.ckpt"}


class TestStopAt:
    @pytest.mark.parametrize(("stop_at", "rollouts"), [(2.0, 2), (1.5, 2), (3.0, 3), (3.1, 4), (None, 4)], ids=str)
    def test_ends_the_training_at_the_first_evaluation_that_reaches_it(
        self, stop_at: float | None, rollouts: int, make: Make, fit: Fit, tmp_path: Path
    ) -> None:
        ppo, collector = make(rollouts=4)
        callback = make_callback([1.0, 2.0, 3.0, 0.0], tmp_path, stop_at=stop_at)
        fit(ppo, collector, callbacks=[callback])
        assert ppo.frames == rollouts * FRAMES
        assert len(callback.run_evaluation.policies) == rollouts  # type: ignore[attr-defined]
