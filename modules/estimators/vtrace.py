"""V-trace with the log-probabilities of the actions taken."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from tensordict import TensorDictBase
from tensordict.nn import dispatch
from torch import Tensor
from torchrl.objectives import value
from torchrl.objectives.value import advantages

from ..features.extractor import memory_keys


class VTrace(value.VTrace):
    """V-trace (Espeholt et al. 2018, equations 1 and 2), with the arguments of TorchRL's `VTrace`.

    The importance weights are pi / mu. TorchRL 0.14.1 samples a new action for pi; this class uses the action taken:

        v(t) - V(t) = delta(t) + gamma c(t) (v(t+1) - V(t+1)),  delta(t) = rho(t) (r(t) + gamma V(t+1) - V(t))
        advantage(t) = rho(t) (r(t) + gamma v(t+1) - V(t)),  rho = min(rho_thresh, pi / mu),  c = min(c_thresh, pi / mu)

    In the first epoch of an update, pi = mu and the targets equal those of TD(1). In later epochs, they differ with
    `update.recompute_advantage=true`. The recurrent states of a policy with memory are recomputed from the first step
    of the rollout.

    Args:
        gamma: discount factor.
        actor_network: the policy; its `get_dist` returns a distribution for a rollout.
        value_network: writes `state_value`; `None` reads the values in the rollout.
        rho_thresh: limit of the weights of the errors.
        c_thresh: limit of the weights of the traces.
        kwargs: further arguments of TorchRL's class.

    """

    def __init__(
        self,
        *,
        gamma: float,
        actor_network: Any,
        value_network: Any = None,
        rho_thresh: float = 1.0,
        c_thresh: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            gamma=gamma,
            actor_network=actor_network,
            value_network=value_network,
            rho_thresh=rho_thresh,
            c_thresh=c_thresh,
            **kwargs,
        )

    @dispatch  # type: ignore[untyped-decorator]
    def forward(self, tensordict: TensorDictBase, **kwargs: Any) -> TensorDictBase:
        """Write `advantage` and `value_target` of a rollout `[num_envs, time]`."""
        with log_prob_in_torchrl(self._log_prob(tensordict)):
            result: TensorDictBase = super().forward(tensordict, **kwargs)
        return result

    @torch.no_grad()
    def _log_prob(self, rollout: TensorDictBase) -> Tensor:
        """Return the log-probability of the actions taken, `[num_envs, time]`."""
        data = rollout.select(*self.actor_network.in_keys, strict=False)
        memories = memory_keys(self.actor_network)
        if memories:  # a sequence begins with the state before its first step
            data.batch_size = data.batch_size[:1]
            data.update({key: rollout[key][:, 0] for key in memories})
        sample_key = self.actor_network.dist_sample_keys[0]
        log_prob: Tensor = self.actor_network.get_dist(data).log_prob(rollout[sample_key])
        return log_prob


@contextmanager
def log_prob_in_torchrl(log_prob: Tensor) -> Iterator[None]:
    """Make TorchRL's `VTrace` use `log_prob`. Replaces a private function of TorchRL 0.14.1."""
    original = advantages._call_actor_net
    advantages._call_actor_net = lambda **_: log_prob
    try:
        yield
    finally:
        advantages._call_actor_net = original
