"""Configurations are composed from choices and overrides, and invalid overrides are rejected."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from torchppo.errors import ConfigurationError
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.cli.keys.checks import keys_of, options_by_group
from torchppo.pipelines.cli.run_dir import create_unique

CONF = Path(__file__).parents[3] / "conf"


@pytest.fixture
def user_conf(tmp_path: Path) -> Path:
    """Return a user's folder: a policy, an experiment that uses it, and a new group."""
    files = {
        "policy/ours.yaml": "# Ours.\n_target_: ours.make\nwidth: 7\n",
        "experiment/ours.yaml": "# @package _global_\n# Ours.\ndefaults: [override /policy: ours]\nseed: 9\n",
        "extra/thing.yaml": "# A thing.\nsize: 3\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text(text)
    return tmp_path


class TestComposition:
    def test_the_default_is_cartpole_with_the_clipped_objective(self) -> None:
        cfg = compose([])
        assert cfg.env.id == "CartPole-v1"
        assert cfg.objective._target_.endswith(".ClipPPOLoss")
        assert (cfg.seed, cfg.total_frames, cfg.compile) == (0, 100_000, "auto")

    def test_the_main_keys_exist(self) -> None:
        main_keys = {
            *("seed", "total_frames", "run_dir", "compile", "env.id", "env.num_envs", "collector.frames_per_env"),
            *("policy", "objective.clip_epsilon", "objective.entropy_coeff", "objective.critic_coeff"),
            *("estimator.gamma", "estimator.lmbda", "update.epochs", "update.minibatch_size", "update.target_kl"),
            *("optimizer.lr", "controller", "eval.every_frames", "eval.episodes", "trainer.devices"),
        }
        assert main_keys <= {*keys_of(cfg := compose([])), *map(str, cfg)}

    def test_keys_of_hydra_are_removed(self) -> None:
        assert "hydra" not in compose([])

    def test_a_whole_number_may_be_written_as_a_power_of_ten(self) -> None:
        total_frames = compose(["total_frames=1e5"]).total_frames
        assert total_frames == 100_000
        assert type(total_frames) is int

    def test_numbers_in_a_users_folder_have_the_types_of_the_defaults(self, user_conf: Path) -> None:
        experiment = user_conf / "experiment" / "ours.yaml"
        experiment.write_text(experiment.read_text() + "total_frames: 1e4\noptimizer: {lr: 1}\n")
        cfg = compose(["experiment=ours"], user_conf)
        assert (cfg.total_frames, type(cfg.total_frames), cfg.optimizer.lr) == (10_000, int, 1)
        (user_conf / "policy" / "ours.yaml").write_text("_target_: torchppo.modules.actor_critic.make_actor_critic\n")
        assert "shared" not in compose(["experiment=ours"], user_conf).policy
        experiment.write_text(experiment.read_text().replace("1e4", "many"))
        with pytest.raises(ConfigurationError, match="total_frames=many"):
            compose(["experiment=ours"], user_conf)

    def test_a_users_choices_are_suggested(self, user_conf: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"policy=our .*'ours'"):
            compose(["policy=our"], user_conf)

    @pytest.mark.parametrize(
        ("content", "text"),
        [
            (b"a: [1, 2\nb: }", "mine.yaml"),
            ("# Caf\u00e9".encode("latin-1"), "UTF-8"),
            (b"a: &a [*a]", "itself"),
            (b"defaults: [mine]", "itself"),
            (b"null: 1", "key"),
        ],
        ids=str,
    )
    def test_invalid_yaml_is_reported_in_one_line(self, content: bytes, text: str, tmp_path: Path) -> None:
        (tmp_path / "policy" / "folder.yaml").mkdir(parents=True)
        (tmp_path / "policy" / "mine.yaml").write_bytes(content)
        with pytest.raises(ConfigurationError, match=text) as raised:
            compose(["policy=mine"], tmp_path)
        assert len(str(raised.value).splitlines()) == 1

    def test_a_number_is_not_a_choice(self) -> None:
        with pytest.raises(ConfigurationError, match=r"policy=1\.5"):
            compose(["policy=1.5"])

    def test_components_are_chosen_by_one_override(self) -> None:
        cfg = compose(["objective=kl_penalty", "controller@controller.lr=cosine", "reward=clipped"])
        assert cfg.objective._target_.endswith(".KLPENPPOLoss")
        assert cfg.controller.lr._target_.endswith(".Cosine")
        assert cfg.controller.clip_epsilon == {}
        assert cfg.ppo.reward_normalizer._target_.endswith(".RewardClipper")

    def test_an_override_has_precedence_over_an_experiment_in_any_order(self) -> None:
        for words in (["estimator.gamma=0.5", "experiment=pendulum"], ["experiment=pendulum", "estimator.gamma=0.5"]):
            cfg = compose(words)
            assert (cfg.env.id, cfg.estimator.gamma, cfg.optimizer.lr) == ("Pendulum-v1", 0.5, 1e-3)

    def test_an_experiment_can_extend_another(self) -> None:
        cfg = compose(["experiment=hopper"])
        assert (cfg.env.id, cfg.collector.frames_per_env) == ("Hopper-v5", 2048)

    def test_the_reward_normalizer_uses_the_gamma_of_the_estimator(self) -> None:
        assert compose(["reward=normalized", "estimator.gamma=0.9"]).ppo.reward_normalizer.gamma == 0.9

    def test_the_last_override_of_a_key_counts(self) -> None:
        assert compose(["seed=1", "seed=2"]).seed == 2

    def test_keys_are_added_with_a_plus_and_removed_with_a_tilde(self) -> None:
        cfg = compose(["+env.max_episode_steps=7", "~env.num_workers"])
        assert cfg.env.max_episode_steps == 7
        assert "num_workers" not in cfg.env

    def test_loggers_can_be_chosen_or_disabled(self) -> None:
        assert set(compose(["logger=csv"]).logger) == {"csv"}
        assert set(compose(["logger=[]"]).get("logger") or {}) == set()


class TestRunDir:
    @pytest.mark.parametrize(
        ("overrides", "parent", "seed"),
        [
            *(([], "cartpole", 0), (["env=acrobot", "seed=3"], "acrobot", 3), (["experiment=hopper"], "hopper", 0)),
            *((["env.id=ALE/Pong-v5"], "ALE-Pong-v5", 0), (["experiment=hopper", "env.id=Ant-v5"], "hopper", 0)),
        ],
        ids=["default", "env", "experiment", "env.id", "experiment and env.id"],
    )
    def test_is_named_after_the_experiment_or_the_environment(
        self, overrides: list[str], parent: str, seed: int
    ) -> None:
        assert re.fullmatch(rf"runs/{parent}/\d{{8}}-\d{{6}}-s{seed}", compose(overrides).run_dir)

    @pytest.mark.parametrize("name", ["here", "/other/folder", "20260101"])
    def test_can_be_set(self, name: str) -> None:
        assert compose([f"run_dir={name}"]).run_dir == name

    @pytest.mark.parametrize("path", ["a b", "a,b", "[a]", "a=b", "it's", "é", "a(b)", "s${seed}/a,b"])
    def test_may_have_any_characters(self, path: str) -> None:
        assert compose([f"run_dir={path}"]).run_dir == path.replace("${seed}", "0")

    def test_contains_the_swept_values(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHPPO_SWEPT", '["seed=3", "optimizer.lr=0.1", "policy.body.num_cells=[8,8]"]')
        run_dir = compose(["seed=3", "optimizer.lr=0.1", "policy.body.num_cells=[8,8]"]).run_dir
        assert run_dir.endswith("-s3-optimizer.lr-0.1-policy.body.num_cells-8-8")

    def test_of_runs_in_the_same_second_differ(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.chdir(tmp_path)
        folders = [create_unique("runs/here") for _ in range(3)]
        assert folders == ["runs/here", "runs/here-2", "runs/here-3"]
        assert all(Path(folder).is_dir() for folder in folders)
        assert Path(compose([], reserve=True).run_dir).is_dir()
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert not Path(compose(["seed=1"], reserve=True).run_dir).exists()

    def test_is_the_directory_of_the_loggers(self) -> None:
        assert compose(["run_dir=here"]).logger.csv.save_dir == "here"


class TestUserConf:
    def test_adds_choices(self, user_conf: Path) -> None:
        assert compose(["policy=ours"], user_conf).policy.width == 7

    def test_can_contain_experiments(self, user_conf: Path) -> None:
        cfg = compose(["experiment=ours"], user_conf)
        assert (cfg.policy.width, cfg.seed) == (7, 9)
        assert Path(cfg.run_dir).parent == Path("runs/ours")

    def test_can_contain_new_groups(self, user_conf: Path) -> None:
        assert compose(["+extra=thing"], user_conf).extra.size == 3

    def test_types_are_those_of_the_chosen_component(self, user_conf: Path) -> None:
        with pytest.raises(ConfigurationError, match=r"policy\.width=wide .*7"):
            compose(["policy=ours", "policy.width=wide"], user_conf)

    def test_keeps_the_built_in_choices(self, user_conf: Path) -> None:
        assert compose(["policy=mlp"], user_conf).policy.body.num_cells == [64, 64]


class TestTypes:
    @pytest.mark.parametrize(
        ("override", "key", "value"),
        [
            ("optimizer.lr=1", "optimizer.lr", 1),
            ("optimizer.lr=1e-3", "optimizer.lr", 1e-3),
            ("total_frames=1_000", "total_frames", 1000),
            ("seed=7", "seed", 7),
            ("eval.every_frames=null", "eval.every_frames", None),
            ("update.target_kl=0.02", "update.target_kl", 0.02),
            ("eval.video=false", "eval.video", False),
            ("env.num_workers=auto", "env.num_workers", "auto"),
            ("compile=true", "compile", True),
            ("compile=false", "compile", False),
            ("trainer.devices=2", "trainer.devices", 2),
            ("trainer.devices=[1]", "trainer.devices", [1]),
            ("trainer.devices='0,1'", "trainer.devices", "0,1"),
            ("trainer.devices=-1", "trainer.devices", -1),
            ("ppo.max_grad_norm=inf", "ppo.max_grad_norm", float("inf")),
            ("objective.clip_epsilon=[0.1,0.3]", "objective.clip_epsilon", [0.1, 0.3]),
            ("policy.body.num_cells=[256,256]", "policy.body.num_cells", [256, 256]),
            (
                "transforms=[{_target_: torchrl.envs.StepCounter, max_steps: 3}]",
                "transforms",
                [{"_target_": "torchrl.envs.StepCounter", "max_steps": 3}],
            ),
            ("+env.sutton_barto_reward=true", "env.sutton_barto_reward", True),
        ],
    )
    def test_valid_values_are_accepted(self, override: str, key: str, value: Any) -> None:
        assert OmegaConf.select(compose([override]), key) == value

    @pytest.mark.parametrize(
        ("overrides", "key", "value", "default"),
        [
            (["seed=true"], "seed", "true", 0),
            (["total_frames=1.5"], "total_frames", 1.5, 100_000),
            (["update.epochs=auto"], "update.epochs", "auto", 4),
            (["experiment=cartpole", "update.epochs=few"], "update.epochs", "few", 20),
            (["optimizer.lr=[1]"], "optimizer.lr", [1], 0.0003),
            (["eval.video=1"], "eval.video", 1, "true"),
        ],
        ids=repr,
    )
    def test_other_values_are_rejected_with_the_default(
        self, overrides: list[str], key: str, value: Any, default: Any
    ) -> None:
        with pytest.raises(ConfigurationError, match=rf"^{re.escape(f'{key}={value}')} .*\b{default}\b"):
            compose(overrides)

    @pytest.mark.parametrize(
        ("overrides", "text"),
        [
            (["env=torchrl", "env._target_=ours.Env", "env.num_envs=8"], "+env.num_envs="),
            (["~collector.rollouts"], "~collector.rollouts"),
        ],
        ids=["key of another component", "deleted null"],
    )
    def test_keys_without_a_value_are_rejected(self, overrides: list[str], text: str) -> None:
        with pytest.raises(ConfigurationError, match=re.escape(text)):
            compose(overrides)


@pytest.mark.parametrize("experiment", [path.stem for path in CONF.glob("experiment/*.yaml")])
def test_a_key_that_is_null_by_default_may_be_null_with_every_experiment(experiment: str) -> None:
    default, cfg = compose([]), compose([f"experiment={experiment}"])
    keys = [key for key in keys_of(cfg) if isinstance(OmegaConf.select(cfg, key), int | float)]
    known = {*keys_of(default)}
    nullable = [key for key in keys if key in known and OmegaConf.select(default, key) is None]
    compose([f"experiment={experiment}", *(f"{key}=null" for key in nullable)])


def test_the_options_are_the_files_of_the_groups() -> None:
    expected = {(path.parent.name, path.stem) for path in CONF.glob("*/*.yaml")}
    assert {(group, name) for group, names in options_by_group().items() for name in names} == expected


def test_a_configuration_survives_yaml() -> None:
    cfg = compose([])
    assert isinstance(cfg, DictConfig)
    assert OmegaConf.create(OmegaConf.to_yaml(cfg, resolve=True)) == OmegaConf.to_container(cfg, resolve=True)


def test_configurations_are_composed_in_several_threads() -> None:
    with ThreadPoolExecutor(4) as pool:
        seeds = list(pool.map(lambda seed: compose([f"seed={seed}"]).seed, range(8)))
    assert seeds == list(range(8))
