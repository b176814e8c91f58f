"""Error messages translate option names of other libraries to our keys."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from torchppo.pipelines.cli.config import compose, keys_of
from torchppo.pipelines.cli.keys.foreign_names import NAMES, in_our_words
from torchppo.pipelines.cli.keys.schema import FIELDS


@pytest.mark.parametrize(
    ("name", "value", "ours"),
    [
        ("lr", 1, "optimizer.lr=1"),
        ("ppo.learning_rate", 0.1, "optimizer.lr=0.1"),
        ("--clip-coef", "0.1", "objective.clip_epsilon=0.1"),
        ("n_steps", None, "collector.frames_per_env=..."),
        ("capture_video", True, "eval.video=true"),
        ("policy_kwargs", {"net_arch": [8]}, "policy.body.num_cells=[64,64]"),
        ("--estimator.gamma", "0.9", "estimator.gamma=0.9"),
        ("double_buffer", True, "collector.double_buffer=true"),
        ("qqqqqq", 1, ""),
    ],
)
def test_a_name_is_translated_to_our_key(name: str, value: object, ours: str) -> None:
    assert in_our_words(name, value, FIELDS) == ours


def test_translations_are_our_keys_and_choices() -> None:
    known = {*FIELDS, *keys_of(compose([])), "controller.lr.target_kl", "critic.optimizer.lr"}
    groups = {"optimizer", "controller", "policy", "head", "reward"}
    words = [answer.split(" ")[0] for answer in NAMES if not answer.startswith("torchppo resume")]
    for word in words:
        key = OverridesParser.create().parse_override(word.split("=")[0].lstrip("+") + "=1").key_or_group
        assert key in known | groups, word


def test_every_name_has_one_translation() -> None:
    names = [name for names in NAMES.values() for name in names.split()]
    assert len(names) == len(set(names))
