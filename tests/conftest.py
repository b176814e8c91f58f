"""For every test."""

from typing import Any

import pytest
import torch
from hypothesis import settings

settings.register_profile("torchppo", derandomize=True, deadline=None)  # the same examples, however slow the machine
settings.load_profile("torchppo")
torch.set_num_threads(1)  # small networks lose most of their time to more, the more so beside another worker


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compiled", action="store_true", help="compile the graphs of TorchRL's components; takes minutes"
    )


@pytest.fixture
def graph(request: pytest.FixtureRequest) -> Any:
    """Return the `compile` mode of graphs: traced, or compiled with `--compiled`."""
    return True if request.config.getoption("--compiled") else "trace"
