"""How steps run: eagerly, traced, compiled, and what happens if a graph fails."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from tensordict import TensorDictBase
from tensordict.nn import TensorDictModule
from torch import Tensor, nn
from torchrl.modules import GRUModule
from torchrl.objectives import ClipPPOLoss as TorchRLClipPPOLoss

from torchppo.errors import ConfigurationError, GraphError
from torchppo.modules.objectives.clip import ClipPPOLoss
from torchppo.pipelines import step_factory
from torchppo.pipelines.collectors.collector import Collector
from torchppo.pipelines.compiled.graph import TracedFunction
from torchppo.pipelines.compiled.optimizer_step import GraphStep
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.step_factory import (
    OPTIMIZER_STEPS_TO_COMPILE,
    POLICY_STEPS_TO_COMPILE,
    STEPS_TO_TRACE,
    Compile,
    FirstThatWorks,
    PolicyFunction,
    check_compile,
    choose,
)
from torchppo.pipelines.updates.eager_step import EagerStep

Make, Fit = Callable[..., tuple[PPO, Collector]], Callable[..., Trainer]
Setup = dict[str, Any]
GRAPH_MODULES = {"policy": "torchppo.pipelines.compiled.graph", "step": "torchppo.pipelines.compiled.optimizer_step"}


class ValueDependent(ClipPPOLoss):
    """Python code that depends on the value of a tensor."""

    def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
        losses = super().forward(tensordict)
        if losses["kl_approx"].item() > 1e9:
            losses["loss_objective"] = losses["loss_objective"] * 2
        return losses


class HookedPPO(PPO):
    """Overrides a hook of Lightning."""

    def on_after_backward(self) -> None: ...


class HookCallback(Callback):
    """Overrides a hook of Lightning."""

    def on_before_zero_grad(self, *_: Any) -> None: ...


SGD = partial(torch.optim.SGD, lr=1e-3)
SETUPS: dict[str, Setup] = {
    "value-dependent objective": {"objective": ValueDependent},
    "optimizer": {"optimizer": SGD},
    "module hook": {"ppo_class": HookedPPO},
    "callback hook": {"callbacks": [HookCallback()]},
    "import": {"fails_to_import": True},
}


@pytest.fixture(params=SETUPS.values(), ids=SETUPS)
def setup(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Setup:
    """A training whose optimizer step cannot be a graph."""
    options = dict(request.param)
    if options.pop("fails_to_import", False):  # as with another version of PyTorch
        monkeypatch.setitem(sys.modules, GRAPH_MODULES["step"], None)
    return options


@pytest.fixture(autouse=True)
def traces_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `auto` trace the few steps of these trainings, and warn in every test."""
    monkeypatch.setattr(step_factory, "STEPS_TO_TRACE", 0)
    step_factory.warn_once.cache_clear()


def train(make: Make, fit: Fit, mode: Compile, setup: Setup) -> PPO:
    options = dict(setup)
    ppo_class, callbacks = options.pop("ppo_class", PPO), options.pop("callbacks", [])
    ppo, collector = make(compile=mode, rollouts=2, **options)
    ppo.__class__ = ppo_class
    fit(ppo, collector, callbacks=callbacks)
    return ppo


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    records = [record for record in caplog.records if record.name == "torchppo"]
    assert all(record.levelno == logging.WARNING for record in records)
    return [record.getMessage() for record in records]


def assert_equal_weights(first: nn.Module, second: nn.Module) -> None:
    for (name, one), other in zip(first.state_dict().items(), second.state_dict().values(), strict=True):
        assert torch.equal(one, other), name


