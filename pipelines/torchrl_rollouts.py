"""Rollouts of any TorchRL environment, stepped through TensorDicts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torchrl.data import Unbounded
from torchrl.envs import Compose, EnvBase, InitTracker, TensorDictPrimer, TransformedEnv

from ..modules.features.extractor import carried_by
from .graphs import Compile
from .policy_step import TensorDictStep


def steps(act: TensorDictStep, env: EnvBase) -> Iterator[TensorDictBase]:
    """Steps of a batched environment, without end: each a TensorDict `[num_envs]` with its `next`.

    Without what TorchRL's own collectors do at every step for cases that do not arise here (devices, trajectory
    identities, resets in mid-episode), which doubles the cost.
    """
    carrier = env.reset()
    carrier["is_init"] = torch.ones_like(carrier["done"])
    carried = {key: torch.zeros(*env.batch_size, *shape) for key, shape in carried_by(act.policy).items()}
    while True:
        acted = act(carrier.update(carried))
        carried = {key: acted["next", key] for key in carried}
        stepped, carrier = env.step_and_maybe_reset(acted)
        carrier["is_init"] = stepped["next", "done"]
        yield stepped


class SteppedRollouts:
    """Steps an environment with a policy.

    Args:
        env: a batched environment.
        policy: reads observations, writes `action`.
        num_steps: length of a rollout.
        compile: whether the policy's step is a graph, compiled (true) or run as it was traced (`"trace"`).

    """

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        num_steps: int,
        *,
        compile: Compile = False,  # noqa: A002
    ) -> None:
        """Nothing is stepped yet."""
        self._num_steps = num_steps
        self._act = TensorDictStep(policy, compile=compile, home=env.device)
        self._env = env
        self._steps: Iterator[TensorDictBase] | None = steps(self._act, env)
        self._seconds = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """What the policy took, and the environment with its transforms."""
        return {"environment": self._seconds - self._act.seconds, "policy": self._act.seconds}

    def __call__(self) -> TensorDictBase:
        """The next rollout, `[num_envs, time]`."""
        self._act.refresh()
        start = time.perf_counter()
        going, self._steps = self._steps, None
        if going is None:  # the last one was broken off
            going = steps(self._act, self._env)
        stepped = list(islice(going, self._num_steps))
        self._steps = going
        self._seconds += time.perf_counter() - start
        return torch.stack(stepped, dim=-1)


class CollectedRollouts:
    """TorchRL's own collector, in this process.

    Args:
        env: a batched environment.
        policy: reads observations, writes `action`.
        num_steps: length of a rollout.
        options: further ones for `torchrl.collectors.Collector`.

    """

    def __init__(self, env: EnvBase, policy: TensorDictModuleBase, num_steps: int, **options: Any) -> None:
        """Nothing is stepped yet."""
        from torchrl.collectors import Collector

        self.seconds: dict[str, float] = {}
        frames = env.batch_size.numel() * num_steps
        carried = {key: Unbounded((*env.batch_size, *shape)) for key, shape in carried_by(policy).items()}
        primers = [TensorDictPrimer(primers=carried, expand_specs=False)] if carried else []
        tracked = TransformedEnv(env, Compose(InitTracker(), *primers))
        collector = Collector(tracked, policy, frames_per_batch=frames, total_frames=-1, trust_policy=True, **options)
        self._collector = collector
        self._rollouts: Iterator[TensorDictBase] | None = iter(collector)

    def __call__(self) -> TensorDictBase:
        """The next rollout, `[num_envs, time]`."""
        going, self._rollouts = self._rollouts, None
        if going is None:  # the last one was broken off
            self._collector.reset()
            going = iter(self._collector)
        rollout = next(going)
        self._rollouts = going
        return rollout
