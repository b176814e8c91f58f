"""Natural policy gradient with a limit on the KL divergence (TRPO, NPG)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from tensordict import TensorDictBase
from torch import Tensor
from torchrl.modules import set_recurrent_mode
from torchrl.objectives import KLPENPPOLoss

from ...errors import ConfigurationError
from ..advantages import RolloutBatch
from ..distributed import normalized
from .minibatch import MinibatchUpdate, means
from .param_groups import policy_parameters
from .policy_surrogate import PolicySurrogate, flat, twice_differentiable
from .update import Learner


class NaturalGradientUpdate(MinibatchUpdate):
    """One natural gradient step of the policy on the whole rollout, then epochs of minibatches of the critic.

    The step direction x solves (F + damping I) x = g, where g is the gradient of the objective's policy losses and F
    the Fisher information matrix of the policy. The step is scaled so that x^T (F + damping I) x / 2 is `target_kl`.
    The line search shortens it until the mean KL(old || new) is at most `target_kl` and the policy losses are smaller
    than before. If no step length satisfies both, the policy does not change.

    All ratios are 1 at the start, so the clipped and the unclipped objective have the same step direction. The
    optimizer and its learning rate are those of the critic.

    Source: Schulman et al. 2015, "Trust region policy optimization", section 6 and appendix C. Without a line search:
    Kakade 2001, "A natural policy gradient", with the step length of Rajeswaran et al. 2017, eq. 5.

    Args:
        target_kl: largest mean KL divergence of the step, in nats (delta).
        cg_steps: steps of the conjugate gradient method.
        damping: added to the diagonal of the Fisher matrix.
        line_search_steps: largest number of step lengths that are tried; 0 always takes the whole step (NPG).
        backtrack: ratio of a step length to the one before it.
        epochs: passes of the critic over a rollout.
        critic_epochs: replaces `epochs`, as in `MinibatchUpdate`; `None` means `epochs`.
        minibatch_size: frames in a minibatch of the critic on each rank; must divide the rollout.
        sequence_length: see `MinibatchUpdate`.

    Raises:
        ConfigurationError: if a value is out of range.

    """

    def __init__(
        self,
        target_kl: float = 0.01,
        *,
        cg_steps: int = 15,
        damping: float = 0.1,
        line_search_steps: int = 10,
        backtrack: float = 0.8,
        epochs: int = 10,
        critic_epochs: int | None = None,
        minibatch_size: int = 128,
        sequence_length: int | None = None,
    ) -> None:
        is_valid = {
            f"update.target_kl={'null' if target_kl is None else target_kl} must be a number above 0; 0.01 is usual": (
                target_kl is not None and target_kl > 0
            ),
            f"update.cg_steps={cg_steps} must be at least 1": cg_steps >= 1,
            f"update.damping={damping} must not be negative": damping >= 0,
            f"update.line_search_steps={line_search_steps} must not be negative": line_search_steps >= 0,
            f"update.backtrack={backtrack} must be between 0 and 1": 0 < backtrack < 1,
        }
        for message, is_true in is_valid.items():
            if not is_true:
                raise ConfigurationError(message)
        super().__init__(epochs, minibatch_size, critic_epochs=critic_epochs, sequence_length=sequence_length)
        self.epochs = self.critic_epochs
        self.target_kl = target_kl
        self.cg_steps = cg_steps
        self.damping = damping
        self.line_search_steps = line_search_steps
        self.backtrack = backtrack
        self.freezes = True

    def setup(self, learner: Learner) -> None:
        """Find the parameters of the policy.

        Raises:
            ConfigurationError: if policy and critic share parameters, which the epochs of the critic would change, or
                if there is a symmetry, which the step of the policy does not use, or the objective changes its
                weight at every evaluation of the line search.

        """
        super().setup(learner)
        if type(learner.objective) is KLPENPPOLoss:
            raise ConfigurationError(
                "update=natural_gradient does not work with TorchRL's KLPENPPOLoss; use torchppo.KLPENPPOLoss"
            )
        if learner.symmetry is not None:
            raise ConfigurationError("update=natural_gradient does not use the symmetry for the policy; remove it")
        actor, critic = learner.objective.actor_network, learner.objective.critic_network
        policy, valued = policy_parameters(actor), {*critic.parameters()}  # type: ignore[union-attr]
        if policy & valued:
            raise ConfigurationError(
                "update=natural_gradient needs separate networks for policy and critic, because training the critic "
                "must not change the policy; set policy.shared=false"
            )
        self._params = [param for param in learner.objective.parameters() if param in policy and param.requires_grad]

    @set_recurrent_mode(True)  # type: ignore[untyped-decorator] # of TorchRL's LSTMModule and GRUModule
    def __call__(self, batch: RolloutBatch) -> dict[str, float]:
        """Train on one rollout.

        Returns:
            The means of all metrics over the steps of the critic, their number `num_steps`, and of the step of the
            policy: `kl`, the mean KL(old || new) over all states; `loss_improvement`, the decrease of the policy
            losses; and `step_fraction`, the fraction of the step that was taken.

        """
        learner = self.learner
        results = {}
        if learner.set_trainable(policy=True, critic=False):
            with torch.autocast(batch.rows["advantage"].device.type, enabled=False), twice_differentiable():
                results = self._policy_step(batch.rows)
            for hook in learner.after_step:
                hook()
        learner.set_trainable(policy=False, critic=True)
        metrics: list[Mapping[str, Tensor]] = []
        for _ in range(self.epochs):
            self._run_epoch(batch.rows, metrics, *self._draw(batch.rows, 1))
        learner.set_trainable(policy=True, critic=True)
        of_critic = means(metrics)
        if results:  # the policy has changed before the first step of the critic
            of_critic.pop("first_kl", None)
        return {**of_critic, **results}

    def _policy_step(self, rows: TensorDictBase) -> dict[str, float]:
        """Take the step of the policy, and return its metrics."""
        if self.learner.normalize_advantage == "minibatch":  # the rollout is the minibatch
            rows = rows.copy().set("advantage", normalized(rows["advantage"].unsqueeze(0)).squeeze(0))
        surrogate = PolicySurrogate(self.learner, rows, self._params)
        loss, gradient = surrogate.loss_and_gradient()
        self.learner.skipped.add({"grad_norm": gradient.norm()})
        results = {"kl": 0.0, "loss_improvement": 0.0, "step_fraction": 0.0}
        step = torch.zeros_like(gradient)
        if gradient.isfinite().all() and gradient.any():
            product = surrogate.fisher_product(self.damping)
            direction = conjugate_gradient(product, -gradient, self.cg_steps)
            length = (2 * self.target_kl / torch.dot(direction, product(direction))).sqrt()
            step = length * direction
        if not (step.isfinite().all() and step.any()):
            return results
        start = flat([param.detach() for param in self._params])
        for index in range(max(1, self.line_search_steps)):
            fraction = self.backtrack**index
            surrogate.set_parameters(start + fraction * step)
            new_loss, kl = surrogate.loss_and_kl()
            if self.line_search_steps == 0 or (new_loss < loss and kl <= self.target_kl):
                return {"kl": kl, "loss_improvement": loss - new_loss, "step_fraction": fraction}
        surrogate.set_parameters(start)
        return results


def conjugate_gradient(product: Callable[[Tensor], Tensor], target: Tensor, num_steps: int) -> Tensor:
    """Solve A x = target for a symmetric positive definite matrix A.

    Source: Hestenes and Stiefel 1952.

    Args:
        product: computes A v from v.
        target: right-hand side, `[n]`.
        num_steps: largest number of products. It ends earlier if the norm of the residual is 1e-5 of the target.

    Returns:
        The approximate solution x, `[n]`.

    """
    solution = torch.zeros_like(target)
    residual, direction = target.clone(), target.clone()
    squared = torch.dot(residual, residual)
    limit = 1e-10 * squared
    for _ in range(num_steps):
        if not squared > limit:
            break
        image = product(direction)
        length = squared / torch.dot(direction, image)
        solution += length * direction
        residual -= length * image
        squared, previous = torch.dot(residual, residual), squared
        direction = residual + squared / previous * direction
    return solution
