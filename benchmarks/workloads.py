"""Workloads of `throughput.py` and the functions that run them with torchppo, Stable-Baselines3 and TorchRL."""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class Workload:
    env_id: str
    num_envs: int
    frames_per_env: int
    minibatch_size: int
    epochs: int
    rollouts: int
    normalized: bool = False
    precision: str = "32-true"
    memory: str = "none"

    @property
    def frames(self) -> int:
        return self.num_envs * self.frames_per_env

    @property
    def is_atari(self) -> bool:
        return self.env_id.startswith("ALE/")

    @property
    def steps(self) -> int:
        """Optimizer steps per rollout."""
        return self.epochs * self.frames // self.minibatch_size


WORKLOADS = {
    "cartpole": Workload("CartPole-v1", 8, 32, 256, 20, 60),
    "halfcheetah_1": Workload("HalfCheetah-v5", 1, 2048, 64, 10, 4, normalized=True),
    "halfcheetah_8": Workload("HalfCheetah-v5", 8, 2048, 2048, 10, 3, normalized=True),
    "pong": Workload("ALE/Pong-v5", 8, 128, 256, 4, 2),
    "pong_bf16": Workload("ALE/Pong-v5", 8, 128, 256, 4, 2, precision="bf16-mixed"),
    "lstm": Workload("CartPole-v1", 8, 128, 256, 4, 8, memory="lstm"),
    "gru": Workload("CartPole-v1", 8, 128, 256, 4, 8, memory="gru"),
    "transformer": Workload("CartPole-v1", 8, 128, 256, 4, 8, memory="transformer"),
}


class Clock:
    """Measures the time from the end of the first update to the end of the last one.

    The first update is excluded, because it compiles and warms up.
    """

    def __init__(self) -> None:
        self.update_ends: list[float] = []
        self.start = time.perf_counter()
        self.optimizer_steps = 0

    def tick(self) -> None:
        self.update_ends.append(time.perf_counter())

    def results(self, work: Workload) -> dict[str, float]:
        rollouts = len(self.update_ends) - 1
        seconds = self.update_ends[-1] - self.update_ends[0]
        first = self.update_ends[0] - self.start
        return {
            "frames": rollouts * work.frames,
            "optimizer_steps": self.optimizer_steps - work.steps,
            "fps": rollouts * work.frames / seconds,
            "compile_seconds": max(0.0, first - seconds / rollouts),
        }

    def count(self, optimizer: torch.optim.Optimizer) -> None:
        optimizer.register_step_post_hook(lambda *_: setattr(self, "optimizer_steps", self.optimizer_steps + 1))


def configuration(work: Workload, extra: tuple[str, ...] = ()) -> Any:
    """The configuration of a torchppo run."""
    from torchppo.pipelines.cli.config import compose

    policy = work.memory if work.memory != "none" else "cnn" if work.is_atari else "mlp"
    overrides = [
        f"env={'atari' if work.is_atari else 'gymnasium'}",
        f"env.id={work.env_id}",
        f"env.num_envs={work.num_envs}",
        f"policy={policy}",
        *([] if work.memory == "none" else ["policy.memory.width=64"]),
        f"reward={'clipped' if work.is_atari else 'normalized' if work.normalized else 'raw'}",
        f"policy.normalize_observation={work.normalized}",
        f"collector.frames_per_env={work.frames_per_env}",
        f"update.minibatch_size={work.minibatch_size}",
        f"update.epochs={work.epochs}",
        f"trainer.precision={work.precision}",
        f"total_frames={(work.rollouts + 1) * work.frames}",
        f"collector.double_buffer={work.is_atari}",
        "compile=true",
        "logger=[]",
        *extra,
    ]
    return compose(overrides)


def ours(work: Workload, extra: tuple[str, ...] = ()) -> dict[str, float]:
    from lightning import Callback

    from torchppo.pipelines.build import build_trainer, build_training
    from torchppo.pipelines.run_files.progress import silence_lightning

    silence_lightning()
    cfg = configuration(work, extra)
    clock = Clock()

    class Timer(Callback):
        def on_train_start(self, trainer: Any, pl_module: Any) -> None:
            clock.start = time.perf_counter()

        def on_train_batch_end(self, *_: Any) -> None:
            clock.tick()

    trainer = build_trainer(cfg, [Timer()])
    training = build_training(cfg, 0)
    trainer.fit(training.ppo, train_dataloaders=training.collector)
    clock.optimizer_steps = trainer.global_step
    return clock.results(work)


