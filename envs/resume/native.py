"""The state of objects of C libraries as plain data."""

from __future__ import annotations

from typing import Any

import numpy as np

from .plain_data import load_array, save_array


def save_mjdata(data: Any) -> list[Any]:
    """Return all arrays of MuJoCo's `MjData`. A step also reads arrays that `mj_getState` omits, such as `xipos`."""
    arrays = {name: getattr(data, name) for name in dir(type(data)) if name[:1] != "_" and name not in MJ_SIZED}
    saved = [[name, save_array(array)] for name, array in arrays.items() if isinstance(array, np.ndarray)]
    return [data.time, saved]


def load_mjdata(state: list[Any], data: Any) -> Any:
    data.time, arrays = state
    for name, saved in arrays:
        array = load_array(saved)
        current = getattr(data, name)
        if current.shape == array.shape:  # the next step overwrites the others
            current[...] = array
    return data


def load_ale(state: bytes, ale: Any) -> Any:
    from ale_py import ALEState

    ale.restoreState(ALEState(state))
    return ale


MJ_SIZED = ("contact", "solver", "timer", "warning", "bind")
NATIVE: dict[str, Any] = {
    "MjData": ("mujoco", save_mjdata, load_mjdata),
    "ALEInterface": ("ale_py", lambda ale: ale.cloneState(include_rng=True).serialize(), load_ale),
}
"""Package, saving function and loading function by the name of a class."""
