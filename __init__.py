"""PPO as interchangeable parts on TorchRL, Lightning and Hydra."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .envs.make import make_env
    from .envs.torchrl import batched
    from .modules.actor_critic import make_actor_critic
    from .modules.features.bodies import mlp
    from .modules.features.image_bodies import nature_cnn
    from .modules.objectives.clip import ClipPPOLoss
    from .modules.objectives.kl_penalty import KLPENPPOLoss
    from .pipelines.collectors.collector import Collector
    from .pipelines.episodes import evaluate
    from .pipelines.policy import Policy, load_policy
    from .pipelines.ppo import PPO
    from .pipelines.updates.minibatch import MinibatchUpdate

__version__ = "0.1.0"

__all__ = [
    "PPO",
    "ClipPPOLoss",
    "Collector",
    "KLPENPPOLoss",
    "MinibatchUpdate",
    "Policy",
    "batched",
    "evaluate",
    "load_policy",
    "make_actor_critic",
    "make_env",
    "mlp",
    "nature_cnn",
]

_MODULES = {
    "PPO": "pipelines.ppo",
    "ClipPPOLoss": "modules.objectives.clip",
    "Collector": "pipelines.collectors.collector",
    "KLPENPPOLoss": "modules.objectives.kl_penalty",
    "MinibatchUpdate": "pipelines.updates.minibatch",
    "Policy": "pipelines.policy",
    "batched": "envs.torchrl",
    "evaluate": "pipelines.episodes",
    "load_policy": "pipelines.policy",
    "make_actor_critic": "modules.actor_critic",
    "make_env": "envs.make",
    "mlp": "modules.features.bodies",
    "nature_cnn": "modules.features.image_bodies",
}
"""Modules of the public names. A module is imported when its name is first used (PEP 562)."""


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> object:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(f".{_MODULES[name]}", __name__), name)
        globals()[name] = value  # the next access does not call this function
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
