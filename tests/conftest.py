"""For every test."""

import copy
import itertools
import random
import signal
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium.utils import seeding
from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hypothesis import settings
from torchrl.envs import exploration_type

settings.register_profile("torchppo", derandomize=True, deadline=None)  # the same examples, however slow the machine
settings.load_profile("torchppo")
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it, and tests send it
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # `nohup` ignores it


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--compiled", action="store_true", help="compile the graphs of TorchRL's components; takes minutes"
    )


@pytest.fixture(autouse=True)
def _same_path() -> Iterator[None]:
    """Restore `sys.path`. Commands add the current folder to it, and a long path makes imports slow."""
    before = sys.path[:]
    yield
    sys.path[:] = before


@pytest.fixture(autouse=True)
def _seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seed the global generators, and environments and spaces that a test does not seed."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    make, seeds = seeding.np_random, itertools.count()
    monkeypatch.setattr(seeding, "np_random", lambda seed=None: make(next(seeds) if seed is None else seed))


@pytest.fixture(autouse=True)
def _same_modes() -> Iterator[None]:
    """Fail a test that leaves a mode of PyTorch or TorchRL changed."""
    before = torch.is_grad_enabled(), exploration_type()
    yield
    assert (torch.is_grad_enabled(), exploration_type()) == before


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Use one thread. More threads make small networks slow, and closing a TorchRL environment adds threads."""
    torch.set_num_threads(1)


@pytest.fixture
def graph(request: pytest.FixtureRequest) -> Any:
    """Return the `compile` mode of graphs: traced, or compiled with `--compiled`."""
    return True if request.config.getoption("--compiled") else "trace"


@pytest.fixture(scope="session", autouse=True)
def _groups_are_composed_once() -> Iterator[None]:
    """Cache the configuration that Hydra composes from each choice of groups. Composing takes 0.15 s.

    Hydra still applies the overrides of keys in every test. Configurations with a user's folder are not cached. Uses
    private APIs of Hydra, tested with 1.3.2: the list of files, and the configuration that is merged from them.
    """
    make_list, merge = defaults_list._create_defaults_list, ConfigLoaderImpl._compose_config_from_defaults_list
    lists: dict[str, Any] = {}
    merged: dict[str, Any] = {}

    def is_cached(repo: Any) -> bool:
        return not any(source.scheme() == "file" for source in repo.get_sources())

    def make_list_once(repo: Any, config_name: Any, overrides: Any, **options: Any) -> Any:
        state = {name: value for name, value in vars(overrides).items() if name != "config_overrides"}
        if not is_cached(repo):
            return make_list(repo, config_name, overrides, **options)
        key = repr((config_name, state, options))
        if key not in lists:
            lists[key] = make_list(repo, config_name, overrides, **options), copy.deepcopy(state)
        files, state = lists[key]
        vars(overrides).update(copy.deepcopy(state))
        return files

    def merge_once(self: ConfigLoaderImpl, defaults: Any, repo: Any) -> Any:
        if not is_cached(repo):
            return merge(self, defaults, repo)
        if (key := repr(defaults)) not in merged:
            merged[key] = merge(self, defaults, repo)
        return copy.deepcopy(merged[key])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(defaults_list, "_create_defaults_list", make_list_once)
        patch.setattr(ConfigLoaderImpl, "_compose_config_from_defaults_list", merge_once)
        yield
