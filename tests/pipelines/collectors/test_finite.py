"""Numbers that are not finite are found where they appear first."""

from __future__ import annotations

import pytest
import torch

from torchppo.errors import NumericalError
from torchppo.pipelines.collectors.rollout_buffer import raise_if_not_finite


@pytest.mark.parametrize("shape", [(), (1,), (2, 2)])
def test_the_first_is_named_with_its_place(shape: tuple[int, ...]) -> None:
    values = torch.zeros(3, 4, *shape)
    values[0, 3], values[1, 2], values[2, 2] = torch.inf, torch.nan, torch.inf
    with pytest.raises(NumericalError, match=r"^left/x of environment 1 is nan at step 12 of the film; mend"):
        raise_if_not_finite(("left", "x"), values, "film", 10)


def test_numbers_whose_sum_is_not_finite_are_let_through() -> None:
    raise_if_not_finite("x", torch.full((2, 2), 3e38), "rollout", 0)
    raise_if_not_finite("x", torch.full((2, 2), 7), "rollout", 0)
