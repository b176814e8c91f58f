"""Two halves of a native vector environment are that environment."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from torchppo.envs import ALL_ENVS, SplitAtariVectorEnv, make_vector_env
from torchppo.errors import ConfigurationError

vector_env = pytest.importorskip("ale_py.vector_env")

NUM_ENVS, STEPS = 3, 25
# Repeated at random, actions show whether every environment has its own seed.
OPTIONS = {
    "max_num_frames_per_episode": 40,
    "repeat_action_probability": 0.5,
    "reward_clipping": False,
    "num_threads": 1,
}


@pytest.fixture
def halves() -> Iterator[SplitAtariVectorEnv]:
    env = make_vector_env("ALE/Pong-v5", NUM_ENVS, **OPTIONS).vector
    yield env
    env.close()


def actions() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 6, (STEPS, NUM_ENVS))


def test_are_ale_pys_own_environment_bit_for_bit_across_resets(halves: SplitAtariVectorEnv) -> None:
    whole = vector_env.AtariVectorEnv("pong", NUM_ENVS, **OPTIONS)
    mine, theirs = halves.reset(seed=5)[0], whole.reset(seed=5)[0]
    assert np.array_equal(mine, theirs)
    ends = 0
    for action in actions():
        *mine_stepped, _ = halves.step(action)
        *stepped, _ = whole.step(action)
        for mine, other in zip(mine_stepped, stepped, strict=True):
            assert np.array_equal(mine, other)
        if (done := stepped[2] | stepped[3]).any():
            ends += done.sum()
            options = {"reset_mask": done}
            assert np.array_equal(halves.reset(options=options)[0], whole.reset(options=options)[0])
    assert ends >= NUM_ENVS
    whole.close()


def test_step_apart_as_they_do_together(halves: SplitAtariVectorEnv) -> None:
    halves.reset(seed=1)
    together = [[array.copy() for array in halves.step(action)[:4]] for action in actions()[:8]]
    halves.reset(seed=1)
    first, second = halves.double_buffer_groups()
    assert (first, second) == (slice(0, 1), slice(1, 3))
    halves.send(actions()[0][first], first)
    for step, expected in enumerate(together):
        halves.send(actions()[step][second], second)
        for array, other in zip(halves.receive(first), expected, strict=False):
            assert np.array_equal(array, other[first])
        if step + 1 < len(together):
            halves.send(actions()[step + 1][first], first)
        for array, other in zip(halves.receive(second), expected, strict=False):
            assert np.array_equal(array, other[second])


def test_a_reset_leaves_the_other_half_alone_while_it_steps(halves: SplitAtariVectorEnv) -> None:
    halves.reset(seed=1)
    expected = [array.copy() for array in halves.step(actions()[0])[:2]]
    halves.reset(seed=1)
    _, second = halves.double_buffer_groups()
    halves.send(actions()[0][second], second)
    halves.reset(options={"reset_mask": np.array([True, False, False])})
    for array, other in zip(halves.receive(second), expected, strict=False):
        assert np.array_equal(array, other[second])
    halves.send(actions()[0], ALL_ENVS)
    halves.receive()


def test_a_reset_comes_after_a_step_that_nobody_waited_for(halves: SplitAtariVectorEnv) -> None:
    halves.reset(seed=1)
    expected = [array.copy() for array in halves.step(actions()[0])[:4]]
    halves.reset(seed=1)
    halves.send(actions()[1])
    halves.reset(seed=1)
    for array, other in zip(halves.step(actions()[0])[:4], expected, strict=True):
        assert np.array_equal(array, other)


def test_one_environment_has_no_halves() -> None:
    env = make_vector_env("ALE/Pong-v5", 1, **OPTIONS)
    with pytest.raises(ConfigurationError, match=r"needs two workers, or two environments of an Atari game"):
        env.double_buffer_groups()
    env.close()