def sb3(work: Workload) -> dict[str, float]:
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_atari_env, make_vec_env
    from stable_baselines3.common.vec_env import VecEnv, VecFrameStack, VecNormalize

    env: VecEnv
    if work.is_atari:
        import ale_py
        import gymnasium

        gymnasium.register_envs(ale_py)
        env = VecFrameStack(make_atari_env(work.env_id.replace("ALE/Pong-v5", "PongNoFrameskip-v4"), work.num_envs), 4)
    else:
        env = make_vec_env(work.env_id, work.num_envs, seed=0)
    if work.normalized:
        env = VecNormalize(env, gamma=0.99)
    clock = Clock()

    class Timer(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps:
                clock.tick()

    model = PPO(
        "CnnPolicy" if work.is_atari else "MlpPolicy",
        env,
        n_steps=work.frames_per_env,
        batch_size=work.minibatch_size,
        n_epochs=work.epochs,
        learning_rate=3e-4,
        ent_coef=0.0,
        device="cpu",
        seed=0,
    )
    clock.count(model.policy.optimizer)
    model.learn((work.rollouts + 1) * work.frames, callback=Timer())
    clock.tick()
    return clock.results(work)


def torchrl(work: Workload) -> dict[str, float]:
    """TorchRL components combined as in its PPO examples, with the networks of torchppo."""
    from torchrl.collectors import Collector
    from torchrl.data import LazyTensorStorage, SamplerWithoutReplacement, TensorDictReplayBuffer
    from torchrl.envs import Compose, DoubleToFloat, GymEnv, RewardSum, StepCounter, TransformedEnv, VecNormV2
    from torchrl.objectives import ClipPPOLoss
    from torchrl.objectives.value import GAE

    from torchppo.modules.actor_critic import make_actor_critic
    from torchppo.modules.features.bodies import mlp

    single = GymEnv(work.env_id) if work.num_envs == 1 else GymEnv(work.env_id, num_envs=work.num_envs)
    transforms = [DoubleToFloat(), RewardSum(), StepCounter()]
    if work.normalized:
        transforms.insert(1, VecNormV2(in_keys=["observation", "reward"]))
    env = TransformedEnv(single, Compose(*transforms))
    observation_spec, action_spec = env.observation_spec, env.action_spec
    actor, critic = make_actor_critic(observation_spec, action_spec, body=mlp)
    loss = ClipPPOLoss(actor, critic, clip_epsilon=0.2, entropy_coeff=0.0, critic_coeff=0.5, loss_critic_type="l2")
    estimator = GAE(gamma=0.99, lmbda=0.95, value_network=critic, average_gae=True)
    collector = Collector(env, actor, frames_per_batch=work.frames, total_frames=(work.rollouts + 1) * work.frames)
    buffer = TensorDictReplayBuffer(
        storage=LazyTensorStorage(work.frames), sampler=SamplerWithoutReplacement(), batch_size=work.minibatch_size
    )
    optimizer = torch.optim.Adam(loss.parameters(), lr=3e-4, eps=1e-5)
    clock = Clock()
    clock.count(optimizer)
    for rollout in collector:
        with torch.no_grad():
            estimator(rollout)
        buffer.empty()
        buffer.extend(rollout.reshape(-1))
        for _ in range(work.epochs):
            for minibatch in buffer:
                losses = loss(minibatch)
                total = losses["loss_objective"] + losses["loss_critic"] + losses["loss_entropy"]
                optimizer.zero_grad()
                total.backward()
                torch.nn.utils.clip_grad_norm_(loss.parameters(), 0.5)
                optimizer.step()
        clock.tick()
    collector.shutdown()
    return clock.results(work)


def environment(work: Workload, seconds: float = 3.0) -> dict[str, float]:
    """Step the environments one after the other with random actions, without a policy."""
    from torchppo.envs import make_env

    vector = make_env(work.env_id, work.num_envs).vector
    vector.reset(seed=0)
    vector.action_space.seed(0)
    actions = [vector.action_space.sample() for _ in range(100)]
    start, steps = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        _, _, terminated, truncated, _ = vector.step(actions[steps % 100])
        done = terminated | truncated
        if done.any():
            vector.reset(options={"reset_mask": done})
        steps += 1
    return {"fps": steps * work.num_envs / (time.perf_counter() - start)}


def collection(work: Workload, extra: tuple[str, ...] = ()) -> dict[str, float]:
    """Collect with the torchppo collector and a compiled policy, without updates."""
    from torchppo.envs import make_env
    from torchppo.modules.actor_critic import make_actor_critic
    from torchppo.modules.features.bodies import mlp
    from torchppo.pipelines.collectors.collector import Collector

    options = {key: int(value) for key, value in (option.split("=") for option in extra)}
    env = make_env(work.env_id, work.num_envs, **options)  # type: ignore[arg-type]
    env.set_seed(0)
    actor, _ = make_actor_critic(env.observation_spec, env.action_spec, body=partial(mlp), normalize_observation=True)
    total = work.frames * (work.rollouts + 1)
    clock = Clock()
    for _ in Collector(env, actor, frames_per_env=work.frames_per_env, total_frames=total, compile=True):
        clock.tick()
        gc.freeze()  # as in training
    env.close()
    return {"fps": clock.results(work)["fps"]}
