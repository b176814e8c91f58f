"""Arrays, random generators and objects of C libraries as plain data, which `torch.load(weights_only=True)` reads."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.envs.registration import EnvSpec
from numpy.lib.format import descr_to_dtype, dtype_to_descr

GENERATORS = (np.random.Generator, np.random.RandomState, torch.Generator, random.Random)
SHARED = (*GENERATORS, gymnasium.Space)
BIT_GENERATORS = {
    kind.__name__: kind
    for kind in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox, np.random.SFC64)
}


def save_array(array: Any) -> list[Any]:
    """Return an array without Python objects as plain data."""
    contiguous = np.ascontiguousarray(array)
    data = torch.frombuffer(bytearray(contiguous.tobytes()), dtype=torch.uint8) if contiguous.nbytes else None
    return [dtype_to_descr(contiguous.dtype), list(np.shape(array)), data]


def load_array(saved: list[Any]) -> Any:
    """Return the array of `save_array`."""
    descr, shape, data = saved
    dtype = descr_to_dtype([tuple(field) for field in descr] if isinstance(descr, list) else descr)
    return np.frombuffer(b"" if data is None else data.numpy().tobytes(), dtype).reshape(shape).copy()


def save_generator(generator: Any) -> list[Any]:
    """Return the state of a random generator of NumPy, Python or PyTorch."""
    if isinstance(generator, np.random.Generator):
        bits = generator.bit_generator
        return ["generator", _plain(bits.state), save_seeds(bits.seed_seq)]
    if isinstance(generator, np.random.RandomState):
        return ["random_state", _plain(generator.get_state(legacy=False))]
    if isinstance(generator, torch.Generator):
        return ["torch_generator", generator.get_state()]
    version, numbers, gauss = generator.getstate()
    return ["random", version, list(numbers), gauss]


def load_generator(saved: list[Any], current: Any) -> Any:
    """Restore the state in `current` if it is a generator of this kind, else in a new generator; return it."""
    kind, *state = saved
    if kind == "generator":
        values = _arrays(state[0])
        if (
            not isinstance(current, np.random.Generator)
            or current.bit_generator.state["bit_generator"] != (values["bit_generator"])
        ):
            current = np.random.Generator(BIT_GENERATORS[values["bit_generator"]]())
        set_bits(current.bit_generator, values, state[1])
    elif kind == "random_state":
        current = current if isinstance(current, np.random.RandomState) else np.random.RandomState()
        current.set_state(_arrays(state[0]))
    elif kind == "torch_generator":
        current = current if isinstance(current, torch.Generator) else torch.Generator()
        current.set_state(state[0])
    else:
        current = current if isinstance(current, random.Random) else random.Random()
        current.setstate((state[0], tuple(state[1]), state[2]))
    return current


def save_seeds(seeds: Any) -> list[Any] | None:
    """Return what a `SeedSequence` spawns its children from; `None` for other sequences."""
    if not isinstance(seeds, np.random.SeedSequence):
        return None
    entropy: Any = seeds.entropy
    entropy = entropy if isinstance(entropy, int | None) else [int(one) for one in entropy]
    return [entropy, [int(one) for one in seeds.spawn_key], seeds.pool_size, seeds.n_children_spawned]


def load_seeds(saved: list[Any]) -> np.random.SeedSequence:
    entropy, spawn_key, pool_size, num_children = saved
    return np.random.SeedSequence(entropy, spawn_key=spawn_key, pool_size=pool_size, n_children_spawned=num_children)


def set_bits(bits: Any, state: Any, seeds: list[Any] | None) -> None:
    """Set the state and the seed sequence of a `BitGenerator` in place. Tested with NumPy 2.4."""
    bits.__setstate__((state, bits.seed_seq if seeds is None else load_seeds(seeds)))


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _plain(value) for key, value in state.items()}
    return ["array", *save_array(state)] if isinstance(state, np.ndarray) else state


def _arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _arrays(value) for key, value in state.items()}
    return load_array(state[1:]) if isinstance(state, list) else state


def save_random_state() -> dict[str, Any]:
    """Return the state of the global random generators of Python, NumPy and PyTorch, on every device in use."""
    version, numbers, gauss = random.getstate()
    return {
        "python": [version, list(numbers), gauss],
        "numpy": _plain(np.random.get_state(legacy=False)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [],
    }


def load_random_state(state: dict[str, Any]) -> None:
    """Restore the result of `save_random_state`. Devices that this process does not have are left out."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
    np.random.set_state(_arrays(state["numpy"]))
    torch.set_rng_state(state["torch"])
    for device, generator in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(generator, device)


def own_attributes(value: Any) -> dict[str, Any]:
    """Return the attributes of an object, also those in slots, and the `shared_generators` of an environment."""
    slots = (vars(base).get("__slots__", ()) for base in type(value).__mro__)
    names = [name for slot in slots for name in ((slot,) if isinstance(slot, str) else slot)]
    found = {name: getattr(value, name) for name in names if name[:2] != "__" and hasattr(value, name)}
    shared = shared_generators(type(value)) if isinstance(value, gymnasium.Env) else {}
    return shared | found | (object.__getattribute__(value, "__dict__") if hasattr(value, "__dict__") else {})


def shared_generators(kind: type) -> dict[str, Any]:
    """Return the random generators and spaces that belong to a class, or to the module that defines it."""
    found: dict[str, Any] = {}
    for base in kind.__mro__:
        for scope in (vars(base), vars(sys.modules.get(base.__module__, base))):
            items = scope.items() if base.__module__ not in ("builtins", "typing", "gymnasium.core") else ()
            found |= {f"{base.__module__}.{name}": value for name, value in items if isinstance(value, SHARED)}
    return found


def set_attribute(value: Any, name: str, new: Any) -> None:
    """Set an attribute without calling code of its class."""
    own = getattr(value, "__dict__", {})
    if name in own or not hasattr(type(value), name):
        own[name] = new
    else:
        object.__setattr__(value, name, new)


def is_object(value: Any) -> bool:
    """Return whether the attributes of a value are its state: that of a class that is written in Python."""
    package = type(value).__module__.split(".")[0]
    is_python = bool(type(value).__flags__ & 1 << 9)  # Py_TPFLAGS_HEAPTYPE
    return is_python and package not in sys.stdlib_module_names - {"__main__"} and not isinstance(value, type | EnvSpec)


def class_name(value: Any) -> str:
    return f"{type(value).__module__}:{type(value).__qualname__}"


def parts_of(space: Any) -> list[Any]:
    """Return the spaces that a space contains."""
    parts = getattr(space, "spaces", ())
    return list(parts.values() if isinstance(parts, dict) else parts)


def layers_of(env: gymnasium.Env[Any, Any]) -> Iterator[Any]:
    """Yield the wrappers of an environment and the environment itself."""
    yield env
    while isinstance(env, gymnasium.Wrapper):
        env = env.env
        yield env


def seed_spaces(env: gymnasium.Env[Any, Any], seed: int | None) -> None:
    """Seed the spaces of an environment and its wrappers, from which their code may sample. `None` does nothing."""
    for layer in layers_of(env) if seed is not None else ():
        layer.observation_space.seed(seed)
        layer.action_space.seed(seed)


def are_equal(first: Any, second: Any) -> bool:
    """Return whether two nested structures of arrays, numbers and texts are equal bit by bit."""
    if type(first) is not type(second):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(are_equal(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(are_equal, first, second))
    one, other = np.asarray(first), np.asarray(second)
    return (one.dtype, one.shape, one.tobytes()) == (other.dtype, other.shape, other.tobytes())
