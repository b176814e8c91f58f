"""Tests of the normalizers against NumPy over all data."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from torchppo.modules.normalizers import (
    ObservationNormalizer,
    Reduce,
    RewardClipper,
    RewardNormalizer,
    RunningMoments,
)

Array = NDArray[np.float64]


class FakeReduce:
    """Passes tensors between threads, each of which is one rank."""

    def __init__(self, num_ranks: int) -> None:
        self.barrier = threading.Barrier(num_ranks, timeout=20)
        self.tensors = [torch.zeros(())] * num_ranks

    def of_rank(self, rank: int) -> Reduce:
        def reduce(tensor: Tensor, use: Callable[[Tensor], object]) -> None:
            self.tensors[rank] = tensor
            self.barrier.wait()
            use(torch.stack(self.tensors))
            self.barrier.wait()

        return reduce


def run_on_ranks(num_ranks: int, rank_main: Callable[[int, Reduce], None]) -> None:
    """Run `rank_main(rank, reduce)` on one thread per rank."""
    reduce = FakeReduce(num_ranks)
    with ThreadPoolExecutor(num_ranks) as pool:
        list(pool.map(lambda rank: rank_main(rank, reduce.of_rank(rank)), range(num_ranks)))


def discounted_returns(rewards: Array, dones: NDArray[np.bool_], gamma: float) -> Array:
    """Return the discounted sums `[num_envs, time]` since the start of each episode."""
    returns = np.zeros_like(rewards)
    for env, time in np.ndindex(*rewards.shape):
        ends = np.flatnonzero(dones[env, :time])
        start = ends[-1] + 1 if len(ends) else 0
        returns[env, time] = sum(gamma ** (time - s) * rewards[env, s] for s in range(start, time + 1))
    return returns


def episode_starts(dones: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Return `is_init` `[num_envs, time]` for `dones` `[num_envs, time]`."""
    return np.concatenate([np.ones_like(dones[:, :1]), dones[:, :-1]], 1)


@pytest.fixture
def generator() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture
def rollouts(generator: np.random.Generator) -> tuple[Array, NDArray[np.bool_]]:
    """Return rewards with a mean far from zero, and ends of episodes, `[num_envs, time]`."""
    return generator.normal(3.0, 2.0, (4, 60)), generator.random((4, 60)) < 0.1


