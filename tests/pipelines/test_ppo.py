"""The LightningModule binds its parts without changing what they compute."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.plugins import MixedPrecision
from tensordict import TensorDictBase
from torch import nn

from torchppo.errors import ConfigurationError, NumericalError
from torchppo.modules import schedules
from torchppo.modules.normalizers import ObservationNormalizer, RewardNormalizer
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.objectives.kl_penalty import KLPENPPOLoss
from torchppo.modules.objectives.ppo_loss import PPOLoss
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.updates.minibatch import MinibatchUpdate

GAMMA, LMBDA = 0.9, 0.8
SILENT: dict[str, Any] = {
    "accelerator": "cpu",
    **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
}
Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def gae(rollout: TensorDictBase, values: np.ndarray, next_values: np.ndarray) -> np.ndarray:
    """Errata 3, as a plain loop."""
    reward, done, terminated = (
        rollout["next", key].squeeze(-1).double().numpy() for key in ("reward", "done", "terminated")
    )
    advantage = np.zeros_like(reward)
    for env in range(reward.shape[0]):
        trace = 0.0
        for step in reversed(range(reward.shape[1])):
            alive = 1 - terminated[env, step]
            delta = reward[env, step] + GAMMA * alive * next_values[env, step] - values[env, step]
            trace = delta + GAMMA * LMBDA * (1 - done[env, step]) * trace
            advantage[env, step] = trace
    return advantage


class TestEstimate:
    def test_advantages_equal_a_plain_loop_over_the_true_next_observations(self, make: Make) -> None:
        ppo, collector = make(frames_per_env=64, normalize_advantage=None)
        rollout = next(iter(collector))
        assert rollout["next", "done"].any()
        data = ppo.experience(rollout).estimate()
        with torch.no_grad():
            values = ppo.critic(rollout.select("observation"))["state_value"].squeeze(-1).double().numpy()
            next_values = ppo.critic(rollout["next"].select("observation"))["state_value"].squeeze(-1).double().numpy()
        expected = gae(rollout, values, next_values)
        np.testing.assert_allclose(data["advantage"].view(64, 2).T.numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(data["value_target"].view(64, 2).T.numpy(), expected + values, atol=1e-5)

    def test_a_truncated_episode_bootstraps_from_its_own_last_observation(self, make: Make) -> None:
        ppo, collector = make("Pendulum-v1", num_envs=1, frames_per_env=250, normalize_advantage=None)
        rollout = next(iter(collector))
        (ends,) = rollout["next", "truncated"][0, :, 0].nonzero(as_tuple=True)
        assert ends.tolist() == [199]
        ppo.experience(rollout).estimate()
        last, first = rollout["next", "observation"][0, 199], rollout["observation"][0, 200]
        assert not torch.allclose(last, first)
        with torch.no_grad():
            value = ppo.critic(rollout["next"].select("observation")[0, 199])["state_value"]
        torch.testing.assert_close(rollout["next", "state_value"][0, 199], value)
        delta = rollout["next", "reward"][0, 199] + GAMMA * value - rollout["state_value"][0, 199]
        torch.testing.assert_close(rollout["advantage"][0, 199], delta)

    def test_what_is_seen_after_a_termination_does_not_matter(self, make: Make) -> None:
        estimated = []
        for seen in (0.0, 99.0):
            ppo, collector = make(frames_per_env=64)
            rollout = next(iter(collector))
            terminated = rollout["next", "terminated"].squeeze(-1)
            assert terminated.any()
            rollout["next", "observation"][terminated] = seen
            estimated.append(ppo.experience(rollout).estimate())
        for key in ("advantage", "value_target", "state_value"):
            assert torch.equal(estimated[0][key], estimated[1][key])

    def test_advantages_are_normalised_over_the_whole_rollout(self, make: Make) -> None:
        ppo, collector = make()
        data = ppo.experience(next(iter(collector))).estimate()
        assert data["advantage"].mean().abs() < 1e-6
        assert abs(data["advantage"].std(correction=0).item() - 1) < 1e-4

    @pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
    @pytest.mark.parametrize("objective", [ClipPPOLoss, KLPENPPOLoss])
    def test_the_ratio_in_the_first_minibatch_is_one(self, env_id: str, objective: type[PPOLoss], make: Make) -> None:
        ppo, collector = make(env_id, objective=objective, normalize_observation=True, rollouts=3)
        rollouts = iter(collector)
        for _ in range(2):  # statistics have moved once before the second rollout
            rollout = next(rollouts)
            data = ppo.experience(rollout).estimate()
            distribution = ppo.actor.get_dist(rollout.copy())
            ratio = (distribution.log_prob(rollout["action"]) - rollout["action_log_prob"]).exp()
            torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=1e-6, rtol=0)
            for module in ppo.modules():
                if isinstance(module, ObservationNormalizer):
                    module.update(rollout["observation"])
            assert data["advantage"].shape[0] == rollout.numel()


class TestTraining:
    def test_two_runs_with_one_seed_are_bitwise_equal(self, make: Make, fit: Fit) -> None:
        results = []
        for _ in range(2):
            ppo, collector = make("Pendulum-v1", normalize_observation=True, reward_normalizer=RewardNormalizer(GAMMA))
            fit(ppo, collector)
            results.append(weights(ppo))
        assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])

    def test_another_seed_gives_another_policy(self, make: Make, fit: Fit) -> None:
        results = []
        for seed in (0, 1):
            ppo, collector = make(seed=seed)
            fit(ppo, collector)
            results.append(weights(ppo))
        assert any(not torch.equal(results[0][name], results[1][name]) for name in results[0])

    def test_goes_on_with_other_environments(self, make: Make, fit: Fit) -> None:
        ppo, collector = make("Pendulum-v1", reward_normalizer=RewardNormalizer(GAMMA))
        fit(ppo, collector)
        ppo.total_frames *= 2
        fit(ppo, make("Pendulum-v1", num_envs=4, frames_per_env=8)[1])
        assert ppo.frames == ppo.total_frames

    def test_the_last_episodes_are_the_last_in_time(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(num_envs=3, frames_per_env=40, rollouts=1)
        (rollout,) = collector
        following = rollout["next"]
        ends = [(step, env) for step in range(40) for env in range(3) if following["done"][env, step]]
        ppo._count_frames(rollout)
        assert [length for _, length in ppo.episodes] == [following["step_count"][env, step] for step, env in ends]
        assert len({env for _, env in ends[:3]}) > 1

    def test_frames_and_optimiser_steps_are_counted(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(num_envs=2, frames_per_env=16, rollouts=3)
        fit(ppo, collector)
        assert ppo.frames == 96
        assert ppo.trainer.global_step == 3 * 2 * 4

    def test_a_training_ends_with_its_frames_however_many_epochs_there_may_be(self, make: Make) -> None:
        for max_epochs in (-1, 1, 3):
            ppo, collector = make(rollouts=3, schedules={"lr": schedules.linear})
            Trainer(max_epochs=max_epochs, **SILENT).fit(ppo, train_dataloaders=collector)
            assert ppo.frames == ppo.total_frames

    @pytest.mark.parametrize("compile_", [False, "trace"])
    def test_a_checkpoint_goes_on_to_a_larger_number_of_frames_and_not_to_a_smaller(
        self, compile_: Any, make: Make, tmp_path: Path
    ) -> None:
        ppo, collector = make(rollouts=2, compile=compile_)
        trainer = Trainer(max_epochs=-1, **SILENT)
        trainer.fit(ppo, train_dataloaders=collector)
        trainer.save_checkpoint(tmp_path / "some.ckpt")
        longer, collector = make(rollouts=5, num_envs=4, frames_per_env=8, compile=compile_)
        Trainer(max_epochs=-1, **SILENT).fit(longer, train_dataloaders=collector, ckpt_path=tmp_path / "some.ckpt")
        assert (longer.frames, longer.num_rollouts) == (5 * 32, 5)
        again, collector = make(rollouts=2, compile=compile_)
        again.total_frames = 95
        with pytest.raises(ConfigurationError, match="total_frames=95 have been trained: 64, by rollouts of 32"):
            Trainer(max_epochs=-1, **SILENT).fit(again, train_dataloaders=collector, ckpt_path=tmp_path / "some.ckpt")

    @pytest.mark.parametrize("compile_", [False, "trace", True])
    def test_what_is_frozen_stays(self, compile_: Any, make: Make, fit: Fit) -> None:
        ppo, collector = make(compile=compile_, shared=True)
        frozen = [*ppo.actor.parameters()][:2]
        before = [param.requires_grad_(False).clone() for param in frozen]
        others = [param.detach().clone() for param in ppo.parameters() if param.requires_grad]
        fit(ppo, collector)
        assert all(torch.equal(param, old) for param, old in zip(frozen, before, strict=True))
        now = [param for param in ppo.parameters() if param.requires_grad]
        assert not any(torch.equal(param, old) for param, old in zip(now, others, strict=True))

    @pytest.mark.parametrize("compile_", [False, "trace"])
    def test_no_step_after_value_pretraining_is_larger_than_without(self, compile_: Any, make: Make, fit: Fit) -> None:
        largest = []
        for pretraining in (0, 6):
            ppo, collector = make(rollouts=pretraining + 1, value_pretraining=pretraining, compile=compile_)
            before = weights(ppo.actor)
            fit(ppo, collector)
            moved = [(value - before[name]).abs().max().item() for name, value in weights(ppo.actor).items()]
            largest.append(max(moved))
        assert largest[1] <= 8 * 1.001e-3, "eight steps of Adam, each of at most its learning rate"
        assert largest[1] == pytest.approx(largest[0], rel=0.5)

    @pytest.mark.parametrize("compile_", ["trace", True])
    def test_a_graph_refuses_hooks_that_it_would_not_call(self, compile_: Any, make: Make, fit: Fit) -> None:
        class Watching(Callback):
            def on_before_optimizer_step(self, *_: Any) -> None:
                """Never called by a graph."""

        ppo, collector = make(compile=compile_)
        with pytest.raises(ConfigurationError, match=r"no on_before_optimizer_step, which Watching has; compile=false"):
            fit(ppo, collector, callbacks=[Watching()])
        ppo, collector = make(compile=compile_)
        with pytest.raises(ConfigurationError, match="no on_before_optimizer_step, which LambdaCallback has"):
            fit(
                ppo, collector, callbacks=[LambdaCallback(on_before_optimizer_step=Watching().on_before_optimizer_step)]
            )
        ppo, collector = make()
        fit(ppo, collector, callbacks=[Watching()])

    def test_a_loss_scale_is_left_to_lightning(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        class NoGraph:
            def __init__(self, *_: Any, **__: Any) -> None:
                pytest.fail("a graph would not scale")

        ppo, collector = make(compile="trace")
        trainer = Trainer(max_epochs=-1, **SILENT)
        trainer.precision_plugin.scaler = object()  # type: ignore[attr-defined]
        monkeypatch.setattr("torchppo.pipelines.ppo.GraphStep", NoGraph)
        trainer.fit(ppo, train_dataloaders=collector)

    def test_a_loss_scale_that_is_too_large_becomes_smaller_and_the_training_goes_on(self, make: Make) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        ppo, collector = make(rollouts=3)
        silent = {key: value for key, value in SILENT.items() if key != "precision"}
        trainer = Trainer(max_epochs=-1, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], **silent)
        trainer.fit(ppo, train_dataloaders=collector)
        assert ppo.frames == ppo.total_frames
        assert scaler.get_scale() < 2.0**40
        assert math.isfinite(trainer.callback_metrics["train/grad_norm"])
        assert all(param.isfinite().all() for param in ppo.parameters())

    def test_weights_of_another_type_are_refused(self, make: Make, fit: Fit) -> None:
        ppo, collector = make()
        with pytest.raises(ConfigurationError, match=r"weights are torch.float64, which does not go with"):
            fit(ppo.double(), collector)

    def test_an_optimizer_with_groups_of_its_own_is_refused_where_sides_need_theirs(self, make: Make, fit: Fit) -> None:
        def optimizer(params: Any) -> torch.optim.Optimizer:
            flat = [param for group in params for param in group["params"]]
            return torch.optim.Adam(
                [{"params": [p for p in flat if p.dim() > 1]}, {"params": [p for p in flat if p.dim() < 2]}]
            )

        ppo, collector = make(optimizer=optimizer, value_pretraining=1)
        with pytest.raises(ConfigurationError, match="makes groups of its own"):
            fit(ppo, collector)

    def test_an_optimizer_is_given_plain_parameters_where_there_are_no_sides(self, make: Make, fit: Fit) -> None:
        def optimizer(params: Any) -> torch.optim.Optimizer:
            decayed = {"params": [param for param in params if param.dim() > 1], "weight_decay": 0.1}
            return torch.optim.AdamW([decayed, {"params": [param for param in params if param.dim() < 2]}])

        ppo, collector = make(optimizer=optimizer, compile="trace")
        fit(ppo, collector)
        assert ppo.frames == ppo.total_frames

    def test_a_module_can_be_pickled_after_a_training_with_graphs(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(compile="trace")
        fit(ppo, collector)
        again = pickle.loads(pickle.dumps(ppo.objective))
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ppo.parameters(), strict=True))
        assert copy.deepcopy(ppo).frames == ppo.frames

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"schedules": {"clip_epsilonn": schedules.linear}},
                r"schedule.clip_epsilonn: ClipPPOLoss has no buffer of that name",
            ),
            ({"compile": "auto"}, r"compile='auto' is none of True, False and 'trace'"),
            ({"rollouts": 0}, r"total_frames=0 must be at least 1"),
        ],
    )
    def test_names_and_numbers_that_cannot_be_are_refused(
        self, options: dict[str, Any], message: str, make: Make
    ) -> None:
        with pytest.raises(ConfigurationError, match=message):
            make(**options)

    def test_value_pretraining_moves_the_critic_alone(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(rollouts=2, value_pretraining=2)
        actor, critic = weights(ppo.actor), weights(ppo.critic)
        fit(ppo, collector)
        assert all(torch.equal(value, actor[name]) for name, value in weights(ppo.actor).items())
        assert any(not torch.equal(value, critic[name]) for name, value in weights(ppo.critic).items())

    @pytest.mark.parametrize("compile_", [False, "trace"])
    @pytest.mark.parametrize(("epochs", "critic_epochs"), [(1, 4), (4, 1)])
    def test_who_has_learnt_its_epochs_stays_where_it_is_while_the_other_goes_on(
        self, epochs: int, critic_epochs: int, compile_: Any, make: Make, fit: Fit
    ) -> None:
        after = []
        for longer in (False, True):
            each = (epochs, critic_epochs) if longer else (1, 1)
            update = MinibatchUpdate(epochs=each[0], critic_epochs=each[1], minibatch_size=8)
            optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
            ppo, collector = make(rollouts=1, update=update, optimizer=optimizer, compile=compile_)
            fit(ppo, collector)
            after.append((weights(ppo.actor), weights(ppo.critic)))
        idle = 0 if epochs < critic_epochs else 1
        assert all(torch.equal(value, after[1][idle][name]) for name, value in after[0][idle].items())
        assert any(not torch.equal(value, after[1][1 - idle][name]) for name, value in after[0][1 - idle].items())

    @pytest.mark.parametrize("compile_", [False, "trace"])
    def test_no_step_is_taken_in_which_nobody_learns(self, compile_: Any, make: Make, fit: Fit) -> None:
        update = MinibatchUpdate(epochs=4, critic_epochs=1, minibatch_size=8)
        ppo, collector = make(rollouts=1, value_pretraining=1, update=update, shared=True, compile=compile_)
        assert fit(ppo, collector).global_step == 4

    def test_decay_does_not_move_a_policy_that_waits_for_its_critic(self, make: Make, fit: Fit) -> None:
        optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
        ppo, collector = make(rollouts=2, value_pretraining=2, optimizer=optimizer, schedules={"lr": schedules.linear})
        actor = weights(ppo.actor)
        fit(ppo, collector)
        assert all(torch.equal(value, actor[name]) for name, value in weights(ppo.actor).items())

    def test_a_shared_trunk_learns_with_either(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(rollouts=1, value_pretraining=1, shared=True)
        parameters = list(ppo.objective.parameters())
        before = [param.detach().clone() for param in parameters]
        fit(ppo, collector)
        moved = {param for old, param in zip(before, parameters, strict=True) if not torch.equal(old, param)}
        moved_sides = {group["side"] for group in ppo.optimizer.param_groups if moved & {*group["params"]}}
        assert moved_sides == {"shared", "critic"}

    def test_what_belongs_to_neither_side_learns_too(self, make: Make, fit: Fit) -> None:
        class Tempered(ClipPPOLoss):
            def __init__(self, *args: Any) -> None:
                super().__init__(*args)
                self.temperature = nn.Parameter(torch.ones(()))

            def forward(self, td: TensorDictBase) -> TensorDictBase:
                losses = super().forward(td)
                losses["loss_temperature"] = self.temperature.square()
                return losses

        ppo, collector = make(objective=Tempered, critic_optimizer={"lr": 1e-2})
        fit(ppo, collector)
        assert ppo.objective.temperature.item() < 1.0

    def test_an_objective_has_networks_and_losses(self, make: Make, fit: Fit) -> None:
        class Silent(ClipPPOLoss):
            def forward(self, td: TensorDictBase) -> TensorDictBase:
                return super().forward(td).select("entropy")

        ppo, collector = make(objective=Silent)
        with pytest.raises(ConfigurationError, match=r"the objective wrote no loss_\*, but entropy"):
            fit(ppo, collector)
        with pytest.raises(ConfigurationError, match="Linear has no actor_network; an objective has"):
            make(objective=lambda *_: nn.Linear(2, 2))

    def test_beta_waits_for_the_policy_to_move(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(objective=KLPENPPOLoss, rollouts=3, value_pretraining=3)
        beta = float(ppo.objective.beta)
        fit(ppo, collector)
        assert float(ppo.objective.beta) == beta

    def test_a_failure_leaves_nothing_frozen(self, make: Make, fit: Fit) -> None:
        class Failing(PPO):
            def training_step(self, rollout: TensorDictBase) -> None:
                if self.num_rollouts == 1:
                    assert gc.get_freeze_count() > 0
                    raise ZeroDivisionError
                super().training_step(rollout)

        ppo, collector = make(rollouts=3)
        ppo.__class__ = Failing
        with pytest.raises(ZeroDivisionError):
            fit(ppo, collector)
        assert gc.get_freeze_count() == 0

    def test_observation_statistics_move_once_per_rollout_after_the_update(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(normalize_observation=True, rollouts=2)
        fit(ppo, collector)
        (normalizer,) = {module for module in ppo.modules() if isinstance(module, ObservationNormalizer)}
        assert normalizer.moments.count == 2 * 2 * 16

    def test_schedules_move_learning_rate_and_clip_range_to_zero(self, make: Make, fit: Fit) -> None:
        seen: list[tuple[float, float]] = []

        class Watch(PPO):
            def training_step(self, rollout: TensorDictBase) -> None:
                super().training_step(rollout)
                group = self.optimizers(use_pl_optimizer=False).param_groups[0]
                seen.append((group["lr"], float(self.objective.clip_epsilon)))

        ppo, collector = make(rollouts=4, schedules={"lr": schedules.linear, "clip_epsilon": schedules.linear})
        ppo.__class__ = Watch
        fit(ppo, collector)
        expected = [(1e-3 * (1 - k / 4), 0.2 * (1 - k / 4)) for k in range(4)]
        np.testing.assert_allclose(seen, expected, rtol=1e-6)

    def test_beta_changes_at_most_once_per_rollout(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(objective=KLPENPPOLoss, rollouts=3)
        fit(ppo, collector)
        assert float(ppo.objective.beta) in {2.0**k for k in range(-3, 4)}

    def test_bf16_mixed_precision_trains(self, make: Make, fit: Fit) -> None:
        ppo, collector = make("Pendulum-v1", rollouts=2)
        before = weights(ppo)
        fit(ppo, collector, precision="bf16-mixed")
        after = weights(ppo)
        assert all(value.isfinite().all() for value in after.values())
        assert any(not torch.equal(after[name], before[name]) for name in after)

    def test_a_loss_that_is_not_finite_stops_the_training(self, make: Make, fit: Fit) -> None:
        ppo, collector = make()
        with torch.no_grad():
            list(ppo.critic.parameters())[-1].fill_(float("inf"))
        with pytest.raises(NumericalError, match=r"train/.*lower optimizer\.lr"):
            fit(ppo, collector)

    def test_a_finished_training_can_be_forgotten(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(rollouts=2)
        fit(ppo, collector)
        weight = weakref.ref(next(ppo.parameters()))
        del ppo, collector
        gc.collect()
        assert weight() is None


class TestCheckpoint:
    def test_weights_statistics_and_counters_come_back(self, tmp_path: Any, make: Make, fit: Fit) -> None:
        ppo, collector = make(normalize_observation=True)
        fit(ppo, collector)
        ppo.trainer.save_checkpoint(tmp_path / "last.ckpt")
        checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
        other, _ = make(normalize_observation=True, seed=5)
        other.load_state_dict(checkpoint["state_dict"])
        other.episodes.append((1e3, 1))  # of an own training before
        other.on_load_checkpoint(checkpoint)
        assert all(torch.equal(value, weights(ppo)[name]) for name, value in weights(other).items())
        assert (other.frames, other.num_episodes, other.episodes) == (ppo.frames, ppo.num_episodes, ppo.episodes)
