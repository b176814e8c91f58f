"""Explains why Gymnasium cannot make an environment."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import gymnasium

from ..errors import ConfigurationError, EnvironmentFailure, TorchPPOError, did_you_mean
from .failures import is_raised_by_package

OLD_ATARI_ID = re.compile(r"(?:ale_py:)?((?P<game>[A-Z][A-Za-z0-9]*?)(-ram)?(NoFrameskip|Deterministic)?-v[045])")
MISSING_ARGUMENT = r"missing \d+ required"
MAX_IDS = 10
GYMNASIUM_HINT = r" Did you mean: | Environment registration via importing"
"""Beginnings of the hints of Gymnasium that `hint_for` replaces."""


def gymnasium_failure(id: str, error: BaseException, hint: str = "") -> TorchPPOError:  # noqa: A002
    """Return the error for an exception of `gymnasium.make` or `gymnasium.make_vec`.

    Args:
        id: the id of the environment.
        error: the exception.
        hint: appended to the message if the exception itself does not suggest what to do.

    """
    if isinstance(error, gymnasium.error.DependencyNotInstalled):
        return EnvironmentFailure(f"environment {id!r} needs a package that is missing: {error}")
    if has_wrong_argument(error):
        return argument_error(repr(id), error)
    hint = hint_for(id, error) or hint
    text = re.split(GYMNASIUM_HINT, str(error))[0].rstrip(".")
    return EnvironmentFailure(f"environment {id!r} cannot be made: {text}{hint}")


def original(error: BaseException) -> BaseException:
    """Return the exception of the constructor if `gymnasium.make` has added to its message, else the error itself."""
    cause = error.__cause__
    return error if cause is None or not str(error).startswith(f"{cause} was raised from") else cause


def has_wrong_argument(error: BaseException) -> bool:
    """Return whether an environment was made with an argument that it does not accept, or without a required one.

    A missing argument of a call in the user's own code does not count.
    """
    is_missing = re.search(MISSING_ARGUMENT, str(error)) and is_raised_by_package(error)
    return isinstance(error, TypeError) and (bool(is_missing) or "unexpected keyword argument" in str(error))


def argument_error(name: str, error: BaseException) -> ConfigurationError:
    """Return the error for arguments that a class or function does not accept, or lacks."""
    text = str(error)
    if text.endswith("unexpected keyword argument 'render_mode'"):
        hint = "add it and render(), or set eval.video=false and env.render_mode=null"
        return ConfigurationError(f"environment {name} has no parameter render_mode; {hint}")
    return ConfigurationError(f"environment {name}: {text}; correct the keys of env")


def hint_for(id: str, error: BaseException) -> str:  # noqa: A002
    """Return a hint to append to the message of an error of `gymnasium.make`."""
    if atari := _atari_hint(id, error):
        return atari
    module, _, name = id.rpartition(":")
    if isinstance(error, ModuleNotFoundError) and module == "minigrid":
        return "; pip install 'torchppo[minigrid]'"
    package = module.partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and module and str(error).startswith(f"No module named {package!r}"):
        return f"; run in the folder of {module}, install it, or set PYTHONPATH"
    if isinstance(error, gymnasium.error.UnregisteredEnv) and module:
        return _registered_hint(module, name)
    hint = did_you_mean(id, gymnasium.registry) if isinstance(error, gymnasium.error.UnregisteredEnv) else ""
    if isinstance(error, gymnasium.error.NameNotFound):
        hint += f"; if your module registers it, use env.id=module:{id}; for a class, use env.id=module.Class"
    return hint


def _registered_hint(module: str, name: str) -> str:
    """Return the id most similar to `name` whose class or function is in a module, or else the first ten ids."""
    ids = []
    for id, spec in gymnasium.registry.items():  # noqa: A001
        entry_point = spec.entry_point or spec.vector_entry_point
        place = entry_point if isinstance(entry_point, str) else getattr(entry_point, "__module__", None) or ""
        if re.match(rf"{re.escape(module)}\b", place):
            ids.append(id)
    if not ids:
        return f"; {module} does not register its environments; call gymnasium.register in it"
    others = f"; {module} has {', '.join(sorted(ids)[:MAX_IDS])}{', ...' if len(ids) > MAX_IDS else ''}"
    return did_you_mean(name, ids, cutoff=0.7) or others


def _atari_hint(id: str, error: BaseException) -> str:  # noqa: A002
    """Explain the ids of OpenAI Gym, such as `PongNoFrameskip-v4`, which ale-py registers when it is imported."""
    match = OLD_ATARI_ID.fullmatch(id)
    if match is None or not isinstance(error, gymnasium.error.UnregisteredEnv | ModuleNotFoundError):
        return ""
    new = f"ALE/{match['game']}-v5"
    package = importlib.util.find_spec("ale_py")
    if package is None:
        has_suffix = "NoFrameskip" in id or "Deterministic" in id
        return f"; Atari games need pip install 'torchppo[atari]' and env.id={new}" if has_suffix else ""
    # Check the file of the game, because importing ale-py would register the old ids.
    file = re.sub(r"(?<!^)(?=[A-Z])", "_", match["game"]).lower() + ".bin"
    if not any(Path(folder, "roms", file).exists() for folder in package.submodule_search_locations or ()):
        return ""
    return (
        f"; this is an old Atari id: use env=atari env.id={new}, which skips, stacks and resizes frames like "
        f"the usual wrappers, or env.id=ale_py:{match[1]} for the plain game"
    )
