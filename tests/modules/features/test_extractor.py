"""Trunks: what of an observation is read, and what stands between it and the heads."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictSequential
from torch import Tensor, nn
from torchrl.data import Binary, Bounded, Categorical, Composite, TensorSpec, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.extractor import (
    FeatureExtractor,
    FeatureExtractorBuilder,
    entry_name,
    make_normalizers,
    split_observation_spec,
)
from torchppo.modules.features.recurrent import LSTM, Memory
from torchppo.modules.normalizers import ObservationNormalizer

NUM_ENVS = 6
NESTED = Composite(
    speed=Unbounded((2,)),
    gear=Categorical(5, dtype=torch.int64),
    left=Composite(range=Bounded(-1.0, 1.0, (3,), dtype=torch.float32), ticks=Bounded(0, 9, (2,), dtype=torch.int64)),
)
MASKED = Composite(speed=Unbounded((2,)), action_mask=Binary(4, dtype=torch.int8))


def of(spec: TensorSpec) -> Composite:
    """The specs of a batch of environments that observe `spec`."""
    return Composite(observation=spec).expand(NUM_ENVS)


def made(
    spec: TensorSpec,
    *,
    normalize: bool = False,
    encoders: dict[str, Any] | None = None,
    memory: Callable[[int], Memory] | None = None,
) -> FeatureExtractorBuilder:
    torch.manual_seed(0)
    observation = split_observation_spec(of(spec))
    normalizers = make_normalizers(observation.specs, 1) if normalize else {}
    return FeatureExtractorBuilder(
        observation.specs, 1, normalizers, encoders or {}, partial(mlp, num_cells=(4,)), memory
    )


def features_of(trunk: FeatureExtractor, data: TensorDict) -> Tensor:
    features: Tensor = TensorDictSequential(*trunk.modules)(data.copy())[trunk.key]
    return features


class TestWhatIsRead:
    def test_of_a_plain_observation_is_all_of_it(self) -> None:
        specs, mask_key = split_observation_spec(of(Unbounded((3,))))
        assert list(specs) == ["observation"]
        assert mask_key is None

    def test_of_a_nested_one_is_every_leaf_however_deep(self) -> None:
        specs = split_observation_spec(of(NESTED)).specs
        assert sorted(map(entry_name, specs)) == ["gear", "left/range", "left/ticks", "speed"]

    @pytest.mark.parametrize(
        ("spec", "key"),
        [
            (MASKED, ("observation", "action_mask")),
            (Composite(left=MASKED), ("observation", "left", "action_mask")),
        ],
    )
    def test_is_not_the_mask(self, spec: Composite, key: tuple[str, ...]) -> None:
        specs, mask_key = split_observation_spec(of(spec))
        assert [one[-1] for one in specs] == ["speed"]
        assert mask_key == key

    def test_has_one_mask_at_most(self) -> None:
        with pytest.raises(ConfigurationError, match=r"several masks, left/action_mask and right/action_mask"):
            split_observation_spec(of(Composite(left=MASKED, right=MASKED)))

    def test_is_missing_with_the_names_of_what_there_is(self) -> None:
        with pytest.raises(ConfigurationError, match=r"no entry 'observation', only pixels, state; .*CatTensors"):
            split_observation_spec(Composite(pixels=Unbounded((3,)), state=Unbounded((2,))))

    def test_is_normalized_if_it_is_of_real_numbers(self) -> None:
        normalizers = make_normalizers(split_observation_spec(of(NESTED)).specs, 1)
        assert sorted(map(entry_name, normalizers)) == ["left/range", "speed"]
        assert all(one.key == key for key, one in normalizers.items())


class TestATrunk:
    @pytest.mark.parametrize("spec", [Unbounded((3,)), Unbounded(()), Categorical(5, dtype=torch.int64), NESTED])
    @pytest.mark.parametrize("normalize", [False, True])
    def test_writes_features_of_its_width(self, spec: TensorSpec, normalize: bool) -> None:
        trunk = made(spec, normalize=normalize)("actor")
        assert (trunk.key, trunk.num_features) == ("actor_features", 4)
        assert features_of(trunk, of(spec).rand()).shape == (NUM_ENVS, 4)

    def test_reads_every_entry(self) -> None:
        trunk, data = made(NESTED)("actor"), of(NESTED).rand()
        before = features_of(trunk, data)
        for key in split_observation_spec(of(NESTED)).specs:
            changed = data.clone()
            changed[key] = (changed[key] + 1) % 5
            assert not torch.equal(features_of(trunk, changed), before), key

    def test_reads_frames_of_any_number_of_dimensions(self) -> None:
        trunk, data = made(NESTED, normalize=True)("actor"), of(NESTED).rand()
        sequences = torch.stack([data, data], 1)
        torch.testing.assert_close(features_of(trunk, sequences)[:, 1], features_of(trunk, data))

    def test_sees_each_entry_of_real_numbers_normalized(self) -> None:
        make, data = made(NESTED, normalize=True), of(NESTED).rand()
        trunk = make("actor")
        raw = deepcopy(trunk)
        scaled = data.clone()
        for key, normalizer in make.normalizers.items():
            seen = torch.from_numpy(np.random.default_rng(0).normal(1, 2, (100, data[key].shape[-1])))
            normalizer.update(seen)  # type: ignore[operator]
            scaled[key] = ((data[key] - seen.mean(0)) / seen.std(0, correction=0)).float()
        torch.testing.assert_close(features_of(trunk, data), features_of(raw, scaled), rtol=1e-4, atol=1e-5)

    def test_shares_with_another_its_normalizers_alone(self) -> None:
        make = made(NESTED, normalize=True)
        actor, critic = (nn.ModuleList(make(name).modules) for name in ("actor", "critic"))
        for trunk in (actor, critic):
            found = {module for module in trunk.modules() if isinstance(module, ObservationNormalizer)}
            assert found == set(make.normalizers.values())
        assert set(actor.parameters()).isdisjoint(critic.parameters())


class TestEncoders:
    def test_are_told_the_shape_of_their_entry(self) -> None:
        shapes: list[torch.Size] = []

        def encoder(shape: torch.Size) -> nn.Module:
            shapes.append(shape)
            return nn.Linear(*shape, 7)

        trunk = made(NESTED, encoders={"left/range": encoder})("actor")
        assert shapes == [torch.Size([3])]
        assert features_of(trunk, of(NESTED).rand()).shape == (NUM_ENVS, 4)

    def test_may_be_given_for_a_plain_observation_too(self) -> None:
        trunk = made(Unbounded((3,)), encoders={"observation": lambda shape: nn.Linear(*shape, 9)})("actor")
        assert [m.in_features for m in nn.ModuleList(trunk.modules).modules() if isinstance(m, nn.Linear)] == [3, 9]

    def test_of_nothing_are_refused_with_the_entries(self) -> None:
        with pytest.raises(ConfigurationError, match=r"policy\.encoders\.right .*left/range"):
            made(NESTED, encoders={"right": partial(mlp, num_cells=(4,))})


class TestAMemory:
    def test_stands_behind_the_body_and_makes_the_width(self) -> None:
        trunk = made(Unbounded((3,)), memory=partial(LSTM, width=5))("actor")
        assert trunk.num_features == 5
        data = of(Unbounded((3,))).rand()
        data["is_init"], data["actor_memory"] = torch.zeros(NUM_ENVS, 1, dtype=torch.bool), torch.rand(NUM_ENVS, 1, 10)
        after = TensorDictSequential(*trunk.modules)(data)
        assert after[trunk.key].shape == (NUM_ENVS, 5)
        assert after["next", "actor_memory"].shape == (NUM_ENVS, 1, 10)
        torch.testing.assert_close(after["next", "actor_memory"][:, 0, :5], after[trunk.key])
