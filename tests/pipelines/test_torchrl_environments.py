"""TorchRL's transforms, batched environments, collectors and estimators train the same eagerly and in graphs."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig
from tensordict import TensorDict, TensorDictBase
from torch import Tensor
from torchrl.data import Bounded, Categorical, Composite, Unbounded
from torchrl.envs import (
    CatFrames,
    Compose,
    EnvBase,
    GymEnv,
    InitTracker,
    ObservationNorm,
    ParallelEnv,
    RewardScaling,
    RewardSum,
    SerialEnv,
    StepCounter,
    TransformedEnv,
)

from torchppo.errors import ConfigurationError
from torchppo.pipelines.build import build_trainer, build_training
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.run_files.progress import silence_lightning

NUMBERS = count()
SMALL = (
    *("total_frames=48", "collector.frames_per_env=8", "update.epochs=2", "update.minibatch_size=8", "logger=[]"),
    *("optimizer.lr=0.003", "trainer.accelerator=cpu", "num_threads=1", "policy.body.num_cells=[8]"),
)
"""Three rollouts of two environments."""
CARTPOLE = ("env.id=CartPole-v1", "env.num_envs=2")


class Pictures(EnvBase):
    """Random pictures `[height, width, channels]` in episodes of five steps, with several other entries."""

    def __init__(self) -> None:
        super().__init__(batch_size=[2])
        self.observation_spec = Composite(
            pixels=Bounded(0, 255, (2, 36, 36, 3), dtype=torch.uint8),
            robot=Composite(speed=Unbounded((2, 3)), shape=[2]),
            action_mask=Categorical(2, (2, 4), dtype=torch.bool),
            recurrent_state_h=Unbounded((2, 5)),
            shape=[2],
        )
        self.action_spec = Categorical(4, (2,))
        self.reward_spec = Unbounded((2, 1))
        self.random = torch.Generator().manual_seed(0)

    def observe(self) -> dict[str, Any]:
        mask = torch.rand(2, 4, generator=self.random) < 0.5
        mask[:, 0] = True
        return {
            "pixels": torch.randint(0, 256, (2, 36, 36, 3), dtype=torch.uint8, generator=self.random),
            "robot": TensorDict({"speed": torch.randn(2, 3, generator=self.random)}, [2]),
            "action_mask": mask,
            "recurrent_state_h": torch.zeros(2, 5),
        }

    def _reset(self, tensordict: TensorDictBase | None, **kwargs: Any) -> TensorDictBase:
        self.steps = 0
        self.last = self.observe()
        return TensorDict(dict(self.last), [2])

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        action = tensordict["action"]
        assert self.last["action_mask"][torch.arange(2), action].all(), "an action that the mask forbids"
        self.steps += 1
        self.last = self.observe()
        done = torch.full((2, 1), self.steps % 5 == 0)
        reward = action.float().unsqueeze(-1)
        return TensorDict({**self.last, "reward": reward, "done": done, "terminated": done}, [2])

    def _set_seed(self, seed: int | None) -> None:
        self.random.manual_seed(seed or 0)


def serial() -> EnvBase:
    return SerialEnv(2, partial(GymEnv, "CartPole-v1"))


def parallel() -> EnvBase:
    return ParallelEnv(2, partial(GymEnv, "CartPole-v1"), mp_start_method="fork")


def transformed() -> EnvBase:
    norm, frames = ObservationNorm(0.5, 2.0, in_keys=["observation"]), CatFrames(3, -1, in_keys=["observation"])
    reward = [RewardScaling(0.0, 0.1), RewardSum()]
    return TransformedEnv(serial(), Compose(norm, frames, *reward, StepCounter(20), InitTracker()))


@pytest.fixture(autouse=True)
def _components(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Make this file importable as `torchrl_parts`."""
    monkeypatch.setitem(sys.modules, "torchrl_parts", sys.modules[__name__])
    monkeypatch.chdir(tmp_path)
    silence_lightning()
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


def configuration(*overrides: str) -> DictConfig:
    return compose([*SMALL, f"run_dir=run{next(NUMBERS)}", *overrides])


def train(*overrides: str) -> tuple[Tensor, Tensor]:
    """Train on three rollouts; return all weights before and after."""
    torch.manual_seed(0)
    cfg = configuration(*overrides)
    training = build_training(cfg, rank=0)
    parameters = list(training.ppo.objective.parameters())
    before = flat(parameters).clone()
    try:
        build_trainer(cfg, []).fit(training.ppo, train_dataloaders=training.collector)
    finally:
        training.close()
    assert training.ppo.num_rollouts == 3
    return before, flat(parameters)


