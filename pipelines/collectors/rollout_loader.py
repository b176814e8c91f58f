"""Wraps TorchRL's collectors as dataloaders for training."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from tensordict import TensorDictBase
from torch import nn
from torchrl.collectors import BaseCollector

from ...errors import ConfigurationError
from ..step_factory import device_of
from .collector import SizedRollouts
from .rollout_buffer import require_finite
from .rollouts import seed_at


class RolloutLoader(SizedRollouts):
    """Wraps a TorchRL collector as the `train_dataloaders` of a Trainer.

    TorchRL's `Collector` and `MultiSyncCollector` are supported, with any options that return whole rollouts. The
    collector receives the current weights before each rollout. It is shut down with its worker processes when the
    iteration ends, after an error or Ctrl-C, and at the latest when Python exits. A training that continues begins new
    episodes.

    The environments must write `episode_reward` and `step_count`, which `torchppo.batched` adds. Recurrent policies and
    normalized rewards also need `is_init`, which `torchrl.envs.InitTracker` adds.

    Args:
        collector: a `Collector` or `MultiSyncCollector` of TorchRL.
        total_frames: environment steps of the training over all ranks; `None` uses the collector's own.

    Raises:
        ConfigurationError: if the number of frames is unlimited, or, while iterating, if the collector is shut down,
            ends too early, does not return a rollout, or has its policy on another device than Lightning.

    """

    def __init__(self, collector: BaseCollector, total_frames: int | None = None) -> None:
        frames = collector.total_frames if total_frames is None else total_frames
        if not 0 < frames < float("inf"):
            raise ConfigurationError(f"total_frames={frames} must be at least 1; set it in the collector or loader")
        if getattr(collector, "cat_results", None) not in (None, "stack"):
            raise ConfigurationError(
                f"cat_results={collector.cat_results} joins the rollouts of workers; create the collector with "
                'cat_results="stack"'
            )
        super().__init__(collector.requested_frames_per_batch, int(frames))
        self.collector = collector
        self.env = getattr(collector, "env", None)  # worker processes have their own
        self._iterator: Iterator[TensorDictBase | None] = iter(())
        self.shutdown = weakref.finalize(self, _shut_down, collector)

    def __iter__(self) -> Iterator[TensorDictBase]:
        if not self.shutdown.alive:
            raise ConfigurationError("TorchRL's collector has been shut down; make a new one for another training")
        self._check_device()
        if self._is_resumed:
            self.collector.set_seed(seed_at(torch.initial_seed(), self._frames))
            self.collector.reset()
        self._iterator = iter(self.collector)
        try:
            yield from super().__iter__()
        finally:
            self.shutdown()

    def _check_device(self) -> None:
        """Raise a ConfigurationError if Lightning has moved the policy after the collector was made."""
        policy, collector = getattr(self.collector, "policy", None), self.collector
        if self.env is None or not isinstance(policy, nn.Module):
            return
        found, expected = device_of(policy), collector.policy_device or self.env.device or torch.device("cpu")
        if found.type != expected.type:
            raise ConfigurationError(
                f"TorchRL's collector passes observations on {expected} to a policy on {found}; set "
                "trainer.accelerator=cpu, or use collector=vector"
            )

    def _collect(self) -> TensorDictBase:
        self.collector.update_policy_weights_()
        try:
            return require_finite(as_rollout(next(self._iterator)))
        except StopIteration:
            raise ConfigurationError(
                f"TorchRL's collector ended after its total_frames={self.collector.total_frames}, before the "
                f"training ({self.total_frames}); increase the total_frames of the collector"
            ) from None
        except KeyError as error:
            if "is_init" not in str(error):
                raise
            raise ConfigurationError(
                "the policy reads is_init, which the environment does not write; add the transform "
                "torchrl.envs.InitTracker to the environment"
            ) from error


def as_rollout(data: TensorDictBase | None) -> TensorDictBase:
    """Convert the output of a TorchRL collector to a rollout `[num_envs, time]`.

    Args:
        data: `[time]`, `[num_envs, time]` or `[num_workers, num_envs, time]`.

    """
    if data is None or ("collector", "mask") in data.keys(include_nested=True):
        problem = "nothing, because it fills a replay buffer" if data is None else "trajectories with padding"
        raise ConfigurationError(
            f"TorchRL's collector returned {problem}; remove its options replay_buffer, split_trajs, trajs_per_batch "
            "and preemptive_threshold"
        )
    return data.reshape(-1, data.shape[-1])


def _shut_down(collector: Any) -> None:
    collector.shutdown(raise_on_error=False)
