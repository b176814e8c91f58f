"""Trains with two processes and compares them after every step; run by test_distributed.py."""

import json
import sys
from functools import partial
from typing import Any

import torch
from lightning import Trainer, seed_everything
from tensordict import TensorDictBase
from torch import Tensor, distributed
from torchrl.objectives.value import GAE

from torchppo.envs import make_env
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.adaptive_controllers import KLAdaptive
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import GRU
from torchppo.modules.intrinsic.count import CountBonus
from torchppo.modules.intrinsic.e3b import E3B
from torchppo.modules.intrinsic.icm import ICM
from torchppo.modules.intrinsic.noveld import NovelD
from torchppo.modules.intrinsic.rnd import RND
from torchppo.modules.normalizers import ObservationNormalizer
from torchppo.modules.objectives.kl_penalty import KLPENPPOLoss
from torchppo.modules.objectives.ppo_ewma import PPOEWMALoss
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.components.instantiate import seed_for_rank
from torchppo.pipelines.distributed import normalized, summed
from torchppo.pipelines.evaluate import EvaluationEpisodes
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.updates.minibatch import MinibatchUpdate
from torchppo.pipelines.updates.natural_gradient import NaturalGradientUpdate
from torchppo.pipelines.updates.phasic import PhasicUpdate


def from_both_ranks(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(2)]
    distributed.all_gather(parts, tensor.contiguous())
    return parts


def counting_all_reduce(tensor: Tensor, *arguments: Any, **options: Any) -> Any:
    report["gloo_sums"] += tensor.numel() > 1  # Lightning adds single numbers
    return all_reduce(tensor, *arguments, **options)


class Comparing(PPO):
    def on_train_start(self) -> None:
        super().on_train_start()
        report["step"] = type(self._step).__name__

    def step(self, rows: TensorDictBase, indices: Tensor) -> dict[str, Tensor] | None:
        result = super().step(rows, indices)
        weights = [*self.parameters(), *(buffer for buffer in self.objective.buffers() if buffer.is_floating_point())]
        mine, other = from_both_ranks(torch.cat([weight.detach().reshape(-1) for weight in weights]))
        report["steps"] += 1
        report["largest_difference"] = max(report["largest_difference"], float((mine - other).abs().max()))
        return result

    def training_step(self, rollout: Any) -> None:
        mine, other = from_both_ranks(rollout["observation"])
        report["same_data"] |= bool(torch.equal(mine, other))
        super().training_step(rollout)
        fraction = self.trainer.callback_metrics.get("train/step_fraction", 0.0)
        report["step_fraction"] = max(report["step_fraction"], float(fraction))
        report["own_episodes"] += int(rollout["next", "done"].sum())
        mine, other = from_both_ranks(
            torch.tensor([self.episodes.num_episodes, sum(length for _, length in self.episodes.episodes)])
        )
        report["same_episodes"] &= bool(torch.equal(mine, other))
        for module in self.modules():
            if isinstance(module, ObservationNormalizer):
                mine, other = from_both_ranks(module.moments.mean)
                report["same_statistics"] &= bool(torch.equal(mine, other))
        beta = getattr(self.objective, "beta", 0.0)
        mine, other = from_both_ranks(torch.tensor([beta, self.optimizer.param_groups[0]["lr"]]))
        report["same_coefficients"] &= bool(torch.equal(mine, other))
        report["lr"] = self.optimizer.param_groups[0]["lr"]
        metrics = self.trainer.callback_metrics
        mine, other = from_both_ranks(torch.stack([metrics[name] for name in metrics if name.startswith("train/")]))
        report["same_metrics"] &= bool(torch.equal(mine, other)) and "train/kl" in metrics
        for model in self.reward_models.values():
            for buffer in model.buffers():
                mine, other = from_both_ranks(buffer)
                report["same_statistics"] &= bool(torch.equal(mine, other))
        if self.reward_models:
            report["visits"] = int(self.reward_models["count"].counts.sum())
            mine, other = from_both_ranks(self.reward_models["e3b"].get_extra_state())
            report["own_episodic_state"] = not torch.equal(mine, other)


report: dict[str, Any] = {}
"""The comparisons of the training that is running."""


def train(mode: str, target_kl: float, variant: str) -> dict[str, Any]:
    """Train, evaluate, and return the report."""
    report.update(steps=0, own_episodes=0, gloo_sums=0, largest_difference=0.0, step_fraction=0.0, same_data=False)
    report.update(same_statistics=True, same_coefficients=True, same_episodes=True, same_metrics=True)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = Trainer(max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", log_every_n_steps=1, **quiet)
    seed_everything(seed_for_rank(0, trainer.global_rank), verbose=False)
    has_bonus = variant == "intrinsic"
    env_id = "FrozenLake-v1" if has_bonus else "CartPole-v1"
    env = make_env(env_id, 2)
    env.set_seed(seed_for_rank(0, trainer.global_rank))
    actor, critic = make_actor_critic(
        env.observation_spec,
        env.action_spec,
        body=partial(mlp, num_cells=[16]),
        memory=partial(GRU, width=8) if variant == "gru" else None,
        normalize_observation=True,
    )
    update = MinibatchUpdate(epochs=2, minibatch_size=16, sequence_length=8, target_kl=target_kl or None)
    if variant == "natural_gradient":
        update = NaturalGradientUpdate(target_kl, minibatch_size=16, epochs=2)
    if variant == "ppg":
        update = PhasicUpdate(1, 16, num_rollouts=2, auxiliary_epochs=2)
    adam = partial(torch.optim.Adam, lr=3e-3)
    estimator = GAE(gamma=0.99, lmbda=0.95, value_network=None)
    objective = (PPOEWMALoss if variant == "gru" else KLPENPPOLoss)(actor, critic)
    options: dict[str, Any] = {"compile": mode == "compiled"}
    if has_bonus:
        spec, body = env.observation_spec, partial(mlp, num_cells=[16])
        models = [CountBonus(spec, body=body), RND(spec, body=body), NovelD(spec, body=body)]
        models += [model(spec, env.action_spec, body=body, num_features=8) for model in (E3B, ICM)]
        options |= {"controllers": {"lr": KLAdaptive(target_kl=1.0)}, "reward_models": models}
    ppo = Comparing(objective, estimator, update, adam, total_frames=256, **options)
    trainer.fit(ppo, train_dataloaders=Collector(env, actor, frames_per_env=32, total_frames=256))
    episodes = EvaluationEpisodes(make_env(env_id, 2, max_episode_steps=15), actor, 2)
    (evaluation,) = trainer.validate(ppo, dataloaders=episodes, verbose=False)
    mine, other = from_both_ranks(torch.tensor([*evaluation.values(), *map(float, trainer.callback_metrics.values())]))
    report["evaluation"] = evaluation
    report["same_evaluation"] = bool(torch.equal(mine, other))
    values = torch.arange(4.0) + 10 * trainer.global_rank
    report["normalized"] = normalized(values.unsqueeze(0))[0].tolist()
    report["frames"] = ppo.frames
    report["episodes"] = ppo.episodes.num_episodes
    report["all_own_episodes"] = int(summed(torch.tensor(report["own_episodes"])))
    return report


all_reduce, distributed.all_reduce = distributed.all_reduce, counting_all_reduce
torch.set_num_threads(1)
reports = {arguments: dict(train(*arguments)) for arguments in map(tuple, json.loads(sys.argv[1]))}
if distributed.get_rank() == 0:
    print(json.dumps([*reports.values()]))
distributed.destroy_process_group()  # otherwise its threads may abort the process at its end
