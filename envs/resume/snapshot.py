"""The state of a Gymnasium environment as plain data, which is saved and restored without pickling.

It consists of the attributes of the environment, its wrappers and the objects in them, also in closures. Objects that
`save_state` and `load_state` do not support, such as locks, do not change. `resumability.resume_class` tests whether
this matters. Iterators are refused, because their state always changes.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Iterator
from enum import Enum
from io import IOBase
from typing import Any

import gymnasium
import numpy as np
import torch

from .native import NATIVE
from .parts import BY_NAME, KINDS, MISSING, SCALARS, StateError, are_same, find_class, load_tensor
from .plain_data import (
    GENERATORS,
    class_name,
    is_object,
    load_array,
    load_generator,
    own_attributes,
    parts_of,
    save_array,
    save_generator,
    set_attribute,
)

MAPPINGS = {kind.__name__: kind for kind in (dict, OrderedDict, defaultdict, Counter)}
SEQUENCES = {kind.__name__: kind for kind in (list, tuple, set, frozenset, deque)}
BUILT_INS = (int, float, str, bytes, list, tuple, set, frozenset, dict, deque)
MAX_BYTES = 16_000_000
"""Limit of the state of one environment. It holds for large data sets, which are better not saved again and again."""
REPLACEABLE = ("array", "objects", "tensor", "generator", "sequence", "mapping", "object", "parts")


def save_state(env: Any) -> Any:
    """Return the state of an environment as plain data: numbers, strings, bytes, lists and tensors.

    Raises:
        StateError: if the objects are nested too deeply.

    """
    try:
        return _Saver().node(env)
    except RecursionError:
        raise StateError("the objects are nested too deeply") from None


def load_state(env: Any, state: Any) -> Any:
    """Restore the result of `save_state` in an environment that was made in the same way, or another value; return it.

    Objects that it lacks are made without calling code, and only of classes of its and its wrappers' packages.

    Raises:
        StateError: if the state does not fit.

    """
    try:
        return _Loader(env).value(state, env)
    except StateError:
        raise
    except Exception as error:  # the state may come from another version, and properties may raise anything
        raise StateError(f"{type(error).__name__}: {error}") from error


class _Saver:
    """Converts values to nodes: scalars, and lists of the kind of a value, its number and its parts."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._kept_alive: list[Any] = []
        self._num_bytes = 0

    def node(self, value: Any) -> Any:
        if type(value) in SCALARS:
            return value
        if id(value) in self._numbers:
            return ["ref", self._numbers[id(value)]]
        self._numbers[id(value)] = number = len(self._numbers)
        self._kept_alive.append(value)
        self._num_bytes += value.nbytes if isinstance(value, np.ndarray | torch.Tensor) else 100
        if self._num_bytes > MAX_BYTES:
            raise StateError(f"the state has more than {MAX_BYTES} bytes")
        kind, *parts = self._described(value)
        return [kind, number, *parts]

    def _described(self, value: Any) -> list[Any]:
        name = type(value).__name__
        if isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                return ["objects", list(value.shape), [self.node(item) for item in value.ravel().tolist()]]
            return ["array", save_array(value)]
        if isinstance(value, np.generic):
            return ["scalar", save_array(value)]
        if isinstance(value, GENERATORS):
            return ["generator", save_generator(value)]
        if isinstance(value, torch.Tensor):
            return ["tensor", value.detach().clone()]
        if isinstance(value, gymnasium.Space):  # its bounds do not change
            return ["space", self.node(value._np_random), [self.node(part) for part in parts_of(value)]]
        if isinstance(value, Enum):
            return ["enum", class_name(value), value.name]
        if type(value) in SEQUENCES.values():
            return ["sequence", name, [self.node(item) for item in value], getattr(value, "maxlen", None)]
        if type(value) in MAPPINGS.values():
            return ["mapping", name, [[self.node(key), self.node(item)] for key, item in value.items()]]
        if name in NATIVE and type(value).__module__.startswith(NATIVE[name][0]):
            return ["native", name, NATIVE[name][1](value)]
        if type(value) in KINDS:
            return ["parts", name, [self.node(part) for part in KINDS[type(value)].split(value)]]
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return ["named_tuple", class_name(value), [self.node(item) for item in value]]
        if is_object(value):
            attributes = own_attributes(value)
            if isinstance(value, BUILT_INS) or hasattr(value, "thisown"):  # an object of a C library that SWIG wraps
                raise StateError(f"{class_name(value)} has a state that is not in its attributes")
            return ["object", class_name(value), [[key, self.node(item)] for key, item in attributes.items()]]
        if isinstance(value, Iterator) and not isinstance(value, IOBase):
            raise StateError(f"the state of {class_name(value)} cannot be read")
        return ["keep"]


