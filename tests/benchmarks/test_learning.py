"""Learning curves are thinned without changing their ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchppo.benchmarks.learning import thinned_curve


@pytest.mark.parametrize(("num_points", "frames"), [(5, [0, 1, 2, 3, 4]), (2, [0, 2, 4]), (1, [0, 4])])
def test_every_point_of_a_thinned_curve_is_different(num_points: int, frames: list[int], tmp_path: Path) -> None:
    lines = [f"{frame},{10 * frame}" for frame in range(5)]
    (tmp_path / "metrics.csv").write_text("\n".join(["step,rollout/ep_rew_mean", *lines]) + "\n")
    curve = thinned_curve(tmp_path, num_points, {"seed": 0})
    assert curve == [{"seed": 0, "frames": frame, "return": 10.0 * frame} for frame in frames]
