"""Tests of actors and critics built from specs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Binary, Bounded, Categorical, Composite, MultiCategorical, TensorSpec, Unbounded
from torchrl.envs import ExplorationType, set_exploration_type

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import ActorCritic, make_actor_critic, without_critic
from torchppo.modules.features.bodies import mlp, orthogonal_
from torchppo.modules.features.extractor import recurrent_state_shapes
from torchppo.modules.features.image_bodies import nature_cnn
from torchppo.modules.features.recurrent import GRU
from torchppo.modules.heads.continuous import gaussian, tanh_gaussian
from torchppo.modules.normalizers import ObservationNormalizer
from torchppo.modules.objectives.clip import ClipPPOLoss

NUM_ENVS = 6
LOW, HIGH = torch.tensor([-2.0, -0.5]), torch.tensor([2.0, 0.5])

ACTION_SPECS: dict[str, TensorSpec] = {
    "discrete": Categorical(4, dtype=torch.int64),
    "multi-discrete": MultiCategorical(torch.tensor([2, 5, 3]), dtype=torch.int64),
    "multi-binary": Binary(3, dtype=torch.int8),
    "box": Bounded(LOW, HIGH, (2,), dtype=torch.float32),
    "unbounded box": Unbounded((2,), dtype=torch.float32),
    "squashed box": Bounded(LOW, HIGH, (2,), dtype=torch.float32),
}
# Name and size of every distribution parameter.
PARAMETERS = {
    "discrete": {"logits": 4},
    "multi-discrete": {"logits": 10},
    "multi-binary": {"logits": 3},
    "box": {"loc": 2, "scale": 2},
    "unbounded box": {"loc": 2, "scale": 2},
    "squashed box": {"loc": 2, "scale": 2},
}
every_action_space = pytest.mark.parametrize("space", ACTION_SPECS)
Build = Callable[..., ActorCritic]


def batched(spec: TensorSpec) -> TensorSpec:
    return spec.expand(NUM_ENVS, *spec.shape)


@pytest.fixture(autouse=True)
def _sampled_actions() -> Iterator[None]:
    """Sample actions as collectors do; by default, TorchRL uses the deterministic action."""
    with set_exploration_type(ExplorationType.RANDOM):
        yield


@pytest.fixture
def build() -> Build:
    """Return a function that builds networks for three floats and an action space of `ACTION_SPECS`."""

    def make(space: str, observation: TensorSpec | None = None, log_std: float = 0.0, **options: Any) -> ActorCritic:
        torch.manual_seed(0)
        observation = Unbounded((3,)) if observation is None else observation
        head = partial(tanh_gaussian if space == "squashed box" else gaussian, log_std=log_std)
        defaults = {"body": partial(mlp, num_cells=(16, 16)), "head": head}
        specs = Composite(observation=batched(observation), shape=(NUM_ENVS,)), batched(ACTION_SPECS[space])
        return make_actor_critic(*specs, **{**defaults, **options})

    return make


@pytest.fixture
def observations() -> TensorDict:
    generator = torch.Generator().manual_seed(1)
    return TensorDict({"observation": torch.randn(NUM_ENVS, 3, generator=generator)}, [NUM_ENVS])


def last_layers(networks: ActorCritic) -> tuple[nn.Linear, nn.Linear]:
    """Return the last linear layers of the actor and the critic."""
    actor, critic = ([m for m in network.modules() if isinstance(m, nn.Linear)][-1] for network in networks)
    return actor, critic


def gram(layer: nn.Linear) -> np.ndarray:
    weight = layer.weight.detach().double().numpy()
    return np.asarray(weight @ weight.T)


def is_in(spec: TensorSpec, value: Tensor) -> bool:
    return bool(torch.as_tensor(spec.is_in(value)).all())


class TestEveryActionSpace:
    @every_action_space
    def test_actor_writes_action_log_prob_and_parameters(
        self, space: str, build: Build, observations: TensorDict
    ) -> None:
        actor = build(space).actor
        data = actor(observations)
        samples = {"action_sample"} if space == "squashed box" else set()
        assert set(actor.out_keys) == {"action", "action_log_prob", *PARAMETERS[space], *samples}
        assert data["action"].shape == batched(ACTION_SPECS[space]).shape
        assert data["action"].dtype == ACTION_SPECS[space].dtype
        assert data["action_log_prob"].shape == (NUM_ENVS,)
        assert {key: data[key].shape for key in PARAMETERS[space]} == {
            key: (NUM_ENVS, width) for key, width in PARAMETERS[space].items()
        }

    @every_action_space
    @pytest.mark.parametrize("batch", [(1,), (5, 7)])
    def test_accepts_any_batch(self, space: str, batch: tuple[int, ...], build: Build) -> None:
        networks = build(space)
        data = networks.critic(networks.actor(TensorDict({"observation": torch.randn(*batch, 3)}, batch)))
        assert data["action"].shape == (*batch, *ACTION_SPECS[space].shape)
        assert data["action_log_prob"].shape == batch
        assert data["state_value"].shape == (*batch, 1)

    @pytest.mark.parametrize("space", [name for name in ACTION_SPECS if name != "box"])
    @pytest.mark.parametrize("how", [ExplorationType.RANDOM, ExplorationType.DETERMINISTIC])
    def test_actions_lie_in_the_action_space(self, space: str, how: ExplorationType, build: Build) -> None:
        networks = build(space, log_std=2.0)
        with torch.no_grad(), set_exploration_type(how):
            for _ in range(20):
                data = networks.actor(TensorDict({"observation": 50 * torch.randn(NUM_ENVS, 3)}, [NUM_ENVS]))
                assert is_in(batched(ACTION_SPECS[space]), data["action"])

    @every_action_space
    def test_log_prob_equals_that_of_the_stored_parameters(
        self, space: str, build: Build, observations: TensorDict
    ) -> None:
        actor = build(space).actor
        data = actor(observations)
        recomputed = actor.build_dist_from_params(data).log_prob(data[actor.dist_sample_keys[0]])
        torch.testing.assert_close(recomputed, data["action_log_prob"], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            actor.get_dist(data).log_prob(data[actor.dist_sample_keys[0]]), recomputed, rtol=1e-4, atol=1e-5
        )

    @every_action_space
    def test_deterministic_action_is_repeatable(self, space: str, build: Build, observations: TensorDict) -> None:
        actor = build(space).actor
        with set_exploration_type(ExplorationType.DETERMINISTIC):
            first, second = (actor(observations.copy())["action"] for _ in range(2))
        assert torch.equal(first, second)

    @every_action_space
    @pytest.mark.parametrize("shared", [False, True])
    def test_gradients_reach_every_parameter(
        self, space: str, shared: bool, build: Build, observations: TensorDict
    ) -> None:
        networks = build(space, shared=shared)
        data = networks.critic(networks.actor(observations))
        sample = data[networks.actor.dist_sample_keys[0]]
        log_prob = networks.actor.get_dist(data).log_prob(sample)
        (log_prob.sum() + data["state_value"].sum()).backward()
        for network in networks:
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None, name
                assert parameter.grad.isfinite().all(), name


class TestObjective:
    @pytest.mark.parametrize("shared", [False, True])
    def test_objective_runs_every_body_once(self, shared: bool, build: Build, observations: TensorDict) -> None:
        calls: list[nn.Module] = []

        def counted(shape: torch.Size) -> nn.Module:
            body = mlp(shape, num_cells=(8,))
            body.register_forward_hook(lambda module, *_: calls.append(module))
            return body

        networks = build("discrete", shared=shared, body=counted)
        with torch.no_grad():
            data = networks.critic(networks.actor(observations))
        data.update(dict.fromkeys(("advantage", "value_target"), torch.ones(NUM_ENVS, 1)))
        calls.clear()
        ClipPPOLoss(*networks)(data)
        assert len(calls) == len(set(calls)) == (1 if shared else 2)


@every_action_space
def test_heads_write_float32_under_autocast(space: str, build: Build, observations: TensorDict) -> None:
    networks = build(space)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        data = networks.critic(networks.actor(observations))
    assert data["critic_features"].dtype == torch.bfloat16
    for key in (*PARAMETERS[space], "action_log_prob", "state_value"):
        assert data[key].dtype == torch.float32


class TestContinuousActions:
    def test_gaussian_log_prob_is_that_of_the_unclipped_action(self, build: Build, observations: TensorDict) -> None:
        data = build("box", log_std=1.5).actor(observations)
        action, loc, scale = (data[key].detach().double().numpy() for key in ("action", "loc", "scale"))
        assert not is_in(batched(ACTION_SPECS["box"]), data["action"])
        expected = -0.5 * ((action - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
        np.testing.assert_allclose(data["action_log_prob"].detach().numpy(), expected.sum(-1), rtol=1e-5)

    def test_tanh_gaussian_log_prob_includes_the_slope(self, build: Build, observations: TensorDict) -> None:
        data = build("squashed box", log_std=-0.5).actor(observations)
        low, high = LOW.double().numpy(), HIGH.double().numpy()
        action, loc, scale = (data[key].detach().double().numpy() for key in ("action", "loc", "scale"))
        unit = 2 * (action - low) / (high - low) - 1
        slope = (1 - unit**2) * (high - low) / 2
        gaussian = -0.5 * ((np.arctanh(unit) - loc) / scale) ** 2 - np.log(scale) - 0.5 * np.log(2 * np.pi)
        expected = (gaussian - np.log(slope)).sum(-1)
        np.testing.assert_allclose(data["action_log_prob"].detach().numpy(), expected, rtol=1e-3, atol=1e-3)

    def test_tanh_gaussian_reaches_both_bounds(self, build: Build) -> None:
        actor = build("squashed box", log_std=2.0).actor
        with torch.no_grad():
            action = actor(TensorDict({"observation": torch.zeros(2000, 3)}, [2000]))["action"]
        torch.testing.assert_close(action.amin(0), LOW, rtol=0, atol=0.05)
        torch.testing.assert_close(action.amax(0), HIGH, rtol=0, atol=0.05)

    def test_tanh_gaussian_rejects_infinite_bounds(self, build: Build) -> None:
        with pytest.raises(ConfigurationError, match=r"head=tanh_gaussian needs finite bounds"):
            build("unbounded box", head=tanh_gaussian)

    @pytest.mark.parametrize("space", ["box", "squashed box"])
    def test_scale_is_one_parameter_per_action(self, space: str, build: Build, observations: TensorDict) -> None:
        networks = build(space, log_std=-0.7)
        scale = networks.actor(observations)["scale"]
        np.testing.assert_allclose(scale.detach().numpy(), np.full((NUM_ENVS, 2), math.exp(-0.7)), rtol=1e-6)
        assert [p.shape for name, p in networks.actor.named_parameters() if name.endswith("log_std")] == [(2,)]


class TestInitialPolicy:
    @every_action_space
    def test_last_layers_start_orthogonal_with_gains_001_and_1(self, space: str, build: Build) -> None:
        actor, critic = last_layers(build(space))
        np.testing.assert_allclose(gram(actor), 1e-4 * np.eye(actor.out_features), atol=1e-9)
        np.testing.assert_allclose(gram(critic), [[1.0]], rtol=1e-5)
        assert not actor.bias.any()
        assert not critic.bias.any()

    @pytest.mark.parametrize("space", ["discrete", "multi-discrete", "multi-binary"])
    def test_initial_discrete_policy_is_almost_uniform(
        self, space: str, build: Build, observations: TensorDict
    ) -> None:
        data = build(space).actor(observations)
        num_actions = {"discrete": 4, "multi-discrete": 30, "multi-binary": 8}[space]
        np.testing.assert_allclose(data["action_log_prob"].detach().numpy(), -np.log(num_actions), atol=0.15)
        np.testing.assert_allclose(data["logits"].detach().numpy(), 0, atol=0.05)

    def test_initial_gaussian_is_almost_centered(self, build: Build, observations: TensorDict) -> None:
        np.testing.assert_allclose(build("box").actor(observations)["loc"].detach().numpy(), 0, atol=0.05)

    def test_order_of_random_draws_is_fixed(self, build: Build) -> None:
        actor, critic = build("discrete")
        torch.manual_seed(0)
        bodies = [mlp(torch.Size([3]), num_cells=(16, 16)) for _ in range(2)]
        ends = [orthogonal_(nn.Linear(16, num), gain) for num, gain in ((4, 0.01), (1, 1.0))]
        for network, parts in ((actor, (bodies[0], ends[0])), (critic, (bodies[1], ends[1]))):
            expected = [parameter for part in parts for parameter in part.parameters()]
            assert all(torch.equal(a, b) for a, b in zip(network.parameters(), expected, strict=True))


class TestSharing:
    def test_shared_networks_have_one_body_and_two_heads(self, build: Build) -> None:
        networks = build("discrete", shared=True)
        actor, critic = (set(network.parameters()) for network in networks)
        assert len(actor & critic) == 4 + 2  # two layers of the body, and the value head
        assert len(actor - critic) == 2
        assert not critic - actor

    def test_shared_actor_writes_the_value_of_the_critic(self, build: Build) -> None:
        actor, critic = build("discrete", shared=True)
        data = actor(TensorDict({"observation": torch.randn(5, 3)}, [5]))
        torch.testing.assert_close(data["state_value"], critic(data.select("observation"))["state_value"])

    def test_networks_share_nothing_by_default(self, build: Build) -> None:
        actor, critic = (set(network.parameters()) for network in build("discrete"))
        assert not actor & critic
        assert len(actor) == len(critic) == 6

    def test_separate_bodies_start_from_different_weights(self, build: Build) -> None:
        first, second = (next(network.parameters()) for network in build("discrete"))
        assert not torch.equal(first, second)

    def test_shared_critic_works_without_the_actor(self, build: Build, observations: TensorDict) -> None:
        networks = build("discrete", shared=True)
        value = networks.critic(observations.copy())["state_value"]
        torch.testing.assert_close(value, networks.critic(networks.actor(observations.copy()))["state_value"])


class TestObservations:
    @pytest.mark.parametrize("shared", [False, True])
    def test_actor_and_critic_share_one_normalizer(self, shared: bool, build: Build, observations: TensorDict) -> None:
        normalized = build("discrete", shared=shared, normalize_observation=True)
        plain = build("discrete", shared=shared)
        found = [[m for m in network.modules() if isinstance(m, ObservationNormalizer)] for network in normalized]
        assert len(found[0]) == len(found[1]) == 1
        assert found[0][0] is found[1][0]
        data = torch.from_numpy(np.random.default_rng(0).normal(3, 2, (100, 3)))
        found[0][0].update(data)
        scaled = ((observations["observation"] - data.mean(0)) / data.std(0, correction=0)).float()
        expected = TensorDict({"observation": scaled}, [NUM_ENVS])
        for network, reference, key in zip(normalized, plain, ("logits", "state_value"), strict=True):
            actual = network(observations.copy())[key]
            torch.testing.assert_close(actual, reference(expected.copy())[key], rtol=1e-4, atol=1e-5)

    def test_body_receives_the_shape_of_one_observation(self, build: Build) -> None:
        shapes: list[torch.Size] = []

        def body(shape: torch.Size) -> nn.Module:
            shapes.append(shape)
            return nature_cnn(shape, num_features=8)

        image = Bounded(0, 255, (4, 36, 40), dtype=torch.uint8)
        networks = build("discrete", observation=image, body=body)
        data = networks.critic(networks.actor(TensorDict({"observation": batched(image).rand()}, [NUM_ENVS])))
        assert set(shapes) == {torch.Size([4, 36, 40])}
        assert data["action"].shape == (NUM_ENVS,)
        assert data["state_value"].shape == (NUM_ENVS, 1)

    @pytest.mark.parametrize("dtype", [torch.uint8, torch.int64])
    @pytest.mark.parametrize("normalize_observation", [False, True])
    def test_mlp_accepts_integers(self, dtype: torch.dtype, normalize_observation: bool, build: Build) -> None:
        spec = Bounded(0, 200, (3,), dtype=dtype)
        networks = build("discrete", observation=spec, normalize_observation=normalize_observation)
        data = networks.critic(networks.actor(TensorDict({"observation": batched(spec).rand()}, [NUM_ENVS])))
        assert data["state_value"].dtype == torch.float32

    def test_integers_with_wide_bounds_are_scaled(self, build: Build) -> None:
        spec = Bounded(-100, 300, (3,), dtype=torch.int64)
        networks = build("discrete", observation=spec)
        plain = build("discrete", observation=Bounded(0, 1, (3,)))
        data = TensorDict({"observation": batched(spec).rand()}, [NUM_ENVS])
        scaled = TensorDict({"observation": (data["observation"] + 100) / 400}, [NUM_ENVS])
        torch.testing.assert_close(networks.critic(data)["state_value"], plain.critic(scaled)["state_value"])

    def test_critic_reads_only_the_observation(self, build: Build, observations: TensorDict) -> None:
        critic: TensorDictModule = build("discrete").critic
        assert list(critic.in_keys) == ["observation"]
        assert critic(observations)["state_value"].shape == (NUM_ENVS, 1)


class TestMemory:
    @pytest.fixture(params=[False, True], ids=["separate", "shared"])
    def networks(self, request: pytest.FixtureRequest, build: Build) -> ActorCritic:
        return build("discrete", memory=partial(GRU, width=8), shared=request.param)

    @pytest.fixture
    def step(self) -> TensorDict:
        states = {f"{name}_memory": torch.randn(NUM_ENVS, 1, 8) for name in ("actor", "critic")}
        is_init = torch.zeros(NUM_ENVS, 1, dtype=torch.bool)
        return TensorDict({"observation": torch.randn(NUM_ENVS, 3), "is_init": is_init, **states}, [NUM_ENVS])

    def test_actor_writes_the_value_of_the_critic(self, networks: ActorCritic, step: TensorDict) -> None:
        acted = networks.actor(step.copy())
        torch.testing.assert_close(acted["state_value"], networks.critic(step.copy())["state_value"])

    def test_next_state_is_written_under_next(self, networks: ActorCritic, step: TensorDict) -> None:
        acted = networks.actor(step.copy())
        state_shapes = recurrent_state_shapes(networks.actor)
        assert set(state_shapes) <= {"actor_memory", "critic_memory"}
        for key, shape in state_shapes.items():
            assert acted["next", key].shape == (NUM_ENVS, *shape)
            assert ("next", key) in networks.actor.out_keys

    def test_objective_gives_gradients_to_all_parameters(self, networks: ActorCritic, step: TensorDict) -> None:
        acted = networks.actor(step.copy()).exclude("next").detach()
        acted["advantage"], acted["value_target"] = torch.randn(NUM_ENVS, 1), torch.randn(NUM_ENVS, 1)
        losses = ClipPPOLoss(*networks)(acted)
        assert losses["kl_approx"].item() == pytest.approx(0, abs=1e-7)
        (losses["loss_objective"] + losses["loss_critic"]).backward()
        for network in networks:
            assert all(parameter.grad is not None for parameter in network.parameters())

    def test_shared_memory_shares_all_but_the_policy_head(self, networks: ActorCritic) -> None:
        shared = set(recurrent_state_shapes(networks.actor)) == {"actor_memory"}
        assert set(recurrent_state_shapes(networks.critic)) == {"actor_memory" if shared else "critic_memory"}
        logits = networks.actor.module[0].module[-1]
        assert "logits" in logits.out_keys
        valuing = set(networks.critic.parameters())
        acting = set(networks.actor.parameters()) - (set() if shared else valuing)
        assert (acting - valuing == set(logits.parameters())) is shared
        assert acting.isdisjoint(valuing) is not shared

    def test_state_of_the_critic_does_not_affect_the_action(self, build: Build, step: TensorDict) -> None:
        networks = build("discrete", memory=partial(GRU, width=8))
        other = step.clone().update({"critic_memory": torch.randn(NUM_ENVS, 1, 8)})
        first, second = networks.actor(step.copy()), networks.actor(other)
        assert torch.equal(first["logits"], second["logits"])
        assert not torch.equal(first["state_value"], second["state_value"])


class TestCustomBody:
    class Attentive(nn.Module):
        """A module that does not depend on this package."""

        def __init__(self, shape: torch.Size) -> None:
            super().__init__()
            self.scores, self.values = nn.Linear(*shape, 5), nn.Linear(*shape, 5)

        def forward(self, observation: Tensor) -> Tensor:
            return self.scores(observation).softmax(-1) * self.values(observation)

    @pytest.mark.parametrize("options", [{}, {"shared": True}, {"memory": partial(GRU, width=8)}])
    def test_gradients_reach_a_custom_body(self, options: dict[str, Any], build: Build) -> None:
        networks = build("discrete", body=self.Attentive, **options)
        data = TensorDict({"observation": torch.randn(NUM_ENVS, 3)}, [NUM_ENVS])
        data["is_init"] = torch.ones(NUM_ENVS, 1, dtype=torch.bool)
        shapes = recurrent_state_shapes(networks.actor)
        data.update({key: torch.zeros(NUM_ENVS, *shape) for key, shape in shapes.items()})
        acted = networks.actor(data)
        (networks.critic(acted)["state_value"].sum() + acted["logits"].square().sum()).backward()
        bodies = {m for network in networks for m in network.modules() if isinstance(m, self.Attentive)}
        assert len(bodies) == (1 if "shared" in options else 2)
        assert all(p.grad is not None and p.grad.any() for body in bodies for p in body.parameters())


class TestNestedSpaces:
    SPEC = Composite(
        camera=Bounded(0, 255, (7, 7, 3), dtype=torch.uint8),
        inner=Composite(speed=Unbounded((2,)), gear=Categorical(5, dtype=torch.int64)),
        heading=Unbounded((1,)),
        action_mask=Binary(4, dtype=torch.int8),
    )

    def build(self, **options: Any) -> tuple[ActorCritic, TensorDict]:
        torch.manual_seed(0)
        observation = Composite(observation=self.SPEC).expand(NUM_ENVS)
        networks = make_actor_critic(
            observation, batched(ACTION_SPECS["discrete"]), body=partial(mlp, num_cells=(16,)), **options
        )
        return networks, observation.rand()

    def test_every_entry_except_the_mask_affects_the_value(self) -> None:
        networks, data = self.build()
        features = networks.critic(data.copy())["state_value"]
        for key in data.keys(include_nested=True, leaves_only=True):
            changed = data.clone()
            changed[key] = changed[key].roll(1, 0)
            same = torch.equal(networks.critic(changed)["state_value"], features)
            assert same == (key[-1] == "action_mask"), key

    def test_masked_choices_are_never_sampled(self) -> None:
        networks, data = self.build()
        data["observation", "action_mask"] = torch.tensor([0, 1, 0, 1], dtype=torch.int8).expand(NUM_ENVS, 4).clone()
        taken = torch.cat([networks.actor(data.copy())["action"] for _ in range(50)])
        assert set(taken.tolist()) == {1, 3}

    def test_every_entry_of_floats_has_a_normalizer(self) -> None:
        networks, _ = self.build(normalize_observation=True)
        found = [m for m in networks.actor.modules() if isinstance(m, ObservationNormalizer)]
        assert {one.key for one in found} == {("observation", "inner", "speed"), ("observation", "heading")}
        assert len(found) == 2
        assert set(found) <= set(networks.critic.modules())

    def test_custom_encoder_is_selected_by_name(self) -> None:
        networks, data = self.build(encoders={"inner/speed": lambda shape: nn.Linear(*shape, 7)})
        assert any(isinstance(m, nn.Linear) and m.out_features == 7 for m in networks.actor.modules())
        assert networks.critic(data)["state_value"].shape == (NUM_ENVS, 1)


class TestImagesUnderTheDefaultBody:
    @pytest.mark.parametrize("shape", [(40, 40, 3), (4, 40, 40), (40, 40), (2, 40, 40, 3), (8, 8, 19)])
    def test_an_image_alone_has_the_encoder_that_it_has_in_a_dict(self, shape: tuple[int, ...]) -> None:
        image = Bounded(0, 255, shape, dtype=torch.uint8)
        weights = []
        for observation in (image, Composite(image=image, shape=())):
            specs = Composite(observation=batched(observation), shape=(NUM_ENVS,)), batched(ACTION_SPECS["discrete"])
            networks = make_actor_critic(*specs, body=partial(mlp, num_cells=(16,)))
            assert networks.actor(specs[0].rand())["action"].shape == (NUM_ENVS,)
            weights.append([parameter.shape for parameter in networks.critic.parameters()])
        assert weights[0] == weights[1]
        assert any(len(weight) == 4 for weight in weights[0])

    @pytest.mark.parametrize("is_nested", [False, True])
    def test_an_image_body_reads_the_image_itself(self, is_nested: bool) -> None:
        image = Bounded(0, 255, (40, 40, 3), dtype=torch.uint8)
        mask = Binary(4, dtype=torch.int8)
        observation = Composite(observation=image, action_mask=mask, shape=()) if is_nested else image
        specs = Composite(observation=batched(observation), shape=(NUM_ENVS,)), batched(ACTION_SPECS["discrete"])
        networks = make_actor_critic(*specs, body=partial(nature_cnn, num_features=8), shared=True)
        (first, *_) = [module for module in networks.actor.modules() if isinstance(module, nn.Conv2d)]
        assert first.in_channels == 3
        assert networks.critic(specs[0].rand())["state_value"].shape == (NUM_ENVS, 1)


class TestDifferentObservations:
    SPEC = Composite(
        observation=Composite(image=Bounded(0, 255, (36, 36, 3), dtype=torch.uint8), state=Unbounded((5,))),
        privileged=Unbounded((2,)),
        step_count=Unbounded((1,), dtype=torch.int64),
    )
    ENTRIES: ClassVar[dict[str, Any]] = {
        "body": partial(nature_cnn, num_features=8),
        "critic_body": partial(mlp, num_cells=(16,)),
        "actor_observations": ["image"],
        "critic_observations": ["state", "privileged"],
    }

    def build(self, **options: Any) -> tuple[ActorCritic, TensorDict]:
        torch.manual_seed(0)
        spec = self.SPEC.expand(NUM_ENVS)
        return make_actor_critic(spec, batched(ACTION_SPECS["discrete"]), **{**self.ENTRIES, **options}), spec.rand()

    def test_actor_and_critic_read_only_their_entries(self) -> None:
        (actor, critic), data = self.build(normalize_observation=True)
        assert set(actor.in_keys) == {("observation", "image")}
        assert set(critic.in_keys) == {("observation", "state"), "privileged"}
        assert actor(data.select(*actor.in_keys))["action"].shape == (NUM_ENVS,)
        assert critic(data.select(*critic.in_keys))["state_value"].shape == (NUM_ENVS, 1)
        assert not any(isinstance(module, nn.Conv2d) for module in critic.modules())
        keys = {module.key for module in critic.modules() if isinstance(module, ObservationNormalizer)}
        assert keys == {("observation", "state"), "privileged"}

    def test_a_recurrent_policy_acts_without_the_entries_of_the_critic(self) -> None:
        (actor, _), data = self.build(memory=partial(GRU, width=8))
        assert "privileged" in actor.in_keys  # collection advances the memory of the critic
        acting = without_critic(actor)
        assert set(acting.in_keys) == {("observation", "image"), "is_init", "actor_memory"}
        data["is_init"] = torch.ones(NUM_ENVS, 1, dtype=torch.bool)
        data["actor_memory"] = data["critic_memory"] = torch.zeros(NUM_ENVS, 1, 8)
        expected, acted = actor(data.copy()), acting(data.select(*acting.in_keys))
        for key in ("logits", ("next", "actor_memory")):
            assert torch.equal(acted[key], expected[key])

    def test_policies_whose_critic_reads_nothing_else_are_returned_unchanged(self) -> None:
        for options in ({"memory": partial(GRU, width=8)}, {}):
            (actor, _), _ = self.build(actor_observations=["state"], critic_observations=["state"], body=mlp, **options)
            assert without_critic(actor) is actor

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"shared": True}, r"policy\.shared=true"),
            ({"critic_observations": ["speed"]}, r"policy\.critic_observations=\['speed'\].*image, state, privileged"),
            ({"actor_observations": []}, r"policy\.actor_observations=\[\]"),
            ({"actor_observations": ["step_count"]}, r"'step_count' is not an entry"),
            ({"body": nn.Linear(4, 8)}, "body is a module of the class Linear"),
            ({"encoders": {"image": nn.Flatten()}}, "image is a module of the class Flatten"),
            ({"memory": GRU(4, width=8)}, "memory is a module of the class GRU"),
            ({"memory": partial(nn.GRUCell, hidden_size=8)}, r"policy\.memory builds .* GRUCell; .*\.Memory"),
            ({"critic": partial(nn.Linear, out_features=1)}, r"critic builds .* Linear; .*\.ValueHead"),
        ],
    )
    def test_contradictions_raise(self, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            self.build(**options)
