"""From an environment's name to a batch of environments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from functools import partial
from typing import Any

import gymnasium
from gymnasium.vector import AutoresetMode
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv

from ..errors import ConfigurationError, EnvironmentFailure
from .serial import RawEpisodeReward, SerialVectorEnv
from .vector import VectorEnv

Wrapper = Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]


def make_vector_env(
    id: str,  # noqa: A002
    num_envs: int = 1,
    *,
    wrappers: Sequence[Wrapper] = (),
    render_mode: str | None = None,
    **kwargs: Any,
) -> VectorEnv:
    """A batch of Gymnasium environments in this process.

    Args:
        id: a registered name, or `module:Name` to import the module that registers it; `ALE/<Game>-v5`
            makes ale-py's native vector environment (see `make_atari_vector`).
        num_envs: how many, at least 1.
        wrappers: for each environment, the first one innermost.
        render_mode: of `gymnasium.make`.
        kwargs: further ones for `gymnasium.make`.

    Raises:
        EnvironmentFailure: if it does not exist, lacks a package, or cannot be made as asked.
        ConfigurationError: if there is to be no environment.

    """
    if num_envs < 1:
        raise ConfigurationError(f"env.num_envs={num_envs} must be at least 1")
    if id.startswith("ALE/"):
        if wrappers:
            raise ConfigurationError(f"env.wrappers do not apply to {id}: its environments run in C++; use transforms")
        return VectorEnv(make_atari_vector(id, num_envs, **kwargs))
    if render_mode is not None:
        kwargs["render_mode"] = render_mode
    maker = partial(make_env, id, wrappers=wrappers, **kwargs)
    return VectorEnv(SerialVectorEnv([maker] * num_envs))


def make_atari_vector(id: str, num_envs: int, **kwargs: Any) -> GymnasiumVectorEnv[Any, Any, Any]:  # noqa: A002
    """A batch of Atari games in ale-py's native vector environment: grey 84x84, 4 frames stacked, 4 skipped.

    Args:
        id: `ALE/<Game>-v5`; only the game is taken from it, every option is a keyword.
        num_envs: how many.
        kwargs: for `ale_py.vector_env.AtariVectorEnv`; rewards are not clipped unless asked for.

    Raises:
        EnvironmentFailure: if ale-py or the game is missing, or an option is unknown.

    """
    try:
        from ale_py.vector_env import AtariVectorEnv
    except ImportError as error:
        raise EnvironmentFailure(f"environment {id!r} needs ale-py: pip install 'torchppo[atari]'") from error
    spec = gymnasium.registry.get(id)
    if spec is None or "game" not in spec.kwargs:
        games = [name for name in gymnasium.registry if name.startswith("ALE/")]
        raise EnvironmentFailure(f"there is no Atari game {id!r}{_nearest(id, games)}")
    options = {"reward_clipping": False, **kwargs}
    try:
        vector = AtariVectorEnv(spec.kwargs["game"], num_envs, **options)
    except TypeError as error:
        raise EnvironmentFailure(f"environment {id!r} cannot be made: {error}") from error
    # It would reset in the step after the last one, and does not where it has been told to before.
    vector.metadata = {**vector.metadata, "autoreset_mode": AutoresetMode.DISABLED}
    return vector


def make_env(id: str, *, wrappers: Sequence[Wrapper] = (), **kwargs: Any) -> gymnasium.Env[Any, Any]:  # noqa: A002
    """One Gymnasium environment with its wrappers, the first one innermost.

    Raises:
        EnvironmentFailure: if it does not exist, lacks a package, or cannot be made as asked.

    """
    try:
        env = gymnasium.make(id, disable_env_checker=True, **kwargs)
    except gymnasium.error.DependencyNotInstalled as error:
        raise EnvironmentFailure(f"environment {id!r} needs a package that is missing: {error}") from error
    except (gymnasium.error.Error, ModuleNotFoundError, TypeError) as error:
        hint = _nearest(id, gymnasium.registry) if isinstance(error, gymnasium.error.UnregisteredEnv) else ""
        raise EnvironmentFailure(f"environment {id!r} cannot be made: {' '.join(str(error).split())}{hint}") from error
    if wrappers:
        env = RawEpisodeReward(env)  # innermost: the environment's own reward, whatever wrappers make of it
    for wrapper in wrappers:
        env = wrapper(env)
    return env


def _nearest(name: str, candidates: Iterable[str]) -> str:
    matches = get_close_matches(name, list(candidates), n=1, cutoff=0.5)
    return f"; did you mean {matches[0]!r}?" if matches else ""