def to_rollout(array: NDArray[np.generic]) -> Tensor:
    """Convert `[num_envs, time]` to a tensor `[num_envs, time, 1]`."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))[..., None]
    return tensor.float() if tensor.is_floating_point() else tensor


class TestRunningMoments:
    @settings(max_examples=50)
    @given(
        seed=st.integers(0, 2**32 - 1),
        sizes=st.lists(st.integers(1, 30), min_size=1, max_size=8),
        offset=st.sampled_from([0.0, -3.0, 1e6]),
        scale=st.sampled_from([1e-2, 1.0, 1e3]),
    )
    def test_equal_numpy_for_every_split_into_batches(
        self, seed: int, sizes: list[int], offset: float, scale: float
    ) -> None:
        data = offset + scale * np.random.default_rng(seed).normal(size=(sum(sizes), 3))
        moments = RunningMoments((3,))
        for batch in torch.from_numpy(data).split(sizes):
            moments.update(batch)
        np.testing.assert_allclose(moments.mean.numpy(), data.mean(0), rtol=1e-12, atol=1e-12 * scale)
        # float64 rounds data with an offset of 1e6 to 1e-10
        np.testing.assert_allclose(moments.var.numpy(), data.var(0), rtol=1e-7, atol=1e-14)
        assert moments.count.item() == len(data)

    @pytest.mark.parametrize("shape", [(), (2,), (2, 3)])
    def test_equal_numpy_for_every_shape(self, shape: tuple[int, ...], generator: np.random.Generator) -> None:
        data = generator.normal(size=(4, 5, *shape))
        moments = RunningMoments(shape)
        moments.update(torch.from_numpy(data))
        np.testing.assert_allclose(moments.mean.numpy(), data.mean((0, 1)), rtol=1e-12)
        np.testing.assert_allclose(moments.var.numpy(), data.var((0, 1)), rtol=1e-12)

    def test_float32_data_is_accumulated_in_float64(self, generator: np.random.Generator) -> None:
        data = (1e6 + generator.normal(size=100_000)).astype(np.float32)
        moments = RunningMoments()
        moments.update(torch.from_numpy(data))
        assert moments.mean.item() == pytest.approx(data.astype(np.float64).mean(), rel=1e-12)
        assert moments.var.item() == pytest.approx(data.astype(np.float64).var(), rel=1e-9)

    def test_byte_data_does_not_overflow(self) -> None:
        moments = RunningMoments()
        moments.update(torch.full((1000,), 200, dtype=torch.uint8))
        assert (moments.mean.item(), moments.var.item()) == (200.0, 0.0)

    def test_update_has_no_gradient(self) -> None:
        moments = RunningMoments()
        moments.update(torch.ones(3, requires_grad=True))
        assert not moments.mean.requires_grad


class TestRanks:
    @pytest.mark.parametrize("sizes", [(50, 50), (80, 20), (10, 30, 60)])
    def test_moments_are_those_of_all_ranks(self, sizes: tuple[int, ...], generator: np.random.Generator) -> None:
        first, second = 1e3 + generator.normal(size=(2, 100, 2))
        ranks = [RunningMoments((2,)) for _ in sizes]

        def rank_main(rank: int, reduce: Reduce) -> None:
            for data in (first, second):
                ranks[rank].update(torch.from_numpy(data).split(sizes)[rank], reduce)

        run_on_ranks(len(sizes), rank_main)
        for moments in ranks:
            np.testing.assert_allclose(moments.mean.numpy(), np.concatenate([first, second]).mean(0), rtol=1e-12)
            np.testing.assert_allclose(moments.var.numpy(), np.concatenate([first, second]).var(0), rtol=1e-9)
            assert moments.count.item() == 200

    def test_observation_normalizer_is_the_same_on_all_ranks(self, generator: np.random.Generator) -> None:
        data = generator.normal(5.0, 3.0, (2, 40, 2))
        ranks = [ObservationNormalizer((2,)) for _ in data]
        run_on_ranks(2, lambda rank, reduce: ranks[rank].update(torch.from_numpy(data[rank]), reduce))
        flat = data.reshape(-1, 2)
        expected = (1.0 - flat.mean(0)) / flat.std(0)
        for normalizer in ranks:
            np.testing.assert_allclose(normalizer(torch.ones(2)).numpy(), expected, rtol=1e-5)

    def test_reward_normalizer_is_the_same_on_all_ranks(self, rollouts: tuple[Array, NDArray[np.bool_]]) -> None:
        rewards, dones = rollouts
        ranks = [RewardNormalizer(gamma=0.9) for _ in range(2)]
        run_on_ranks(
            2,
            lambda rank, reduce: ranks[rank].update(
                to_rollout(rewards[2 * rank : 2 * rank + 2]),
                to_rollout(episode_starts(dones)[2 * rank : 2 * rank + 2]),
                reduce,
            ),
        )
        deviation = discounted_returns(rewards.astype(np.float32).astype(np.float64), dones, 0.9).std()
        for normalizer in ranks:
            assert normalizer(torch.tensor(1.0)).item() == pytest.approx(1 / deviation, rel=1e-6)


class TestObservationNormalizer:
    def test_is_the_identity_before_the_first_update(self, generator: np.random.Generator) -> None:
        observation = torch.from_numpy(generator.uniform(-9, 9, (7, 3)).astype(np.float32))
        assert torch.equal(ObservationNormalizer((3,))(observation), observation)

    def test_outputs_have_mean_0_and_variance_1(self, generator: np.random.Generator) -> None:
        data = generator.normal([1.0, -50.0], [0.1, 20.0], (500, 2))
        normalizer = ObservationNormalizer((2,))
        normalizer.update(torch.from_numpy(data).float())
        output = normalizer(torch.from_numpy(data).float())
        assert output.dtype == torch.float32
        np.testing.assert_allclose(output.double().mean(0).numpy(), 0, atol=1e-5)
        np.testing.assert_allclose(output.double().var(0, correction=0).numpy(), 1, rtol=1e-5)

    def test_clips_at_10_standard_deviations(self) -> None:
        normalizer = ObservationNormalizer(())
        normalizer.update(torch.tensor([3.0, 7.0]))  # mean 5, standard deviation 2
        output = normalizer(torch.tensor([5.0, 24.9, 25.1, 1e6, -14.9, -15.1, -1e6]))
        np.testing.assert_allclose(output.numpy(), [0, 9.95, 10, 10, -9.95, -10, -10], rtol=1e-5)

    def test_forward_does_not_change_the_statistics(self, generator: np.random.Generator) -> None:
        normalizer = ObservationNormalizer((2,)).train()
        normalizer.update(torch.from_numpy(generator.normal(size=(10, 2))))
        before = {key: value.clone() for key, value in normalizer.state_dict().items()}
        for _ in range(3):
            normalizer(torch.from_numpy(generator.normal(100, 1, (10, 2))).float())
        assert all(torch.equal(before[key], value) for key, value in normalizer.state_dict().items())

    def test_constant_features_stay_finite(self) -> None:
        normalizer = ObservationNormalizer((1,))
        normalizer.update(torch.full((8, 1), 3.0))
        assert normalizer(torch.tensor([[3.0], [3.1]])).tolist() == [[0.0], [10.0]]

    def test_normalizes_bytes(self) -> None:
        normalizer = ObservationNormalizer((1,))
        normalizer.update(torch.tensor([[0], [200]], dtype=torch.uint8))
        np.testing.assert_allclose(normalizer(torch.tensor([[0], [200]], dtype=torch.uint8)).numpy(), [[-1], [1]])

    def test_supports_observations_of_several_dimensions(self, generator: np.random.Generator) -> None:
        data = generator.normal(2.0, 3.0, (6, 7, 2, 3))
        normalizer = ObservationNormalizer((2, 3))
        normalizer.update(torch.from_numpy(data))
        expected = (data - data.mean((0, 1))) / data.std((0, 1))
        np.testing.assert_allclose(normalizer(torch.from_numpy(data).float()).numpy(), expected, rtol=1e-4, atol=1e-5)


class TestRewardNormalizer:
    @pytest.mark.parametrize("cuts", [[], [30], [1, 2, 17, 59]])
    def test_divides_by_the_standard_deviation_of_returns_across_rollouts(
        self, cuts: list[int], rollouts: tuple[Array, NDArray[np.bool_]]
    ) -> None:
        rewards, dones = rollouts[0].astype(np.float32), rollouts[1]
        normalizer = RewardNormalizer(gamma=0.9, clip=100.0)
        for reward, is_init in zip(np.split(rewards, cuts, 1), np.split(episode_starts(dones), cuts, 1), strict=True):
            normalizer.update(to_rollout(reward), to_rollout(is_init))
        expected = rewards / discounted_returns(rewards.astype(np.float64), dones, 0.9).std()
        np.testing.assert_allclose(normalizer(to_rollout(rewards))[..., 0].numpy(), expected, rtol=1e-5)

    def test_does_not_subtract_the_mean(self, rollouts: tuple[Array, NDArray[np.bool_]]) -> None:
        normalizer = RewardNormalizer(gamma=0.9)
        normalizer.update(to_rollout(rollouts[0]), to_rollout(episode_starts(rollouts[1])))
        rewards = torch.tensor([0.0, 1.0, -1.0, 2.0])
        output = normalizer(rewards)
        assert output[0].item() == 0.0
        assert torch.equal(output.sign(), rewards.sign())
        torch.testing.assert_close(output / output[1], rewards)

    def test_is_the_identity_before_the_first_update(self) -> None:
        torch.testing.assert_close(RewardNormalizer(gamma=0.99)(torch.tensor([-3.0, 0.5])), torch.tensor([-3.0, 0.5]))

    def test_returns_restart_when_the_number_of_environments_changes(self) -> None:
        normalizer = RewardNormalizer(gamma=1.0)
        for num_envs in (2, 3):
            episode_starts = torch.tensor([[[True], [False]]]).expand(num_envs, 2, 1)
            normalizer.update(torch.tensor([[[1.0], [2.0]]]).expand(num_envs, 2, 1), episode_starts)
        assert normalizer.moments.mean.item() == pytest.approx(2.0)  # of 1 and 1 + 2

    def test_clips_and_keeps_the_dtype(self) -> None:
        normalizer = RewardNormalizer(gamma=0.0, clip=2.0)  # returns equal rewards
        normalizer.update(torch.tensor([[[1.0], [-1.0]]]), torch.zeros(1, 2, 1, dtype=torch.bool))
        output = normalizer(torch.tensor([0.5, 3.0, -3.0], dtype=torch.float16))
        assert output.dtype == torch.float16
        assert output.tolist() == [0.5, 2.0, -2.0]


class TestRewardClipper:
    def test_clips_to_the_limit_and_has_no_statistics(self) -> None:
        clipper = RewardClipper(limit=1.0)
        clipper.update(torch.full((1, 1, 1), 100.0), torch.zeros(1, 1, 1, dtype=torch.bool))
        assert clipper(torch.tensor([-5.0, -0.3, 0.0, 7.0])).tolist() == [-1.0, pytest.approx(-0.3), 0.0, 1.0]
        assert not clipper.state_dict()


@pytest.mark.parametrize(
    ("make", "update"),
    [
        (lambda: ObservationNormalizer((2,)), lambda module, data: module.update(data)),
        (
            lambda: RewardNormalizer(gamma=0.9),
            lambda module, data: module.update(data.T[..., None], torch.ones(2, len(data), 1, dtype=torch.bool)),
        ),
    ],
    ids=["observations", "rewards"],
)
def test_state_dict_contains_the_statistics(
    make: Callable[[], nn.Module], update: Callable[[nn.Module, Tensor], None], generator: np.random.Generator
) -> None:
    trained, restored = make(), make()
    update(trained, torch.from_numpy(generator.normal(2.0, 3.0, (50, 2))))
    probe = torch.tensor([0.7, -1.3])
    assert not torch.equal(restored(probe), trained(probe))
    restored.load_state_dict(trained.state_dict())
    assert torch.equal(restored(probe), trained(probe))
    assert all(torch.equal(trained.state_dict()[key], value) for key, value in restored.state_dict().items())
