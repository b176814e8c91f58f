"""Minibatches with an auxiliary phase after every few rollouts (phasic policy gradient)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from tensordict import NestedKey, TensorDict, TensorDictBase
from torch import Tensor, nn
from torchrl.modules import set_recurrent_mode

from ...errors import ConfigurationError
from ...modules.actor_critic import value_heads
from ..advantages import RolloutBatch, compare_with_collection
from ..distributed import averaged, gathered, num_ranks, rank
from .eager_step import total_loss
from .minibatch import MinibatchUpdate, means
from .param_groups import submodules
from .policy_surrogate import flat, split_like
from .update import Learner


class PhasicUpdate(MinibatchUpdate):
    """Epochs of minibatches, and after every `num_rollouts` rollouts an auxiliary phase on all of them (PPG).

    The auxiliary phase trains the features of the policy to predict the value targets, and keeps the action
    distribution close to that before the phase. It minimizes
    (V_aux - target)^2 / 2 + beta_clone KL(pi_old || pi) + the losses of the critic. V_aux is a linear function of the
    features that the action head reads, and pi_old the policy before the phase. V_aux is used only here. The
    phase has its own optimizer for policy, critic and V_aux, and always runs eagerly and in float32.

    Source: Cobbe et al. 2020, "Phasic policy gradient", algorithm 1.

    Args:
        epochs: passes over each rollout (E_pi).
        minibatch_size: frames in a minibatch on each rank, in both phases; must divide the rollout.
        num_rollouts: rollouts between two auxiliary phases (N_pi). They are kept in memory and in checkpoints.
        auxiliary_epochs: passes over these rollouts (E_aux).
        beta_clone: weight of the KL divergence.
        auxiliary_lr: learning rate of the auxiliary phase; its optimizer is Adam.
        options: see `MinibatchUpdate`.

    Raises:
        ConfigurationError: if a value is out of range.

    """

    def __init__(
        self,
        epochs: int = 1,
        minibatch_size: int = 256,
        *,
        num_rollouts: int = 32,
        auxiliary_epochs: int = 6,
        beta_clone: float = 1.0,
        auxiliary_lr: float = 5e-4,
        **options: Any,
    ) -> None:
        for key, count in (("num_rollouts", num_rollouts), ("auxiliary_epochs", auxiliary_epochs)):
            if count < 1:
                raise ConfigurationError(f"update.{key}={count} must be at least 1")
        for key, value in (("beta_clone", beta_clone), ("auxiliary_lr", auxiliary_lr)):
            if value < 0:
                raise ConfigurationError(f"update.{key}={value} must not be negative")
        super().__init__(epochs, minibatch_size, **options)
        self.num_rollouts = num_rollouts
        self.auxiliary_epochs = auxiliary_epochs
        self.beta_clone = beta_clone
        self.auxiliary_lr = auxiliary_lr
        self.freezes = True
        self._rollouts: list[TensorDictBase] = []
        self._saved: Mapping[str, Any] = {}  # head and optimizer, until the first auxiliary phase
        self._head: nn.Linear | None = None

    def setup(self, learner: Learner) -> None:
        """Find the features that the action head reads.

        Raises:
            ConfigurationError: if the action head reads the observation itself, or the critic needs the distribution
                at collection, which the auxiliary phase replaces.

        """
        super().setup(learner)
        critic: Any = learner.objective.critic_network
        if any(head.collected_keys for head in value_heads(critic)):
            raise ConfigurationError("update=ppg does not work with critic=quadratic_advantage; use another critic")
        if self._head is not None:  # of an earlier training
            self._saved, self._head = self._own_state(), None
        actor: Any = learner.objective.actor_network
        heads = [module for part in actor.module[:-1] for module in submodules(part)]
        head = next(one for one in reversed(heads) if {*actor.dist_params_keys} & {*one.out_keys})
        self._feature_key: NestedKey = head.in_keys[0]
        if self._feature_key in actor.in_keys:
            raise ConfigurationError(
                f"update=ppg needs a policy with features, but its action head reads {self._feature_key}; put the body "
                "and the head in two modules, or use update=minibatch"
            )

    @set_recurrent_mode(True)  # type: ignore[untyped-decorator] # of TorchRL's LSTMModule and GRUModule
    def __call__(self, batch: RolloutBatch) -> dict[str, float]:
        """Train on one rollout, and on all stored ones if there are `num_rollouts`.

        Returns:
            The metrics of `MinibatchUpdate`, and after an auxiliary phase the means over its steps: `auxiliary_value`
            and `auxiliary_kl`, the first two terms without `beta_clone`.

        """
        results = super().__call__(batch)
        if not self.learner.trains_policy:  # value pretraining
            return results
        self._rollouts.append(batch.rows.clone())  # rows may be views of a buffer of the collector
        if len(self._rollouts) >= self.num_rollouts:
            with torch.autocast(batch.rows["advantage"].device.type, enabled=False):
                results |= self._auxiliary_phase(batch.rows["advantage"].device)
            self._rollouts = []
        return results

    def _auxiliary_phase(self, device: torch.device) -> dict[str, float]:
        rows = torch.cat([rollout.to(device) for rollout in self._rollouts])
        self._store_policy(rows)
        metrics = []
        for _ in range(self.auxiliary_epochs):
            self.learner.set_trainable(policy=False, critic=True)  # total_loss contains the losses of the critic
            metrics += [self._auxiliary_step(rows[indices]) for indices in self._minibatches(rows)]
        self.learner.set_trainable(policy=True, critic=True)
        return {name: value for name, value in means(metrics).items() if name.startswith("auxiliary")}

    def _minibatches(self, rows: TensorDictBase) -> Iterator[Tensor]:
        frames_per_row = rows["advantage"].numel() // len(rows)
        order = torch.randperm(len(rows)).to(rows["advantage"].device)
        return iter(order.split(self.minibatch_size // frames_per_row))

    @torch.no_grad()
    def _store_policy(self, rows: TensorDictBase) -> None:
        """Replace distribution parameters, log-probabilities and values by those of the current networks."""
        actor: Any = self.learner.objective.actor_network
        critic: Any = self.learner.objective.critic_network
        for indices in self._minibatches(rows):
            data = rows[indices]
            distribution = actor.get_dist(data)
            for key in actor.dist_params_keys:
                rows[key][indices] = data[key]
            key = actor.log_prob_keys[0]
            rows[key][indices] = distribution.log_prob(data[actor.dist_sample_keys[0]])
            rows["state_value"][indices] = critic(rows[indices])["state_value"]

    def _auxiliary_step(self, rows: TensorDictBase) -> dict[str, Tensor]:
        compared = compare_with_collection(self.learner.objective.actor_network, rows)
        kl, features = compared.kl.mean(), compared.outputs[self._feature_key]
        if self._head is None:
            self._make_head(features)
        assert self._head is not None
        error = 0.5 * (self._head(features) - rows["value_target"]).square().mean()
        of_critic = total_loss(self.learner.objective(rows), self.learner.loss_weights)
        loss = error + self.beta_clone * kl + of_critic
        gradients = torch.autograd.grad(loss, self._params, allow_unused=True, materialize_grads=True)
        (gradient,) = averaged([flat(gradients)])
        metrics = {"grad_norm": gradient.norm(), "auxiliary_value": error.detach(), "auxiliary_kl": kl.detach()}
        self.learner.skipped.add(metrics)
        if metrics["grad_norm"].isfinite():
            for param, part in zip(self._params, split_like(gradient, self._params), strict=True):
                param.grad = part
            self._optimizer.step()
            for param in self._params:
                param.grad = None
            for hook in self.learner.after_step:
                hook()
        return metrics

    def _make_head(self, features: Tensor) -> None:
        """Make head and optimizer, with the state of a checkpoint if there is one."""
        # A random initialization would differ between ranks, and draw other random numbers after a restart.
        self._head = nn.utils.skip_init(nn.Linear, features.shape[-1], 1, device=features.device)
        for param in self._head.parameters():
            nn.init.zeros_(param)
        parameters = [param for param in self.learner.objective.parameters() if param.requires_grad]
        self._params: list[nn.Parameter] = [*parameters, *self._head.parameters()]
        self._optimizer = torch.optim.Adam(self._params, lr=self.auxiliary_lr)
        if self._saved:
            self._head.load_state_dict(self._saved["head"])
            self._optimizer.load_state_dict(self._saved["optimizer"])

    def _own_state(self) -> dict[str, Any]:
        assert self._head is not None
        return {"head": self._head.state_dict(), "optimizer": self._optimizer.state_dict()}

    def state_dict(self) -> dict[str, Any]:
        """Return head and optimizer of the auxiliary phase, and the stored rollouts of all ranks."""
        rollouts = [[(list(rows.shape), dict(rows.items(True, True))) for rows in self._rollouts]]
        return {**(self._saved if self._head is None else self._own_state()), "rollouts": gathered(rollouts)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`. If the number of ranks has changed, the stored rollouts are dropped."""
        self._head, self._saved = None, {key: value for key, value in state.items() if key != "rollouts"}
        is_same = len(state["rollouts"]) == num_ranks()
        own = state["rollouts"][rank()] if is_same else []
        self._rollouts = [TensorDict(tensors, shape) for shape, tensors in own]
