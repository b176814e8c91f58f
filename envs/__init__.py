"""What an environment is here: anything steppable, as one batched TorchRL environment."""

from .make import make_env, make_vector_env
from .serial import SerialVectorEnv
from .vector import VectorEnv

__all__ = ["SerialVectorEnv", "VectorEnv", "make_env", "make_vector_env"]
