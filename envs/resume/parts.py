"""Values that are saved by their parts: functions, methods, and classes of the standard library and of NumPy."""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from functools import partial
from operator import attrgetter
from pathlib import PosixPath
from types import BuiltinMethodType, CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch

from .plain_data import BIT_GENERATORS, load_seeds, save_seeds, set_bits

MISSING: Any = object()
"""Stands for the current value of an environment that has none."""
SCALARS = (type(None), bool, int, float, complex, str, bytes)
VALUES: tuple[Any, ...] = (date, datetime, time, timedelta, Decimal, Fraction, PosixPath)


class StateError(Exception):
    """A state that cannot be saved, or does not fit the environment."""


class Kind(NamedTuple):
    """How values of a class are saved.

    Attributes:
        split: returns the parts of a value.
        join: returns a value with new parts. It also receives the current value of the environment, or `MISSING`.
        is_live: whether the value refers to its parts, so they may be restored in place.

    """

    split: Callable[[Any], list[Any]]
    join: Callable[[Any, list[Any]], Any]
    is_live: bool = False


def are_same(olds: list[Any], news: list[Any]) -> bool:
    """Return whether a value already has the new parts, because they were restored in place."""
    return len(olds) == len(news) and all(
        old is new or (type(old) is type(new) and type(new) in SCALARS and repr(old) == repr(new))
        for old, new in zip(olds, news, strict=True)
    )


def split_function(function: Any) -> list[Any]:
    """Return the name of a function, its attributes and defaults, and the values in its closure."""
    cells = [one.cell_contents for one in function.__closure__ or () if one != CellType()]
    return [function.__qualname__, function.__dict__, function.__defaults__, *cells]


def join_function(current: Any, parts: list[Any]) -> Any:
    """Set the values in the closure of a function, or find another function of its module."""
    if current is not MISSING and current.__qualname__ == parts[0]:
        cells = [one for one in current.__closure__ or () if one != CellType()]
        if len(cells) == len(parts) - 3:
            for cell, value in zip(cells, parts[3:], strict=True):
                cell.cell_contents = value
            return current
    return find(current, parts[0])


def find(current: Any, name: str) -> Any:
    """Return the function `name` of the module of `current`, without running code."""
    found: Any = None if current is MISSING else sys.modules.get(current.__module__)
    for part in name.split("."):
        found = vars(found).get(part) if isinstance(found, ModuleType | type) else None
    if not isinstance(found, FunctionType) or found.__closure__:
        raise StateError(f"{name} cannot be found")
    return found


def join_method(current: Any, parts: list[Any]) -> Any:
    """Bind a method of the class of an object, without running code."""
    owner, name = parts
    if current is not MISSING and type(current.__self__) is type(owner) and current.__name__ == name:
        return MethodType(current.__func__, owner)
    for base in type(owner).__mro__:
        if isinstance(found := vars(base).get(name), FunctionType):
            return MethodType(found, owner)
    raise StateError(f"the method {name} of {type(owner).__name__} cannot be found")


def split_builtin(function: Any) -> list[Any]:
    owner = function.__self__
    return [None if isinstance(owner, ModuleType | type) else owner, function.__name__]


def join_builtin(current: Any, parts: list[Any]) -> Any:
    owner, name = parts
    if current is MISSING or current.__name__ != name or type(current.__self__) is not type(owner):
        raise StateError(f"the function {name} cannot be found")
    return getattr(owner, name)


def split_partial(value: Any) -> list[Any]:
    return [value.func, value.args, value.keywords]


def join_partial(current: Any, parts: list[Any]) -> Any:
    if current is MISSING:
        raise StateError("a functools.partial is missing")
    return partial(parts[0], *parts[1], **parts[2])


def split_bits(bits: Any) -> list[Any]:
    return [bits.state, save_seeds(bits.seed_seq)]


def join_bits(current: Any, parts: list[Any]) -> Any:
    kind = BIT_GENERATORS[parts[0]["bit_generator"]]
    bits = current if type(current) is kind else kind()
    set_bits(bits, *parts)
    return bits


def split_value(value: Any) -> list[Any]:
    """Return the class of an immutable value of the standard library, and the arguments of its constructor."""
    return [type(value).__name__, *value.__reduce__()[1]]


def join_value(_: Any, parts: list[Any]) -> Any:
    kind = next(kind for kind in VALUES if kind.__name__ == parts[0])
    return kind(*parts[1:])


KINDS: dict[type, Kind] = {
    FunctionType: Kind(split_function, join_function, is_live=True),
    MethodType: Kind(lambda method: [method.__self__, method.__name__], join_method, is_live=True),
    BuiltinMethodType: Kind(split_builtin, join_builtin, is_live=True),
    partial: Kind(split_partial, join_partial, is_live=True),
    SimpleNamespace: Kind(lambda value: [vars(value)], lambda _, parts: SimpleNamespace(**parts[0]), is_live=True),
    bytearray: Kind(lambda value: [bytes(value)], lambda _, parts: bytearray(parts[0])),
    array: Kind(lambda value: [value.typecode, value.tobytes()], lambda _, parts: array(*parts)),
    np.random.SeedSequence: Kind(lambda value: [save_seeds(value)], lambda _, parts: load_seeds(parts[0])),
    **dict.fromkeys(BIT_GENERATORS.values(), Kind(split_bits, join_bits)),
    **dict.fromkeys(VALUES, Kind(split_value, join_value)),
}
BY_NAME = dict(zip(map(attrgetter("__name__"), KINDS), KINDS.items(), strict=True))


def find_class(name: str, packages: set[str], base: type = object) -> Any:
    """Return an imported class of one of the packages. Creating its objects must not run code of the class."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module) if module.split(".")[0] in packages else None
    for part in path.split("."):
        found = getattr(found, part, None)
    is_plain = isinstance(found, type) and issubclass(found, base) and not hasattr(found, "__del__")
    if not is_plain or (base is object and found.__new__ is not object.__new__):
        raise StateError(f"{name} is not an imported class without its own __new__ and __del__")
    return found


def load_tensor(current: Any, saved: torch.Tensor) -> Any:
    if not isinstance(current, torch.Tensor):
        return saved.clone()
    if (current.shape, current.dtype) != (saved.shape, saved.dtype):
        return saved.to(current.device)
    current.data.copy_(saved)
    return current
