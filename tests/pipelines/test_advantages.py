"""Values, advantages, targets, rows and episode statistics of a rollout."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from tensordict import TensorDict, TensorDictBase
from tensordict.nn import TensorDictModule

from torchppo.errors import ConfigurationError
from torchppo.pipelines.advantages import RolloutBatch, check_estimates
from torchppo.pipelines.build import Training, build_training
from torchppo.pipelines.cli.config import compose

SMALL = [
    "experiment=cartpole_positions",
    "env.num_envs=3",
    "collector.frames_per_env=24",
    "update.minibatch_size=24",
    "compile=false",
]
HEADS = sorted(path.stem for path in (Path(__file__).parents[2] / "conf" / "head").glob("*.yaml"))
MEMORIES = {
    "lstm": ["policy=lstm", "policy.memory.width=8"],
    "gru": ["policy=gru", "policy.memory.width=8"],
    "transformer": ["policy=transformer", "policy.memory.width=8", "policy.memory.context_length=5"],
}


def make_training(*overrides: str) -> Training:
    torch.manual_seed(0)
    has_memory = "policy=mlp" not in overrides or "memory=gru" in overrides
    sequences = ["update.sequence_length=8"] if has_memory else []
    return build_training(compose([*SMALL, *sequences, *overrides]), 0)


def collect(training: Training, num_rollouts: int) -> list[TensorDictBase]:
    collector = iter(training.collector)
    return [next(collector) for _ in range(num_rollouts)]


def estimated(training: Training, rollout: TensorDictBase) -> RolloutBatch:
    """Return the batch of a rollout with its advantages and targets."""
    batch: RolloutBatch = training.ppo.make_batch(rollout)
    batch.estimate()
    return batch


def assert_first_ratio_is_one(training: Training, batch: RolloutBatch) -> None:
    losses = training.ppo.objective(batch.rows)
    assert losses["kl_approx"].item() == pytest.approx(0, abs=1e-6)
    assert losses["clip_fraction"].item() == 0


@pytest.fixture(params=["false", "true"], ids=["separate", "shared"])
def shared(request: pytest.FixtureRequest) -> str:
    return f"policy.shared={request.param}"


@pytest.mark.parametrize("name", MEMORIES)
class TestRecurrentPolicy:
    def test_ratio_is_one_before_the_first_step(self, name: str, shared: str) -> None:
        training = make_training(*MEMORIES[name], shared)
        for rollout in collect(training, 2):
            assert rollout["next", "done"].any()
            assert_first_ratio_is_one(training, estimated(training, rollout))

    def test_final_observation_is_valued_with_the_recurrent_state_of_its_step(self, name: str, shared: str) -> None:
        training = make_training(*MEMORIES[name], shared)
        (rollout,) = collect(training, 1)
        estimated(training, rollout)
        env, step = rollout["next", "done"].squeeze(-1).nonzero()[0].tolist()
        start = int(rollout["is_init"][env, : step + 1, 0].nonzero().max())
        # The whole episode from a zero state, followed by its final observation.
        keys = [key for key in training.ppo.critic.in_keys if isinstance(key, str) and key.endswith("_memory")]
        observation = torch.cat(
            [rollout["observation"][env, start : step + 1], rollout["next", "observation"][env, [step]]]
        )
        episode = {"observation": observation, "is_init": torch.arange(len(observation)).unsqueeze(-1) == 0}
        states = {key: torch.zeros_like(rollout[key][:1, 0]) for key in keys}
        data = TensorDict({key: tensor.unsqueeze(0) for key, tensor in episode.items()} | states, [1])
        with torch.no_grad():
            expected = training.ppo.critic(data)["state_value"][0, -1]
        torch.testing.assert_close(rollout["next", "state_value"][env, step], expected, rtol=1e-4, atol=1e-5)

    def test_burn_in_with_the_same_weights_gives_the_collected_states(self, name: str, shared: str) -> None:
        training = make_training(*MEMORIES[name], shared)
        for rollout in collect(training, 2):
            batch = estimated(training, rollout)
            refreshed = batch.refreshed(burn_in=4, recompute_advantage=False)
            for key in batch.memory_keys:
                assert refreshed[key] is not batch.rows[key]
                torch.testing.assert_close(refreshed[key], batch.rows[key], rtol=1e-4, atol=1e-5)

    def test_burn_in_keeps_the_first_state_of_each_environment_only(self, name: str, shared: str) -> None:
        training = make_training(*MEMORIES[name], shared)
        batch = estimated(training, collect(training, 2)[1])
        with torch.no_grad():
            for param in training.ppo.parameters():
                param.add_(0.1)
        refreshed = batch.refreshed(burn_in=4, recompute_advantage=False)
        for key in batch.memory_keys:
            before, after = (rows[key].unflatten(0, (3, -1)) for rows in (batch.rows, refreshed))
            assert torch.equal(before[:, 0], after[:, 0])
            assert not torch.allclose(before[:, 1:], after[:, 1:])

    def test_recomputed_advantages_of_the_same_weights_are_equal(self, name: str, shared: str) -> None:
        training = make_training(*MEMORIES[name], shared)
        batch = estimated(training, collect(training, 1)[0])
        rows = batch.rows
        refreshed = batch.refreshed(burn_in=0, recompute_advantage=True)
        torch.testing.assert_close(refreshed["advantage"], rows["advantage"], rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(refreshed["value_target"], rows["value_target"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("memory", ["none", "gru"])
@pytest.mark.parametrize("head", HEADS)
def test_ratio_of_every_head_is_one_before_the_first_step(head: str, memory: str, shared: str) -> None:
    training = make_training("env.id=Pendulum-v1", "policy=mlp", f"head={head}", f"memory={memory}", shared)
    for rollout in collect(training, 2):
        assert_first_ratio_is_one(training, estimated(training, rollout))


class TestFeedForwardPolicy:
    def test_recomputed_advantages_follow_the_critic_but_old_values_stay(self) -> None:
        training = make_training("policy=mlp", "memory=none")
        batch = estimated(training, collect(training, 1)[0])
        rows = batch.rows
        same = batch.refreshed(burn_in=0, recompute_advantage=True)
        torch.testing.assert_close(same["advantage"], rows["advantage"], rtol=1e-4, atol=1e-5)
        with torch.no_grad():
            for parameter in training.ppo.critic.parameters():
                parameter.add_(0.1)
        changed = batch.refreshed(burn_in=0, recompute_advantage=True)
        assert not torch.allclose(changed["value_target"], rows["value_target"])
        assert changed["state_value"] is rows["state_value"]

    def test_nothing_is_copied_when_nothing_is_refreshed(self) -> None:
        training = make_training("policy=mlp", "memory=none")
        batch = estimated(training, collect(training, 1)[0])
        assert batch.refreshed(burn_in=4, recompute_advantage=False) is batch.rows

    def test_lmbda_of_the_critic_changes_only_its_targets(self) -> None:
        rows = []
        for overrides in ([], ["critic.lmbda=1.0"]):
            training = make_training("policy=mlp", *overrides)
            rows.append(estimated(training, collect(training, 1)[0]).rows)
        assert torch.equal(rows[0]["advantage"], rows[1]["advantage"])
        assert not torch.allclose(rows[0]["value_target"], rows[1]["value_target"])


class FakeActor:
    """The keys of a policy; it is not called."""

    def __init__(self, *in_keys: str) -> None:
        self.in_keys, self.out_keys = list(in_keys), ["action"]

    def modules(self) -> list[Any]:
        return []


def fake_estimator(rollout: TensorDictBase) -> TensorDictBase:
    rollout["advantage"] = rollout["value_target"] = rollout["state_value"].clone()
    return rollout


class TestRows:
    """Rows of a rollout whose frame `t` of environment `e` is the number `6 e + t`."""

    def batch(self, states: torch.Tensor | None = None) -> RolloutBatch:
        numbers = torch.arange(2 * 6.0).reshape(2, 6, 1)
        zeros = torch.zeros(2, 6, 1)
        data: dict[str, Any] = {"x": numbers, "action": zeros, "is_init": zeros.bool()}
        if states is not None:
            data["memory"] = states
        data["next"] = {"x": numbers + 1, "done": zeros.bool()}
        critic = TensorDictModule(torch.nn.Identity(), in_keys=["x"], out_keys=["state_value"])
        actor = FakeActor("x", *(["memory"] if states is not None else []))
        batch = RolloutBatch(
            TensorDict(data, [2, 6]), actor, critic, cast(Any, fake_estimator), normalize=False, sequence_length=3
        )
        batch.memory_keys = ["memory"] if states is not None else []
        batch.in_sequences = states is not None
        return batch

    def test_frames_are_in_the_order_of_time(self) -> None:
        batch = self.batch()
        batch.estimate()
        assert batch.rows.batch_size == (12,)
        assert batch.rows["x"].flatten().tolist() == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]

    def test_sequences_start_with_the_state_of_their_first_frame(self) -> None:
        batch = self.batch(torch.arange(12.0).reshape(2, 6, 1, 1) * 10)
        batch.estimate()
        assert batch.rows.batch_size == (4,)
        assert batch.rows["x"].squeeze(-1).tolist() == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
        assert batch.rows["memory"].flatten().tolist() == [0, 30, 60, 90]

    def test_states_have_the_memory_layout_of_refreshed_ones(self) -> None:
        """A compiled graph reads its inputs in the layout of the first call."""
        batch = self.batch(torch.zeros(6, 2, 3, 4).transpose(0, 1))
        batch.estimate()
        assert batch.rows["memory"].stride() == (12, 4, 1)

    def test_frames_before_a_sequence_are_of_the_same_environment(self) -> None:
        batch = self.batch(torch.arange(12.0).reshape(2, 6, 1, 1) * 10)
        before = batch._frames_before_sequences(["x"], 2)
        assert before["x"].squeeze(-1).tolist() == [[1, 2], [7, 8]]
        assert before["memory"].flatten().tolist() == [10, 70]


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"advantage": torch.zeros(2, 6, 1)}, "object wrote no value_target"),
        ({"advantage": torch.zeros(2, 6)}, r"advantage with the shape \(2, 6\).*\(2, 6, 1\)"),
    ],
    ids=["missing", "shape"],
)
def test_an_incomplete_estimate_is_refused(written: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        check_estimates(TensorDict({"state_value": torch.zeros(2, 6, 1), **written}, [2, 6]), object())
