"""A small seeded training, a quiet way to run it, and a checkpoint."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
import torch
from lightning import LightningModule, Trainer, seed_everything
from torch.optim import Optimizer
from torchrl.objectives.value import GAE

from torchppo.envs import VectorEnv, make_env
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import Memory
from torchppo.modules.heads.action_heads import ContinuousHead
from torchppo.modules.heads.continuous import gaussian
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.modules.objectives.ppo_loss import PPOLoss
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.updates.minibatch import MinibatchUpdate

GAMMA, LMBDA = 0.9, 0.8
ADAM = partial(torch.optim.Adam, lr=1e-3, eps=1e-5)
CHECKPOINT_TRAINING = (
    *("experiment=cartpole", "total_frames=512", "collector.frames_per_env=32", "update.epochs=2", "seed=3"),
    *("eval.episodes=2", "eval.video=false", "compile=false", "trainer.accelerator=cpu", "logger=[csv]"),
    *("policy.normalize_observation=true", "policy.body.num_cells=[8]", "reward=normalized"),
)


class Make(Protocol):
    """Makes a seeded module and its collector."""

    def __call__(self, env_id: str = ..., **options: Any) -> tuple[PPO, Collector]: ...


class Fit(Protocol):
    """Trains to the end."""

    def __call__(self, ppo: LightningModule, collector: Collector, **options: Any) -> Trainer: ...


@pytest.fixture
def make() -> Make:
    return make_training


@pytest.fixture
def fit() -> Fit:
    return run


def make_training(
    env_id: str = "CartPole-v1",
    *,
    num_envs: int = 2,
    frames_per_env: int = 16,
    rollouts: int = 2,
    objective: type[PPOLoss] = ClipPPOLoss,
    update: MinibatchUpdate | None = None,
    normalize_observation: bool = False,
    shared: bool = False,
    head: ContinuousHead = gaussian,
    memory: Callable[[int], Memory] | None = None,
    optimizer: Callable[..., Optimizer] = ADAM,
    seed: int = 0,
    **options: Any,
) -> tuple[PPO, Collector]:
    seed_everything(seed, verbose=False)
    env: VectorEnv = make_env(env_id, num_envs)
    env.set_seed(seed)
    body = partial(mlp, num_cells=[16])
    actor, critic = make_actor_critic(
        env.observation_spec,
        env.action_spec,
        body=body,
        shared=shared,
        head=head,
        memory=memory,
        normalize_observation=normalize_observation,
    )
    total_frames = num_envs * frames_per_env * rollouts
    ppo = PPO(
        objective(actor, critic),
        GAE(gamma=GAMMA, lmbda=LMBDA, value_network=None, vectorized=True),
        update or MinibatchUpdate(epochs=2, minibatch_size=8),
        optimizer,
        total_frames=total_frames,
        **options,
    )
    return ppo, Collector(env, actor, frames_per_env=frames_per_env, total_frames=total_frames)


def run(ppo: LightningModule, collector: Collector, **options: Any) -> Trainer:
    """Train to the end on the CPU without output."""
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = Trainer(max_epochs=1, accelerator="cpu", devices=1, log_every_n_steps=1, **quiet, **options)
    trainer.fit(ppo, train_dataloaders=collector)
    return trainer


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the last checkpoint of a training that normalizes observations. Tests must not write to it."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    with redirect_stdout(io.StringIO()):
        assert main(["train", *CHECKPOINT_TRAINING, f"run_dir={run_dir}"]) == 0
    return run_dir / "checkpoints" / "last.ckpt"


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of the checkpoint in the empty working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copy(trained, tmp_path / "last.ckpt"))
