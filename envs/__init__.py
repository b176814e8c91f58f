"""What an environment is here: anything steppable, as one batched TorchRL environment."""

import gymnasium

from .arrays import ALL, StepArrays, leaves
from .batched import EPISODE, batched
from .halves import HalvesVectorEnv
from .make import make_env, make_vector_env
from .serial import SerialVectorEnv
from .vector import VectorEnv
from .workers import WorkerVectorEnv

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
