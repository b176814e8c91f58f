"""Every configuration key has a type, a meaning and a default that fits."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchppo.pipelines.cli.keys.fields import NATURAL, Field
from torchppo.pipelines.cli.keys.reference import describe, keys_of_file, reference
from torchppo.pipelines.cli.keys.schema import FIELDS

CONF = Path(__file__).parents[4] / "conf"


def test_every_key_of_conf_has_a_field_and_a_meaning() -> None:
    files = [path for path in [CONF / "train.yaml", *CONF.glob("*/*.yaml")] if path.parent.name != "experiment"]
    used = {key for path in files for key, *_ in keys_of_file(path)}
    explained = {one.key for one in reference() if one.meaning}
    assert used - set(FIELDS) == set()
    assert used - explained == set()
    groups = {"controller.*", "intrinsic", "policy.body", "policy.head", "ppo.symmetry.mirror", "trust_region"}
    assert set(FIELDS) - used - groups == set()


def test_the_reference_shows_default_values_and_choice() -> None:
    (seed,) = [one for one in reference() if one.key == "seed"]
    assert (seed.choice, seed.default, seed.values) == ("", "0", "a whole number of at least 0")
    gamma = {one.choice: one.default for one in reference() if one.key == "estimator.gamma"}
    assert gamma["estimator=gae"] == gamma["estimator=vtrace"] == "0.99"


@pytest.mark.parametrize(
    ("field", "text"),
    [
        (Field((float,), minimum=0, maximum=1, nullable=True), "a number between 0 and 1 or null"),
        (Field((float,), above=0, maximum=1), "a number above 0 and up to 1"),
        (Field((float,), above=0, infinite=True, nullable=True), "a number above 0, inf or null"),
        (NATURAL._replace(choices=("auto",)), "a whole number of at least 0 or auto"),
        (Field(choices=(True, "auto"), nullable=True), "true, auto or null"),
    ],
    ids=repr,
)
def test_values_are_described_in_words(field: Field, text: str) -> None:
    assert describe(field) == text
