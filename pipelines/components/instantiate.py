"""Instantiates components and environments of a configuration. No other file calls Hydra's `instantiate`."""

from __future__ import annotations

import logging
import traceback
from inspect import Parameter, signature
from pathlib import Path
from typing import Any, cast

import numpy as np
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf
from torchrl.envs import EnvBase

from ...envs import VectorEnv, batched
from ...envs.failures import described, environment_failure, is_raised_by_package
from ...errors import ConfigurationError, EnvironmentFailure, TorchPPOError
from ...modules.features.extractor import is_bookkeeping
from .transforms import check_kinds, with_transforms

logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)  # `call` reports its errors in one line
MAX_ENVS = 20  # largest number that an evaluation steps at once, unless `eval.env.num_envs` is set
WHOLE_GAMES = dict.fromkeys(("episodic_life", "terminal_on_life_loss", "reward_clipping", "clip_reward"), False)
"""Values of the options of Atari environments and wrappers in evaluations."""
LIFE_WRAPPERS = ("EpisodicLifeEnv", "EpisodicLife")  # end an episode when a life is lost; evaluations omit them
TRAINING_TRANSFORMS = (".RandomTruncationTransform",)  # of TorchRL; evaluations omit them
HYDRA_KEYS = ("_target_", "_args_", "_partial_", "_convert_", "_recursive_")


def build_env(cfg: DictConfig, *, seed: int, **changes: Any) -> EnvBase:
    """Build the batched environment with its transforms. `changes` replace existing keys of `cfg.env`."""
    transforms = [call(transform) for transform in cfg.transforms]
    env = make_environment(cfg.env, {key: value for key, value in changes.items() if key in cfg.env})
    if transforms or cfg.env.get("wrappers"):
        check_kinds(transforms, cfg.env.get("wrappers") or ())
    if not isinstance(env, VectorEnv):
        env.set_seed(seed)  # a Jumanji environment with pixels must have a seed before its specs are read
        env = batched(env)
    if transforms:
        env = with_transforms(env, transforms)
    env.set_seed(seed)
    return env


def make_environment(node: DictConfig, changes: dict[str, Any]) -> EnvBase:
    """Make the environment of a configuration with some of its keys changed.

    Raises:
        EnvironmentFailure: if the environment raises an error or is not a TorchRL environment.

    """
    try:
        env = build_node(node, **changes)
    except Exception as error:  # noqa: BLE001 - an environment may raise anything
        raise environment_failure(f"{node._target_} failed", error) from None
    if not isinstance(env, EnvBase):
        raise EnvironmentFailure(f"{node._target_} returned {type(env).__name__}, not an EnvBase; fix env._target_")
    return env


def check_same_spaces(env: EnvBase, training_env: EnvBase, place: str) -> None:
    """Raise a ConfigurationError if the observations or actions of an environment differ from those of the training.

    `place` is where the environment comes from, such as `eval.env`.
    """
    ours, theirs = describe_spaces(env), describe_spaces(training_env)
    if ours != theirs:
        raise ConfigurationError(
            f"{place} has {ours}, but the policy was made for {theirs}; choose one with these spaces"
        )


def describe_spaces(env: EnvBase) -> str:
    """Return the shapes and types of observations and actions in one line, without entries of the episode."""
    num_dims = len(env.batch_size)
    parts = []
    for spec in (env.observation_spec, env.full_action_spec):
        leaves = [((key,) if isinstance(key, str) else key, leaf) for key, leaf in spec.items(True, True)]
        own = [(".".join(path), leaf) for path, leaf in leaves if not is_bookkeeping(path[0])]
        parts.append(", ".join(f"{name} {[*leaf.shape[num_dims:]]} {leaf_type(leaf)}" for name, leaf in own))
    return f"{parts[0]} and {parts[1]}"


def leaf_type(leaf: Any) -> str:
    """Return the type of a leaf, with the number of values of a categorical one."""
    number = getattr(leaf.space, "n", None) if leaf.space is not None else None
    return str(leaf.dtype).removeprefix("torch.") + ("" if number is None else f" below {number}")


def build_evaluation_env(cfg: DictConfig, *, seed: int, episodes: int = 1, **changes: Any) -> EnvBase:
    """Build the environment of `evaluation_config`, with one environment per episode and at most `MAX_ENVS`.

    It has as many worker processes as the training environment. `changes` and `eval.env` replace these numbers.
    """
    cfg = evaluation_config(cfg)
    sizes = cfg.eval.get("env") or {}
    num_envs = changes.get("num_envs", min(episodes, sizes.get("num_envs", MAX_ENVS)))
    num_workers = sizes.get("num_workers", cfg.env.get("num_workers", 0))
    if isinstance(num_workers, int):
        num_workers = min(num_workers, num_envs)
    return build_env(cfg, seed=seed, **{"num_envs": num_envs, "num_workers": num_workers, **changes})


