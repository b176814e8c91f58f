"""Collects rollouts of any TorchRL environment, which is stepped through TensorDicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from tensordict.nn import TensorDictModuleBase
from torch import Tensor
from torchrl.envs import EnvBase

from ...envs.failures import environment_failure, is_from_environment
from ...modules.features.extractor import recurrent_state_shapes
from ..step_factory import Compile, device_of, make_policy_step


class TensorDictStep:
    """Calls a policy on TensorDicts. A graph reads only `in_keys` and writes only `out_keys` of the policy.

    Args:
        policy: reads and writes entries of the TensorDict.
        env_device: device of the TensorDicts; the policy may be on another one.
        compile: how the policy step runs.
        num_steps: expected number of calls, for `compile="auto"`.

    """

    def __init__(
        self,
        policy: TensorDictModuleBase,
        env_device: torch.device | None,
        *,
        compile: Compile,  # noqa: A002
        num_steps: float,
    ) -> None:
        self.policy = policy
        self.seconds = 0.0
        self._env_device = env_device or torch.device("cpu")
        self._out_keys = [key for key in policy.out_keys if key != "_"]  # TensorDict discards the key "_"
        step = make_policy_step(self._outputs, policy, compile, num_steps)
        self._graph = None if step == self._outputs else step

    def refresh(self) -> None:
        """Refresh the cached casts of a graph after an update."""
        if self._graph is not None:
            self._graph.refresh()  # type: ignore[attr-defined]

    def __call__(self, tensordict: TensorDictBase) -> TensorDictBase:
        """Return the TensorDict with the policy's outputs: the same object if the devices are the same."""
        start = time.perf_counter()
        device = device_of(self.policy)
        acted = self._act(tensordict if device == self._env_device else tensordict.to(device))
        acted = acted if device == self._env_device else acted.to(self._env_device)
        self.seconds += time.perf_counter() - start
        return acted

    def _act(self, tensordict: TensorDictBase) -> TensorDictBase:
        if self._graph is None:
            acted: TensorDictBase = self.policy(tensordict)
            return acted
        self._batch_size = tensordict.batch_size
        inputs = tensordict.select(*self.policy.in_keys, strict=False).items(include_nested=True, leaves_only=True)
        # Contiguous, because environments and TorchRL's partial resets change strides from step to step.
        outputs = self._graph({key: tensor.contiguous() for key, tensor in inputs})
        for key, output in zip(self._out_keys, outputs, strict=True):
            tensordict[key] = output
        return tensordict

    def _outputs(self, inputs: Mapping[NestedKey, Tensor]) -> list[Tensor]:
        acted = self.policy(TensorDict(dict(inputs), self._batch_size))
        return [acted[key].contiguous() for key in self._out_keys]


def steps(act: TensorDictStep, env: EnvBase) -> Iterator[TensorDictBase]:
    """Step a batched environment endlessly; yield TensorDicts `[num_envs]` with their `next`.

    TorchRL's own collectors handle further cases at every step (devices, trajectory ids, resets within an episode),
    which doubles the cost.
    """
    current = _calling(env, env.reset)
    current["is_init"] = torch.ones_like(current["done"])
    shapes = recurrent_state_shapes(act.policy)
    states = {key: torch.zeros(*env.batch_size, *shape) for key, shape in shapes.items()}
    while True:
        acted = act(current.update(states))
        states = {key: acted["next", key] for key in states}
        step, current = _calling(env, env.step_and_maybe_reset, acted)
        current["is_init"] = step["next", "done"]
        yield step


def _calling(env: EnvBase, method: Callable[..., Any], *arguments: Any) -> Any:
    """Call a method of an environment. Its exceptions become an EnvironmentFailure."""
    try:
        return method(*arguments)
    except BaseException as error:
        if not is_from_environment(error):
            raise
        raise environment_failure(f"{env.__class__.__name__} failed", error) from None


class TorchRLRollouts:
    """Steps any batched TorchRL environment with a policy.

    Args:
        num_steps: length of a rollout.
        compile: how the policy step runs.
        num_policy_steps: expected number of policy steps, for `compile="auto"`.

    """

    def __init__(
        self,
        env: EnvBase,
        policy: TensorDictModuleBase,
        num_steps: int,
        *,
        compile: Compile = False,  # noqa: A002
        num_policy_steps: float = 0,
    ) -> None:
        self._num_steps = num_steps
        self._act = TensorDictStep(policy, env.device, compile=compile, num_steps=num_policy_steps)
        self._env = env
        self._steps: Iterator[TensorDictBase] | None = steps(self._act, env)
        self._seconds = 0.0

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds spent in the policy, and in the environment with its transforms."""
        return {"environment": self._seconds - self._act.seconds, "policy": self._act.seconds}

    def restart(self) -> None:
        """Let the next rollout begin with a reset."""
        self._steps = None

    def __call__(self) -> TensorDictBase:
        """Collect the next rollout, `[num_envs, time]`."""
        self._act.refresh()
        start = time.perf_counter()
        iterator, self._steps = self._steps, None
        if iterator is None:  # after `restart`, or after a rollout that was interrupted
            iterator = steps(self._act, self._env)
        rollout = list(islice(iterator, self._num_steps))
        self._steps = iterator
        self._seconds += time.perf_counter() - start
        return torch.stack(rollout, dim=-1)
