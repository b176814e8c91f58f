"""Every file of `conf/` composes, fits the part it names, and says what it is."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import hydra
import pytest
from hydra import initialize_config_module
from hydra.utils import get_object
from omegaconf import OmegaConf

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(CONF.glob("*/*.yaml"))
EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


VARIANTS = {name_of(path) for path in EXPERIMENTS} | {
    *("critic/two_hot", "head/gaussian_state_dependent", "memory/transformer_xl"),
    *("policy/cnn", "policy/resnet", "policy/transformer_xl"),
}
"""What differs from its part's defaults on purpose."""
HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}
NEEDED = {"env/gymnasium": ["env.id=CartPole-v1"], "env/torchrl": ["env._target_=torchrl.envs.PendulumEnv"]}
PLACES = {"schedule": ["schedule@schedule.lr", "schedule@schedule.clip_epsilon", "schedule@schedule.entropy_coeff"]}


@cache
def composed(name: str) -> dict[str, Any]:
    """The whole configuration with one file chosen, everything resolved and nothing missing."""
    group, choice = name.split("/")
    words = [f"{place}={choice}" for place in PLACES.get(group, [group])]
    with initialize_config_module("torchppo.conf", version_base="1.3"):
        cfg = hydra.compose("train", [*words, *NEEDED.get(name, [])])
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def parts(node: Any) -> Iterator[dict[str, Any]]:
    """Every node of a configuration that names a part."""
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    for value in values:
        yield from parts(value)
    if isinstance(node, dict) and "_target_" in node:
        yield node


def parameters(target: Any) -> set[str]:
    """Names that a callable takes; where a constructor passes `**kwargs` on, those of its bases too."""
    chain = [target]
    if isinstance(target, type):
        chain = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
    names: set[str] = set()
    for function in chain:
        given = inspect.signature(function).parameters.values()
        names |= {one.name for one in given if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)}
        if not any(one.kind is one.VAR_KEYWORD for one in given):
            break
    return names


@pytest.mark.parametrize("path", FILES, ids=name_of)
class TestEveryFile:
    def test_composes_and_every_key_is_one_that_its_target_takes(self, path: Path) -> None:
        for part in parts(composed(name_of(path))):
            assert not set(part) - HYDRA_KEYS - parameters(get_object(part["_target_"])), part["_target_"]

    def test_begins_with_a_comment_that_describes_it(self, path: Path) -> None:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# ")
        assert len(lines[0]) > len("# x")


def defaults(target: Any) -> dict[str, Any]:
    """What a part of ours is given where YAML does not say."""
    parameters = inspect.signature(target).parameters.values() if target.__module__.startswith("torchppo.") else ()
    return {one.name: one.default for one in parameters if one.default is not one.empty}


@pytest.mark.parametrize("name", sorted({name_of(path) for path in FILES} - VARIANTS))
def test_a_number_is_the_same_from_python(name: str) -> None:
    for part in parts(composed(name)):
        known = defaults(get_object(part["_target_"]))
        numbers = {key: value for key, value in part.items() if key in known and isinstance(value, bool | int | float)}
        assert numbers == {key: known[key] for key in numbers}, part["_target_"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
class TestEveryExperiment:
    def test_is_short_because_it_holds_only_differences(self, path: Path) -> None:
        assert len(path.read_text().splitlines()) <= 25

    def test_fills_its_rollouts_with_minibatches(self, path: Path) -> None:
        cfg = composed(name_of(path))
        frames = cfg["env"]["num_envs"] * cfg["collector"]["frames_per_env"]
        assert frames % cfg["update"]["minibatch_size"] == 0


@pytest.mark.parametrize(
    ("experiment", "rollout", "minibatch", "epochs", "lr", "critic", "entropy"),
    [
        ("robotics", 4096, 32, 5, 1e-4, 1.0, 0.001),
        ("mujoco", 2048, 64, 10, 3e-4, 0.5, 0.0),
        ("atari", 128, 128, 4, 2.5e-4, 0.5, 0.01),
    ],
)
def test_the_presets_have_the_values_that_they_announce(
    experiment: str, rollout: int, minibatch: int, epochs: int, lr: float, critic: float, entropy: float
) -> None:
    cfg = composed(f"experiment/{experiment}")
    assert cfg["collector"]["frames_per_env"] == rollout
    assert (cfg["update"]["minibatch_size"], cfg["update"]["epochs"]) == (minibatch, epochs)
    assert cfg["optimizer"]["lr"] == lr
    assert (cfg["objective"]["critic_coeff"], cfg["objective"]["entropy_coeff"]) == (critic, entropy)


def test_every_group_of_the_defaults_has_a_folder_and_every_folder_is_in_the_defaults() -> None:
    defaults = OmegaConf.load(CONF / "train.yaml").defaults
    groups = {str(key).split("@")[0] for entry in defaults if entry != "_self_" for key in entry}
    assert groups == {path.parent.name for path in FILES}
