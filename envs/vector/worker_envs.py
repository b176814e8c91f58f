"""The environments of a worker process, and its random generators."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ..resume.plain_data import load_random_state, save_random_state
from .serial import SerialVectorEnv


class WorkerEnvs(SerialVectorEnv):
    """The environments of a worker. The state of the first one includes the global random generators of the process."""

    def env_states(self) -> list[Any]:
        first, *others = super().env_states()
        return [{"state": first, "random": save_random_state()}, *others]

    def load_env_states(self, states: Sequence[Any]) -> None:
        super().load_env_states(states)
        if isinstance(states[0], dict):
            load_random_state(states[0]["random"])


def seed_worker(first_env: int) -> None:
    """Seed the global random generators, each from the state that NumPy or PyTorch had in the parent process.

    Otherwise the generators of NumPy and PyTorch would return the same numbers in every worker, and those of Python
    would differ between runs, because Python seeds it anew in a forked process.
    """
    random.seed(f"{first_env} {np.random.get_state(legacy=False)}")
    np.random.seed([first_env, *np.random.randint(2**32, size=4, dtype=np.uint32)])
    torch.manual_seed(first_env + int(torch.randint(2**62, ())))