class _Loader:
    """Restores nodes, where possible in the objects that the environment has."""

    def __init__(self, env: Any) -> None:
        layers = [env]
        while isinstance(layers[-1], gymnasium.Wrapper | gymnasium.vector.VectorWrapper):
            layers.append(layers[-1].env)
        modules = {base.__module__ for layer in layers for base in type(layer).__mro__}
        self._packages = {name.split(".")[0] for name in modules} - {"builtins", "typing", "abc"}
        self._values: dict[int, Any] = {}
        self._used: dict[int, Any] = {}  # objects that a node is restored in; other nodes need objects of their own

    def value(self, node: Any, current: Any = MISSING) -> Any:
        """Return the value of a node, which is `current` if that can be changed in place."""
        if not isinstance(node, list):
            return node
        kind, number, *parts = node
        if kind == "ref":
            return self._values[number]
        if kind in REPLACEABLE:
            current = MISSING if id(current) in self._used else current
            self._used[id(current)] = current
        if kind in ("sequence", "mapping", "object", "parts"):  # they may contain themselves
            return getattr(self, f"_{kind}")(number, current, *parts)
        if kind == "keep" and current is MISSING:
            raise StateError("an object that cannot be saved is missing")
        self._values[number] = current if kind == "keep" else getattr(self, f"_{kind}")(current, *parts)
        return self._values[number]

    def _array(self, current: Any, saved: list[Any]) -> Any:
        array = load_array(saved)
        is_same = isinstance(current, np.ndarray) and (current.shape, current.dtype) == (array.shape, array.dtype)
        if not (is_same and current.flags.writeable):
            return array
        current[...] = array  # other arrays may be views of it
        return current

    def _objects(self, current: Any, shape: list[int], items: list[Any]) -> Any:
        array = np.empty(shape, object)
        olds = current.ravel().tolist() if isinstance(current, np.ndarray) else []
        for index, item in enumerate(items):
            array.flat[index] = self.value(item, olds[index] if index < len(olds) else MISSING)
        return array

    def _scalar(self, current: Any, saved: list[Any]) -> Any:
        return load_array(saved)[()]

    def _generator(self, current: Any, saved: list[Any]) -> Any:
        return load_generator(saved, current)

    def _tensor(self, current: Any, saved: torch.Tensor) -> Any:
        return load_tensor(current, saved)

    def _space(self, current: Any, generator: Any, parts: list[Any]) -> Any:
        current._np_random = self.value(generator, current._np_random)
        for part, saved in zip(parts_of(current), parts, strict=True):
            self.value(saved, part)
        return current

    def _enum(self, current: Any, name: str, member: str) -> Any:
        return (type(current) if class_name(current) == name else find_class(name, self._packages, Enum))[member]

    def _native(self, current: Any, name: str, state: Any) -> Any:
        return NATIVE[name][2](state, current)

    def _sequence(self, number: int, current: Any, name: str, items: list[Any], maxlen: int | None) -> Any:
        kind: Any = SEQUENCES[name]
        is_same = type(current) is kind
        olds = [*current] if is_same and kind in (list, tuple, deque) else []
        is_fixed = kind in (tuple, frozenset)
        result: Any = current if is_same else deque(maxlen=maxlen) if kind is deque else kind()
        self._values[number] = None if is_fixed else result
        values = [self.value(item, olds[i] if i < len(olds) else MISSING) for i, item in enumerate(items)]
        if is_fixed:
            self._values[number] = result = kind(values)
        else:
            result.clear()
            (result.update if kind is set else result.extend)(values)
        return result

    def _mapping(self, number: int, current: Any, name: str, items: list[Any]) -> Any:
        kind: Any = MAPPINGS[name]
        if kind is defaultdict and type(current) is not kind:
            raise StateError("a defaultdict is missing, whose default is a function")
        self._values[number] = result = current if type(current) is kind else kind()
        olds = dict(result)
        values = []
        for key_node, item in items:
            key = self.value(key_node)
            values.append((key, self.value(item, olds.get(key, MISSING))))
        result.clear()
        result.update(dict(values))  # Counter.update would count the pairs
        return result

    def _named_tuple(self, current: Any, name: str, items: list[Any]) -> Any:
        kind = type(current) if class_name(current) == name else find_class(name, self._packages, tuple)
        return tuple.__new__(kind, [self.value(item) for item in items])

    def _parts(self, number: int, current: Any, name: str, nodes: list[Any]) -> Any:
        kind, (split, join, is_live) = BY_NAME[name]
        current = current if type(current) is kind else MISSING
        self._values[number] = current  # a function may be in its own closure
        olds = split(current) if is_live and current is not MISSING else []
        parts = [self.value(node, olds[i] if i < len(olds) else MISSING) for i, node in enumerate(nodes)]
        self._values[number] = result = current if olds and are_same(olds, parts) else join(current, parts)
        return result

    def _object(self, number: int, current: Any, name: str, attributes: list[Any]) -> Any:
        if current is MISSING or class_name(current) != name:
            kind = find_class(name, self._packages)
            current = kind.__new__(kind)
        self._values[number] = current
        olds = own_attributes(current)
        for key, node in attributes:
            old = olds.pop(key, MISSING)
            new = self.value(node, old)
            if new is not old:
                set_attribute(current, key, new)
        for key in olds:
            object.__delattr__(current, key)
        return current
