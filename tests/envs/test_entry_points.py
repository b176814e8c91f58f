"""Ids name classes, keyword arguments can be tuples, and errors say what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import pytest

from torchppo.envs import make_env
from torchppo.envs.entry_points import find_factory, with_tuples
from torchppo.errors import EnvironmentFailure

MODULE = """
import warnings
import gymnasium, numpy as np
from gymnasium import spaces
warnings.filterwarnings("error")
warnings.filterwarnings("ignore", message="noise")

class MyEnv(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    def __init__(self, render_mode=None, shape=(1, 2), config=None):
        self.shape = (4,) + shape + ((config or {}).get("size", ()))
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        return np.zeros(2, np.float32), 1.0, False, False, {}

def make_it(shape: "tuple[int, ...] | None" = None):
    return MyEnv(shape=shape or (1,))
"""


@pytest.fixture
def _module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_envs").mkdir()
    (tmp_path / "own_envs" / "__init__.py").touch()
    (tmp_path / "own_envs" / "envs.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("_module")
class TestIds:
    @pytest.mark.parametrize("name", ["own_envs.envs.MyEnv", "own_envs.envs:MyEnv", "own_envs.envs.make_it"])
    def test_a_dotted_path_is_a_class_or_function(self, name: str) -> None:
        env = make_env(name, 2, shape=[64, 64])
        assert env.get_attr("shape") == ((4, 64, 64),) * 2

    def test_a_dotted_path_may_have_a_time_limit(self) -> None:
        env = make_env("own_envs.envs.MyEnv", 1, max_episode_steps=3)
        rollout = env.rollout(10, break_when_any_done=True)
        assert rollout["next", "truncated"].flatten().tolist() == [False, False, True]

    @pytest.mark.parametrize("name", ["own_envs.envs.No", "no_module.Env", "CartPole-v1", "torchppo.envs:x/Y-v0"])
    def test_other_ids_are_none(self, name: str) -> None:
        assert find_factory(name) is None

    @pytest.mark.parametrize("name", ["ends.Env", "ends:Env", "ends:Env-v0"])
    def test_a_module_that_ends_python_is_refused(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "ends.py").write_text("import sys\nsys.exit(0)")
        with pytest.raises(EnvironmentFailure, match=f"{name}.*exits when it is imported|SystemExit"):
            make_env(name, 1)

    def test_a_list_in_a_dictionary_that_has_to_be_a_tuple_is_explained(self) -> None:
        with pytest.raises(EnvironmentFailure, match=r"_target_: builtins\.tuple"):
            make_env("own_envs.envs.MyEnv", 1, config={"size": [3]})

    def test_a_filter_for_errors_is_removed_and_others_are_kept(self) -> None:
        import sys
        import warnings

        sys.modules.pop("own_envs.envs", None)
        with warnings.catch_warnings():
            warnings.resetwarnings()
            make_env("own_envs.envs.MyEnv", 1)
            actions = [(one[0], one[1].pattern if one[1] else None) for one in warnings.filters]
        assert ("ignore", "noise") in actions
        assert "error" not in [action for action, _ in actions]


class TestTuples:
    def test_registered_defaults_and_constructors_of_base_classes_count(self) -> None:
        class Base(gymnasium.Env[Any, Any]):
            def __init__(self, size: tuple[int, int] | None = None, names: list[str] | None = None) -> None: ...

        class Derived(Base):
            def __init__(self, window=(1,), **kwargs: Any) -> None: ...  # type: ignore[no-untyped-def]

        lists = {"size": [1, 2], "names": ["a"], "window": [[1], 2]}
        expected = {"size": (1, 2), "names": ["a"], "window": ((1,), 2)}
        assert with_tuples(Derived, lists) == expected
        gymnasium.register("Derived-v0", entry_point=Derived, kwargs={"other": (1,)})  # type: ignore[arg-type]
        try:
            assert with_tuples("Derived-v0", {**lists, "other": [2]}) == {**expected, "other": (2,)}
        finally:
            del gymnasium.registry["Derived-v0"]
