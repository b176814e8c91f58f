"""Tests of random network distillation and NovelD against NumPy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from torchrl.data import Bounded, Composite, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.image_bodies import nature_cnn
from torchppo.modules.intrinsic.noveld import NovelD
from torchppo.modules.intrinsic.reward_model import RewardModel
from torchppo.modules.intrinsic.rnd import RND
from torchppo.modules.intrinsic.streams import write_rewards
from torchppo.modules.normalizers import no_reduce

Function = Callable[..., Any]


def make_model(model: type[RND], specs: dict[str, Any], **options: Any) -> RND:
    torch.manual_seed(0)
    return model(specs["observation_spec"], body=specs["body"], num_features=7, **options)


def numpy_errors(model: RND, inputs: Any, forward: Function) -> Any:
    difference = forward(model.predictor, inputs, num_relus=2) - forward(model.target, inputs, num_relus=0)
    return (difference**2).mean(-1)


def observations(rollouts: list[TensorDict]) -> list[Any]:
    return [rollout["next", "observation"].double().numpy() for rollout in rollouts]


class TestRND:
    def test_reward_is_the_prediction_error_of_normalized_observations(
        self, rollouts: list[TensorDict], specs: Any, numpy_forward: Function, numpy_normalized: Function
    ) -> None:
        model = make_model(RND, specs, normalize=False)
        rollouts[1]["next", "observation"][0, 0, 0] = 1e6  # is clipped
        seen: list[Any] = []
        for rollout, values in zip(rollouts, observations(rollouts), strict=True):
            seen.append(values)
            metrics = write_rewards(rollout, [model], no_reduce)
            inputs = numpy_normalized(values, np.stack(seen))
            expected = numpy_errors(model, inputs, numpy_forward)
            found = rollout["next", "reward_rnd"].squeeze(-1).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
            assert metrics["rollout/reward_rnd"] == pytest.approx(expected.mean(), rel=1e-4)

    @pytest.mark.parametrize("is_episodic", [False, True])
    def test_reward_is_divided_by_the_deviation_of_its_discounted_return(
        self, rollouts: list[TensorDict], specs: Any, is_episodic: bool
    ) -> None:
        models = [make_model(RND, specs, normalize=one, is_episodic=is_episodic, gamma=0.9) for one in (False, True)]
        current, returns = np.zeros(3), []
        for rollout in rollouts:
            raw, found = (rollout.clone(), rollout.clone())
            metrics = [write_rewards(one, [model], no_reduce) for one, model in zip((raw, found), models, strict=True)]
            reward = raw["next", "reward_rnd"].double().numpy()
            for step in range(reward.shape[1]):
                starts = rollout["is_init"][:, step, 0].numpy() & is_episodic
                current = np.where(starts, 0.0, 0.9 * current) + reward[:, step, 0]
                returns.append(current)
            expected = reward / np.sqrt(np.var(returns) + 1e-8)
            np.testing.assert_allclose(found["next", "reward_rnd"].numpy(), expected, rtol=1e-5)
            assert metrics[0] == metrics[1], "metrics are those before normalization"

    def test_loss_is_that_of_the_critic_and_of_the_prediction_of_a_share_of_the_rows(
        self, rollouts: list[TensorDict], specs: Any, numpy_forward: Function, numpy_normalized: Function
    ) -> None:
        model = make_model(RND, specs)
        rows = rollouts[0].flatten()  # 18 rows, a quarter of which are 4
        rows["value_target_rnd"] = torch.arange(18.0).unsqueeze(1)
        model.update(rollouts[0], no_reduce)
        values = observations([rows])[0]
        error = numpy_errors(model, numpy_normalized(values, values)[:4], numpy_forward).mean()
        value = numpy_forward(model.critic, rows["observation"].double().numpy(), num_relus=0)
        expected = np.square(value - np.arange(18.0)[:, None]).mean() + error
        loss = model.loss(rows)
        assert loss.item() == pytest.approx(expected, rel=1e-5)
        loss.backward()
        assert all(param.grad is None and not param.requires_grad for param in model.target.parameters())
        assert all(param.grad is not None for param in [*model.predictor.parameters(), *model.critic.parameters()])

    def test_statistics_are_sums_over_ranks(self, rollouts: list[TensorDict], specs: Any) -> None:
        one, two = make_model(RND, specs), make_model(RND, specs)
        one.update(rollouts[0], no_reduce)
        two.update(rollouts[0], lambda tensor, use: use(torch.stack([tensor, tensor])))  # two ranks with the same data
        counts = [{v.item() for n, v in m.target.state_dict().items() if n.endswith("count")} for m in (one, two)]
        assert counts == [{18}, {36}]

    def test_nested_observations_are_normalized_by_entry_and_large_images_by_pixel(self) -> None:
        spec = Composite(
            observation=Composite(
                image=Bounded(0, 255, (2, 3, 36, 36), dtype=torch.uint8),
                codes=Bounded(0, 255, (2, 5, 5, 3), dtype=torch.uint8),
                speed=Unbounded((2, 1)),
                shape=(2,),
            ),
            shape=(2,),
        )
        model = RND(spec, body=mlp, num_features=4)
        shapes = {tuple(value.shape) for name, value in model.target.state_dict().items() if name.endswith(".mean")}
        assert shapes == {(3, 36, 36), (1,)}, "map codes keep their encoding"
        data = spec.rand((4,)).transpose(0, 1)
        rollout = TensorDict({"next": data}, (2, 4))
        model.update(rollout, no_reduce)
        assert model.reward(rollout).shape == (2, 4, 1)
        some = RND(spec, body=mlp, num_features=4, observations=["speed"])
        assert ("next", "observation", "speed") in some.in_keys
        assert some.target.in_keys == [("observation", "speed")]

    def test_single_image_uses_the_body_of_the_policy(self) -> None:
        spec = Composite(observation=Bounded(0, 255, (2, 4, 36, 36), dtype=torch.uint8), shape=(2,))
        model = RND(spec, body=partial(nature_cnn, num_features=8), num_features=4)
        rollout = TensorDict({"next": spec.rand((3,)).transpose(0, 1)}, (2, 3))
        model.update(rollout, no_reduce)
        key = next(name for name in model.target.state_dict() if name.endswith("moments.mean"))
        expected = rollout["next", "observation"].double().flatten(0, 1).mean(0)
        torch.testing.assert_close(model.target.state_dict()[key], expected)
        assert model.reward(rollout).isfinite().all()

    @pytest.mark.parametrize(
        "options", [{"share": 0.0}, {"share": 1.1}, {"num_features": 0}, {"weight": -1.0}, {"observations": ["speed"]}]
    )
    def test_refuses_options_out_of_range(self, specs: Any, options: dict[str, Any]) -> None:
        with pytest.raises(ConfigurationError, match=rf"intrinsic\.rnd\.{next(iter(options))}="):
            RND(specs["observation_spec"], body=mlp, **options)


class TestNovelD:
    def test_reward_is_the_growth_of_novelty_at_the_first_visit_in_the_episode(
        self, rollouts: list[TensorDict], specs: Any, numpy_forward: Function, numpy_normalized: Function
    ) -> None:
        first, second = rollouts
        # The episode of environment 0 returns to its first state, that of environment 2 to one of the rollout before.
        first["next", "observation"][0, 1] = first["observation"][0, 2] = first["observation"][0, 0]
        second["next", "observation"][2, 3] = second["observation"][2, 4] = first["observation"][2, 4]
        second["next", "observation"][0, 0] = second["observation"][0, 1] = first["observation"][0, 0]  # older episode
        model = make_model(NovelD, specs, normalize=False, alpha=0.3)
        seen: list[Any] = []
        visited: list[set[bytes]] = [set(), set(), set()]
        for rollout in rollouts:
            seen.append(observations([rollout])[0])
            values, next_values = rollout["observation"].numpy(), rollout["next", "observation"].numpy()
            novelty, next_novelty = (
                np.sqrt(numpy_errors(model, numpy_normalized(one.astype(float), np.stack(seen)), numpy_forward))
                for one in (values, next_values)
            )
            expected = np.zeros((3, 6))
            for env, step in np.ndindex(3, 6):
                if rollout["is_init"][env, step, 0]:
                    visited[env] = set()
                visited[env].add(values[env, step].tobytes())
                if (state := next_values[env, step].tobytes()) not in visited[env]:
                    expected[env, step] = max(next_novelty[env, step] - 0.3 * novelty[env, step], 0)
                    visited[env].add(state)
            write_rewards(rollout, [model], no_reduce)
            found = rollout["next", "reward_noveld"].squeeze(-1).numpy()
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert first["next", "reward_noveld"][0, 1] == second["next", "reward_noveld"][2, 3] == 0
        assert second["next", "reward_noveld"][0, 0] > 0

    def test_visits_are_in_the_state_dict(self, rollouts: list[TensorDict], specs: Any) -> None:
        model, other = make_model(NovelD, specs), make_model(NovelD, specs)
        write_rewards(rollouts[0], [model], no_reduce)
        other.load_state_dict(model.state_dict())
        results: list[RewardModel] = [model, other]
        for one in results:
            write_rewards(rollouts[1], [one], no_reduce)
        assert model.visits.get_extra_state() == other.visits.get_extra_state()
        assert [len(visits) for visits in model.visits.get_extra_state()] == [4, 7, 13]

    def test_rollout_without_is_init_is_refused(self, rollouts: list[TensorDict], specs: Any) -> None:
        with pytest.raises(ConfigurationError, match="InitTracker"):
            write_rewards(rollouts[0].exclude("is_init"), [make_model(NovelD, specs)], no_reduce)

    def test_refuses_alpha_out_of_range(self, specs: Any) -> None:
        with pytest.raises(ConfigurationError, match=r"intrinsic\.noveld\.alpha=2"):
            make_model(NovelD, specs, alpha=2.0)
