"""Workloads of `throughput.py` and the functions that run them with torchppo and other libraries."""

from __future__ import annotations

import gc
import statistics
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch


@dataclass(frozen=True)
class Workload:
    """Hyperparameters of a training, equal for all libraries.

    Attributes:
        peers: names of the functions of this file that run it with other libraries.
        overrides: overrides of torchppo's configuration.

    """

    env_id: str
    num_envs: int
    frames_per_env: int
    minibatch_size: int
    epochs: int
    rollouts: int
    normalized: bool = False
    precision: str = "32-true"
    memory: str = "none"
    peers: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()

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


MLP = "sb3", "torchrl", "sbx"
WORKLOADS = {
    "cartpole": Workload("CartPole-v1", 8, 32, 256, 20, 60, peers=(*MLP, "envpool", "jax")),
    "cartpole_1024": Workload(
        *("CartPole-v1", 1024, 32, 4096, 4, 20),
        peers=("sb3", "sbx", "envpool", "jax"),
        overrides=("env.vectorization=native",),
    ),
    "halfcheetah_1": Workload("HalfCheetah-v5", 1, 2048, 64, 10, 4, normalized=True, peers=MLP),
    "halfcheetah_8": Workload("HalfCheetah-v5", 8, 2048, 2048, 10, 3, normalized=True, peers=MLP),
    "halfcheetah_8_workers": Workload(
        *("HalfCheetah-v5", 8, 2048, 2048, 10, 3),
        normalized=True,
        peers=("sb3",),
        overrides=("env.num_workers=2",),
    ),
    "pong": Workload("ALE/Pong-v5", 8, 128, 256, 4, 2, peers=("sb3",)),
    "pong_bf16": Workload("ALE/Pong-v5", 8, 128, 256, 4, 2, precision="bf16-mixed", peers=("sb3",)),
    "lstm": Workload("CartPole-v1", 8, 128, 256, 4, 8, memory="lstm", peers=("recurrent_ppo",)),
    "gru": Workload("CartPole-v1", 8, 128, 256, 4, 8, memory="gru"),
    "transformer": Workload("CartPole-v1", 8, 128, 256, 4, 8, memory="transformer"),
}


