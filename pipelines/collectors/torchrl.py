"""Rollouts of any TorchRL environment, stepped through TensorDicts."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.data import Unbounded
from torchrl.envs import Compose, EnvBase, InitTracker, TensorDictPrimer, TransformedEnv

from ...modules.features.extractor import recurrent_state_shapes
from ..step_factory import Compile
from .policy_step import device_of, graph_of


class TensorDictStep:
    """Calls a policy on a TensorDict; as a graph, which sees what the policy declares to read and write, and no more.

    Args:
        policy: reads and writes entries of it.
        compile: see `PolicyStep`.
        home: the device of the TensorDicts; the policy may be on another.

    """

    def __init__(self, policy: TensorDictModuleBase, *, compile: Compile, home: torch.device | None) -> None:  # noqa: A002
        """Choose the way to call the policy."""
        self.policy = policy
        self.seconds = 0.0
        self._home = home or torch.device("cpu")
        self._written = [key for key in policy.out_keys if key != "_"]  # TensorDict's name for what is not kept
        self._graph = graph_of(self._outputs, compile)

    def refresh(self) -> None:
        """Take note that the policy has learned."""
        if self._graph is not None:
            self._graph.refresh()

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        """The TensorDict with what the policy writes; the same one, or where the policy is elsewhere another."""
        start = time.perf_counter()
        there = device_of(self.policy)
        acted = self._act(tensordict if there == self._home else tensordict.to(there))
        acted = acted if there == self._home else acted.to(self._home)
        self.seconds += time.perf_counter() - start
        return acted

    def _act(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self._graph is None:
            written: TensorDictBase = self.policy(tensordict)
            return written
        self._batch_size = tensordict.batch_size
        read = tensordict.select(*self.policy.in_keys, strict=False).items(include_nested=True, leaves_only=True)
        # Contiguous: TorchRL's partial resets, and environments, change strides from step to step.
        outputs = self._graph({key: tensor.contiguous() for key, tensor in read})
        for key, output in zip(self._written, outputs, strict=True):
            tensordict[key] = output
        return tensordict

    def _outputs(self, given: dict[NestedKey, Tensor]) -> list[Tensor]:
        written = self.policy(TensorDict(given, self._batch_size))
        return [written[key].contiguous() for key in self._written]


def steps(act: TensorDictStep, env: EnvBase) -> Iterator[TensorDictBase]:
    """Steps of a batched environment, without end: each a TensorDict `[num_envs]` with its `next`.

    Without what TorchRL's own collectors do at every step for cases that do not arise here (devices, trajectory
    identities, resets in mid-episode), which doubles the cost.
    """
    carrier = env.reset()
    carrier["is_init"] = torch.ones_like(carrier["done"])
    carried = {key: torch.zeros(*env.batch_size, *shape) for key, shape in recurrent_state_shapes(act.policy).items()}
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
        carried = {key: Unbounded((*env.batch_size, *shape)) for key, shape in recurrent_state_shapes(policy).items()}
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
