"""Errors of environments that cannot be made say what to do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import pytest

from torchppo.envs import make_env
from torchppo.envs.make_failures import hint_for
from torchppo.errors import ConfigurationError, EnvironmentFailure

TWO_ENVS = """
import gymnasium
class Env(gymnasium.Env):
    pass
gymnasium.register("Reach-v0", entry_point=Env)
gymnasium.register("Push-v0", entry_point="two_envs:Env")
"""
OTHERS = """
import gymnasium
def make(): ...
make.__module__ = None
gymnasium.register("Lift-v0", entry_point=make)
"""


class NoRenderMode(gymnasium.Env[Any, Any]):
    def __init__(self, length: int = 1) -> None: ...


@pytest.mark.parametrize("factory", ["NoRenderMode-v0", NoRenderMode])
def test_an_environment_without_a_render_mode_is_told_how_to_go_on(
    factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = gymnasium.envs.registration.EnvSpec("NoRenderMode-v0", entry_point=NoRenderMode)  # type: ignore[arg-type]
    monkeypatch.setitem(gymnasium.registry, "NoRenderMode-v0", spec)
    with pytest.raises(ConfigurationError, match=r"NoRenderMode.* render_mode.* eval\.video=false") as caught:
        make_env(factory, 1, render_mode="rgb_array")
    assert "kwargs" not in str(caught.value)
    assert "Error" not in str(caught.value)


@pytest.fixture
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "two_envs.py").write_text(TWO_ENVS)
    (tmp_path / "no_envs.py").write_text("")
    (tmp_path / "others.py").write_text(OTHERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name in ("Reach-v0", "Push-v0", "Lift-v0"):
        gymnasium.registry.pop(name, None)
    for name in ("two_envs", "others"):
        sys.modules.pop(name, None)


@pytest.mark.usefixtures("_module")
@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("CartPol-v1", ["CartPole-v1"]),
        ("two_envs:Foo-v0", ["Reach-v0", "Push-v0"]),
        ("two_envs:Reech-v0", ["Reach-v0"]),
        ("others:Foo-v0", ["others", "gymnasium.register"]),
        ("no_envs:Foo-v0", ["no_envs", "gymnasium.register"]),
        ("no_such_module:Foo-v0", ["No module named 'no_such_module'", "PYTHONPATH"]),
        ("no_such_module.part:Foo-v0", ["No module named 'no_such_module'", "PYTHONPATH"]),
    ],
)
def test_an_unknown_id_has_one_way_out(name: str, found: list[str]) -> None:
    with pytest.raises(EnvironmentFailure) as caught:
        make_env(name, 1)
    message = str(caught.value)
    assert [text for text in found if text not in message] == []
    assert message.lower().count("did you mean") <= 1
    assert "importing a module failed" not in message


def test_a_mistake_in_a_constructor_has_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Mistaken(NoRenderMode):
        def __init__(self) -> None:
            NoRenderMode.close()  # type: ignore[call-arg]

    spec = gymnasium.envs.registration.EnvSpec("Mistaken-v0", entry_point=Mistaken)  # type: ignore[arg-type]
    monkeypatch.setitem(gymnasium.registry, "Mistaken-v0", spec)
    with pytest.raises(EnvironmentFailure, match="missing 1 required positional argument"):
        make_env("Mistaken-v0", 1)
    assert "NoRenderMode.close()  #" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["PongNoFrameskip-v4", "Pong-v4", "Pong-v0", "SpaceInvadersDeterministic-v4"])
def test_old_atari_ids_name_the_new_one(name: str) -> None:
    game = "Pong" if name.startswith("Pong") else "SpaceInvaders"
    hint = hint_for(name, gymnasium.error.NameNotFound())
    assert f"env.id=ALE/{game}-v5" in hint
    assert f"env.id=ale_py:{name}" in hint


def test_ids_that_only_look_like_atari_games_are_not_explained_as_such() -> None:
    assert "Atari" not in hint_for("CartPol-v0", gymnasium.error.NameNotFound())
