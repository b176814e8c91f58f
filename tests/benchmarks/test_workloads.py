"""The tables of the benchmark of throughput agree with each other."""

from __future__ import annotations

import inspect

import pytest

from torchppo.benchmarks import throughput, workloads
from torchppo.benchmarks.workloads import WORKLOADS


@pytest.mark.parametrize("name", WORKLOADS)
def test_every_peer_of_a_workload_has_a_function_that_runs_it(name: str) -> None:
    for peer in WORKLOADS[name].peers:
        assert next(iter(inspect.signature(getattr(workloads, peer)).parameters)) == "work"


@pytest.mark.parametrize("work", WORKLOADS.values(), ids=WORKLOADS)
def test_minibatches_fill_the_rollouts(work: workloads.Workload) -> None:
    assert work.frames % work.minibatch_size == 0
    assert work.steps == work.epochs * (work.frames // work.minibatch_size)


def test_the_geometric_mean_has_workloads_that_run_with_sb3() -> None:
    assert all("sb3" in WORKLOADS[name].peers for name in throughput.HEADLINE)


def test_the_configurations_of_workloads_are_valid() -> None:
    overrides = {name: workloads.configuration(work).env for name, work in WORKLOADS.items()}
    assert overrides["cartpole_1024"].vectorization == "native"
    assert overrides["halfcheetah_8_workers"].num_workers == 2
