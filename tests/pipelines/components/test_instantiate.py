"""Evaluation environments have whole games, raw rewards and the keys of `eval.env`."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from torchppo.errors import ConfigurationError
from torchppo.pipelines.components.instantiate import (
    build_env,
    build_evaluation_env,
    build_node,
    check_same_spaces,
    evaluation_config,
)
from torchppo.pipelines.components.torchrl_collectors import with_recurrent_states


def config(env: dict[str, Any], **changes: Any) -> DictConfig:
    node = {"_target_": "torchppo.envs.make_env", "id": "CartPole-v1", "num_envs": 8, "num_workers": 0, **env}
    return OmegaConf.create({"env": node, "transforms": [], "eval": {"env": changes}})


@pytest.mark.parametrize("key", ["episodic_life", "terminal_on_life_loss", "reward_clipping", "clip_reward"])
def test_games_are_whole_and_rewards_are_raw(key: str) -> None:
    wrappers = [{"_target_": "gymnasium.wrappers.AtariPreprocessing", key: True}, {"_target_": "other.Wrapper"}]
    cfg = config({key: True, "wrappers": [*wrappers, {"_target_": "a.EpisodicLifeEnv"}]})
    env = evaluation_config(cfg).env
    assert env[key] is False
    assert env.wrappers == [{**wrappers[0], key: False}, wrappers[1]]
    assert cfg.env[key] is True
    assert key not in evaluation_config(config({})).env


def test_eval_env_replaces_and_adds_keys() -> None:
    env = evaluation_config(config({"episodic_life": True}, id="Other-v0", gravity=5, episodic_life=True)).env
    assert (env.id, env.gravity, env.episodic_life, env.num_envs) == ("Other-v0", 5, True, 8)
    assert evaluation_config(config({"wrappers": [{"_target_": "a"}]}, wrappers=[])).env.wrappers == []


def test_evaluations_omit_transforms_that_spread_the_first_episodes() -> None:
    cfg = config({})
    cfg.transforms = [{"_target_": "torchrl.envs.RandomTruncationTransform", "min_horizon": 1}, {"_target_": "other.T"}]
    assert evaluation_config(cfg).transforms == [{"_target_": "other.T"}]
    assert len(cfg.transforms) == 2


@pytest.mark.parametrize(
    ("changes", "episodes", "num_envs"), [({}, 3, 3), ({}, 100, 20), ({"num_envs": 2}, 100, 2), ({"num_envs": 2}, 1, 1)]
)
def test_number_of_environments_follows_from_the_episodes(
    changes: dict[str, int], episodes: int, num_envs: int
) -> None:
    with closing(build_evaluation_env(config({}, **changes), seed=0, episodes=episodes)) as env:
        assert env.num_envs == num_envs


@pytest.mark.parametrize(("changes", "num_workers"), [({}, 3), ({"num_workers": 0}, 0), ({"num_workers": 2}, 2)])
def test_workers_are_those_of_the_training(changes: dict[str, int], num_workers: int) -> None:
    with closing(build_evaluation_env(config({"num_workers": 4}, **changes), seed=0, episodes=3)) as env:
        assert len(getattr(env.vector, "_workers", [])) == num_workers


def test_transforms_and_torchrls_collectors_receive_success() -> None:
    cfg = config({})
    with closing(build_env(cfg, seed=0)) as env:
        assert "episode_info" not in env.observation_spec.keys()  # noqa: SIM118 - Composite does not implement `in`
        assert {*with_recurrent_states(env, []).observation_spec["episode_info"].keys()} == {"is_success", "success"}
    cfg.transforms = [{"_target_": "torchrl.envs.RewardScaling", "loc": 0.0, "scale": 1.0}]
    with closing(build_env(cfg, seed=0)) as env:
        assert {*env.observation_spec["episode_info"].keys()} == {"is_success", "success"}


def test_entries_of_the_episode_do_not_count_as_spaces() -> None:
    cfg = config({})
    with closing(build_env(cfg, seed=0)) as own, closing(build_env(cfg, seed=0)) as other:
        check_same_spaces(own, with_recurrent_states(other, []), "eval.env")
        assert own.observation_spec.keys() != other.observation_spec.keys()


def test_a_target_in_a_module_that_ends_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ends_python.py").write_text("import sys\nsys.exit(0)")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigurationError, match=r"ends_python\.Name cannot be imported.*SystemExit"):
        build_node(OmegaConf.create({"_target_": "ends_python.Name"}))
