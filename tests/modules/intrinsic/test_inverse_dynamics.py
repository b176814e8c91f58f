"""Tests of the reward models whose features are trained by inverse dynamics, against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, OneHot, TensorSpec, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.intrinsic.e3b import E3B
from torchppo.modules.intrinsic.icm import ICM
from torchppo.modules.intrinsic.inverse_dynamics import ActionCode
from torchppo.modules.intrinsic.streams import write_rewards
from torchppo.modules.normalizers import no_reduce

Function = Callable[..., Any]


def make_model(model: type[E3B | ICM], specs: dict[str, Any], **options: Any) -> E3B | ICM:
    torch.manual_seed(0)
    return model(**specs, num_features=4, **options)


def rows_of(rollout: TensorDict, name: str) -> TensorDict:
    rows = rollout.flatten()
    rows[f"value_target_{name}"] = torch.arange(18.0).unsqueeze(1)
    return rows


class NumPyModel:
    """The features and losses of a model in float64, after an update with one rollout."""

    def __init__(self, model: E3B | ICM, rollout: TensorDict, forward: Function, normalized: Function) -> None:
        self.model, self.forward = model, forward
        self.normalize = lambda values: normalized(values, rollout["next", "observation"].double().numpy())

    def features(self, observation: torch.Tensor) -> Any:
        values = self.normalize(observation.double().numpy())
        return self.forward(self.model.inverse.features, values, num_relus=0)

    def two_layers(self, network: nn.Module, inputs: Any) -> Any:
        return self.forward(network, inputs, num_relus=1)

    def inverse_loss(self, rows: TensorDict) -> float:
        both = np.concatenate([self.features(rows["observation"]), self.features(rows["next", "observation"])], -1)
        logits = self.two_layers(self.model.inverse.head, both)
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        return float(-log_probs[np.arange(len(rows)), rows["action"].numpy()].mean())

    def forward_errors(self, data: TensorDict) -> Any:
        inputs = np.concatenate([self.features(data["observation"]), np.eye(3)[data["action"].numpy()]], -1)
        error = self.two_layers(self.model.forward_model, inputs) - self.features(data["next", "observation"])
        return 0.5 * (error**2).sum(-1)

    def critic_loss(self, rows: TensorDict) -> float:
        value = self.forward(self.model.critic, rows["observation"].double().numpy(), num_relus=0)
        return float(np.square(value - np.arange(18.0)[:, None]).mean())


@pytest.fixture
def make_numpy(numpy_forward: Function, numpy_normalized: Function) -> Function:
    return lambda model, rollout: NumPyModel(model, rollout, numpy_forward, numpy_normalized)


class TestE3B:
    def test_reward_equals_that_of_an_inverted_matrix_in_every_episode_and_across_rollouts(
        self, rollouts: list[TensorDict], specs: Any
    ) -> None:
        model = make_model(E3B, specs, normalize=False, ridge=0.3)
        matrices = np.zeros((3, 4, 4))
        for rollout in rollouts:
            write_rewards(rollout, [model], no_reduce)
            with torch.no_grad():
                features, next_features = (part.double().numpy() for part in model.inverse.pair(rollout))
            for env, step in np.ndindex(3, 6):
                if rollout["is_init"][env, step, 0]:
                    phi = features[env, step]
                    matrices[env] = 0.3 * np.eye(4) + np.outer(phi, phi)
                phi = next_features[env, step]
                expected = phi @ np.linalg.inv(matrices[env]) @ phi
                assert rollout["next", "reward_e3b"][env, step].item() == pytest.approx(expected, rel=1e-5)
                matrices[env] += np.outer(phi, phi)

    def test_features_are_those_of_normalized_observations(
        self, rollouts: list[TensorDict], specs: Any, make_numpy: Function
    ) -> None:
        model = make_model(E3B, specs)
        model.update(rollouts[0], no_reduce)
        expected = make_numpy(model, rollouts[0]).features(rollouts[0]["observation"])
        np.testing.assert_allclose(model.inverse.pair(rollouts[0])[0].detach().numpy(), expected, atol=1e-5)

    def test_loss_is_that_of_the_critic_and_of_the_predicted_actions(
        self, rollouts: list[TensorDict], specs: Any, make_numpy: Function
    ) -> None:
        model = make_model(E3B, specs, share=0.5)
        model.update(rollouts[0], no_reduce)
        rows, numpy = rows_of(rollouts[0], "e3b"), make_numpy(model, rollouts[0])
        loss = model.loss(rows)
        assert loss.item() == pytest.approx(numpy.critic_loss(rows) + numpy.inverse_loss(rows[:9]), rel=1e-5)
        loss.backward()
        assert all(param.grad is not None for param in model.parameters())

    def test_the_episodes_are_in_the_state_dict(self, rollouts: list[TensorDict], specs: Any) -> None:
        model, other = make_model(E3B, specs), make_model(E3B, specs)
        write_rewards(rollouts[0], [model], no_reduce)
        other.load_state_dict(model.state_dict())
        for one in (model, other):
            rollout = rollouts[1].clone()
            write_rewards(rollout, [one], no_reduce)
            rollouts.append(rollout)
        assert torch.equal(rollouts[-2]["next", "reward_e3b"], rollouts[-1]["next", "reward_e3b"])
        assert torch.equal(model.get_extra_state(), other.get_extra_state())

    def test_a_saved_state_does_not_change_with_the_next_rollout(self, rollouts: list[TensorDict], specs: Any) -> None:
        model = make_model(E3B, specs)
        write_rewards(rollouts[0], [model], no_reduce)
        saved = model.get_extra_state()
        before = saved.clone()
        write_rewards(rollouts[1], [model], no_reduce)
        assert torch.equal(saved, before)

    def test_another_number_of_environments_starts_anew(self, rollouts: list[TensorDict], specs: Any) -> None:
        model = make_model(E3B, specs)
        write_rewards(rollouts[0], [model], no_reduce)
        write_rewards(rollouts[0][:2], [model], no_reduce)
        assert model.get_extra_state().shape == (2, 4, 4)

    @pytest.mark.parametrize("options", [{"ridge": 0.0}, {"share": 0.0}])
    def test_refuses_options_out_of_range(self, specs: Any, options: dict[str, float]) -> None:
        with pytest.raises(ConfigurationError, match=rf"intrinsic\.e3b\.{next(iter(options))}="):
            make_model(E3B, specs, **options)


class TestICM:
    def test_reward_is_the_error_of_the_predicted_features(
        self, rollouts: list[TensorDict], specs: Any, make_numpy: Function
    ) -> None:
        model = make_model(ICM, specs, normalize=False)
        write_rewards(rollouts[0], [model], no_reduce)
        expected = make_numpy(model, rollouts[0]).forward_errors(rollouts[0])
        np.testing.assert_allclose(rollouts[0]["next", "reward_icm"].squeeze(-1).numpy(), expected, rtol=1e-4)

    def test_loss_weighs_the_inverse_and_the_forward_loss(
        self, rollouts: list[TensorDict], specs: Any, make_numpy: Function
    ) -> None:
        model = make_model(ICM, specs, beta=0.3)
        model.update(rollouts[0], no_reduce)
        rows, numpy = rows_of(rollouts[0], "icm"), make_numpy(model, rollouts[0])
        expected = 0.7 * numpy.inverse_loss(rows) + 0.3 * numpy.forward_errors(rows).mean()
        assert model.loss(rows).item() == pytest.approx(numpy.critic_loss(rows) + expected, rel=1e-5)

    def test_the_forward_loss_does_not_train_the_features(self, rollouts: list[TensorDict], specs: Any) -> None:
        model = make_model(ICM, specs, beta=1.0)
        model.loss(rows_of(rollouts[0], "icm")).backward()
        assert all(not param.grad.any() for param in model.inverse.features.parameters())
        assert any(param.grad.any() for param in model.forward_model.parameters())

    def test_refuses_beta_out_of_range(self, specs: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"intrinsic\.icm\.beta=2"):
            make_model(ICM, specs, beta=2.0)


@pytest.mark.parametrize(
    ("spec", "action", "code", "sizes"),
    [
        (Categorical(3, (2,)), [2, 0], [[0, 0, 1], [1, 0, 0]], [3]),
        (OneHot(2, (2, 2)), [[0, 1], [1, 0]], [[0, 1], [1, 0]], [2]),
        (MultiCategorical([2, 3], (2, 2)), [[1, 0], [0, 2]], [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]], [2, 3]),
        (Binary(2, (2, 2)), [[0, 1], [1, 1]], [[-1, 1], [1, 1]], [1, 1]),
        (Bounded(-2, 6, (2, 1)), [[-2.0], [4.0]], [[-1], [0.5]], [1]),
        (Bounded(-2, 6, (2, 1)), [[-9.0], [7.0]], [[-1], [1]], [1]),  # samples that the environment clips
        (Bounded(0, 4, (2, 1), dtype=torch.int64), [[1], [4]], [[-0.5], [1]], [1]),
        (Unbounded((2, 1)), [[7.0], [-3.0]], [[7], [-3]], [1]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, TensorSpec) else "",
)
def test_actions_of_every_kind_have_a_code(spec: TensorSpec, action: Any, code: Any, sizes: list[int]) -> None:
    coder = ActionCode(spec, 1)
    found = coder(TensorDict({"action": torch.tensor(action)}, 2))
    assert found.tolist() == code
    assert coder.sizes == sizes


def test_error_of_a_nested_action_is_the_sum_over_its_parts() -> None:
    spec = Composite(gear=MultiCategorical([2, 3], (2, 2)), push=Bounded(-1, 1, (2, 2)), shape=(2,))
    coder = ActionCode(spec, 1)
    actions = {"gear": torch.tensor([[1, 0], [0, 2]]), "push": torch.tensor([[0.5, -1.0], [0.0, 1.0]])}
    code = coder(TensorDict({"action": TensorDict(actions, 2)}, 2))
    assert coder.keys == [("action", "gear"), ("action", "push")]
    predicted = torch.linspace(-2, 2, 14).reshape(2, 7)
    values, expected = predicted.double().numpy(), []
    for row, (first, second) in enumerate(actions["gear"].tolist()):
        entropies = [
            np.log(np.exp(logits).sum()) - logits[choice]
            for logits, choice in ((values[row, :2], first), (values[row, 2:5], second))
        ]
        expected.append(sum(entropies) + ((values[row, 5:] - actions["push"][row].numpy()) ** 2).sum())
    np.testing.assert_allclose(coder.error(predicted, code).numpy(), expected, rtol=1e-5)
