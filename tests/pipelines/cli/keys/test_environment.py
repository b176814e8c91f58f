"""Overrides that do not fit an environment of Gymnasium are refused before PyTorch is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from gymnasium import spaces

from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.cli.keys.environment import has_box

OWN = "env.id=my_package.MyEnv"
OF_ANOTHER_PACKAGE = "{_target_: torchppo.envs.wrappers.ObservationEntries, _partial_: true, indices: [0, 2]}"
OF_VECTORS = "{_target_: gymnasium.wrappers.vector.ClipReward, _partial_: true, max_reward: 0.5}"


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        (spaces.Box(0, 1, (2,)), True),
        (spaces.Discrete(3), False),
        (spaces.MultiBinary(2), False),
        (spaces.Dict(a=spaces.Discrete(2), b=spaces.Tuple([spaces.Box(0, 1)])), True),
        (spaces.Tuple([spaces.Discrete(2), spaces.MultiDiscrete([2, 3])]), False),
    ],
)
def test_boxes_are_found_in_any_space(space: spaces.Space[object], expected: bool) -> None:
    assert has_box(space) == expected


@pytest.mark.parametrize(
    "words",
    [
        ["env=pendulum", "head=beta", "env.render_mode=rgb_array"],
        ["head=beta", OWN],
        ["head=beta", f"env.wrappers=[{OF_ANOTHER_PACKAGE}]"],
        ["env.vectorization=native", f"env.wrappers=[{OF_VECTORS}]"],
        ["policy=cnn", "transforms=[{_target_: torchrl.envs.UnsqueezeTransform, dim: -1}]"],
    ],
    ids=["fits", "other environment", "wrapper", "vector wrapper", "transform"],
)
def test_what_may_fit_is_not_refused(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert compose(words)


def test_refusing_does_not_import_pytorch(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "wrapper = 'env.wrappers=[{_target_:gymnasium.wrappers.TimeLimit,_partial_:true,max_episode_steps:-5}]'\n"
        "from torchppo.pipelines.cli.main import main\n"
        "codes = [main(['train', word]) for word in ('head=gsde', 'policy=cnn', 'env.render_mode=no', wrapper)]\n"
        "print(codes, {'torch', 'lightning'} & {*sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "[2, 2, 2, 2] set()\n"
