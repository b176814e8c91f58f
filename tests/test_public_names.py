"""`import torchppo` is cheap, and its names are the objects of their modules."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib import import_module

import pytest

import torchppo

PUBLIC_NAMES = {
    *("PPO", "Collector", "MinibatchUpdate", "ClipPPOLoss", "KLPENPPOLoss", "Policy", "batched", "evaluate"),
    *("load_policy", "make_actor_critic", "make_env", "mlp", "nature_cnn"),
}


def test_the_import_loads_nothing_of_other_packages() -> None:
    program = """
import json, sys
before = set(sys.modules)
import torchppo
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    imported = {name.split(".")[0] for name in json.loads(done.stdout)}
    assert {name for name in imported if name not in sys.stdlib_module_names} == {"torchppo"}
    assert not any(name.startswith("torchppo.") for name in json.loads(done.stdout))


def test_the_public_names_are_complete() -> None:
    assert set(torchppo.__all__) == set(torchppo._MODULES) == PUBLIC_NAMES
    assert {*PUBLIC_NAMES, "__version__"} <= set(dir(torchppo))


@pytest.mark.parametrize("name", sorted(PUBLIC_NAMES))
def test_a_name_is_the_object_of_its_module(name: str) -> None:
    value = getattr(torchppo, name)
    assert value.__module__ == f"torchppo.{torchppo._MODULES[name]}"
    assert getattr(import_module(value.__module__), name) is value


def test_an_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="'torchppo' has no attribute 'make_vector_env'"):
        torchppo.make_vector_env  # noqa: B018
