"""Environments: every environment becomes one batched TorchRL environment."""

import gymnasium

from .make import make_env, make_gymnasium_env
from .native.atari import SplitAtariVectorEnv
from .spaces.specs import ALL_ENVS, StepArrays, leaf_arrays
from .torchrl import EPISODE_KEYS, batched, check_transforms
from .vector.serial import SerialVectorEnv
from .vector.subprocess import SubprocessVectorEnv
from .vector_env import VectorEnv

__all__ = [
    "ALL_ENVS",
    "EPISODE_KEYS",
    "SerialVectorEnv",
    "SplitAtariVectorEnv",
    "StepArrays",
    "SubprocessVectorEnv",
    "VectorEnv",
    "batched",
    "check_transforms",
    "leaf_arrays",
    "make_env",
    "make_gymnasium_env",
]

gymnasium.register("torchppo/Recall-v0", entry_point=f"{__name__}.recall:Recall")
