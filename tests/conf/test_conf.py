"""Every file of `conf/` composes, has only keys that its target accepts, and starts with a description."""

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
from torch.utils.tensorboard import SummaryWriter

CONF = Path(__file__).parents[2] / "conf"
FILES = sorted(CONF.glob("*/*.yaml"))
EXPERIMENTS = sorted((CONF / "experiment").glob("*.yaml"))


def name_of(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


VARIANTS = {name_of(path) for path in EXPERIMENTS} | {
    *("critic/two_hot", "head/gaussian_state_dependent", "memory/transformer_xl", "objective/kl_penalty_fixed"),
    *("policy/cnn", "policy/resnet", "policy/simba", "policy/transformer_xl"),
}
"""Files that differ from the defaults of their targets on purpose."""
HYDRA_KEYS = {"_target_", "_partial_", "_args_", "_convert_", "_recursive_"}
REQUIRED_OVERRIDES = {
    "env/gymnasium": ["env.id=CartPole-v1"],
    "env/torchrl": ["env._target_=torchrl.envs.PendulumEnv"],
    "symmetry/mirror": ["ppo.symmetry.mirror._target_=copy.copy"],
}
KEYS_OF_GROUP = {
    "controller": [
        "controller@controller.lr",
        "controller@controller.clip_epsilon",
        "controller@controller.entropy_coeff",
    ]
}


@cache
def composed(name: str) -> dict[str, Any]:
    """The whole configuration with one file chosen, resolved and without missing values."""
    group, choice = name.split("/")
    overrides = [f"{key}={choice}" for key in KEYS_OF_GROUP.get(group, [group])]
    with initialize_config_module("torchppo.conf", version_base="1.3"):
        cfg = hydra.compose("train", [*overrides, *REQUIRED_OVERRIDES.get(name, [])])
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)  # type: ignore[return-value]


def components(node: Any) -> Iterator[dict[str, Any]]:
    """Every node of a configuration that has a `_target_`."""
    values = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    for value in values:
        yield from components(value)
    if isinstance(node, dict) and "_target_" in node:
        yield node


def parameters(target: Any) -> set[str]:
    """Names of the parameters of a callable; includes those of base classes that receive `**kwargs`."""
    functions = [target]
    if isinstance(target, type):
        functions = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
    names: set[str] = set()
    for function in functions:
        params = inspect.signature(function).parameters.values()
        names |= {param.name for param in params if param.kind in (param.POSITIONAL_OR_KEYWORD, param.KEYWORD_ONLY)}
        if not any(param.kind is param.VAR_KEYWORD for param in params):
            break
    return names


@pytest.mark.parametrize("path", FILES, ids=name_of)
class TestEveryFile:
    def test_composes_with_keys_that_its_target_accepts(self, path: Path) -> None:
        for component in components(composed(name_of(path))):
            known = parameters(get_object(component["_target_"]))
            if "frames_per_batch" in known:
                known.add("frames_per_env")  # `build_collector` multiplies it by the number of environments
            if component["_target_"].endswith(".TensorBoardLogger"):
                known |= parameters(SummaryWriter)
            unknown = set(component) - HYDRA_KEYS - known
            assert not unknown, component["_target_"]

    def test_starts_with_a_description(self, path: Path) -> None:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("# @package")]
        assert lines[0].startswith("# ")
        assert len(lines[0]) > len("# x")


def defaults(target: Any) -> dict[str, Any]:
    """Default arguments of a target in torchppo; empty for other targets."""
    params = inspect.signature(target).parameters.values() if target.__module__.startswith("torchppo.") else ()
    return {param.name: param.default for param in params if param.default is not param.empty}


@pytest.mark.parametrize("name", sorted({name_of(path) for path in FILES} - VARIANTS))
def test_numbers_equal_the_python_defaults(name: str) -> None:
    for component in components(composed(name)):
        known = defaults(get_object(component["_target_"]))
        known.pop("num_envs", None)  # in Python, the default is 1 or the number in a vector environment
        known.pop("frames_per_env", None)  # in Python, it has no default, because `frames_per_batch` may replace it
        numbers = {key: value for key, value in component.items() if key in known and isinstance(value, int | float)}
        assert numbers == {key: known[key] for key in numbers}, component["_target_"]


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name_of)
def test_an_experiment_has_at_most_25_lines(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 25


@pytest.mark.parametrize("path", [*EXPERIMENTS, *sorted((CONF / "env").glob("*.yaml"))], ids=name_of)
def test_minibatches_fill_the_rollout_of_every_experiment_and_environment(path: Path) -> None:
    cfg = composed(name_of(path))
    frames = cfg["env"].get("num_envs", 0) * cfg["collector"]["frames_per_env"]
    assert frames % cfg["update"]["minibatch_size"] == 0


@pytest.mark.parametrize(
    ("experiment", "rollout", "minibatch", "epochs", "lr", "critic", "entropy"),
    [
        ("robotics", 4096, 32, 5, 1e-4, 1.0, 0.001),
        ("mujoco", 2048, 64, 10, 3e-4, 0.5, 0.0),
        ("atari", 128, 128, 4, 2.5e-4, 0.5, 0.01),
    ],
)
def test_presets_have_the_documented_values(
    experiment: str, rollout: int, minibatch: int, epochs: int, lr: float, critic: float, entropy: float
) -> None:
    cfg = composed(f"experiment/{experiment}")
    assert cfg["collector"]["frames_per_env"] == rollout
    assert (cfg["update"]["minibatch_size"], cfg["update"]["epochs"]) == (minibatch, epochs)
    assert cfg["optimizer"]["lr"] == lr
    assert (cfg["objective"]["critic_coeff"], cfg["objective"]["entropy_coeff"]) == (critic, entropy)


def test_groups_of_the_defaults_are_the_folders_of_conf() -> None:
    defaults = OmegaConf.load(CONF / "train.yaml").defaults
    groups = {str(key).split("@")[0] for entry in defaults if entry != "_self_" for key in entry}
    assert groups == {path.parent.name for path in FILES}
