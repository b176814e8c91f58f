"""The command starts without imports that it does not need."""

from __future__ import annotations

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from torchppo.__main__ import hide_missing_mjx


@pytest.mark.parametrize("has_mjx", [False, True])
def test_only_a_missing_mjx_is_hidden_from_torchrl(
    has_mjx: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = ModuleSpec("mujoco", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    if has_mjx:
        (tmp_path / "mjx").mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: spec)
    monkeypatch.setitem(sys.modules, "mujoco.mjx", None)  # restored afterwards
    del sys.modules["mujoco.mjx"]
    hide_missing_mjx()
    assert ("mujoco.mjx" in sys.modules) is not has_mjx


def test_nothing_is_hidden_without_mujoco(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.delitem(sys.modules, "mujoco.mjx", raising=False)
    hide_missing_mjx()
    assert "mujoco.mjx" not in sys.modules
