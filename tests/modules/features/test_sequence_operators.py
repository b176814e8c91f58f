"""The operators of graphs compute the same as the functions that eager steps call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from torchppo.modules.features.gru_sequence import GRUFunction, gru_operator
from torchppo.modules.features.lstm_sequence import lstm, lstm_operator
from torchppo.modules.features.sequence_operators import SequenceOperator

BATCH, TIME, WIDTH = 3, 5, 4
BEGINS = torch.zeros(BATCH, TIME, 1, dtype=torch.bool)
BEGINS[0, 2], BEGINS[1, 0], BEGINS[1, 4] = True, True, True


def lstm_arguments() -> tuple[Tensor, ...]:
    weights = torch.randn(4 * WIDTH, 2), torch.randn(4 * WIDTH, WIDTH), torch.randn(4 * WIDTH), torch.randn(4 * WIDTH)
    return BEGINS, torch.randn(BATCH, TIME, 2), torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH), *weights


def gru_arguments() -> tuple[Tensor, ...]:
    weights = torch.randn(3 * WIDTH, WIDTH), torch.randn(3 * WIDTH)
    return BEGINS.transpose(0, 1), torch.randn(TIME, BATCH, 3 * WIDTH), *weights, torch.randn(BATCH, WIDTH)


@pytest.mark.parametrize(
    ("operator", "function", "arguments"),
    [(lstm_operator, lstm, lstm_arguments), (gru_operator, lambda *one: [GRUFunction.apply(*one)], gru_arguments)],
)
class TestSequenceOperator:
    def test_results_and_gradients_equal_those_of_the_function(
        self, operator: SequenceOperator, function: Any, arguments: Any
    ) -> None:
        is_init, *tensors = arguments()
        results = operator(is_init, *tensors)[: operator.num_gradients]
        factors = [torch.randn_like(result) for result in results]

        def weighted(run: Any, given: list[Tensor]) -> Tensor:
            return torch.stack([(a * b).sum() for a, b in zip(run(is_init, *given), factors, strict=False)]).sum()

        leaves = [tensor.requires_grad_() for tensor in tensors]
        expected = torch.autograd.grad(weighted(function, leaves), leaves)
        assert all(map(torch.equal, results, function(is_init, *tensors)))
        assert all(map(torch.equal, torch.autograd.grad(weighted(operator, leaves), leaves), expected))
        detached = [tensor.detach() for tensor in tensors]
        actual = torch.func.grad(lambda given: weighted(operator, given))(detached)
        assert all(map(torch.equal, actual, expected))

    def test_shapes_in_graphs_are_correct(self, operator: SequenceOperator, function: Any, arguments: Any) -> None:
        is_init, *tensors = arguments()
        results = operator.forward(is_init, tensors)
        gradients = [torch.ones_like(result) for result in results[: operator.num_gradients]]
        for checked in (
            (operator.forward, (is_init, tensors)),
            (operator.backward, (gradients, is_init, tensors, results)),
        ):
            torch.library.opcheck(*checked, test_utils=("test_schema", "test_faketensor"))
