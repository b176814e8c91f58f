"""What belongs to the policy, to the critic, and to both."""

from __future__ import annotations

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
from torchppo.pipelines.param_groups import optimizer_of, parameters_by_part, set_trainable

ADAM = partial(torch.optim.Adam, lr=1e-3)


def objective(**options: Any) -> ClipPPOLoss:
    observation = Composite(observation=Unbounded((2, 3)), is_init=Unbounded((2, 1)), shape=(2,))
    return ClipPPOLoss(*make_actor_critic(observation, Categorical(4, (2,)), body=mlp, **options))


def named(one: ClipPPOLoss) -> dict[str, set[str]]:
    """The names of every side's parameters."""
    names = {param: name for name, param in one.named_parameters()}
    return {side: {names[param] for param in params} for side, params in parameters_by_part(one).items()}


class TestBySide:
    def test_networks_of_their_own_are_told_apart(self) -> None:
        sides = named(objective())
        assert set(sides) == {"policy", "critic"}
        assert all(name.startswith("actor_network") for name in sides["policy"])
        assert all(name.startswith("critic_network") for name in sides["critic"])
        assert len(sides["policy"]) == len(sides["critic"]) == 6

    @pytest.mark.parametrize("memory", [None, partial(GRU, width=4)])
    def test_a_shared_trunk_is_both_sides(self, memory: Any) -> None:
        one = objective(shared=True, memory=memory)
        sides = parameters_by_part(one)
        assert {side: len(params) for side, params in sides.items() if side != "shared"} == {"policy": 2, "critic": 2}
        assert sum(map(len, sides.values())) == len(list(one.parameters()))

    def test_a_critic_that_an_actor_with_memory_runs_is_none_of_the_policys(self) -> None:
        sides = named(objective(memory=partial(GRU, width=4)))
        assert set(sides) == {"policy", "critic"}


class TestOptimizerOf:
    def test_has_plain_parameters_where_nothing_tells_the_sides_apart(self) -> None:
        (group,) = optimizer_of(objective(), ADAM, {}, takes_turns=False).param_groups
        assert "side" not in group

    def test_gives_the_critic_options_of_its_own(self) -> None:
        groups = optimizer_of(objective(shared=True), ADAM, {"lr": 0.5}, takes_turns=False).param_groups
        assert {group["side"]: group["lr"] for group in groups} == {"shared": 1e-3, "policy": 1e-3, "critic": 0.5}

    def test_marks_who_learns(self) -> None:
        optimizer = optimizer_of(objective(shared=True), ADAM, {}, takes_turns=True)
        for policy, critic in ((True, False), (False, True), (True, True)):
            set_trainable(optimizer, policy=policy, critic=critic)
            learns = {group["side"]: group["learns"] for group in optimizer.param_groups}
            assert learns == {"shared": True, "policy": policy, "critic": critic}

    @pytest.mark.parametrize(
        ("make", "options", "message"),
        [
            (ADAM, {"speed": 1}, r"critic\.optimizer\.speed is no option of Adam; there is lr, "),
            (partial(torch.optim.Adam, lr=-1.0), {}, r"optimizer: Invalid learning rate: -1\.0"),
        ],
    )
    def test_refuses_what_the_optimiser_does(self, make: Any, options: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigurationError, match=message):
            optimizer_of(objective(), make, options, takes_turns=False)

    def test_refuses_groups_that_are_not_the_sides(self) -> None:
        def make(params: Any) -> torch.optim.Optimizer:
            flat = [param for group in params for param in group["params"]]
            return torch.optim.Adam([{"params": flat[:1]}, {"params": flat[1:]}])

        with pytest.raises(ConfigurationError, match="makes groups of its own"):
            optimizer_of(objective(), make, {}, takes_turns=True)


def test_a_frozen_layer_that_nobody_reads_is_nobodys() -> None:
    one = objective()
    one.aside = nn.Linear(1, 1)
    assert {id(param) for param in parameters_by_part(one)["shared"]} == {id(param) for param in one.aside.parameters()}
