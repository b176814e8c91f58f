"""Components that do not work together. Without these checks, a constructor or the first update would fail later."""

from __future__ import annotations

from typing import Any

SET = object()
"""Stands for any value except `null`."""

BUILT_IN_POLICY = "torchppo.modules.actor_critic.make_actor_critic"
DEFAULT_CRITIC = "torchppo.modules.heads.value_heads.SquaredErrorValue"
NATURAL_GRADIENT = "torchppo.pipelines.updates.natural_gradient.NaturalGradientUpdate"
MINIBATCHES = (
    "torchppo.pipelines.updates.minibatch.MinibatchUpdate",
    "torchppo.pipelines.updates.phasic.PhasicUpdate",
)
TRUST_REGIONS = (
    "torchppo.modules.trust_region.frobenius.FrobeniusTrustRegion",
    "torchppo.modules.trust_region.kl.KLTrustRegion",
    "torchppo.modules.trust_region.wasserstein.WassersteinTrustRegion",
)

REFUSED: tuple[tuple[str, dict[str, tuple[Any, ...]]], ...] = (
    (
        "trust_region has no projection of head=beta; use head=gaussian, or trust_region=none",
        {"trust_region._target_": TRUST_REGIONS, "policy.head._target_": ("torchppo.modules.heads.continuous.beta",)},
    ),
    (
        "trust_region does not work with ppo.symmetry.augment=true, because the distribution at collection is not "
        "mirrored; use trust_region=none, or ppo.symmetry.augment=false with ppo.symmetry.mirror_coeff above 0",
        {"trust_region._target_": TRUST_REGIONS, "ppo.symmetry.augment": (True,)},
    ),
    (
        "update=natural_gradient needs separate networks for policy and critic, because training the critic must not "
        "change the policy; set policy.shared=false",
        {"update._target_": (NATURAL_GRADIENT,), "policy._target_": (BUILT_IN_POLICY,), "policy.shared": (True,)},
    ),
    (
        "update=natural_gradient does not work with objective=torchrl_kl_penalty, which changes its weight at every "
        "evaluation of the line search; use objective=kl_penalty or torchrl_ppo",
        {"update._target_": (NATURAL_GRADIENT,), "objective._target_": ("torchrl.objectives.KLPENPPOLoss",)},
    ),
    (
        "update=natural_gradient does not use the symmetry for the policy; set symmetry=none, or use update=minibatch",
        {"update._target_": (NATURAL_GRADIENT,), "ppo.symmetry": (SET,)},
    ),
    (
        "controller.lr=kl_adaptive has no effect on the KL divergence of update=natural_gradient, whose learning rate "
        "is that of the critic; set controller@controller.lr=constant",
        {
            "update._target_": (NATURAL_GRADIENT,),
            "controller.lr._target_": ("torchppo.modules.adaptive_controllers.KLAdaptive",),
        },
    ),
    (
        "update.target_kl has no effect with objective=espo, which has its own stopping rule; set "
        "update.target_kl=null",
        {
            "update._target_": MINIBATCHES,
            "update.target_kl": (SET,),
            "objective._target_": ("torchppo.modules.objectives.espo.ESPOLoss",),
        },
    ),
    (
        "update.target_kl needs an objective that returns a KL divergence, not objective=a2c or reinforce; set "
        "update.target_kl=null",
        {
            "update._target_": MINIBATCHES,
            "update.target_kl": (SET,),
            "objective._target_": ("torchrl.objectives.A2CLoss", "torchrl.objectives.ReinforceLoss"),
        },
    ),
    (
        "critic=quadratic_advantage does not work with update=ppg, whose auxiliary phase replaces the distributions at "
        "collection; use another critic, such as critic=mse, or update=minibatch",
        {
            "update._target_": MINIBATCHES[1:],
            "critic.head._target_": ("torchppo.modules.heads.quadratic_advantage.QuadraticAdvantageValue",),
        },
    ),
)
"""Messages, and the values of keys that are refused if they occur together."""
