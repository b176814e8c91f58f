"""Parameters of the policy, of the critic, and of both."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torchrl.data import Categorical, Composite, Unbounded

from torchppo.errors import ConfigurationError
from torchppo.modules.actor_critic import make_actor_critic
from torchppo.modules.features.bodies import mlp
from torchppo.modules.features.recurrent import GRU
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.updates.minibatch import MinibatchUpdate
from torchppo.pipelines.updates.param_groups import (
    check_param_groups,
    make_param_groups,
    parameters_by_part,
    set_trainable,
)

Make = Callable[..., tuple[PPO, Collector]]


def make_objective(**options: Any) -> ClipPPOLoss:
    observation = Composite(observation=Unbounded((2, 3)), is_init=Unbounded((2, 1)), shape=(2,))
    return ClipPPOLoss(*make_actor_critic(observation, Categorical(4, (2,)), body=mlp, **options))


def names_by_part(objective: ClipPPOLoss) -> dict[str, set[str]]:
    names = {param: name for name, param in objective.named_parameters()}
    return {part: {names[param] for param in params} for part, params in parameters_by_part(objective).items()}


class TestParametersByPart:
    def test_separate_networks_have_no_shared_parameters(self) -> None:
        parts = names_by_part(make_objective())
        assert set(parts) == {"policy", "critic"}
        assert all(name.startswith("actor_network") for name in parts["policy"])
        assert all(name.startswith("critic_network") for name in parts["critic"])
        assert len(parts["policy"]) == len(parts["critic"]) == 6

    @pytest.mark.parametrize("memory", [None, partial(GRU, width=4)])
    def test_shared_feature_extractor_belongs_to_both(self, memory: Any) -> None:
        objective = make_objective(shared=True, memory=memory)
        parts = parameters_by_part(objective)
        assert {part: len(params) for part, params in parts.items() if part != "shared"} == {"policy": 2, "critic": 2}
        assert sum(map(len, parts.values())) == len(list(objective.parameters()))

    def test_critic_that_a_recurrent_actor_runs_is_not_part_of_the_policy(self) -> None:
        assert set(names_by_part(make_objective(memory=partial(GRU, width=4)))) == {"policy", "critic"}

    def test_parameter_that_neither_uses_is_shared(self) -> None:
        objective = make_objective()
        objective.unused = nn.Linear(1, 1)
        assert {*parameters_by_part(objective)["shared"]} == {*objective.unused.parameters()}


class TestParamGroups:
    def test_critic_has_its_own_options(self) -> None:
        optimizer = torch.optim.Adam(
            make_param_groups(make_objective(shared=True), {"lr": 0.5}, nn.ModuleDict()), lr=1e-3
        )
        groups = optimizer.param_groups
        assert {group["part"]: group["lr"] for group in groups} == {"shared": 1e-3, "policy": 1e-3, "critic": 0.5}
        check_param_groups(optimizer, {"lr": 0.5}, nn.ModuleDict())

    def test_set_trainable_never_freezes_shared_parameters(self) -> None:
        optimizer = torch.optim.Adam(make_param_groups(make_objective(shared=True), {}, nn.ModuleDict()))
        for policy, critic in ((True, False), (False, True), (True, True)):
            set_trainable(optimizer, policy=policy, critic=critic)
            trainable = {group["part"]: group["trainable"] for group in optimizer.param_groups}
            assert trainable == {"shared": True, "policy": policy, "critic": critic}

    def test_unknown_option_of_the_critic_is_refused(self) -> None:
        options = {"speed": 1}
        optimizer = torch.optim.Adam(make_param_groups(make_objective(), options, nn.ModuleDict()))
        with pytest.raises(ConfigurationError, match=r"critic\.optimizer\.speed.*Adam"):
            check_param_groups(optimizer, options, nn.ModuleDict())

    def test_reward_model_has_its_own_options_and_frozen_parameters_are_left_out(self) -> None:
        model = nn.Linear(2, 1)
        model.optimizer = {"lr": 0.1}
        model.bias.requires_grad_(False)
        models = nn.ModuleDict({"novelty": model})
        optimizer = torch.optim.Adam(make_param_groups(make_objective(), {}, models))
        (group,) = [group for group in optimizer.param_groups if group["part"] == "novelty"]
        assert group["lr"] == 0.1
        assert group["params"] == [model.weight]
        model.optimizer["speed"] = 1
        with pytest.raises(ConfigurationError, match=r"intrinsic\.novelty\.optimizer\.speed.*Adam"):
            check_param_groups(optimizer, {}, models)

    def test_optimizer_that_replaces_the_groups_is_refused(self) -> None:
        params = list(make_objective().parameters())
        optimizer = torch.optim.Adam([{"params": params[:1]}, {"params": params[1:]}])
        with pytest.raises(ConfigurationError, match="optimizer=Adam"):
            check_param_groups(optimizer, {}, nn.ModuleDict())


class TestConfigureOptimizers:
    def test_optimizer_gets_plain_parameters_if_no_option_needs_groups(self, make: Make) -> None:
        (group,) = make()[0].configure_optimizers().param_groups
        assert "part" not in group

    @pytest.mark.parametrize(
        "options",
        [
            {"critic_optimizer": {"lr": 0.5}},
            {"value_pretraining": 1},
            {"update": MinibatchUpdate(2, 8, critic_epochs=3)},
        ],
        ids=lambda options: next(iter(options)),
    )
    def test_optimizer_gets_groups_if_an_option_needs_them(self, options: dict[str, Any], make: Make) -> None:
        groups = make(**options)[0].configure_optimizers().param_groups
        assert {group["part"] for group in groups} == {"policy", "critic"}

    def test_value_that_the_optimizer_refuses_is_a_configuration_error(self, make: Make) -> None:
        ppo, _ = make(optimizer=partial(torch.optim.Adam, lr=-1.0))
        with pytest.raises(ConfigurationError, match=r"optimizer.*-1\.0"):
            ppo.configure_optimizers()
