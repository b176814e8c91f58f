"""A checkpoint that does not fit is refused before anything changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch import nn

from torchppo import make_env
from torchppo.errors import CheckpointError
from torchppo.pipelines.saving.fits import raise_on_misfit
from torchppo.pipelines.saving.state import environment_of, versions
from torchppo.pipelines.step_factory import warn_once

CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "environment": lambda content: content["torchppo"]["environment"].update(id="Acrobot-v1"),
    "spaces": lambda content: content["torchppo"]["environment"]["spaces"].update(action="Categorical[] torch.int32"),
    "shape": lambda content: content["state_dict"].update(weight=nn.Linear(3, 2).weight.detach()),
    "nothing": lambda content: content["state_dict"].pop("bias"),
}


@pytest.fixture(scope="module")
def collector() -> Any:
    return SimpleNamespace(env=make_env("CartPole-v1", num_envs=2))


def content_of(collector: Any) -> dict[str, Any]:
    own = {"versions": versions(), "environment": environment_of(collector)}
    return {"torchppo": own, "state_dict": nn.Linear(4, 2).state_dict()}


@pytest.mark.parametrize("word", CHANGES)
def test_other_environments_spaces_and_weights_are_refused(word: str, collector: Any) -> None:
    content = content_of(collector)
    raise_on_misfit(nn.Linear(4, 2), collector, content, Path("a.ckpt"))
    CHANGES[word](content)
    with pytest.raises(CheckpointError, match=f"a.ckpt does not fit .*{word}"):
        raise_on_misfit(nn.Linear(4, 2), collector, content, Path("a.ckpt"))


def test_another_version_is_a_warning(caplog: pytest.LogCaptureFixture, collector: Any) -> None:
    warn_once.cache_clear()
    content = content_of(collector)
    content["torchppo"]["versions"]["torch"] = "1.0"
    raise_on_misfit(nn.Linear(4, 2), collector, content, Path("a.ckpt"))
    assert "torch 1.0" in caplog.text


@pytest.mark.parametrize(
    ("env_id", "options"), [("CartPole-v1", {}), ("CartPole-v1", {"num_workers": 1}), ("ALE/Pong-v5", {})]
)
def test_the_environment_is_saved_with_its_id(env_id: str, options: dict[str, Any]) -> None:
    if env_id.startswith("ALE/"):
        pytest.importorskip("ale_py")
    env = make_env(env_id, num_envs=1, **options)
    assert environment_of(SimpleNamespace(env=env))["id"] == env_id
    env.close()
