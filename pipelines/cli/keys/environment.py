"""Checks overrides against the spaces of an environment, without importing PyTorch.

Only Gymnasium's own environments are checked, because they are created quickly and have no side effects. Building the
training raises the same errors for all environments.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from contextlib import closing
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from omegaconf import DictConfig, ListConfig, OmegaConf

from ....errors import ConfigurationError
from ....modules.features.image_shapes import require_image_shape

if TYPE_CHECKING:
    import gymnasium

CHECKED = ("head=", "policy.head.", "policy=", "env.render_mode=", "env.wrappers=")
"""Prefixes of overrides that depend on the environment."""
IMAGE_BODIES = "torchppo.modules.features.image_bodies."


def check_environment(cfg: DictConfig, overrides: Sequence[str], policy: str) -> None:
    """Raise a ConfigurationError for an override that does not work with the environment.

    Args:
        cfg: the configuration.
        overrides: overrides of the command line.
        policy: the choice of the group `policy`.

    """
    words = [word for word in overrides if word.lstrip("+").startswith(CHECKED)]
    env = make(cfg) if words else None
    if env is None:
        return
    with closing(env):
        mode, modes = cfg.env.get("render_mode"), env.metadata.get("render_modes")
        if mode is not None and modes and mode not in modes:
            raise ConfigurationError(
                f"env.render_mode={mode} is not a mode of {cfg.env.id}; use one of {', '.join(modes)}"
            )
        if cfg.env.get("vectorization") != "native":  # otherwise, the wrappers are vector wrappers
            check_wrappers(env, cfg.env.get("wrappers") or ())
        if cfg.transforms or cfg.env.get("wrappers"):  # they may change the spaces
            return
        for word in words:
            if word.lstrip("+").startswith(("head=", "policy.head.")) and not has_box(env.action_space):
                raise ConfigurationError(f"{word} has no effect on discrete actions; remove it")
        body, space = str(OmegaConf.select(cfg, "policy.body._target_")), env.observation_space
        if body.startswith(IMAGE_BODIES) and type(space).__name__ == "Box":
            require_image_shape(space.shape or (), policy)


def check_wrappers(env: gymnasium.Env[Any, Any], wrappers: Iterable[Any]) -> None:
    """Raise a ConfigurationError if one of Gymnasium's wrappers refuses its arguments.

    The check ends at the first wrapper that is not from Gymnasium, that has a list or a component as an argument, or
    that renders and may write files. It repeats a part of `make_gymnasium_env`, which imports PyTorch.
    """
    from hydra.utils import get_object

    for index, node in enumerate(wrappers):
        options: dict[str, Any] = dict(node) if isinstance(node, DictConfig) else {}
        target = str(options.pop("_target_", ""))
        is_simple = not any(isinstance(one, DictConfig | ListConfig) for one in options.values())
        if not (target.startswith("gymnasium.wrappers.") and options.pop("_partial_", False) and is_simple):
            return
        try:
            wrapper = get_object(target)
        except ImportError:
            raise ConfigurationError(
                f"env.wrappers[{index}]._target_={target} cannot be imported; correct it"
            ) from None
        if wrapper.__module__.endswith(".rendering"):
            return
        try:
            env = wrapper(env, **options)
        except (TypeError, ValueError, AssertionError) as error:
            message = f"{type(error).__name__}: {error}"
            raise ConfigurationError(f"env.wrappers[{index}] failed for environment {env}: {message}") from None
        except Exception:  # noqa: BLE001 - reported when the training is built
            return


def make(cfg: DictConfig) -> gymnasium.Env[Any, Any] | None:
    """Make the environment of a configuration. Return `None` if it is not one of Gymnasium's own, or cannot be made."""
    from .components import MAKE_ENV, entry_point_of, make_env_keys

    name = str(cfg.env.get("id")) if cfg.env._target_ == MAKE_ENV else ""
    is_path = name.startswith("gymnasium.envs.")
    if not is_path and not str(entry_point_of(name)).startswith("gymnasium.envs."):
        return None
    import gymnasium

    module, _, attribute = name.rpartition(".")
    others = {str(key): value for key, value in cfg.env.items() if key not in {*make_env_keys(), "_target_"}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the training shows them when it is built
            if is_path:
                return cast("gymnasium.Env[Any, Any]", getattr(import_module(module), attribute)(**others))
            return gymnasium.make(name, disable_env_checker=True, **others)
    except Exception:  # noqa: BLE001 - reported when the training is built
        return None


def has_box(space: gymnasium.Space[Any]) -> bool:
    """Return whether a space is a box or contains one; other actions are discrete."""
    inner = getattr(space, "spaces", ())
    parts = inner.values() if isinstance(inner, dict) else inner
    return type(space).__name__ == "Box" or any(map(has_box, parts))
