"""The state of an environment as plain data."""

from __future__ import annotations

import io
import random
from array import array
from collections import Counter, OrderedDict, deque
from datetime import datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch

from torchppo.envs.make import make_gymnasium_env
from torchppo.envs.resume.parts import StateError
from torchppo.envs.resume.plain_data import are_equal, load_random_state, save_random_state
from torchppo.envs.resume.snapshot import load_state, save_state


def reread(state: Any) -> Any:
    """Return the state as `torch.load` reads it from a file, without running code."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


class Color(Enum):
    RED = 1


class Item:
    __slots__ = ("owner", "size")

    def __init__(self, owner: Any, size: int) -> None:
        self.owner, self.size = owner, size


class Closing:
    def __del__(self) -> None: ...


class Box:
    """Anything with attributes."""


class Place(NamedTuple):
    x: float


ITEMS = [
    *(None, True, 3, 2**100, 0.1, float("inf"), 1j, "text", b"bytes", [1, [2]], (1, (2,)), {1, 2}, frozenset({3})),
    *({"a": {1: 2}}, OrderedDict(b=1), deque([1, 2], maxlen=2), np.float32(0.1), np.int64(3)),
    *(np.arange(6).reshape(2, 3), np.zeros(0), np.array(["a", "bc"]), np.array([(1, 2.0)], "i4,f8"), torch.ones(2)),
    *(np.array([None, "x"], object), np.datetime64("2026-01-01"), Color.RED),
    *(Counter("aab"), bytearray(b"ab"), array("d", [0.5]), timedelta(1), datetime(2026, 1, 2), Decimal("0.1")),
    *(Path("a/b"), SimpleNamespace(a=[1])),
]


@pytest.mark.parametrize("value", ITEMS, ids=lambda value: f"{type(value).__name__}-{value}"[:30])
def test_values_are_restored_with_their_types(value: Any) -> None:
    box, other = Box(), Box()
    box.value = value  # type: ignore[attr-defined]
    load_state_into(other, box)
    found = other.value  # type: ignore[attr-defined]
    assert type(found) is type(value)
    assert found.__repr__() == value.__repr__()


def load_state_into(target: Any, source: Any) -> None:
    load_state(target, reread(save_state(source)))


def counting() -> Any:
    """Return a function that counts its calls in its closure."""
    count = [0]

    def call() -> int:
        count[0] += 1
        return count[0]

    return call


class Machine:
    """Has a method that counts its calls, one that replaces it, and one that a `partial` calls."""

    def __init__(self) -> None:
        self.num_calls = 0
        self.method = self.first
        self.partial = partial(Machine.first, self)
        self.place = Place(0.0)

    def first(self) -> int:
        self.num_calls += 1
        return self.num_calls

    def second(self) -> int:
        return -self.num_calls


def test_functions_continue_with_the_values_that_they_refer_to() -> None:
    one, other = Inventory(Machine()), Inventory(Machine())
    for env in (one, other):
        env.count = counting()
        env.draw = np.random.default_rng(id(env)).random
    assert [one.item.method(), one.item.partial(), one.count(), one.count()] == [1, 2, 1, 2]
    one.item.method, one.item.place, one.now = one.item.second, Place(2.0), Place(3.0)
    load_state_into(other, one)
    assert [other.item.method(), other.item.partial(), other.count()] == [-2, 3, 3]
    assert (other.item.place, other.now) == (Place(2.0), Place(3.0))
    assert other.draw() == one.draw()
    one.item.method = lambda: 0
    with pytest.raises(StateError, match="lambda"):
        load_state_into(other, one)


def test_what_generators_spawn_continues() -> None:
    box, other = Inventory(np.random.default_rng(1)), Inventory(np.random.default_rng(2))
    box.seeds, other.seeds = np.random.SeedSequence(3), np.random.SeedSequence(4)
    box.bits, other.bits = np.random.PCG64(5), np.random.PCG64(6)
    generator, _ = other.item, [box.item.spawn(1), box.seeds.spawn(2), box.bits.random_raw()]
    load_state_into(other, box)
    assert other.item is generator
    assert other.item.spawn(1)[0].random() == box.item.spawn(1)[0].random()
    assert other.seeds.spawn(1)[0].spawn_key == box.seeds.spawn(1)[0].spawn_key == (2,)
    assert other.bits.random_raw() == box.bits.random_raw()


def test_iterators_are_refused() -> None:
    with pytest.raises(StateError, match="generator"):
        save_state(Inventory(one for one in range(3)))


@pytest.mark.parametrize("make", [np.random.default_rng, np.random.RandomState, random.Random, torch.Generator])
def test_random_generators_continue(make: Any) -> None:
    box, other = Box(), Box()
    box.value, other.value = make(), make()  # type: ignore[attr-defined]

    def draw(generator: Any) -> Any:
        return torch.rand(3, generator=generator) if make is torch.Generator else generator.random()

    draw(box.value)  # type: ignore[attr-defined]
    load_state_into(other, box)
    assert are_equal(draw(other.value), draw(box.value))  # type: ignore[attr-defined]


def test_shared_and_cyclic_objects_keep_their_identity() -> None:
    def make() -> Any:
        box = Box()
        box.items = [Item(box, 1)]  # type: ignore[attr-defined]
        box.first = box.items[0]  # type: ignore[attr-defined]
        box.view = (whole := np.zeros(4))[1:]  # type: ignore[attr-defined]
        box.whole = whole  # type: ignore[attr-defined]
        return box

    source, target = make(), make()
    source.items[0].size, source.whole[:] = 7, 5.0
    load_state_into(target, source)
    assert target.items[0] is target.first
    assert (target.first.owner, target.first.size) == (target, 7)
    target.whole[1] = 9.0
    assert target.view[0] == 9.0


class Inventory(gymnasium.Env[Any, Any]):
    count: Any
    draw: Any
    now: Any
    seeds: Any
    bits: Any

    def __init__(self, item: Any = None) -> None:
        self.item = item


def test_missing_objects_are_made_only_of_classes_of_the_environments_package() -> None:
    env = Inventory()
    load_state_into(env, Inventory(Item("me", 3)))
    assert (env.item.owner, env.item.size) == ("me", 3)
    for name in ("subprocess:Popen", "torch.nn.modules.linear:Linear", f"{__name__}:Closing", f"{__name__}:missing"):
        state = reread(save_state(Inventory(Item(None, 0))))
        attributes = state[3]
        attributes[0][1][2] = name
        with pytest.raises(StateError, match=name):
            load_state(Inventory(), state)


def test_large_states_and_objects_of_c_libraries_are_refused() -> None:
    with pytest.raises(StateError, match="bytes"):
        save_state(Inventory(np.zeros(3_000_000)))
    with pytest.raises(StateError, match="Box2D"):
        save_state(make_gymnasium_env("LunarLander-v3"))


def test_global_random_state_is_restored() -> None:
    state = reread(save_random_state())
    drawn = [
        (random.random(), np.random.rand(), torch.rand(1).item()) for _ in range(2) if not load_random_state(state)
    ]
    assert drawn[0] == drawn[1]
