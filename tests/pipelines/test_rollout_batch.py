"""What is worked out from a rollout, of policies with a memory above all."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict, TensorDictBase

from torchppo.pipelines.build import Training, build_training
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.rollout_batch import RolloutBatch, frames_before, training_data

SMALL = [
    "experiment=cartpole_positions",
    "env.num_envs=3",
    "collector.frames_per_env=24",
    "update.sequence_length=8",
    "update.minibatch_size=24",
    "compile=false",
]
HEADS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "head").glob("*.yaml"))
MEMORIES = {
    "lstm": ["policy=lstm", "policy.memory.width=8"],
    "gru": ["policy=gru", "policy.memory.width=8"],
    "transformer": ["policy=transformer", "policy.memory.width=8", "policy.memory.context_length=5"],
}


def training(*overrides: str) -> Training:
    torch.manual_seed(0)
    return build_training(compose([*SMALL, *overrides]), 0)


def rollouts(made: Training, num: int) -> list[TensorDictBase]:
    collector = iter(made.collector)
    return [next(collector) for _ in range(num)]


@pytest.fixture(params=["false", "true"], ids=["separate", "shared"])
def shared(request: pytest.FixtureRequest) -> str:
    return f"policy.shared={request.param}"


@pytest.mark.parametrize("name", MEMORIES)
class TestMemory:
    def test_the_ratio_is_one_before_the_first_step(self, name: str, shared: str) -> None:
        made = training(*MEMORIES[name], shared)
        for rollout in rollouts(made, 2):
            assert rollout["next", "done"].any()
            data = made.ppo.experience(rollout).estimate()
            losses = made.ppo.objective(TensorDict(data, len(data["advantage"])))
            assert losses["kl_approx"].item() == pytest.approx(0, abs=1e-6)
            assert losses["clip_fraction"].item() == 0

    def test_goes_on_from_one_rollout_into_the_next(self, name: str, shared: str) -> None:
        first, second = rollouts(training(*MEMORIES[name], shared), 2)
        np.testing.assert_array_equal(second["actor_memory"][:, 0], first["next", "actor_memory"][:, -1])
        assert first["actor_memory"][:, 0].abs().sum() == 0
        assert second["actor_memory"][:, 0].abs().sum() > 0

    def test_of_a_rollout_takes_room_for_every_step_once(self, name: str, shared: str) -> None:
        (rollout,) = rollouts(training(*MEMORIES[name], shared), 1)
        memory = rollout["actor_memory"]
        num_envs, time, context_length, state_size = memory.shape
        assert memory.untyped_storage().nbytes() == 4 * num_envs * (time + context_length) * state_size

    def test_values_a_final_observation_with_what_was_remembered_then(self, name: str, shared: str) -> None:
        made = training(*MEMORIES[name], shared)
        (rollout,) = rollouts(made, 1)
        made.ppo.experience(rollout).estimate()
        env, step = rollout["next", "done"].squeeze(-1).nonzero()[0].tolist()
        start = int(rollout["is_init"][env, : step + 1, 0].nonzero().max())
        # The whole episode once more from nothing, and its true final observation after it.
        keys = [key for key in made.ppo.critic.in_keys if isinstance(key, str) and key.endswith("_memory")]
        seen = torch.cat([rollout["observation"][env, start : step + 1], rollout["next", "observation"][env, [step]]])
        episode = {"observation": seen, "is_init": torch.arange(len(seen)).unsqueeze(-1) == 0}
        memory = {key: torch.zeros_like(rollout[key][:1, 0]) for key in keys}
        data = TensorDict({key: tensor.unsqueeze(0) for key, tensor in episode.items()} | memory, [1])
        with torch.no_grad():
            expected = made.ppo.critic(data)["state_value"][0, -1]
        torch.testing.assert_close(rollout["next", "state_value"][env, step], expected, rtol=1e-4, atol=1e-5)

    def test_burned_in_by_the_same_weights_is_what_was_collected(self, name: str, shared: str) -> None:
        made = training(*MEMORIES[name], shared)
        for rollout in rollouts(made, 2):
            experience = made.ppo.experience(rollout)
            data = experience.estimate()
            anew = experience.burned_in(data, 4)
            for key in experience.memories:
                assert anew[key] is not data[key]
                torch.testing.assert_close(anew[key], data[key], rtol=1e-4, atol=1e-5)

    def test_estimates_of_the_same_weights_do_not_change(self, name: str, shared: str) -> None:
        made = training(*MEMORIES[name], shared)
        experience = made.ppo.experience(rollouts(made, 1)[0])
        data = experience.estimate()
        again = experience.recomputed(data)
        torch.testing.assert_close(again["advantage"], data["advantage"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(again["value_target"], data["value_target"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("head", HEADS)
def test_the_ratio_of_every_head_is_one_before_the_first_step(head: str, memory: str, shared: str) -> None:
    made = training("env.id=Pendulum-v1", "policy=mlp", f"head={head}", f"memory={memory}", shared)
    for rollout in rollouts(made, 2):
        data = made.ppo.experience(rollout).estimate()
        losses = made.ppo.objective(TensorDict(data, len(data["advantage"])))
        assert losses["kl_approx"].item() == pytest.approx(0, abs=1e-6)
        assert losses["clip_fraction"].item() == 0


class TestWithoutMemory:
    def test_estimates_follow_the_critic_and_old_values_stay(self) -> None:
        made = training("policy=mlp", "memory=none")
        experience = made.ppo.experience(rollouts(made, 1)[0])
        data = experience.estimate()
        torch.testing.assert_close(experience.recomputed(data)["advantage"], data["advantage"], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for parameter in made.ppo.critic.parameters():
                parameter.add_(0.1)
        again = experience.recomputed(data)
        assert not torch.allclose(again["value_target"], data["value_target"])
        assert again["state_value"] is data["state_value"]

    def test_the_critics_own_lambda_changes_its_targets_alone(self) -> None:
        estimated = []
        for overrides in ([], ["critic.lmbda=1.0"]):
            made = training("policy=mlp", *overrides)
            estimated.append(made.ppo.experience(rollouts(made, 1)[0]).estimate())
        first, second = estimated
        assert torch.equal(first["advantage"], second["advantage"])
        assert not torch.allclose(first["value_target"], second["value_target"])


class TestTrainingData:
    @pytest.fixture
    def rollout(self) -> TensorDict:
        numbers = torch.arange(2 * 6).reshape(2, 6, 1)
        return TensorDict({"x": numbers, "memory": numbers.reshape(2, 6, 1, 1) * 10}, [2, 6])

    def test_frames_come_in_the_order_of_time(self, rollout: TensorDict) -> None:
        flat = training_data(rollout, ["x"], [], 1)["x"].flatten().tolist()
        assert flat == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]

    def test_sequences_begin_with_what_was_remembered_there(self, rollout: TensorDict) -> None:
        data = training_data(rollout, ["x"], ["memory"], 3)
        assert data["x"].squeeze(-1).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
        assert data["memory"].flatten().tolist() == [0, 30, 60, 90]

    def test_what_was_remembered_lies_as_what_is_worked_out_anew(self) -> None:
        """A compiled graph reads its inputs in the layout of the first call."""
        tape = torch.zeros(6, 1, 3, 4)
        rollout = TensorDict({"x": torch.zeros(1, 6, 1), "memory": tape.transpose(0, 1)}, [1, 6])
        assert training_data(rollout, ["x"], ["memory"], 3)["memory"].stride() == (12, 4, 1)

    def test_the_frames_before_a_sequence_are_those_of_its_environment(self, rollout: TensorDict) -> None:
        before = frames_before(rollout, ["x"], ["memory"], 3, 2)
        assert before["x"].squeeze(-1).tolist() == [[1, 2], [7, 8]]
        assert before["memory"].flatten().tolist() == [10, 70]


def test_explained_variance_equals_numpy() -> None:
    made = training("policy=mlp")
    experience: RolloutBatch = made.ppo.experience(rollouts(made, 1)[0])
    experience.estimate()
    target, value = (experience.rollout[key].double().numpy() for key in ("value_target", "state_value"))
    assert experience.explained_variance == pytest.approx(1 - (target - value).var() / target.var(), abs=1e-4)
