"""Tests of the feature extractors."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any, NamedTuple

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


def spec_of(spec: TensorSpec) -> Composite:
    """Return the spec of a batch of observations."""
    return Composite(observation=spec).expand(NUM_ENVS)


class Builder(NamedTuple):
    """Builds extractors that read every entry."""

    build: FeatureExtractorBuilder

    def __call__(self, name: str) -> FeatureExtractor:
        return self.build(name, self.build.specs, partial(mlp, num_cells=(4,)))


def make_builder(
    spec: TensorSpec,
    *,
    normalize: bool = False,
    encoders: dict[str, Any] | None = None,
    memory: Callable[[int], Memory] | None = None,
) -> Builder:
    torch.manual_seed(0)
    return Builder(
        FeatureExtractorBuilder(split_observation_spec(spec_of(spec)).specs, 1, normalize, encoders or {}, memory)
    )


def features_of(extractor: FeatureExtractor, data: TensorDict) -> Tensor:
    features: Tensor = TensorDictSequential(*extractor.modules)(data.copy())[extractor.key]
    return features


class TestObservationEntries:
    def test_plain_observation_is_one_entry(self) -> None:
        specs, mask_key = split_observation_spec(spec_of(Unbounded((3,))))
        assert list(specs) == ["observation"]
        assert mask_key is None

    def test_nested_observation_has_all_leaves_as_entries(self) -> None:
        specs = split_observation_spec(spec_of(NESTED)).specs
        assert sorted(map(entry_name, specs)) == ["gear", "left/range", "left/ticks", "speed"]

    @pytest.mark.parametrize(
        ("spec", "key"),
        [
            (MASKED, ("observation", "action_mask")),
            (Composite(left=MASKED), ("observation", "left", "action_mask")),
        ],
    )
    def test_action_mask_is_not_an_entry(self, spec: Composite, key: tuple[str, ...]) -> None:
        specs, mask_key = split_observation_spec(spec_of(spec))
        assert [one[-1] for one in specs] == ["speed"]
        assert mask_key == key

    def test_rejects_several_action_masks(self) -> None:
        with pytest.raises(ConfigurationError, match=r"several masks, left/action_mask and right/action_mask"):
            split_observation_spec(spec_of(Composite(left=MASKED, right=MASKED)))

    def test_rejects_a_spec_without_observation(self) -> None:
        with pytest.raises(ConfigurationError, match=r"no observation, only step_count; .*CatTensors"):
            split_observation_spec(Composite(step_count=Unbounded((3,))))

    def test_only_floats_have_normalizers(self) -> None:
        normalizers = make_normalizers(split_observation_spec(spec_of(NESTED)).specs, 1)
        assert sorted(map(entry_name, normalizers)) == ["left/range", "speed"]
        assert all(one.key == key for key, one in normalizers.items())


class TestFeatureExtractor:
    @pytest.mark.parametrize("spec", [Unbounded((3,)), Unbounded(()), Categorical(5, dtype=torch.int64), NESTED])
    @pytest.mark.parametrize("normalize", [False, True])
    def test_writes_num_features_features(self, spec: TensorSpec, normalize: bool) -> None:
        extractor = make_builder(spec, normalize=normalize)("actor")
        assert (extractor.key, extractor.num_features) == ("actor_features", 4)
        assert features_of(extractor, spec_of(spec).rand()).shape == (NUM_ENVS, 4)

    def test_features_depend_on_every_entry(self) -> None:
        extractor, data = make_builder(NESTED)("actor"), spec_of(NESTED).rand()
        before = features_of(extractor, data)
        for key in split_observation_spec(spec_of(NESTED)).specs:
            changed = data.clone()
            changed[key] = (changed[key] + 1) % 5
            assert not torch.equal(features_of(extractor, changed), before), key

    def test_accepts_any_number_of_batch_dimensions(self) -> None:
        extractor, data = make_builder(NESTED, normalize=True)("actor"), spec_of(NESTED).rand()
        sequences = torch.stack([data, data], 1)
        torch.testing.assert_close(features_of(extractor, sequences)[:, 1], features_of(extractor, data))

    def test_normalizes_every_entry_of_floats(self) -> None:
        build, data = make_builder(NESTED, normalize=True), spec_of(NESTED).rand()
        extractor = build("actor")
        raw = deepcopy(extractor)
        scaled = data.clone()
        for key, normalizer in build.build.normalizers.items():
            seen = torch.from_numpy(np.random.default_rng(0).normal(1, 2, (100, data[key].shape[-1])))
            normalizer.update(seen)  # type: ignore[operator]
            scaled[key] = ((data[key] - seen.mean(0)) / seen.std(0, correction=0)).float()
        torch.testing.assert_close(features_of(extractor, data), features_of(raw, scaled), rtol=1e-4, atol=1e-5)

    def test_two_extractors_share_only_normalizers(self) -> None:
        build = make_builder(NESTED, normalize=True)
        actor, critic = (nn.ModuleList(build(name).modules) for name in ("actor", "critic"))
        for extractor in (actor, critic):
            found = {module for module in extractor.modules() if isinstance(module, ObservationNormalizer)}
            assert found == set(build.build.normalizers.values())
        assert set(actor.parameters()).isdisjoint(critic.parameters())


class TestEncoders:
    def test_custom_encoder_receives_the_shape_of_its_entry(self) -> None:
        shapes: list[torch.Size] = []

        def encoder(shape: torch.Size) -> nn.Module:
            shapes.append(shape)
            return nn.Linear(*shape, 7)

        extractor = make_builder(NESTED, encoders={"left/range": encoder})("actor")
        assert shapes == [torch.Size([3])]
        assert features_of(extractor, spec_of(NESTED).rand()).shape == (NUM_ENVS, 4)

    def test_custom_encoder_applies_to_a_plain_observation(self) -> None:
        extractor = make_builder(Unbounded((3,)), encoders={"observation": lambda shape: nn.Linear(*shape, 9)})("actor")
        assert [m.in_features for m in nn.ModuleList(extractor.modules).modules() if isinstance(m, nn.Linear)] == [3, 9]

    def test_rejects_an_encoder_of_an_unknown_entry(self) -> None:
        with pytest.raises(ConfigurationError, match=r"policy\.encoders\.right .*left/range"):
            make_builder(NESTED, encoders={"right": partial(mlp, num_cells=(4,))})


class TestMemory:
    def test_follows_the_body_and_writes_its_next_state(self) -> None:
        extractor = make_builder(Unbounded((3,)), memory=partial(LSTM, width=5))("actor")
        assert extractor.num_features == 5
        data = spec_of(Unbounded((3,))).rand()
        data["is_init"], data["actor_memory"] = torch.zeros(NUM_ENVS, 1, dtype=torch.bool), torch.rand(NUM_ENVS, 1, 10)
        after = TensorDictSequential(*extractor.modules)(data)
        assert after[extractor.key].shape == (NUM_ENVS, 5)
        assert after["next", "actor_memory"].shape == (NUM_ENVS, 1, 10)
        torch.testing.assert_close(after["next", "actor_memory"][:, 0, :5], after[extractor.key])
