"""Training with the LightningModule."""

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
from tensordict.nn import TensorDictSequential
from torch import nn
from torchrl.data import Categorical, Composite
from torchrl.modules import LSTMModule, ValueOperator
from torchrl.objectives.value import VTrace

from torchppo.errors import ConfigurationError, GraphError, NumericalError
from torchppo.modules.controllers import Linear
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import GRU
from torchppo.modules.intrinsic.count import CountBonus
from torchppo.modules.normalizers import ObservationNormalizer, RewardNormalizer
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.objectives.kl_penalty import KLPENPPOLoss
from torchppo.modules.objectives.ppo_loss import PPOLoss
from torchppo.pipelines.advantages import RolloutBatch
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.updates.minibatch import MinibatchUpdate

GAMMA, LMBDA = 0.9, 0.8
QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    **dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False),
}
Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def estimated(ppo: PPO, rollout: TensorDictBase) -> TensorDictBase:
    """Return the rows of a rollout with their advantages and targets."""
    batch = ppo.make_batch(rollout)
    batch.estimate()
    return batch.rows


def gae(rollout: TensorDictBase, values: np.ndarray, next_values: np.ndarray) -> np.ndarray:
    """Generalized advantage estimation as a plain loop (Schulman et al. 2016, equation 16)."""
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
    def test_advantages_equal_a_loop_over_the_true_next_observations(self, make: Make) -> None:
        ppo, collector = make(frames_per_env=64, normalize_advantage=None)
        rollout = next(iter(collector))
        assert rollout["next", "done"].any()
        data = estimated(ppo, rollout)
        with torch.no_grad():
            values = ppo.critic(rollout.select("observation"))["state_value"].squeeze(-1).double().numpy()
            next_values = ppo.critic(rollout["next"].select("observation"))["state_value"].squeeze(-1).double().numpy()
        expected = gae(rollout, values, next_values)
        np.testing.assert_allclose(data["advantage"].view(64, 2).T.numpy(), expected, atol=1e-5)
        np.testing.assert_allclose(data["value_target"].view(64, 2).T.numpy(), expected + values, atol=1e-5)

    def test_truncated_episode_bootstraps_from_its_final_observation(self, make: Make) -> None:
        ppo, collector = make("Pendulum-v1", num_envs=1, frames_per_env=250, normalize_advantage=None)
        rollout = next(iter(collector))
        (ends,) = rollout["next", "truncated"][0, :, 0].nonzero(as_tuple=True)
        assert ends.tolist() == [199]
        estimated(ppo, rollout)
        last, first = rollout["next", "observation"][0, 199], rollout["observation"][0, 200]
        assert not torch.allclose(last, first)
        with torch.no_grad():
            value = ppo.critic(rollout["next"].select("observation")[0, 199])["state_value"]
        torch.testing.assert_close(rollout["next", "state_value"][0, 199], value)
        delta = rollout["next", "reward"][0, 199] + GAMMA * value - rollout["state_value"][0, 199]
        torch.testing.assert_close(rollout["advantage"][0, 199], delta)

    def test_observation_after_a_termination_does_not_matter(self, make: Make) -> None:
        rows = []
        for value in (0.0, 99.0):
            ppo, collector = make(frames_per_env=64)
            rollout = next(iter(collector))
            terminated = rollout["next", "terminated"].squeeze(-1)
            assert terminated.any()
            rollout["next", "observation"][terminated] = value
            rows.append(estimated(ppo, rollout))
        for key in ("advantage", "value_target", "state_value"):
            assert torch.equal(rows[0][key], rows[1][key])

    def test_advantages_are_normalized_over_the_whole_rollout(self, make: Make) -> None:
        ppo, collector = make()
        data = estimated(ppo, next(iter(collector)))
        assert data["advantage"].mean().abs() < 1e-6
        assert abs(data["advantage"].std(correction=0).item() - 1) < 1e-4

    @pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
    @pytest.mark.parametrize("objective", [ClipPPOLoss, KLPENPPOLoss])
    def test_ratio_in_the_first_minibatch_is_one(self, env_id: str, objective: type[PPOLoss], make: Make) -> None:
        ppo, collector = make(env_id, objective=objective, normalize_observation=True, rollouts=3)
        rollouts = iter(collector)
        for _ in range(2):  # the statistics change once before the second rollout
            rollout = next(rollouts)
            data = estimated(ppo, rollout)
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

    def test_training_continues_with_other_environments(self, make: Make, fit: Fit) -> None:
        ppo, collector = make("Pendulum-v1", reward_normalizer=RewardNormalizer(GAMMA))
        fit(ppo, collector)
        ppo.total_frames *= 2
        env = make("Pendulum-v1", num_envs=4)[1].env
        fit(ppo, Collector(env, ppo.actor, frames_per_env=8, total_frames=ppo.total_frames))
        assert ppo.frames == ppo.total_frames

    def test_frames_and_optimizer_steps_are_counted(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(num_envs=2, frames_per_env=16, rollouts=3)
        fit(ppo, collector)
        assert ppo.frames == 96
        assert ppo.trainer.global_step == 3 * 2 * 4

    def test_training_ends_after_total_frames_for_any_max_epochs(self, make: Make) -> None:
        for max_epochs in (-1, 1, 3):
            ppo, collector = make(rollouts=3, controllers={"lr": Linear()})
            Trainer(max_epochs=max_epochs, **QUIET).fit(ppo, train_dataloaders=collector)
            assert ppo.frames == ppo.total_frames

    @pytest.mark.parametrize("compile_", [False, "trace"])
    def test_checkpoint_continues_to_more_total_frames_but_not_to_fewer(
        self, compile_: Any, make: Make, tmp_path: Path
    ) -> None:
        ppo, collector = make(rollouts=2, compile=compile_)
        trainer = Trainer(max_epochs=-1, **QUIET)
        trainer.fit(ppo, train_dataloaders=collector)
        trainer.save_checkpoint(tmp_path / "last.ckpt")
        longer, collector = make(rollouts=5, num_envs=4, frames_per_env=8, compile=compile_)
        Trainer(max_epochs=-1, **QUIET).fit(longer, train_dataloaders=collector, ckpt_path=tmp_path / "last.ckpt")
        assert (longer.frames, longer.num_rollouts) == (5 * 32, 5)
        again, collector = make(rollouts=2, compile=compile_)
        again.total_frames = 95
        with pytest.raises(ConfigurationError, match=r"total_frames=95 .*32 after 64"):
            Trainer(max_epochs=-1, **QUIET).fit(again, train_dataloaders=collector, ckpt_path=tmp_path / "last.ckpt")

    @pytest.mark.parametrize("compile_", [False, "trace"])
    def test_frozen_parameters_stay_and_all_others_change(self, compile_: Any, make: Make, fit: Fit) -> None:
        ppo, collector = make(compile=compile_, shared=True)
        frozen = [*ppo.actor.parameters()][:2]
        before = [param.requires_grad_(False).clone() for param in frozen]
        others = [param.detach().clone() for param in ppo.parameters() if param.requires_grad]
        fit(ppo, collector)
        assert all(torch.equal(param, old) for param, old in zip(frozen, before, strict=True))
        now = [param for param in ppo.parameters() if param.requires_grad]
        assert not any(torch.equal(param, old) for param, old in zip(now, others, strict=True))

    @pytest.mark.parametrize("compile_", [False, "trace"])
    def test_value_pretraining_does_not_enlarge_later_steps(self, compile_: Any, make: Make, fit: Fit) -> None:
        largest = []
        for pretraining in (0, 6):
            ppo, collector = make(rollouts=pretraining + 1, value_pretraining=pretraining, compile=compile_)
            before = weights(ppo.actor)
            fit(ppo, collector)
            moved = [(value - before[name]).abs().max().item() for name, value in weights(ppo.actor).items()]
            largest.append(max(moved))
        assert largest[1] <= 8 * 1.001e-3, "eight steps of Adam, each at most the learning rate"
        assert largest[1] == pytest.approx(largest[0], rel=0.5)

    @pytest.mark.parametrize("compile_", ["trace", True])
    def test_graph_refuses_hooks_that_it_does_not_call(self, compile_: Any, make: Make, fit: Fit) -> None:
        class HookCallback(Callback):
            def on_before_optimizer_step(self, *_: Any) -> None: ...

        as_lambda = LambdaCallback(on_before_optimizer_step=lambda *_: None)
        for callback in (HookCallback(), as_lambda):
            ppo, collector = make(compile=compile_)
            with pytest.raises(
                GraphError, match=rf"{type(callback).__name__}\.on_before_optimizer_step.*compile=false"
            ):
                fit(ppo, collector, callbacks=[callback])
        ppo, collector = make()
        fit(ppo, collector, callbacks=[HookCallback()])

    def test_loss_scaling_disables_graphs(self, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
        class NoGraph:
            def __init__(self, *_: Any, **__: Any) -> None:
                pytest.fail("a graph does not scale the loss")

        ppo, collector = make(compile="trace")
        trainer = Trainer(max_epochs=-1, **QUIET)
        trainer.precision_plugin.scaler = object()  # type: ignore[attr-defined]
        monkeypatch.setattr("torchppo.pipelines.compiled.optimizer_step.GraphStep", NoGraph)
        trainer.fit(ppo, train_dataloaders=collector)
        assert ppo.frames == ppo.total_frames

    def test_too_large_loss_scale_is_reduced_and_training_continues(self, make: Make) -> None:
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)
        ppo, collector = make(rollouts=6, max_skipped_steps=40)
        quiet = {key: value for key, value in QUIET.items() if key != "precision"}
        trainer = Trainer(max_epochs=-1, plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)], **quiet)
        trainer.fit(ppo, train_dataloaders=collector)
        assert ppo.frames == ppo.total_frames
        assert scaler.get_scale() < 2.0**40
        assert math.isfinite(trainer.callback_metrics["train/grad_norm"])
        assert all(param.isfinite().all() for param in ppo.parameters())

    @pytest.mark.parametrize("options", [{"minibatch_size": 5}, {"minibatch_size": 8, "sequence_length": 5}])
    def test_minibatches_and_sequences_that_do_not_fill_a_rollout_are_refused(
        self, options: dict[str, int], make: Make, fit: Fit
    ) -> None:
        training = make(update=MinibatchUpdate(epochs=1, **options), memory=partial(GRU, width=4))
        with pytest.raises(ConfigurationError, match="=5 does not divide"):
            fit(*training)

    def test_float64_weights_are_refused(self, make: Make, fit: Fit) -> None:
        ppo, collector = make()
        with pytest.raises(ConfigurationError, match=r"trainer\.precision=.*float64"):
            fit(ppo.double(), collector)

    def test_optimizer_that_replaces_param_groups_is_refused_if_they_are_needed(self, make: Make, fit: Fit) -> None:
        def optimizer(params: Any) -> torch.optim.Optimizer:
            flat = [param for group in params for param in group["params"]]
            return torch.optim.Adam(
                [{"params": [p for p in flat if p.dim() > 1]}, {"params": [p for p in flat if p.dim() < 2]}]
            )

        ppo, collector = make(optimizer=optimizer, value_pretraining=1)
        with pytest.raises(ConfigurationError, match=r"optimizer=Adam.*ppo\.value_pretraining"):
            fit(ppo, collector)

    def test_optimizer_may_make_its_own_groups_of_plain_parameters(self, make: Make, fit: Fit) -> None:
        def optimizer(params: Any) -> torch.optim.Optimizer:
            decayed = {"params": [param for param in params if param.dim() > 1], "weight_decay": 0.1}
            return torch.optim.AdamW([decayed, {"params": [param for param in params if param.dim() < 2]}])

        ppo, collector = make(optimizer=optimizer, compile="trace")
        fit(ppo, collector)
        assert ppo.frames == ppo.total_frames

    def test_module_can_be_pickled_after_training_with_graphs(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(compile="trace")
        fit(ppo, collector)
        again = pickle.loads(pickle.dumps(ppo.objective))
        assert all(torch.equal(a, b) for a, b in zip(again.parameters(), ppo.parameters(), strict=True))
        assert copy.deepcopy(ppo).frames == ppo.frames

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"controllers": {"clip_epsilonn": Linear()}},
                r"controller\.clip_epsilonn",
            ),
            ({"compile": "always"}, "compile=always"),
            ({"rollouts": 0}, "total_frames=0"),
        ],
    )
    def test_invalid_options_are_refused(self, options: dict[str, Any], message: str, make: Make) -> None:
        with pytest.raises(ConfigurationError, match=message):
            make(**options)

    def test_value_pretraining_changes_only_the_critic(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(rollouts=2, value_pretraining=2)
        actor, critic = weights(ppo.actor), weights(ppo.critic)
        fit(ppo, collector)
        assert all(torch.equal(value, actor[name]) for name, value in weights(ppo.actor).items())
        assert any(not torch.equal(value, critic[name]) for name, value in weights(ppo.critic).items())

    @pytest.mark.parametrize(("critic_epochs", "pretraining", "expected"), [(4, 0, [4, 4]), (2, 1, [0, 4])])
    def test_hooks_run_only_after_steps_of_the_policy(
        self, critic_epochs: int, pretraining: int, expected: list[int], make: Make, fit: Fit
    ) -> None:
        update = MinibatchUpdate(epochs=1, critic_epochs=critic_epochs, minibatch_size=8)
        ppo, collector = make(update=update, value_pretraining=pretraining)
        hooks: list[int] = []
        ppo.after_step.append(lambda: hooks.append(ppo.num_rollouts))
        fit(ppo, collector)
        assert [hooks.count(0), hooks.count(1)] == expected

    @pytest.mark.parametrize("compile_", [False, "trace"])
    @pytest.mark.parametrize(("epochs", "critic_epochs"), [(1, 4), (4, 1)])
    def test_part_with_fewer_epochs_stays_while_the_other_continues(
        self, epochs: int, critic_epochs: int, compile_: Any, make: Make, fit: Fit
    ) -> None:
        after = []
        for unequal in (False, True):
            each = (epochs, critic_epochs) if unequal else (1, 1)
            update = MinibatchUpdate(epochs=each[0], critic_epochs=each[1], minibatch_size=8)
            optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
            ppo, collector = make(rollouts=1, update=update, optimizer=optimizer, compile=compile_)
            fit(ppo, collector)
            after.append((weights(ppo.actor), weights(ppo.critic)))
        frozen, trained = (0, 1) if epochs < critic_epochs else (1, 0)
        assert all(torch.equal(value, after[1][frozen][name]) for name, value in after[0][frozen].items())
        assert any(not torch.equal(value, after[1][trained][name]) for name, value in after[0][trained].items())

    @pytest.mark.parametrize("compile_", [False, "trace"])
    def test_no_step_is_taken_if_nothing_is_trainable(self, compile_: Any, make: Make, fit: Fit) -> None:
        update = MinibatchUpdate(epochs=4, critic_epochs=1, minibatch_size=8)
        ppo, collector = make(rollouts=1, value_pretraining=1, update=update, shared=True, compile=compile_)
        assert fit(ppo, collector).global_step == 4

    def test_weight_decay_does_not_change_a_frozen_policy(self, make: Make, fit: Fit) -> None:
        optimizer = partial(torch.optim.AdamW, lr=1e-2, weight_decay=0.1)
        ppo, collector = make(rollouts=2, value_pretraining=2, optimizer=optimizer, controllers={"lr": Linear()})
        actor = weights(ppo.actor)
        fit(ppo, collector)
        assert all(torch.equal(value, actor[name]) for name, value in weights(ppo.actor).items())

    def test_value_pretraining_trains_shared_features(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(rollouts=1, value_pretraining=1, shared=True)
        parameters = list(ppo.objective.parameters())
        before = [param.detach().clone() for param in parameters]
        fit(ppo, collector)
        moved = {param for old, param in zip(before, parameters, strict=True) if not torch.equal(old, param)}
        moved_parts = {group["part"] for group in ppo.optimizer.param_groups if moved & {*group["params"]}}
        assert moved_parts == {"shared", "critic"}

    def test_parameters_of_the_objective_are_trained_too(self, make: Make, fit: Fit) -> None:
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

    def test_objective_without_networks_or_losses_is_refused(self, make: Make, fit: Fit) -> None:
        class NoLoss(ClipPPOLoss):
            def forward(self, td: TensorDictBase) -> TensorDictBase:
                return super().forward(td).select("entropy")

        ppo, collector = make(objective=NoLoss)
        with pytest.raises(ConfigurationError, match=r"loss_\*.*entropy"):
            fit(ppo, collector)
        with pytest.raises(ConfigurationError, match=r"objective=Linear.*actor_network"):
            make(objective=lambda *_: nn.Linear(2, 2))

    def test_beta_is_constant_during_value_pretraining(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(objective=KLPENPPOLoss, rollouts=3, value_pretraining=3)
        beta = float(ppo.objective.beta)
        fit(ppo, collector)
        assert float(ppo.objective.beta) == beta

    def test_observation_statistics_count_every_frame_once(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(normalize_observation=True, rollouts=2)
        fit(ppo, collector)
        (normalizer,) = {module for module in ppo.modules() if isinstance(module, ObservationNormalizer)}
        assert normalizer.moments.count == 2 * 2 * 16

    def test_schedules_change_learning_rate_and_clip_epsilon(self, make: Make, fit: Fit) -> None:
        recorded: list[tuple[float, float]] = []

        class Recording(PPO):
            def training_step(self, rollout: TensorDictBase) -> None:
                group = self.optimizers(use_pl_optimizer=False).param_groups[0]
                recorded.append((group["lr"], float(self.objective.clip_epsilon)))
                super().training_step(rollout)

        ppo, collector = make(rollouts=4, controllers={"lr": Linear(), "clip_epsilon": Linear()})
        ppo.__class__ = Recording
        fit(ppo, collector)
        expected = [(1e-3 * (1 - k / 4), 0.2 * (1 - k / 4)) for k in range(4)]
        np.testing.assert_allclose(recorded, expected, rtol=1e-6)

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

    @pytest.mark.parametrize("compile_", [False, "trace", True])
    def test_a_step_that_is_not_finite_changes_nothing_and_is_counted(
        self, compile_: Any, make: Make, fit: Fit, caplog: pytest.LogCaptureFixture
    ) -> None:
        class SometimesInfinite(ClipPPOLoss):
            """The loss is infinite for minibatches with the first row. Its gradient is finite."""

            def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
                losses = super().forward(tensordict)
                is_bad = (tensordict["advantage"] > 50).any()
                losses["loss_extra"] = losses["loss_critic"] * 0 + torch.where(is_bad, torch.inf, 0.0)
                return losses

        results = []
        for value in (0.0, 99.0):
            ppo, collector = make(rollouts=1, objective=SometimesInfinite, compile=compile_, normalize_advantage=None)
            ppo.total_frames *= 2  # not the last rollout
            ppo.update = MinibatchUpdate(epochs=1, minibatch_size=32)
            estimate = RolloutBatch.estimate

            def changed(batch: RolloutBatch, value: float = value, estimate: Any = estimate) -> None:
                estimate(batch)
                batch.rows["advantage"][0] = value

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(RolloutBatch, "estimate", changed)
                before = weights(ppo)
                trainer = fit(ppo, collector)
            moments = [value for state in ppo.optimizer.state.values() for value in state.values()]
            unchanged = all(torch.equal(one, before[name]) for name, one in weights(ppo).items())
            results.append((unchanged, not any(bool(one.any()) for one in moments)))
            assert trainer.callback_metrics["train/skipped_steps"] == (value > 0)
            assert trainer.callback_metrics["train/num_steps"] == (value == 0)
        assert results == [(False, False), (True, True)]
        assert "1 of 1 optimizer steps were skipped (loss_extra=inf, grad_norm=nan)" in caplog.text

    def test_too_many_steps_in_a_row_that_are_not_finite_end_the_training(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(max_skipped_steps=9, rollouts=3)
        with torch.no_grad():
            list(ppo.critic.parameters())[-1].fill_(float("inf"))
        with pytest.raises(
            NumericalError,
            match=r"^10 .*loss_critic=.*=9\) after 64 frames; lower optimizer\.lr",
        ):
            fit(ppo, collector)
        assert ppo.num_rollouts == 2, "8 steps of the first rollout, then 2"

    @pytest.mark.parametrize("limit", [0, -1])
    def test_a_limit_of_skipped_steps_below_one_is_refused(self, limit: int, make: Make) -> None:
        with pytest.raises(ConfigurationError, match=f"max_skipped_steps={limit}"):
            make(max_skipped_steps=limit)

    def test_finished_training_is_garbage_collected(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(rollouts=2)
        fit(ppo, collector)
        weight = weakref.ref(next(ppo.parameters()))
        del ppo, collector
        gc.collect()
        assert weight() is None


class TestCheckpoint:
    def test_weights_statistics_and_counters_are_restored(self, tmp_path: Any, make: Make, fit: Fit) -> None:
        ppo, collector = make(normalize_observation=True)
        fit(ppo, collector)
        ppo.trainer.save_checkpoint(tmp_path / "last.ckpt")
        checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
        other, _ = make(normalize_observation=True, seed=5)
        other.load_state_dict(checkpoint["state_dict"])
        other.episodes.episodes.append((1e3, 1))  # from earlier training of this module
        other.on_load_checkpoint(checkpoint)
        assert all(torch.equal(value, weights(ppo)[name]) for name, value in weights(other).items())
        assert (other.frames, other.num_rollouts) == (ppo.frames, ppo.num_rollouts)
        assert other.episodes.state_dict() == ppo.episodes.state_dict()


class TestComponents:
    def test_rollouts_without_a_length_are_refused(self, make: Make, fit: Fit) -> None:
        ppo, collector = make(rollouts=1)
        with pytest.raises(ConfigurationError, match="no length"):
            fit(ppo, (rollout for rollout in collector))

    def test_torchrls_v_trace_is_refused(self, make: Make) -> None:
        ppo, _ = make()
        v_trace = VTrace(gamma=0.9, actor_network=ppo.actor, value_network=None)
        with pytest.raises(ConfigurationError, match="VTrace"):
            PPO(ppo.objective, v_trace, ppo.update, torch.optim.Adam, total_frames=64)

    def test_two_reward_models_of_one_name_are_refused(self, make: Make) -> None:
        ppo, _ = make()
        spec = Composite(observation=Categorical(3, (2,)), shape=(2,))
        models = [CountBonus(spec, body=partial(mlp, num_cells=(4,))) for _ in range(2)]
        with pytest.raises(ConfigurationError, match="same name"):
            PPO(ppo.objective, ppo.estimator, ppo.update, torch.optim.Adam, total_frames=64, reward_models=models)

    def test_a_memory_that_only_the_critic_runs_is_refused(self, make: Make) -> None:
        ppo, _ = make()
        memory = LSTMModule(input_size=4, hidden_size=8, in_key="observation", out_key="features")
        ppo.objective.critic_network = TensorDictSequential(memory, ValueOperator(nn.Linear(8, 1), ["features"]))
        with pytest.raises(ConfigurationError, match="actor does not run"):
            PPO(ppo.objective, ppo.estimator, ppo.update, torch.optim.Adam, total_frames=64)
