"""Observations are the same wherever they are kept, and go to a device once."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torchrl.envs import ExplorationType, set_exploration_type

from torchppo.envs import make_vector_env
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.pipelines.collectors import rollout_buffer as record
from torchppo.pipelines.collectors.collector import VectorRollouts
from torchppo.pipelines.collectors.device_buffer import DeviceObservations
from torchppo.pipelines.collectors.policy_step import PolicyStep
from torchppo.pipelines.collectors.rollout_buffer import FinalObservations, HostObservations, observation_storage

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DTYPES = {
    "plain": np.dtype(np.float32),
    "nested": np.dtype([("image", np.uint8, (2, 3)), ("speed", [("x", np.float32), ("is_on", np.bool_)])], align=True),
}


def filled(shape: tuple[int, ...], dtype: np.dtype[Any], seed: int) -> NDArray[Any]:
    generator = np.random.default_rng(seed)
    array = np.zeros(shape, dtype)
    for name in dtype.names or ():
        array[name] = (
            filled(shape, dtype[name].base, seed)
            if dtype[name].names
            else generator.integers(0, 2, (*shape, *dtype[name].shape))
        )
    return array if dtype.names else generator.integers(0, 9, shape).astype(dtype)


def through(
    storage: HostObservations | DeviceObservations,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    ends: list[FinalObservations],
) -> list[Any]:
    """All that a rollout takes from a storage, as NumPy arrays."""
    source = filled(shape, dtype, seed=0)
    seen = []
    for step in range(shape[0] - 1):
        storage.arrays[step] = source[step]
        seen += [storage.given(step, rows) for rows in (slice(0, 2), slice(2, 3))]
    storage.arrays[-1] = source[-1]
    seen += [storage.observed(), storage.following(ends)]
    return [{key: tensor.cpu().numpy() for key, tensor in one.items()} for one in seen]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("with_ends", [False, True])
@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda"), marks=CUDA)], ids=str)
def test_a_device_holds_what_the_host_does(dtype: np.dtype[Any], with_ends: bool, device: torch.device) -> None:
    shape = (5, 3) if dtype.names else (5, 3, 4)
    last = filled((2, *shape[2:]), dtype, seed=1)
    ends = (
        [FinalObservations(1, np.array([0, 2]), last), FinalObservations(3, np.array([1]), last[:1])]
        if with_ends
        else []
    )
    host = through(HostObservations(shape, dtype), shape, dtype, ends)
    there = through(DeviceObservations(shape, dtype, device), shape, dtype, ends)
    np.testing.assert_equal(there, host)
    assert with_ends != all(np.array_equal(one[1:], host[-1][key][:-1]) for key, one in host[-2].items())


def test_nothing_is_copied_on_a_cpu_unless_an_episode_ended() -> None:
    storage = HostObservations((4, 2), np.dtype(np.float32))
    for step in range(4):
        storage.arrays[step] = step
    assert storage.given(1)["observation"].data_ptr() == storage.observed()["observation"][1].data_ptr()
    assert storage.following([])["observation"].data_ptr() == storage.observed()["observation"][1].data_ptr()
    ended = storage.following([FinalObservations(0, np.array([1]), np.array([9], np.float32))])["observation"]
    assert ended.tolist() == [[1, 9], [2, 2], [3, 3]]
    assert storage.observed()["observation"].tolist() == [[0, 0], [1, 1], [2, 2]]


def test_what_was_given_stays_when_the_host_goes_on() -> None:
    storage = DeviceObservations((3, 2), np.dtype(np.float32), CPU)
    storage.arrays[0] = 1.0
    given = storage.given(0)["observation"]
    storage.arrays[0] = 2.0
    assert given.tolist() == storage.observed()["observation"][0].tolist() == [1.0, 1.0]


@CUDA
def test_on_cuda_the_host_is_pinned() -> None:
    storage = observation_storage((3, 2), np.dtype(np.float32), torch.device("cuda"))
    assert torch.from_numpy(storage.arrays).is_pinned()
    assert storage.observed()["observation"].is_cuda


class Parts(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Observations in two parts."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Dict(
            place=spaces.Box(-5, 5, (2,), np.float32), speed=spaces.Box(-9, 9, (2,), np.float32)
        )

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        observation, info = self.env.reset(**kwargs)
        return {"place": observation[::2], "speed": observation[1::2]}, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, *rest = self.env.step(action)
        return ({"place": observation[::2], "speed": observation[1::2]}, *rest)  # type: ignore[return-value]


@pytest.mark.parametrize("wrappers", [[], [Parts]], ids=["plain", "nested"])
def test_rollouts_are_the_same_through_a_device_bit_for_bit(wrappers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def two_rollouts() -> list[Any]:
        torch.manual_seed(0)
        env = make_vector_env("CartPole-v1", 3, wrappers=wrappers)
        env.set_seed(0)
        actor = make_actor_critic(env.observation_spec, env.action_spec, body=mlp).actor
        collect = VectorRollouts(env, PolicyStep(actor, compile="trace"), 30, double_buffer=False)
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            return [collect(), collect()]

    here = two_rollouts()
    monkeypatch.setattr(record, "observation_storage", DeviceObservations)
    assert here[0]["next", "done"].any()
    for one, other in zip(here, two_rollouts(), strict=True):
        assert (one == other).all()
