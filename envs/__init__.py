"""What an environment is here: anything steppable, as one batched TorchRL environment."""

import gymnasium

from .make import make_env, make_vector_env
from .spaces.specs import ALL, StepArrays, leaves
from .torchrl import EPISODE, batched
from .vector.atari import HalvesVectorEnv
from .vector.serial import SerialVectorEnv
from .vector.subprocess import WorkerVectorEnv
from .vector_env import VectorEnv

__all__ = [
    "ALL",
    "EPISODE",
    "HalvesVectorEnv",
    "SerialVectorEnv",
    "StepArrays",
    "VectorEnv",
    "WorkerVectorEnv",
    "batched",
    "leaves",
    "make_env",
    "make_vector_env",
]

gymnasium.register("torchppo/Recall-v0", entry_point=f"{__name__}.recall:Recall")