def evaluation_config(cfg: DictConfig) -> DictConfig:
    """Return the configuration with whole games and raw rewards in `env`, and the changes of `eval.env`."""

    def with_whole_games(node: Any) -> dict[str, Any]:
        return {key: value for key, value in WHOLE_GAMES.items() if key in node}

    changed = OmegaConf.merge(cfg, {"env": with_whole_games(cfg.env)}, {"env": cfg.eval.get("env") or {}})
    wrappers = changed.env.get("wrappers")
    if isinstance(wrappers, ListConfig) and "wrappers" not in (cfg.eval.get("env") or {}):
        changed.env.wrappers = [
            OmegaConf.merge(wrapper, with_whole_games(wrapper)) if isinstance(wrapper, DictConfig) else wrapper
            for wrapper in wrappers
            if not (isinstance(wrapper, DictConfig) and str(wrapper.get("_target_")).endswith(LIFE_WRAPPERS))
        ]
    changed.transforms = [
        node for node in changed.transforms if not str(node.get("_target_")).endswith(TRAINING_TRANSFORMS)
    ]
    return cast(DictConfig, changed)


def seed_for_rank(seed: int, rank: int) -> int:
    """Return a seed that no other rank of this or another run uses."""
    if seed < 0:
        raise ConfigurationError(f"seed={seed} must not be negative")
    return int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])


def call(node: DictConfig, **arguments: Any) -> Any:
    """Instantiate a node with further arguments.

    Raises:
        TorchPPOError: if the target raises one, does not exist, or does not accept the keys, or if the code of an
            installed package raises another error. Errors of the user's own code are raised unchanged.

    """
    try:
        return build_node(node, **arguments)
    except TorchPPOError:
        raise
    except (Exception, SystemExit) as error:
        if not is_raised_by_package(error):
            raise
        frame = traceback.extract_tb(error.__traceback__)[-1]
        problem = f"{type(error).__name__}: {error} ({Path(frame.filename).name}, line {frame.lineno})"
        raise ConfigurationError(f"{name_of(node)} failed: {problem}; change its keys") from error


def build_node(node: DictConfig, **arguments: Any) -> Any:
    """Instantiate a node as `call` does, but do not convert other errors of the target."""
    require_target(node)
    check_targets(node, arguments)
    try:
        # Hydra copies objects passed to `instantiate` into a configuration. A partial receives the objects themselves.
        component = instantiate(node, _convert_="all", **({"_partial_": True} if arguments else {}))
        return component(**arguments) if arguments else component
    except InstantiationException as error:
        cause: BaseException = error
        while isinstance(cause, InstantiationException) and cause.__cause__ is not None:
            cause = cause.__cause__
        is_wrong_key = isinstance(cause, TypeError) and "unexpected keyword argument" in str(cause)
        for package in ("wandb", "mlflow"):
            if isinstance(cause, ModuleNotFoundError) and package in node._target_.lower():
                raise ConfigurationError(f"{node._target_} needs pip install 'torchppo[{package}]'") from error
        if cause is error or isinstance(cause, ImportError) or is_wrong_key:
            raise ConfigurationError(f"{name_of(node)}: {error}; fix its keys") from error
        raise cause from None


def require_target(node: Any) -> None:
    if not isinstance(node, DictConfig) or not isinstance(node.get("_target_"), str):
        raise ConfigurationError(f"{name_of(node)} has no _target_; choose a component with group=choice")


def name_of(node: Any) -> str:
    """Return the key (read with private methods of OmegaConf 2.3) and the target: `objective (my.Loss)`."""
    parent = getattr(node, "_get_parent", lambda: None)()
    # The parent returns `transforms[0]`. The node itself would return `transforms0`.
    key = "" if parent is None else parent._get_full_key(node._key())
    target = node.get("_target_") if isinstance(node, DictConfig) else node
    return f"{key} ({target})" if key and target else str(key or target or node)


def check_targets(node: Any, arguments: dict[str, Any]) -> None:
    """Raise a ConfigurationError if a `_target_` does not exist, or does not accept its keys and `arguments`."""
    if isinstance(node, ListConfig):
        for child in node:
            check_targets(child, {})
    if not isinstance(node, DictConfig):
        return
    keys = [key for key in node if key not in HYDRA_KEYS]
    for key in keys if node.get("_recursive_", True) else ():
        check_targets(node[key], {})
    if "_target_" not in node:
        return
    try:
        target = get_object(node._target_)
        parameters = signature(target)
    except (ImportError, SystemExit) as error:  # a module may exit while it is imported
        raise ConfigurationError(f"_target_={node._target_} cannot be imported; fix it ({described(error)})") from error
    except (TypeError, ValueError):  # the target has no signature
        return
    is_partial = node.get("_partial_", False) and not arguments
    try:
        bind = parameters.bind_partial if is_partial else parameters.bind
        bind(*node.get("_args_", []), **{**dict.fromkeys(map(str, keys)), **arguments})
    except TypeError as error:
        raise ConfigurationError(f"{name_of(node)}: {error}; fix its keys") from error


def call_with_accepted(node: DictConfig, **offered: Any) -> Any:
    """Instantiate a node with the offered arguments that are parameters of its target."""
    names = parameter_names(node)
    return call(node, **{name: value for name, value in offered.items() if name in names})


def parameter_names(node: DictConfig) -> set[str]:
    """Return the parameter names of a node's target, including those of base classes if it passes `**kwargs`."""
    require_target(node)
    check_targets(DictConfig({"_target_": node._target_, "_partial_": True}), {})
    target = get_object(node._target_)
    functions = [target]
    if isinstance(target, type):
        functions = [vars(base)["__init__"] for base in target.__mro__ if "__init__" in vars(base)]
    names: set[str] = set()
    for function in functions:
        parameters = signature(function).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if not any(parameter.kind is Parameter.VAR_KEYWORD for parameter in parameters):
            break
    return names
