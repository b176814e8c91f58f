"""Feature extractors: the encoders, the body and the memory between an observation and a head."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torch import nn
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded
from torchrl.modules import GRUModule, LSTMModule

from ...errors import ConfigurationError
from ..normalizers import ObservationNormalizer
from .bodies import flattens_images, require_base
from .encoders import ConcatEncoders, make_encoder
from .images import is_image, scale_image
from .recurrent import Memory, MemoryModule, RecurrentModule

Body = Callable[[torch.Size], nn.Module]
"""A function from the shape of one observation to a module `[*, *shape] -> [*, features]`."""
SpecByKey = Mapping[NestedKey, TensorSpec]
"""Specs of entries of an observation."""

ACTION_MASK = "action_mask"
EPISODE_ENTRIES = ("episode_reward", "step_count", "episode_info", "is_init", "collector")
"""Entries of an environment that describe the episode. A policy does not read them."""


class ObservationEntries(NamedTuple):
    """The entries of an observation.

    Attributes:
        specs: Specs of the entries that are encoded, by key.
        mask_key: Key of the action mask. `None` means that the observation has no mask.

    """

    specs: dict[NestedKey, TensorSpec]
    mask_key: NestedKey | None


def split_observation_spec(spec: Composite) -> ObservationEntries:
    """Separate the observation from the action mask.

    The observation is the entry `observation`, a tensor or nested, if there is one. Otherwise it is all entries, such
    as `pixels`, except those that only describe the episode (`EPISODE_ENTRIES`) and recurrent states. The mask is an
    entry `action_mask` in the observation or next to it.

    Raises:
        ConfigurationError: If there is no observation or more than one action mask.

    """
    # `keys()`, because Composite does not implement `in`.
    is_named = "observation" in spec.keys()  # noqa: SIM118
    leaves = [(key,) if isinstance(key, str) else key for key in spec.keys(include_nested=True, leaves_only=True)]
    observed = [
        path
        for path in leaves
        if path[-1] != ACTION_MASK and (path[0] == "observation" if is_named else not is_bookkeeping(path[0]))
    ]
    if not observed:
        raise ConfigurationError(
            f"the environment has no observation, only {', '.join(map(str, spec.keys()))}; add an entry "
            "'observation' with transforms=[...] (torchrl.envs.CatTensors)"
        )
    masks = [path for path in leaves if path[-1] == ACTION_MASK and path[0] in (ACTION_MASK, "observation")]
    if len(masks) > 1:
        raise ConfigurationError(
            f"the observation has several masks, {' and '.join(map(entry_name, masks))}; use a MultiDiscrete action "
            f"and one {ACTION_MASK} that concatenates the choices of its parts"
        )
    keys = [path[0] if len(path) == 1 else path for path in (*observed, *masks)]
    return ObservationEntries({key: spec[key] for key in keys[: len(observed)]}, keys[-1] if masks else None)


def select_entries(
    spec: Composite, entries: ObservationEntries, names: Sequence[str] | None, option: str
) -> dict[NestedKey, TensorSpec]:
    """Return the specs of the entries with the given names.

    A name such as `left/image` selects one entry, and `left` selects all entries in it. Root entries that are not part
    of `observation` can also be selected. If `names` is `None`, all entries of the observation are returned.

    Raises:
        ConfigurationError: If a name selects no entry; the message names the `option`.

    """
    if names is None:
        return entries.specs
    leaves = [(key,) if isinstance(key, str) else key for key in spec.keys(include_nested=True, leaves_only=True)]
    paths = [path for path in leaves if path[-1] != ACTION_MASK and not is_bookkeeping(path[0])]
    keys: dict[str, NestedKey] = {entry_name(path): path[0] if len(path) == 1 else path for path in paths}
    selected: dict[NestedKey, TensorSpec] = {}
    for name in names:
        found = [key for entry, key in keys.items() if entry == name or entry.startswith(f"{name}/")]
        if not found:
            raise ConfigurationError(f"{option}={list(names)}: {name!r} is not an entry; use {', '.join(keys)}")
        selected |= {key: spec[key] for key in found}
    if not selected:
        raise ConfigurationError(f"{option}=[] must name at least one entry; use {', '.join(keys)}")
    return selected


def select_both(
    spec: Composite, entries: ObservationEntries, actor: Sequence[str] | None, critic: Sequence[str] | None
) -> tuple[dict[NestedKey, TensorSpec], dict[NestedKey, TensorSpec]]:
    """Return the specs of the entries of the actor, and those of the critic."""
    return (
        select_entries(spec, entries, actor, "policy.actor_observations"),
        select_entries(spec, entries, critic, "policy.critic_observations"),
    )


def is_bookkeeping(name: str) -> bool:
    """Return whether an entry is not an observation: it describes the episode or is a recurrent state of TorchRL."""
    return name in EPISODE_ENTRIES or name.startswith(("_", "recurrent_state"))


def make_normalizers(specs: Mapping[NestedKey, TensorSpec], num_batch: int) -> dict[NestedKey, ObservationNormalizer]:
    """Make a running normalizer for every entry of floats."""
    return {
        key: ObservationNormalizer(spec.shape[num_batch:], key=key)
        for key, spec in specs.items()
        if isinstance(spec, Bounded | Unbounded) and spec.dtype.is_floating_point
    }


def entry_name(key: NestedKey) -> str:
    """Return the name of an entry in the configuration: `left/image` for `("observation", "left", "image")`."""
    path = (key,) if isinstance(key, str) else key
    return "/".join(path[1:] if path[0] == "observation" and len(path) > 1 else path)


class FeatureExtractor(NamedTuple):
    """Modules from an observation to features.

    Attributes:
        modules: Modules in the order in which they run.
        key: Key of the features `[*, num_features]`.
        num_features: Number of features.

    """

    modules: list[TensorDictModule]
    key: str
    num_features: int


@dataclass
class FeatureExtractorBuilder:
    """Builds the feature extractors of actor and critic.

    Args:
        specs: Specs of all entries of a batch of observations that the actor or the critic reads, `[num_envs, ...]`.
        num_batch: Number of batch dimensions of the specs.
        normalize: Whether to normalize every entry of floats. All feature extractors share the statistics.
        encoders: See `make_actor_critic`.
        memory: See `make_actor_critic`.

    Raises:
        ConfigurationError: If `encoders` names an entry that does not exist.

    """

    specs: SpecByKey
    num_batch: int
    normalize: bool
    encoders: Mapping[str, Body]
    memory: Callable[[int], Memory] | None

    def __post_init__(self) -> None:
        self.normalizers = make_normalizers(self.specs, self.num_batch) if self.normalize else {}
        names = [entry_name(key) for key in self.specs]
        unknown = sorted(set(self.encoders) - set(names))
        if unknown:
            raise ConfigurationError(
                f"policy.encoders.{unknown[0]} is not an entry of the observation; use {', '.join(names)}"
            )

    def __call__(self, name: str, specs: SpecByKey, body: Body) -> FeatureExtractor:
        """Build an extractor that writes `<name>_features`, and its next recurrent state to `next, <name>_memory`.

        Args:
            name: Prefix of the keys.
            specs: Specs of the entries that the extractor reads.
            body: See `make_actor_critic`.

        """
        key = f"{name}_features"
        modules, shape = self._input_modules(key, specs, body)
        network = body(shape)
        with torch.no_grad():
            num_features = network(torch.zeros(1, *shape)).shape[-1]
        modules.append(TensorDictModule(network, modules[-1].out_keys if modules else list(specs), [key]))
        if self.memory is None:
            return FeatureExtractor(modules, key, num_features)
        memory = MemoryModule(require_base("policy.memory", self.memory(num_features), Memory), f"{name}_memory")
        modules.append(TensorDictModule(memory, [key, "is_init", memory.key], [key, ("next", memory.key)]))
        return FeatureExtractor(modules, key, memory.memory.num_features)

    def _input_modules(self, key: str, entries: SpecByKey, body: Body) -> tuple[list[TensorDictModule], torch.Size]:
        """Make the normalizers and encoders before the body, and return them with the shape of the body's input."""
        keys, specs = list(entries), list(entries.values())
        shape = specs[0].shape[self.num_batch :]
        is_box = len(specs) == 1 and isinstance(specs[0], Bounded | Unbounded) and len(shape)
        if is_box and entry_name(keys[0]) not in self.encoders:
            is_map = len(shape) > 1 and is_image(specs[0], self.num_batch)
            # Image bodies scale bytes. Other integers need an encoder, because bodies do not know the bounds.
            if not flattens_images(body) if is_map else specs[0].dtype.is_floating_point:
                normalizers = [self.normalizers[one] for one in keys if one in self.normalizers]
                inputs = normalizers or (scale_image(specs[0]) if is_map else [])
                return [TensorDictModule(module, keys, [key]) for module in inputs], shape
        encoders = ConcatEncoders(self._make_encoder(*entry) for entry in entries.items())
        with torch.no_grad():
            shape = encoders(*(spec.zero() for spec in specs)).shape[self.num_batch :]
        return [TensorDictModule(encoders, keys, [key])], shape

    def _make_encoder(self, key: NestedKey, spec: TensorSpec) -> nn.Module:
        name = entry_name(key)
        custom = self.encoders.get(name)
        if key in self.normalizers:
            spec = Unbounded(spec.shape, dtype=spec.dtype)  # normalized values are not within the bounds
        encoder = custom(spec.shape[self.num_batch :]) if custom else make_encoder(spec, self.num_batch, name)
        return nn.Sequential(self.normalizers[key], encoder) if key in self.normalizers else encoder


def recurrent_state_shapes(policy: nn.Module) -> dict[str, tuple[int, int]]:
    """Return `(context_length, state_size)` of every recurrent state of a policy, by key."""
    return {module.key: module.state_shape for module in policy.modules() if isinstance(module, RecurrentModule)}


def memory_keys(policy: nn.Module) -> list[str]:
    """Return the keys of the memories of a policy: the recurrent states that learning needs too."""
    return [module.key for module in policy.modules() if isinstance(module, MemoryModule)]


def is_recurrent(policy: nn.Module) -> bool:
    """Return whether a policy is trained on sequences, because it has a memory of torchppo or TorchRL."""
    return len(recurrent_modules(policy)) > 0


def recurrent_modules(network: nn.Module) -> list[nn.Module]:
    """Return the memory modules of a network, including `LSTMModule` and `GRUModule` of TorchRL."""
    return [module for module in network.modules() if isinstance(module, MemoryModule | LSTMModule | GRUModule)]
