"""What an environment is here: anything steppable, as one batched TorchRL environment."""

from .make import make_env, make_vector_env
from .serial import ALL, SerialVectorEnv
from .vector import VectorEnv
from .workers import WorkerVectorEnv

__all__ = ["ALL", "SerialVectorEnv", "VectorEnv", "WorkerVectorEnv", "make_env", "make_vector_env"]
