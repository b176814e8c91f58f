"""A transform that does not fit the environment is named with its place in `transforms`."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from omegaconf import OmegaConf

from torchppo.errors import ConfigurationError
from torchppo.pipelines.components.instantiate import build_env

TORCHRL, GYMNASIUM = "torchrl.envs", "gymnasium.wrappers"
SCALING = {"_target_": f"{TORCHRL}.RewardScaling", "loc": 0.0, "scale": 0.1}


def build(*transforms: dict[str, Any], **env: Any) -> Any:
    node = {"_target_": "torchppo.envs.make_env", "id": "CartPole-v1", "num_envs": 2, **env}
    return build_env(OmegaConf.create({"env": node, "transforms": list(transforms)}), seed=0)


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        ({"_target_": "CatFrames", "N": 4, "dim": -1}, r"transforms\[1\]=CatFrames reads 'pixels'.* observation"),
        ({"_target_": "ObservationNorm", "loc": 0.0, "scale": 1.0, "in_keys": ["obs"]}, "ObservationNorm reads 'obs'"),
        ({"_target_": "ActionMask"}, "ActionMask reads 'action_mask'"),
        ({"_target_": "Reward2GoTransform"}, "RewardScaling, Reward2GoTransform. do not fit the environment"),
        ({"_target_": "RewardScaling", "_partial_": True}, r"transforms\[1\]=RewardScaling has _partial_"),
        ({"_target_": "CatFrames", "N": 4, "dim": 0}, r"^transforms\[1\] \(torchrl.envs.CatFrames\) failed"),
    ],
)
def test_a_transform_that_does_not_fit_is_named(transform: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        build(SCALING, {**transform, "_target_": f"{TORCHRL}.{transform['_target_']}"})


def test_a_wrapper_among_the_transforms_is_refused() -> None:
    wrapper = {"_target_": f"{GYMNASIUM}.TimeLimit", "_partial_": True, "max_episode_steps": 3}
    with pytest.raises(ConfigurationError, match=r"transforms\[0\]=TimeLimit .* env.wrappers"):
        build(wrapper)


def test_a_transform_among_the_wrappers_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"env.wrappers\[0\]=RewardScaling .* transforms"):
        build(wrappers=[SCALING])


def test_transforms_may_read_what_earlier_ones_write() -> None:
    counter = {"_target_": f"{TORCHRL}.StepCounter", "step_count_key": "steps"}
    double = {"_target_": f"{TORCHRL}.UnsqueezeTransform", "dim": -1, "in_keys": ["steps"], "out_keys": ["column"]}
    renamed = {"_target_": f"{TORCHRL}.RenameTransform", "in_keys": ["column"], "out_keys": ["other"]}
    with closing(build(counter, double, renamed)) as env:
        assert env.reset()["other"].shape == (2, 1, 1)
