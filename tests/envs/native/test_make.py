"""Which environments are native, and which arguments apply to them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gymnasium
import pytest
import torch

from torchppo.envs import SerialVectorEnv, make_env
from torchppo.envs.make import has_single_env
from torchppo.envs.native.vector import NativeVectorEnv
from torchppo.errors import ConfigurationError, EnvironmentFailure, TorchPPOError


@pytest.fixture
def vector_id(counting_vector: Any) -> Iterator[str]:
    """Return an id that has no single environment."""
    gymnasium.register("CountingVector-v0", vector_entry_point=counting_vector)
    yield "CountingVector-v0"
    del gymnasium.registry["CountingVector-v0"]


def test_auto_is_native_only_without_a_single_environment(vector_id: str, counting_vector: Any) -> None:
    kinds: dict[Any, type] = {
        "CartPole-v1": SerialVectorEnv,
        vector_id: NativeVectorEnv,
        f"{__name__}:{vector_id}": NativeVectorEnv,
        f"{counting_vector.__module__}.{counting_vector.__name__}": NativeVectorEnv,
        counting_vector: NativeVectorEnv,
    }
    for name, kind in kinds.items():
        env = make_env(name, 2)
        assert type(env.vector) is kind
        env.close()


def test_single_environments_with_the_same_id_are_found(vector_id: str, counting_vector: Any) -> None:
    for name, vectorization, has_single in [
        ("CartPole-v1", "auto", True),
        ("CartPole-v1", "native", True),
        ("ALE/Pong-v5", "auto", False),
        ("envpool:CartPole-v1", "native", False),
        (vector_id, "native", False),
        (counting_vector, "native", False),
        (partial(counting_vector, mode="SameStep"), "native", False),
        (lambda: gymnasium.make("CartPole-v1"), "auto", True),
    ]:
        assert has_single_env(name, vectorization) is has_single
    assert not has_single_env("CartPole-v1", "native", [gymnasium.wrappers.vector.ClipReward])


def test_arguments_reach_the_vector_environment(vector_id: str) -> None:
    env = make_env(f"{__name__}:{vector_id}", 2, vectorization="native", mode="SameStep")
    assert env.vector.unwrapped.num_envs == 2
    assert env.vector.vector.unwrapped.mode.value == "SameStep"  # type: ignore[attr-defined]
    limited = make_env("CartPole-v1", 2, vectorization="native", max_episode_steps=7)
    assert limited.vector.spec.max_episode_steps == 7


INVALID: list[tuple[dict[str, Any], type[TorchPPOError], str]] = [
    ({"vectorization": "serial"}, ConfigurationError, r"env\.vectorization=serial.*env\.num_workers=0"),
    ({"num_workers": 2}, ConfigurationError, r"env\.num_workers=2.*native"),
    ({"on_failure": "restart"}, ConfigurationError, r"env\.on_failure=restart"),
    ({"size": 3}, ConfigurationError, "size"),
    ({"id": "Acrobot-v1"}, ConfigurationError, r"env\.vectorization=native: Acrobot-v1.*auto"),
    ({"id": "CartPol-v1"}, EnvironmentFailure, "CartPole"),
    ({"id": "gymnasium.envs.classic_control.CartPoleEnv"}, ConfigurationError, "num_envs"),
    ({"info_keys": "score"}, ConfigurationError, r"env\.info_keys=score"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), INVALID, ids=str)
def test_arguments_that_do_not_apply_raise(changes: dict[str, Any], kind: type[TorchPPOError], message: str) -> None:
    with pytest.raises(kind, match=message):
        make_env(**{"id": "CartPole-v1", "num_envs": 2, "vectorization": "native", **changes})


class TestEnvPool:
    def test_a_missing_package_is_named(self) -> None:
        try:
            import envpool  # noqa: F401
        except ImportError:
            with pytest.raises(EnvironmentFailure, match=r"torchppo\[envpool\]"):
                make_env("envpool:CartPole-v1", 2)

    def test_episodes_end_with_final_observations_and_follow_the_seed(self) -> None:
        pytest.importorskip("envpool")
        first, second = (make_env("envpool:CartPole-v1", 3, max_episode_steps=15) for _ in range(2))
        rollouts = []
        for env in (first, second):
            env.set_seed(0)
            torch.manual_seed(0)
            rollouts.append(env.rollout(40, break_when_any_done=False))
        rollout, other = rollouts
        done = rollout["next", "done"][:, :-1, 0]
        assert {*rollout["next", "step_count"][rollout["next", "truncated"]].tolist()} == {15}
        assert (rollout["next", "reward"] == 1).all(), "no step is skipped"
        assert (rollout["observation"][:, 1:][done].abs() <= 0.05).all()
        assert torch.equal(rollout["observation"][:, 1:][~done], rollout["next", "observation"][:, :-1][~done])
        assert torch.equal(rollout["observation"], other["observation"])
        assert len(rollout["observation"][:, 0].unique(dim=0)) == 3

    def test_unknown_ids_raise(self) -> None:
        pytest.importorskip("envpool")
        with pytest.raises(EnvironmentFailure, match="CartPole-v1"):
            make_env("envpool:CartPol-v1", 2)