class TestChoose:
    @pytest.mark.parametrize("threshold", [POLICY_STEPS_TO_COMPILE, OPTIMIZER_STEPS_TO_COMPILE])
    def test_auto_traces_above_one_number_of_steps_and_compiles_above_another(
        self, threshold: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(step_factory, "STEPS_TO_TRACE", STEPS_TO_TRACE)
        num_steps = (0, STEPS_TO_TRACE, STEPS_TO_TRACE + 1, threshold, threshold + 1)
        assert [choose("auto", num, threshold) for num in num_steps] == [False, False, "trace", "trace", True]

    @pytest.mark.parametrize("mode", [False, "trace", True])
    def test_other_values_do_not_depend_on_the_number_of_steps(self, mode: Compile) -> None:
        assert [choose(mode, num_steps, 1000) for num_steps in (0, 1e9)] == [mode] * 2

    @pytest.mark.parametrize("value", ["always", "true", None, 1])
    def test_invalid_value_is_refused(self, value: Any) -> None:
        with pytest.raises(ConfigurationError, match=f"compile={value}"):
            check_compile(value)


class TestAuto:
    def test_step_is_a_graph_if_nothing_prevents_it(
        self, make: Make, fit: Fit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        calls: list[GraphStep] = []
        call = GraphStep.__call__

        def recorded(self: GraphStep, batch: TensorDictBase, indices: Tensor) -> Any:
            calls.append(self)
            return call(self, batch, indices)

        monkeypatch.setattr(GraphStep, "__call__", recorded)
        ppo = train(make, fit, "auto", {})
        assert len(calls) == ppo.trainer.global_step == 2 * 2 * 4
        assert not warnings_in(caplog)

    def test_eager_fallback_warns_once_and_trains_as_without_graphs(
        self, setup: Setup, make: Make, fit: Fit, caplog: pytest.LogCaptureFixture
    ) -> None:
        ppo = train(make, fit, "auto", setup)
        (message,) = warnings_in(caplog)
        assert message.startswith("torchppo: compile=auto runs the optimizer step eagerly")
        assert "\n" not in message
        assert_equal_weights(ppo, train(make, fit, False, setup))

    def test_long_run_falls_back_to_torch_compile(
        self,
        setup: Setup,
        make: Make,
        fit: Fit,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        compiled: list[Any] = []
        monkeypatch.setattr(step_factory, "STEPS_TO_TORCH_COMPILE", 0)
        monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
        ppo = train(make, fit, "auto", setup)
        assert compiled == [ppo.objective]
        (message,) = warnings_in(caplog)
        assert message.startswith("torchppo: compile=auto runs the optimizer step with torch.compile")
        assert_equal_weights(ppo, train(make, fit, False, setup))

    def test_torch_compile_takes_the_eager_steps(
        self, make: Make, fit: Fit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(step_factory, "STEPS_TO_TORCH_COMPILE", 0)
        monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
        options: Any = {"optimizer": partial(torch.optim.SGD, lr=1e-2)}
        ppo, collector = make(compile="auto", **options)
        fit(ppo, collector)
        (message,) = warnings_in(caplog)
        assert "with torch.compile" in message
        eager, collector = make(compile=False, **options)
        fit(eager, collector)
        assert_equal_weights(ppo, eager)

    def test_failing_torch_compile_falls_back_to_the_eager_step(
        self, make: Make, fit: Fit, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(function: Any) -> Any:
            raise RuntimeError("no compiler")

        monkeypatch.setattr(step_factory, "STEPS_TO_TORCH_COMPILE", 0)
        monkeypatch.setattr(torch, "compile", fail)
        ppo = train(make, fit, "auto", {"optimizer": SGD})
        (message,) = warnings_in(caplog)
        assert "eagerly" in message
        assert "SGD" in message, "the reason is the first failure"
        assert_equal_weights(ppo, train(make, fit, False, {"optimizer": SGD}))

    def test_error_of_the_users_objective_is_raised_as_it_is(
        self, make: Make, fit: Fit, caplog: pytest.LogCaptureFixture
    ) -> None:
        class MissingKey(ClipPPOLoss):
            def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
                tensordict["no_such_key"]
                return super().forward(tensordict)

        with pytest.raises(KeyError, match="no_such_key"):
            train(make, fit, "auto", {"objective": MissingKey})
        assert not warnings_in(caplog)

    def test_configuration_error_is_raised_without_another_try(
        self, make: Make, fit: Fit, caplog: pytest.LogCaptureFixture
    ) -> None:
        class NoLoss(ClipPPOLoss):
            def forward(self, tensordict: TensorDictBase) -> TensorDictBase:
                return super().forward(tensordict).select("entropy")

        with pytest.raises(ConfigurationError, match=r"loss_\*"):
            train(make, fit, "auto", {"objective": NoLoss})
        assert not warnings_in(caplog)

    def test_loops_over_steps_and_few_steps_are_eager(
        self, make: Make, fit: Fit, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made: list[Any] = []
        make_optimizer_step = step_factory.make_optimizer_step

        def recorded(*arguments: Any) -> Any:
            made.append(make_optimizer_step(*arguments))
            return made[-1]

        monkeypatch.setattr("torchppo.pipelines.ppo.make_optimizer_step", recorded)
        train(make, fit, "auto", {})
        monkeypatch.setattr(
            step_factory, "recurrent_modules", lambda _: [GRUModule(3, 4, in_keys=["a", "b"], out_keys=["a", "b"])]
        )
        train(make, fit, "auto", {})
        monkeypatch.undo()
        monkeypatch.setattr("torchppo.pipelines.ppo.make_optimizer_step", recorded)
        train(make, fit, "auto", {})
        assert [type(step) for step in made] == [FirstThatWorks, EagerStep, EagerStep]


@pytest.mark.parametrize("mode", ["trace", True])
class TestRequiredGraph:
    def test_impossible_graph_is_an_error(self, mode: Compile, setup: Setup, make: Make, fit: Fit) -> None:
        with pytest.raises(GraphError) as raised:
            train(make, fit, mode, setup)
        assert raised.value.exit_code == 2

    def test_functional_torchrl_loss_is_refused(self, mode: Compile, make: Make, fit: Fit) -> None:
        with pytest.raises(GraphError, match="functional=false"):
            train(make, fit, mode, {"objective": functional_loss})


def functional_loss(actor: Any, critic: Any) -> TorchRLClipPPOLoss:
    return TorchRLClipPPOLoss(actor, critic, functional=True)


def test_functional_torchrl_loss_trains_under_auto(make: Make, fit: Fit, caplog: pytest.LogCaptureFixture) -> None:
    ppo, collector = make(compile="auto", objective=functional_loss)
    before = [param.detach().clone() for param in ppo.parameters()]
    fit(ppo, collector)
    assert before
    assert not any(torch.equal(old, new) for old, new in zip(before, ppo.parameters(), strict=True))
    assert len(warnings_in(caplog)) == 1


class TestFirstThatWorks:
    @staticmethod
    def make_step(log: list[str], name: str, error: Exception | None = None) -> Callable[[], Callable[[int], int]]:
        def step(x: int) -> int:
            log.append(f"call {name}")
            if error is not None:
                raise error
            return x + 1

        def make() -> Callable[[int], int]:
            log.append(f"make {name}")
            return step

        return make

    def test_working_candidate_is_made_once_and_called_from_then_on(self, caplog: pytest.LogCaptureFixture) -> None:
        log: list[str] = []
        graph = self.make_step(log, "graph")
        step = FirstThatWorks("the test", graph, self.make_step(log, "torch"), self.make_step(log, "eager")(), 1e9)
        log.clear()
        assert [step(x) for x in range(3)] == [1, 2, 3]
        assert log == ["make graph", *["call graph"] * 3]
        assert not warnings_in(caplog)

    @pytest.mark.parametrize("num_steps", [0, 1e9])
    def test_failed_candidates_are_not_tried_again(self, num_steps: float, caplog: pytest.LogCaptureFixture) -> None:
        log: list[str] = []
        graph = self.make_step(log, "graph", GraphError("impossible"))
        compiled = self.make_step(log, "torch", RuntimeError("broken"))
        step = FirstThatWorks("the test", graph, compiled, self.make_step(log, "eager")(), num_steps)
        log.clear()
        assert [step(x) for x in range(3)] == [1, 2, 3]
        tried = ["make torch", "call torch"] if num_steps else []
        assert log == ["make graph", "call graph", *tried, *["call eager"] * 3]
        (message,) = warnings_in(caplog)
        assert "GraphError: impossible" in message

    def test_later_errors_of_the_working_candidate_are_raised(self) -> None:
        def fails_for_zero(x: int) -> float:
            return 1 / x

        step = FirstThatWorks("the test", lambda: fails_for_zero, lambda: abs, abs, 0)
        step(1)
        with pytest.raises(ZeroDivisionError):
            step(0)

    def test_refresh_reaches_the_graph(self) -> None:
        class Graph:
            num_refreshes = 0

            def __call__(self, x: int) -> int:
                return x

            def refresh(self) -> None:
                self.num_refreshes += 1

        graph = Graph()
        step = FirstThatWorks("the test", lambda: graph, lambda: abs, abs, 0)
        step.refresh()
        assert graph.num_refreshes == 0, "the graph is not built yet"
        step(1)
        step.refresh()
        assert graph.num_refreshes == 1


class ByValue(nn.Module):
    """Python code that depends on the value of a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.sum() > 0 else x * 3


def policy(module: nn.Module) -> TensorDictModule:
    return TensorDictModule(module, in_keys=["observation"], out_keys=["action"])


class TestPolicyFunction:
    @pytest.mark.parametrize("mode", [False, "trace", True, "auto"])
    def test_outputs_equal_those_of_the_policy(self, mode: Compile) -> None:
        layer = nn.Linear(3, 2)
        function = PolicyFunction(policy(layer), mode, 1)
        assert function.output_keys == ["action"]
        assert function.device == torch.device("cpu")
        with torch.no_grad():
            for _ in range(3):
                x = torch.randn(4, 3)
                (action,) = function({"observation": x})
                torch.testing.assert_close(action, layer(x))

    @pytest.mark.parametrize("mode", [False, "trace", "auto"])
    def test_refresh_adopts_new_weights(self, mode: Compile) -> None:
        layer, x = nn.Linear(3, 2), torch.randn(4, 3)
        function = PolicyFunction(policy(layer), mode, 1)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            function({"observation": x})
            layer.weight.mul_(2.0)
            function.refresh()
            assert torch.equal(function({"observation": x})[0], layer(x))

    def test_auto_falls_back_to_the_eager_policy_with_one_warning(self, caplog: pytest.LogCaptureFixture) -> None:
        function = PolicyFunction(policy(ByValue()), "auto", 1)
        for value, factor in ((1.0, 2), (-1.0, 3), (1.0, 2)):
            function.refresh()
            (action,) = function({"observation": torch.full((4, 3), value)})
            assert torch.equal(action, torch.full((4, 3), value * factor))
        (message,) = warnings_in(caplog)
        assert message.startswith("torchppo: compile=auto runs the policy eagerly")

    def test_auto_falls_back_if_graphs_cannot_be_imported(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, GRAPH_MODULES["policy"], None)
        (action,) = PolicyFunction(policy(nn.Identity()), "auto", 1)({"observation": torch.ones(4, 3)})
        assert torch.equal(action, torch.ones(4, 3))
        assert len(warnings_in(caplog)) == 1

    @pytest.mark.parametrize("mode", ["trace", True])
    def test_required_graph_of_a_value_dependent_policy_is_an_error(self, mode: Compile) -> None:
        with pytest.raises(GraphError, match="compile=false"):
            PolicyFunction(policy(ByValue()), mode, 1)({"observation": torch.ones(4, 3)})

    def test_auto_uses_torch_compile_for_many_steps(
        self, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        compiled: list[Any] = []
        monkeypatch.setattr(step_factory, "STEPS_TO_TORCH_COMPILE", 0)
        monkeypatch.setattr(torch, "compile", lambda function: compiled.append(function) or function)
        PolicyFunction(policy(ByValue()), "auto", 1)({"observation": torch.ones(4, 3)})
        assert len(compiled) == 1
        (message,) = warnings_in(caplog)
        assert "with torch.compile" in message

    def test_few_steps_are_eager(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TracedFunction, "__init__", lambda *_, **__: pytest.fail("a graph is made"))
        monkeypatch.setattr(step_factory, "STEPS_TO_TRACE", 10)
        PolicyFunction(policy(nn.Identity()), "auto", 10)({"observation": torch.ones(4, 3)})
