"""Observations of a rollout on the host and on a device."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torchrl.envs import ExplorationType, set_exploration_type

from torchppo.envs import make_env
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.pipelines.collectors import rollout_buffer
from torchppo.pipelines.collectors.device_buffer import DeviceObservations
from torchppo.pipelines.collectors.rollout_buffer import FinalObservations, HostObservations, observation_storage
from torchppo.pipelines.collectors.vector import VectorRollouts

CPU = torch.device("cpu")
CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DTYPES = {
    "plain": np.dtype(np.float32),
    "nested": np.dtype([("image", np.uint8, (2, 3)), ("speed", [("x", np.float32), ("is_on", np.bool_)])], align=True),
}


def random_array(shape: tuple[int, ...], dtype: np.dtype[Any], seed: int) -> NDArray[Any]:
    generator = np.random.default_rng(seed)
    array = np.zeros(shape, dtype)
    for name in dtype.names or ():
        array[name] = (
            random_array(shape, dtype[name].base, seed)
            if dtype[name].names
            else generator.integers(0, 2, (*shape, *dtype[name].shape))
        )
    return array if dtype.names else generator.integers(0, 9, shape).astype(dtype)


def write_and_read(
    storage: HostObservations | DeviceObservations,
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    final: list[FinalObservations],
) -> list[Any]:
    """Return everything that a rollout reads from the storage, as NumPy arrays."""
    source = random_array(shape, dtype, seed=0)
    results = []
    for step in range(shape[0] - 1):
        storage.array[step] = source[step]
        results += [storage.read(step, env_slice) for env_slice in (slice(0, 2), slice(2, 3))]
    storage.array[-1] = source[-1]
    results += [storage.observations(), storage.next_observations(final)]
    return [{key: tensor.cpu().numpy() for key, tensor in result.items()} for result in results]


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
@pytest.mark.parametrize("with_final", [False, True])
@pytest.mark.parametrize("device", [CPU, pytest.param(torch.device("cuda"), marks=CUDA)], ids=str)
def test_device_holds_the_same_observations_as_the_host(
    dtype: np.dtype[Any], with_final: bool, device: torch.device
) -> None:
    shape = (5, 3) if dtype.names else (5, 3, 4)
    last = random_array((2, *shape[2:]), dtype, seed=1)
    final = (
        [FinalObservations(1, np.array([0, 2]), last), FinalObservations(3, np.array([1]), last[:1])]
        if with_final
        else []
    )
    host = write_and_read(HostObservations(shape, dtype), shape, dtype, final)
    on_device = write_and_read(DeviceObservations(shape, dtype, device), shape, dtype, final)
    np.testing.assert_equal(on_device, host)
    assert with_final != all(np.array_equal(one[1:], host[-1][key][:-1]) for key, one in host[-2].items())


def test_host_copies_nothing_unless_an_episode_ended() -> None:
    storage = HostObservations((4, 2), np.dtype(np.float32))
    for step in range(4):
        storage.array[step] = step
    assert storage.read(1)["observation"].data_ptr() == storage.observations()["observation"][1].data_ptr()
    assert storage.read(1)["observation"].data_ptr() == storage.next_observations([])["observation"].data_ptr()
    next_obs = storage.next_observations([FinalObservations(0, np.array([1]), np.array([9], np.float32))])[
        "observation"
    ]
    assert next_obs.tolist() == [[1, 9], [2, 2], [3, 3]]
    assert storage.observations()["observation"].tolist() == [[0, 0], [1, 1], [2, 2]]


def test_observations_on_the_device_do_not_change_with_the_host() -> None:
    storage = DeviceObservations((3, 2), np.dtype(np.float32), CPU)
    storage.array[0] = 1.0
    sent = storage.read(0)["observation"]
    storage.array[0] = 2.0
    assert sent.tolist() == storage.observations()["observation"][0].tolist() == [1.0, 1.0]


@CUDA
def test_host_memory_is_pinned_on_cuda() -> None:
    storage = observation_storage((3, 2), np.dtype(np.float32), torch.device("cuda"))
    assert torch.from_numpy(storage.array).is_pinned()
    assert storage.observations()["observation"].is_cuda


class NestedObservations(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Splits observations into two parts."""

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


@pytest.mark.parametrize("wrappers", [[], [NestedObservations]], ids=["plain", "nested"])
def test_rollouts_through_a_device_are_bitwise_equal(wrappers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def two_rollouts() -> list[Any]:
        torch.manual_seed(0)
        env = make_env("CartPole-v1", 3, wrappers=wrappers)
        env.set_seed(0)
        actor = make_actor_critic(env.observation_spec, env.action_spec, body=mlp).actor
        collect = VectorRollouts(env, actor, 30, compile="trace")
        with torch.no_grad(), set_exploration_type(ExplorationType.RANDOM):
            return [collect(), collect()]

    on_host = two_rollouts()
    monkeypatch.setattr(rollout_buffer, "observation_storage", DeviceObservations)
    assert on_host[0]["next", "done"].any()
    for one, other in zip(on_host, two_rollouts(), strict=True):
        assert (one == other).all()
