"""Trunks: everything between an observation and a head."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from tensordict import NestedKey
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.data import Bounded, Composite, TensorSpec, Unbounded

from ...errors import ConfigurationError
from ..normalizers import ObservationNormalizer
from .encoders import Encoders, make_encoder
from .recurrent import Memory, context_windows

Body = Callable[[torch.Size], nn.Module]
MASK = "action_mask"


class Observation(NamedTuple):
    """The entries of an observation that are encoded, and the key of the mask of valid actions, if there is one."""

    leaves: dict[NestedKey, TensorSpec]
    mask_key: NestedKey | None


class Trunk(NamedTuple):
    """Modules that write features `[*, width]` under `key`, and the keys of what they write for the next step."""

    modules: list[TensorDictModule]
    key: str
    width: int
    remembered: list[NestedKey]


@dataclass(frozen=True)
class TrunkMaker:
    """Makes the trunks of actor and critic alike.

    Args:
        leaves: specs of the batch, `[num_envs, ...]`, of the entries of the observation.
        num_batch: number of their batch dimensions.
        normalizers: of some entries, shared by all trunks.
        encoders: see `make_actor_critic`.
        body: see `make_actor_critic`.
        memory: see `make_actor_critic`.

    """

    leaves: Mapping[NestedKey, TensorSpec]
    num_batch: int
    normalizers: Mapping[NestedKey, nn.Module]
    encoders: Mapping[str, Body]
    body: Body
    memory: Callable[[int], Memory] | None

    def __post_init__(self) -> None:
        """Refuse an encoder of what does not exist.

        Raises:
            ConfigurationError: naming the entries that do.

        """
        names = [name_of(key) for key in self.leaves]
        unknown = sorted(set(self.encoders) - set(names))
        if unknown:
            raise ConfigurationError(
                f"policy.encoders.{unknown[0]} is no entry of the observation; there is {', '.join(names)}"
            )

    def __call__(self, name: str) -> Trunk:
        """A trunk of its own, which writes `<name>_features` and remembers under `<name>_memory`."""
        key = f"{name}_features"
        modules, shape = self._perception(key)
        network = self.body(shape)
        with torch.no_grad():
            width = network(torch.zeros(1, *shape)).shape[-1]
        modules.append(TensorDictModule(network, modules[-1].out_keys if modules else ["observation"], [key]))
        if self.memory is None:
            return Trunk(modules, key, width, [])
        remembering = MemoryModule(self.memory(width), f"{name}_memory")
        following = ("next", remembering.key)
        modules.append(TensorDictModule(remembering, [key, "is_init", remembering.key], [key, following]))
        return Trunk(modules, key, remembering.memory.num_features, [following])

    def _perception(self, key: str) -> tuple[list[TensorDictModule], torch.Size]:
        """What stands in front of the body, and the shape of what the body reads."""
        specs = list(self.leaves.values())
        shape = specs[0].shape[self.num_batch :]
        is_box = list(self.leaves) == ["observation"] and isinstance(specs[0], Bounded | Unbounded) and len(shape)
        # Bodies that read images take bytes as they are; other whole numbers have bounds that no body knows.
        is_read = specs[0].dtype.is_floating_point or (specs[0].dtype == torch.uint8 and len(shape) == 3)
        if is_box and is_read and not self.encoders:
            normalizers = [TensorDictModule(one, ["observation"], [key]) for one in self.normalizers.values()]
            return normalizers, shape
        encoders = Encoders(self._encoder(leaf, spec) for leaf, spec in self.leaves.items())
        with torch.no_grad():
            shape = encoders(*(spec.zero() for spec in specs)).shape[self.num_batch :]
        return [TensorDictModule(encoders, list(self.leaves), [key])], shape

    def _encoder(self, key: NestedKey, spec: TensorSpec) -> nn.Module:
        """The encoder of one entry, its normaliser in front."""
        given = self.encoders.get(name_of(key))
        encoder = given(spec.shape[self.num_batch :]) if given else make_encoder(spec, self.num_batch, name_of(key))
        return nn.Sequential(self.normalizers[key], encoder) if key in self.normalizers else encoder


def observation_of(spec: Composite) -> Observation:
    """What of an environment's observations a policy reads: the entry `observation`, a tensor or nested.

    Raises:
        ConfigurationError: if there is no such entry, or several masks.

    """
    if "observation" not in spec.keys():  # noqa: SIM118 - a Composite has no `in` of its own
        raise ConfigurationError(
            f"the environment has no entry 'observation', only {', '.join(map(str, spec.keys()))}; "
            "transforms=[...] takes torchrl.envs.CatTensors to make one"
        )
    inner = spec["observation"]
    if not isinstance(inner, Composite):
        return Observation({"observation": inner}, None)
    keys = [("observation", *((key,) if isinstance(key, str) else key)) for key in inner.keys(True, True)]
    masks = [key for key in keys if key[-1] == MASK]
    if len(masks) > 1:
        raise ConfigurationError(
            f"the observation has several masks, {' and '.join(map(name_of, masks))}; give one {MASK} for the whole "
            "action, the choices of all its factors one after the other"
        )
    return Observation({key: spec[key] for key in keys if key not in masks}, masks[0] if masks else None)


def normalizers_of(observation: Observation, num_batch: int) -> dict[NestedKey, ObservationNormalizer]:
    """A running normaliser for every entry of real numbers."""
    return {
        key: ObservationNormalizer(spec.shape[num_batch:], key=key)
        for key, spec in observation.leaves.items()
        if isinstance(spec, Bounded | Unbounded) and spec.dtype.is_floating_point
    }


def name_of(key: NestedKey) -> str:
    """What a person calls an entry of the observation: `left/image` for `("observation", "left", "image")`."""
    return key if isinstance(key, str) else "/".join(key[1:])


class RecurrentModule(nn.Module, ABC):
    """A module that reads what it wrote in the step before: under `key`, `[*, *state_shape]`, zeros at first."""

    key: str
    state_shape: tuple[int, int]


class MemoryModule(RecurrentModule):
    """A memory for single steps and for sequences, in a TensorDict's terms."""

    def __init__(self, memory: Memory, key: str) -> None:
        """Keep the window of records under `key`."""
        super().__init__()
        self.memory = memory
        self.key = key
        self.state_shape = (memory.context_length, memory.state_size)

    def forward(self, features: Tensor, is_init: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Features, and the window after every step.

        Shapes: of steps `[batch, num_inputs], [batch, 1]`, of sequences `[batch, time, num_inputs],
        [batch, time, 1]`, each with the past of the first step, `[batch, context_length, state_size]`. The window
        is a view of the tape: `[batch, (time,) context_length, state_size]`.
        """
        is_step = features.dim() == 2
        if is_step:
            features, is_init = features.unsqueeze(1), is_init.unsqueeze(1)
        features, tape = self.memory(features, is_init, past)
        windows = context_windows(tape, self.memory.context_length, dim=1)[:, 1:]
        return (features[:, 0], windows[:, 0]) if is_step else (features, windows)


def recurrent_state_shapes(policy: nn.Module) -> dict[str, tuple[int, int]]:
    """What a policy reads that it wrote in the step before: `context_length` and `state_size` under every key."""
    return {module.key: module.state_shape for module in policy.modules() if isinstance(module, RecurrentModule)}


def memory_keys(policy: nn.Module) -> list[str]:
    """The keys of what a policy remembers, which learning needs too."""
    return [module.key for module in policy.modules() if isinstance(module, MemoryModule)]