def flat(parameters: list[torch.nn.Parameter]) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def requires_same_training(graph: Any, *overrides: str) -> None:
    """Train eagerly and with graphs; the weights must be equal and must have changed."""
    (start, eager), (_, traced) = (train(*overrides, f"compile={mode}") for mode in (False, graph))
    assert (eager - start).abs().max() > 1e-4
    assert eager.isfinite().all()
    torch.testing.assert_close(traced, eager, rtol=0, atol=1e-6)


def transform(name: str, arguments: str = "") -> str:
    return f"{{_target_: torchrl.envs.{name}{arguments}}}"


TO_TENSOR = transform("ToTensorImage", ", in_keys: [pixels]")
# Adam divides by the size of a gradient and so enlarges the rounding of gradients that are almost zero. With eps=1e-5,
# graphs differ from eager steps by up to 3e-5 on images; with 1e-3, by less than 1e-6.
PICTURES = ("env=torchrl", "env._target_=torchrl_parts.Pictures", "optimizer.eps=1e-3")
PIXELS = (*PICTURES, "policy=mlp")
NORM = transform("ObservationNorm", ", loc: 0.5, scale: 2.0, in_keys: [observation]")
FRAMES = transform("CatFrames", ", N: 3, dim: -1, in_keys: [observation]")
PRIMER = (
    "{_target_: torchrl.envs.TensorDictPrimer, expand_specs: true, "
    "primers: {h: {_target_: torchrl.data.Unbounded, shape: [3]}}}"
)
REWARDS = (transform("RewardScaling", ", loc: 0.0, scale: 0.1"), transform("RewardSum"))
COUNTER = transform("StepCounter", ", max_steps: 5")
RESIZE = transform("Resize", ", w: 40, in_keys: [pixels]")


@pytest.mark.parametrize(
    ("words", "transforms"),
    [
        (CARTPOLE, [NORM, *REWARDS, COUNTER, FRAMES, transform("InitTracker"), PRIMER]),
        (PIXELS, [TO_TENSOR, transform("GrayScale", ", in_keys: [pixels]")]),
        *([] if find_spec("torchvision") is None else [(PIXELS, [TO_TENSOR, RESIZE])]),
    ],
    ids=["vectors", "images", "resized images"][: 2 if find_spec("torchvision") is None else 3],
)
def test_transforms(words: tuple[str, ...], transforms: list[str], graph: Any) -> None:
    requires_same_training(graph, *words, f"transforms=[{','.join(transforms)}]")


@pytest.mark.skipif(find_spec("torchvision") is not None, reason="needs an installation without torchvision")
def test_a_transform_of_a_missing_package_names_it() -> None:
    with pytest.raises(ConfigurationError, match="torchvision"):
        build_training(configuration(*PIXELS, f"transforms=[{TO_TENSOR},{RESIZE}]"), rank=0)


@pytest.mark.parametrize("name", ["serial", "parallel", "transformed"])
def test_environment(name: str, graph: Any) -> None:
    requires_same_training(graph, "env=torchrl", f"env._target_=torchrl_parts.{name}")


def test_environment_with_several_entries_and_a_mask(graph: Any) -> None:
    requires_same_training(graph, *PICTURES)


@pytest.mark.parametrize("words", [["collector=torchrl"], ["collector=torchrl_multi", "collector.num_workers=1"]])
def test_collector(words: list[str], graph: Any) -> None:
    requires_same_training(graph, *CARTPOLE, *words)


@pytest.mark.parametrize("estimator", ["gae", "td_lambda", "td0", "monte_carlo", "vtrace"])
def test_estimator(estimator: str, graph: Any) -> None:
    requires_same_training(graph, *CARTPOLE, f"estimator={estimator}", "update.recompute_advantage=true")


def test_v_trace_of_a_recurrent_policy(graph: Any) -> None:
    requires_same_training(graph, *CARTPOLE, "estimator=vtrace", "update.recompute_advantage=true", "memory=gru")


def test_several_entries_and_a_mask_are_read_if_none_is_named_observation() -> None:
    training = build_training(configuration("env=torchrl", "env._target_=torchrl_parts.Pictures"), rank=0)
    assert set(training.ppo.actor.in_keys) == {"pixels", ("robot", "speed"), "action_mask"}
    training.close()


def test_observation_norm_without_statistics_is_refused() -> None:
    norm = transform("ObservationNorm", ", in_keys: [observation]")
    with pytest.raises(ConfigurationError, match=r"ObservationNorm has no loc and scale; .*init_stats"):
        build_training(configuration(*CARTPOLE, f"transforms=[{norm}]"), rank=0)