class Clock:
    """Measures the time from the end of the first update to the end of the last one.

    The first update is excluded, because it compiles and warms up.
    """

    def __init__(self) -> None:
        self.update_ends: list[float] = []
        self.cpu_seconds: list[float] = []
        self.start = time.perf_counter()
        self.rollouts = self.optimizer_steps = 0

    def tick(self, rollouts: int = 1) -> None:
        """Record the end of the last of these rollouts and its update."""
        self.rollouts += rollouts
        self.update_ends.append(time.perf_counter())
        self.cpu_seconds.append(time.process_time())

    def results(self, work: Workload) -> dict[str, float]:
        rollouts = self.rollouts - 1
        seconds = self.update_ends[-1] - self.update_ends[0]
        first = self.update_ends[0] - self.start
        return {
            "frames": rollouts * work.frames,
            "optimizer_steps": self.optimizer_steps - work.steps,
            "fps": rollouts * work.frames / seconds,
            "compile_seconds": max(0.0, first - seconds / rollouts),
            "cores": (self.cpu_seconds[-1] - self.cpu_seconds[0]) / seconds,  # about 1 with one thread
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
        *work.overrides,
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
    model = PPO("CnnPolicy" if work.is_atari else "MlpPolicy", env, device="cpu", **stable_options(work))
    return learn(model, work)


def recurrent_ppo(work: Workload) -> dict[str, float]:
    """RecurrentPPO with the networks of `policy=lstm`: a layer and an LSTM, separate for actor and critic."""
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.torch_layers import BaseFeaturesExtractor

    class Layer(BaseFeaturesExtractor):
        def __init__(self, space: Any) -> None:
            super().__init__(space, 64)
            self.layer = torch.nn.Sequential(torch.nn.Linear(space.shape[0], 64), torch.nn.Tanh())

        def forward(self, observation: torch.Tensor) -> Any:
            return self.layer(observation)

    networks = {
        "features_extractor_class": Layer,
        "share_features_extractor": False,
        "lstm_hidden_size": 64,
        "net_arch": [],
        "enable_critic_lstm": True,
    }
    env = make_vec_env(work.env_id, work.num_envs, seed=0)
    model = RecurrentPPO("MlpLstmPolicy", env, device="cpu", policy_kwargs=networks, **stable_options(work))
    return learn(model, work)


def sbx(work: Workload) -> dict[str, float]:
    """SBX: the environments of Stable-Baselines3, and updates in JAX."""
    from sbx import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecEnv, VecNormalize

    env: VecEnv = make_vec_env(work.env_id, work.num_envs, seed=0)
    if work.normalized:
        env = VecNormalize(env, gamma=0.99)
    return learn(PPO("MlpPolicy", env, **stable_options(work)), work)


def stable_options(work: Workload) -> dict[str, Any]:
    """Arguments of the algorithms of Stable-Baselines3, sb3-contrib and SBX."""
    return {
        "n_steps": work.frames_per_env,
        "batch_size": work.minibatch_size,
        "n_epochs": work.epochs,
        "learning_rate": 3e-4,
        "ent_coef": 0.0,
        "seed": 0,
    }


def learn(model: Any, work: Workload) -> dict[str, float]:
    """Train with an algorithm of Stable-Baselines3, sb3-contrib or SBX."""
    from stable_baselines3.common.callbacks import BaseCallback

    clock = Clock()

    class Timer(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_start(self) -> None:
            if self.num_timesteps:
                clock.tick()

    optimizer = getattr(model.policy, "optimizer", None)
    if isinstance(optimizer, torch.optim.Optimizer):
        clock.count(optimizer)
    model.learn((work.rollouts + 1) * work.frames, callback=Timer())
    clock.tick()
    if not clock.optimizer_steps:  # JAX has no hook to count them
        clock.optimizer_steps = (work.rollouts + 1) * work.steps
    return clock.results(work)


def envpool(work: Workload) -> dict[str, float]:
    from .peers.envpool_loop import Loop, train

    loop = Loop(work.env_id, work.num_envs, work.frames_per_env, work.minibatch_size, work.epochs)
    clock = Clock()
    clock.count(loop.optimizer)
    train(loop, work.rollouts + 1, clock.tick)
    return clock.results(work)


def jax(work: Workload) -> dict[str, float]:
    from .peers.jax_loop import make_train

    clock = Clock()
    train, state = make_train(work.num_envs, work.frames_per_env, work.minibatch_size, work.epochs, work.rollouts)
    clock.tick()
    train(state)[1].block_until_ready()
    clock.tick(work.rollouts)
    clock.optimizer_steps = (work.rollouts + 1) * work.steps  # all in one program
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
    """Step the environments in this process with random actions, without a policy.

    Returns:
        `fps`, the frames per second of the environment alone; `gflops`, the rate of a large matrix product; and
        `bound`, the frames per second of a training that takes only the time of the environment and of the floating
        point operations of the networks at this rate. A frame needs one forward pass to act, and three times as many
        operations in each epoch to learn.

    """
    from torchppo.pipelines.build import build_training

    training = build_training(configuration(work, ("env.num_workers=0", "compile=false")), 0)
    operations = forward_operations(training)
    collector: Any = training.collector
    vector = collector.env.vector
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
    fps = steps * work.num_envs / (time.perf_counter() - start)
    rate = product_rate(torch.bfloat16 if work.precision == "bf16-mixed" else torch.float32)
    bound = 1 / (1 / fps + operations * (1 + 3 * work.epochs) / rate)
    return {"fps": fps, "bound": bound, "gflops": rate / 1e9}


def forward_operations(training: Any) -> float:
    """Floating point operations of actor and critic for one frame."""
    from torch.utils.flop_counter import FlopCounterMode

    frames = next(iter(training.collector))[:, 0]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        training.ppo.actor(frames.copy())
        training.ppo.critic(frames.copy())
    return float(counter.get_total_flops()) / len(frames)


def product_rate(dtype: torch.dtype, size: int = 1024, repeats: int = 20) -> float:
    """Floating point operations per second of a product of two square matrices."""
    left, right = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - start)
    return float(2 * size**3 / statistics.median(seconds))


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
