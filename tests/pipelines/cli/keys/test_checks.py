"""Deleted keys and a user's own configuration files are checked before the training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from torchppo.errors import ConfigurationError
from torchppo.pipelines.cli.config import compose

RunCommand = Callable[[str], Any]


@pytest.mark.parametrize("key", ["env", "trainer", "total_frames", "eval.video"])
def test_a_required_key_cannot_be_deleted(key: str, run_command: RunCommand) -> None:
    code, out, err, trained = run_command(f"train ~{key} run_dir=here")
    assert (code, out, trained) == (2, "", [])
    assert err.startswith("torchppo: ")
    assert err.count("\n") == 1
    assert f"~{key}" in err


class TestUserFiles:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("# @package _global_\ntotal_framse: 3000\n", ["total_framse", "'total_frames'"]),
            ("# @package _global_\neval: {vidio: false}\n", ["eval.vidio", "'eval.video'"]),
            ("total_frames: 3000\n", ["experiment/", "# @package _global_"]),
        ],
        ids=["misspelt key", "misspelt key of eval", "experiment without package"],
    )
    def test_a_file_without_effect_is_rejected(
        self, text: str, words: list[str], run_command: RunCommand, tmp_path: Path
    ) -> None:
        (tmp_path / "experiment").mkdir()
        (tmp_path / "experiment" / "ours.yaml").write_text(text)
        code, _, err, trained = run_command(f"train experiment=ours --config-dir {tmp_path}")
        assert (code, trained) == (2, [])
        assert all(word in err for word in words)

    def test_new_keys_that_others_read_are_kept(self, run_command: RunCommand, tmp_path: Path) -> None:
        (tmp_path / "experiment").mkdir()
        text = "# @package _global_\nmy_width: 8\npolicy: {body: {num_cells: ['${my_width}']}}\n"
        (tmp_path / "experiment" / "ours.yaml").write_text(text)
        (cfg,) = run_command(f"train experiment=ours --config-dir {tmp_path} ").trained
        assert cfg.policy.body.num_cells == [8]


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        ("env=pendulum trust_region=kl head=beta", "trust_region"),
        ("update=natural_gradient policy.shared=true", "update=natural_gradient"),
        ("update=natural_gradient objective=torchrl_kl_penalty", "update=natural_gradient"),
        ("symmetry=mirror ppo.symmetry.mirror._target_=math.cos update=natural_gradient", "update=natural_gradient"),
        ("update=natural_gradient controller@controller.lr=kl_adaptive", "controller.lr=kl_adaptive"),
        ("objective=espo update.target_kl=0.03", "update.target_kl"),
        ("objective=a2c update.target_kl=0.03", "update.target_kl"),
        ("env=pendulum critic=quadratic_advantage update=ppg", "critic=quadratic_advantage"),
    ],
)
def test_components_that_do_not_work_together_are_refused(overrides: str, key: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        compose([*overrides.split(), "run_dir=unused"])
    assert str(raised.value).startswith(f"{key} ")


@pytest.mark.parametrize(
    "overrides",
    [
        *("update=natural_gradient objective=espo", "objective=a2c", "trust_region=kl"),
        "update.epochs=1 critic.epochs=4 update.recompute_advantage=true",
    ],
)
def test_similar_combinations_are_accepted(overrides: str) -> None:
    compose([*overrides.split(), "run_dir=unused"])


def test_a_critic_that_the_file_of_the_policy_does_not_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "policy").mkdir()
    file = tmp_path / "policy" / "ours.yaml"
    text = "_target_: torchppo.modules.actor_critic.make_actor_critic\nbody: {_target_: my.body, _partial_: true}\n"
    file.write_text(text)
    words = ["policy=ours", "run_dir=unused"]
    compose(words, config_dir=tmp_path)
    with pytest.raises(ConfigurationError, match=r"has no effect.* add 'critic: "):
        compose([*words, "critic=hl_gauss"], config_dir=tmp_path)
    file.write_text(text + "critic: ${critic.head}\n")
    compose([*words, "critic=hl_gauss"], config_dir=tmp_path)
