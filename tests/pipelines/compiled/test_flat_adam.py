"""Adam over one vector takes the same steps as PyTorch's optimizers."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

from torchppo.errors import ConfigurationError, GraphError
from torchppo.pipelines.compiled.flat_adam import FlatAdam


def network() -> nn.Module:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return nn.Sequential(convolution, nn.Flatten(), nn.Linear(16, 2)).double()


def train(module: nn.Module, optimizer: torch.optim.Optimizer, flat: FlatAdam | None, steps: int, start: int) -> None:
    for step in range(start, start + steps):
        generator = torch.Generator().manual_seed(step)
        optimizer.param_groups[0]["lr"] = 1e-2 / (1 + step)
        optimizer.zero_grad()
        module(torch.randn(5, 3, 3, 3, dtype=torch.float64, generator=generator)).square().sum().backward()
        if flat is None:
            nn.utils.clip_grad_norm_(module.parameters(), 0.5)
            optimizer.step()
        else:
            gradients = [param.grad for param in flat.params if param.grad is not None]
            flat.read_groups()
            flat.step(flat.flatten(gradients), 0.5)


class TestStep:
    @pytest.mark.parametrize(
        ("optimizer", "options"),
        [
            (torch.optim.Adam, {}),
            (torch.optim.Adam, {"weight_decay": 0.1, "eps": 1e-5}),
            (torch.optim.AdamW, {"weight_decay": 0.1, "betas": (0.8, 0.95)}),
            (torch.optim.Adam, {"betas": (0.0, 0.9)}),
        ],
    )
    def test_steps_equal_pytorchs_also_after_steps_of_pytorch(self, optimizer: Any, options: dict[str, Any]) -> None:
        ours = network()
        theirs = copy.deepcopy(ours)
        mine, other = (optimizer(module.parameters(), lr=1e-2, **options) for module in (ours, theirs))
        train(ours, mine, None, 3, 0)
        train(theirs, other, None, 8, 0)
        train(ours, mine, FlatAdam(mine), 5, 3)
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-8)
        for a, b in zip(mine.state_dict()["state"].values(), other.state_dict()["state"].values(), strict=True):
            assert a["step"] == b["step"] == 8
            torch.testing.assert_close(a["exp_avg_sq"], b["exp_avg_sq"], rtol=1e-6, atol=1e-10)

    @pytest.mark.parametrize("frozen_steps", [(), (0, 1, 2), (3, 4, 5, 7)])
    def test_frozen_group_equals_one_without_gradients_in_pytorch(self, frozen_steps: tuple[int, ...]) -> None:
        ours = network()
        theirs = copy.deepcopy(ours)

        def make_optimizer(module: nn.Module) -> torch.optim.Optimizer:
            convolution, linear = module[0].parameters(), module[2].parameters()  # type: ignore[index]
            groups = [{"params": list(convolution), "trainable": True}, {"params": list(linear)}]
            return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)

        mine, other = make_optimizer(ours), make_optimizer(theirs)
        flat = FlatAdam(mine)
        for step in range(10):
            trainable = step not in frozen_steps
            mine.param_groups[0]["trainable"] = trainable
            generator = torch.Generator().manual_seed(step)
            gradients = [torch.randn(p.shape, dtype=torch.float64, generator=generator) for p in theirs.parameters()]
            for index, (param, gradient) in enumerate(zip(theirs.parameters(), gradients, strict=True)):
                param.grad = gradient if trainable or index > 1 else None
            other.step()
            flat.read_groups()
            flat.step(flat.flatten([g * (trainable or i > 1) for i, g in enumerate(gradients)]), float("inf"))
        for name, value in theirs.state_dict().items():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=1e-6, atol=1e-8)
        for param, twin in zip(ours.parameters(), theirs.parameters(), strict=True):
            assert mine.state[param]["step"] == other.state[twin]["step"]

    def test_parameter_without_requires_grad_is_skipped(self) -> None:
        module = network()
        frozen = next(module.parameters()).requires_grad_(False)
        flat = FlatAdam(torch.optim.Adam(module.parameters()))
        assert not any(param is frozen for param in flat.params)
        with pytest.raises(ConfigurationError, match="requires a gradient"):
            FlatAdam(torch.optim.Adam(module.requires_grad_(False).parameters()))

    def test_parameter_without_earlier_steps_does_not_change_the_bias_correction(self) -> None:
        module = network()
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
        first, *others = module.parameters()
        for _ in range(300):
            for param in others:
                param.grad = torch.ones_like(param)
            optimizer.step()
        before = [param.detach().clone() for param in others]
        flat = FlatAdam(optimizer)
        flat.read_groups()
        flat.step(torch.ones(sum(param.numel() for param in (first, *others)), dtype=torch.float64), float("inf"))
        for param, old in zip(others, before, strict=True):
            torch.testing.assert_close(old - param.detach(), torch.full_like(old, 1e-2))

    def test_channels_last_weights_stay_channels_last(self) -> None:
        module = network()
        FlatAdam(torch.optim.Adam(module.parameters()))
        weight = next(module.parameters())
        assert weight.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(weight, next(network().parameters()))


class TestErrors:
    @pytest.mark.parametrize("options", [{"amsgrad": True}, {"maximize": True}])
    def test_unsupported_option_is_refused(self, options: dict[str, bool]) -> None:
        with pytest.raises(GraphError, match=f"optimizer.{next(iter(options))}=true"):
            FlatAdam(torch.optim.Adam(network().parameters(), **options))

    def test_another_optimizer_is_refused(self) -> None:
        with pytest.raises(GraphError, match="SGD"):
            FlatAdam(torch.optim.SGD(network().parameters(), lr=1e-2))
