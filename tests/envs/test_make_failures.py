"""Errors of environments that cannot be made say what to do."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest

from torchppo.envs import make_env
from torchppo.envs.make_failures import hint_for
from torchppo.errors import ConfigurationError


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


@pytest.mark.parametrize("name", ["PongNoFrameskip-v4", "Pong-v4", "Pong-v0", "SpaceInvadersDeterministic-v4"])
def test_old_atari_ids_name_the_new_one(name: str) -> None:
    game = "Pong" if name.startswith("Pong") else "SpaceInvaders"
    hint = hint_for(name, gymnasium.error.NameNotFound())
    assert f"env.id=ALE/{game}-v5" in hint
    assert f"env.id=ale_py:{name}" in hint


def test_ids_that_only_look_like_atari_games_are_not_explained_as_such() -> None:
    assert "Atari" not in hint_for("CartPol-v0", gymnasium.error.NameNotFound())
