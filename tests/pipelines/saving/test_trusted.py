"""A configuration from a checkpoint names only code that torchppo ships or lists, or that the user trusts."""

from __future__ import annotations

import copy
import os
import re
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import gymnasium
import pytest
import torch
from omegaconf import OmegaConf

import torchppo
from torchppo.errors import CheckpointError, ConfigurationError
from torchppo.pipelines.cli.config import compose
from torchppo.pipelines.cli.main import main
from torchppo.pipelines.ppo import PPO
from torchppo.pipelines.saving.files import add_checksum
from torchppo.pipelines.saving.known_targets import LISTED_TARGETS, shipped
from torchppo.pipelines.saving.plain_checkpoints import load_checkpoint
from torchppo.pipelines.saving.trusted import add_code_folders, trusted_config

CONF = Path(torchppo.__file__).parent / "conf"
PRESETS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
RUN = "runs/x"
TOUCH = {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": ["MARKER"]}]}


def config_of(*words: str) -> dict[str, Any]:
    """Return a configuration as `torchppo train` stores it."""
    config: Any = OmegaConf.to_container(compose([*words, f"run_dir={RUN}"]), resolve=True)
    return {**config, "code_dirs": ["/nowhere"]}


CARTPOLE = config_of("experiment=cartpole")


def changed(key: str, value: Any, config: dict[str, Any] = CARTPOLE) -> dict[str, Any]:
    """Return a copy of a configuration with one value replaced or added."""
    config = copy.deepcopy(config)
    *parents, last = key.split(".")
    node = config
    for name in parents:
        node = node.setdefault(name, {})
    node[last] = value
    return config


def node(target: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": target, **arguments}


def nested(value: Any, depth: int) -> Any:
    return value if depth == 0 else [nested(value, depth - 1)]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a module that leaves a mark when it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "beside.py").write_text("open('MARKER', 'w').close()\ndef function(*a, **k): open('MARKER', 'w')\n")
    return tmp_path


def require_untouched(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == ["beside.py"]
    assert "beside" not in sys.modules


HARMFUL_TARGETS = """
    setuptools._distutils.spawn.spawn builtins.open builtins.eval builtins.exec builtins.getattr builtins.__import__
    builtins.compile builtins.print pathlib.Path.touch pathlib.Path.write_text shutil.copyfile shutil.rmtree shutil.move
    torch.load torch.save torch.hub.load torch.jit.load torch.ops.load_library torch.utils.cpp_extension.load_inline
    torch.package.PackageImporter torch.nn.modules.module.sys.modules torch.nn.modules.module.os.system torch.nn.Module
    torch.nn.init.os torch.nn torch.optim torch.optim.Optimizer torch.optim.lr_scheduler.LambdaLR torch.compile
    torchrl.envs.gym_like.os.system torchrl.envs.EnvCreator torchrl.envs.VmasEnv torchrl.envs.PettingZooEnv
    torchrl.envs.UnityMLAgentsEnv torchrl.envs.libs.gym.set_gym_backend torchrl.envs.libs.gym.importlib.import_module
    torchrl.envs.VC1Transform torchrl.envs.R3MTransform torchrl.envs.Tokenizer torchrl.envs.transforms.RayTransform
    torchrl.collectors.distributed.RPCCollector torchrl.record.VideoRecorder torchrl.trainers.Trainer numpy.load
    numpy.save numpy.fromfile numpy.lib.npyio.NpzFile.__getitem__ numpy.ctypeslib.load_library numpy.f2py.compile
    pandas.read_pickle joblib.load lightning.fabric.utilities.cloud_io._load lightning.pytorch.callbacks.ModelCheckpoint
    lightning.pytorch.callbacks.LambdaCallback lightning.pytorch.loggers.CometLogger
    lightning.pytorch.profilers.PyTorchProfiler lightning.pytorch.loggers.logger.rank_zero_experiment
    lightning.LightningModule.load_from_checkpoint gymnasium.make gymnasium.make_vec gymnasium.register
    gymnasium.vector.AsyncVectorEnv gymnasium.wrappers.RecordVideo gymnasium.wrappers.ArrayConversion
    gymnasium.envs.registration.load_env_creator gymnasium.wrappers.vector.RecordVideo hydra.utils.get_object
    hydra.utils.get_method hydra.utils.call hydra.utils.instantiate hydra._internal.utils._locate
    omegaconf.OmegaConf.load omegaconf.OmegaConf.register_new_resolver yaml.unsafe_load yaml.load os.system os.mkdir
    os.remove os.putenv os.execv posix.system subprocess.Popen subprocess.run subprocess.check_output logging.os.system
    logging.FileHandler logging.config.dictConfig pty.spawn timeit.timeit runpy.run_path cProfile.run pickle.loads
    pickle.load cloudpickle.loads marshal.loads shelve.open code.InteractiveInterpreter.runsource
    importlib.import_module importlib.util.spec_from_file_location ctypes.CDLL webbrowser.open
    urllib.request.urlretrieve http.server.HTTPServer multiprocessing.Process threading.Thread functools.partial
    functools.reduce operator.call operator.methodcaller types.FunctionType tempfile.mkdtemp sqlite3.connect
    zipfile.ZipFile tarfile.open atexit.register signal.signal sys.exit sys.setprofile site.addsitedir unittest.main
    doctest.testfile pdb.run antigravity this.s torchppo.pipelines.train.train torchppo.pipelines.cli.main.main
    torchppo.pipelines.saving.plain_checkpoints.load_checkpoint torchppo.envs.entry_points.find_factory
    torchppo.envs.make.gymnasium.make torchppo.envs.vector.subprocess.SubprocessVectorEnv
    torchppo.pipelines.run_files.video.subprocess.run torchppo.envs.make_gymnasium_env torchppo beside.function
    beside.Missing beside .beside beside:function BESIDE os 1 torch.optim.adam torch.optim.Adam.__init__
"""


class TestHarmfulTarget:
    @pytest.mark.parametrize("target", HARMFUL_TARGETS.split())
    def test_is_refused_by_name_before_it_is_imported(self, target: str, folder: Path) -> None:
        before = set(sys.modules)
        with pytest.raises(CheckpointError) as raised:
            trusted_config("x.ckpt", changed("policy.body", node(target, cmd=["touch", "MARKER"])))
        assert f"policy.body._target_={target}" in str(raised.value)
        assert f"--trust {re.split('[.:]', target)[0]}" in str(raised.value)
        assert set(sys.modules) == before
        require_untouched(folder)

    @pytest.mark.parametrize(
        "key",
        [
            *("env", "policy", "policy.body", "policy.memory", "policy.head", "policy.encoders.image", "optimizer"),
            *("env.id", "env.extra", "env.extra.deep.er", "objective", "objective.extra", "estimator.value_network"),
            *("update", "collector", "collector.rollouts", "critic.head", "critic.optimizer.lr", "controller.lr"),
            *("controller.beta", "intrinsic.count", "ppo", "ppo.reward_normalizer", "ppo.config", "logger.csv"),
            *("logger.other", "trainer", "trainer.strategy", "trainer.profiler", "eval.env", "eval.env.df", "unknown"),
            *("checkpoint.every_frames", "eval.stop_at", "seed"),
        ],
    )
    def test_is_found_everywhere(self, key: str, folder: Path) -> None:
        for value in (TOUCH, {"deep": [1, {"er": TOUCH}]}, node("torch.nn.Sequential", _args_=[TOUCH])):
            config = changed(key, value)
            for group in ("env", "policy", "objective", "update", "optimizer", "ppo"):
                config[group] = {"_target_": "torch.nn.Identity", **config[group]}
            with pytest.raises(CheckpointError, match=r"pathlib\.Path\.touch"):
                trusted_config("x.ckpt", config)
        require_untouched(folder)

    @pytest.mark.parametrize(
        "key",
        ["env.wrappers", "transforms", "trainer.callbacks", "trainer.plugins", "env.info_keys", "policy.body._args_"],
    )
    @pytest.mark.parametrize("options", [{}, {"_partial_": True}, {"_recursive_": False, "_convert_": "none"}], ids=str)
    def test_is_found_in_lists(self, key: str, options: dict[str, Any], folder: Path) -> None:
        for depth in (1, 2, 9):
            with pytest.raises(CheckpointError, match=r"os\.system"):
                trusted_config("x.ckpt", changed(key, nested(node("os.system", **options), depth)))
        require_untouched(folder)


class TestText:
    @pytest.mark.parametrize(
        ("key", "value", "flag"),
        [
            ("env.id", "beside:Id-v0", "beside"),
            ("env.id", "beside:", "beside"),
            ("env.id", "beside.Class", "beside"),
            ("env.id", "beside.deep:function", "beside"),
            ("env.id", "os:system", "os"),
            ("env.id", "os.system", "os.system"),
            ("env.id", "torch.hub.load", "torch.hub.load"),
            ("env.id", "a:b:c", "a"),
            ("env.id", "gymnasium:make", "gymnasium"),
            ("env.id", "torchppo.envs:make_env", "torchppo.envs"),
            ("env.id", "torchppo.pipelines.train:train", "torchppo.pipelines.train"),
            ("env.id", "minigrid.manual_control:main", "minigrid"),
            ("env.id", "minigrid:register_minigrid_envs", "minigrid"),
            ("eval.env.id", "beside:Id-v0", "beside"),
            ("env", node("torchrl.envs.GymEnv", env_name="beside:Id-v0"), "beside"),
            ("env", node("torchrl.envs.GymEnv", _args_=["beside:Id-v0"]), "beside"),
            ("env", node("torchrl.envs.GymEnv", env_name="CartPole-v1", backend="beside"), "torchrl.envs.GymEnv"),
            ("env", node("torchrl.envs.SerialEnv", num_workers=1, create_env_fn="beside.function"), "beside"),
            (
                "env",
                node("torchrl.envs.SerialEnv", create_env_fn=node("torchrl.envs.GymEnv", env_name="beside:X-v0")),
                "beside",
            ),
            (
                "env",
                node("torchrl.envs.SerialEnv", create_env_kwargs={"env_name": "beside:X-v0"}),
                "beside",
            ),
            ("collector.backend", "submitit", "torchppo.pipelines.collectors.collector.Collector"),
            ("policy.body.activation_class", "os.system", "os.system"),
            ("policy.body.activation_class", "beside.function", "beside"),
            ("policy.body.activation_class", "beside:function", "beside"),
            ("policy.body.names", ["relu", ["subprocess.run"]], "subprocess.run"),
            ("policy.encoders", {"beside.function": {}}, "beside"),
            ("env.wrappers", [node("gymnasium.wrappers.TransformReward", func="beside.function")], "beside"),
            ("env.wrappers", ["beside.function"], "beside"),
            ("env.xml_file", "/etc/passwd", "torchppo.envs.make_env"),
            ("env.xml_file", "other.xml", "torchppo.envs.make_env"),
            ("env.map", "../secret", "torchppo.envs.make_env"),
            ("env.map", "https://example.com/map", "torchppo.envs.make_env"),
            ("trainer.default_root_dir", "elsewhere", "lightning.Trainer"),
            ("logger.csv.save_dir", "/tmp/elsewhere", "lightning.pytorch.loggers.CSVLogger"),
            ("logger.csv.save_dir", "elsewhere", "lightning.pytorch.loggers.CSVLogger"),
            ("logger.csv.save_dir", RUN + "2", "lightning.pytorch.loggers.CSVLogger"),
            ("logger.csv.save_dir", RUN + "/../..", "lightning.pytorch.loggers.CSVLogger"),
            ("logger.csv.save_dir", "", "lightning.pytorch.loggers.CSVLogger"),
            ("logger.csv.name", "../..", "lightning.pytorch.loggers.CSVLogger"),
            ("logger.csv.version", "/tmp", "lightning.pytorch.loggers.CSVLogger"),
            ("logger.csv._args_", ["elsewhere"], "lightning.pytorch.loggers.CSVLogger"),
            ("logger.tensorboard.save_dir", "~/x", "lightning.pytorch.loggers.TensorBoardLogger"),
            ("logger.tensorboard.filename_suffix", "/../../x", "lightning.pytorch.loggers.TensorBoardLogger"),
            ("logger.m", node("lightning.pytorch.loggers.MLFlowLogger"), "lightning.pytorch.loggers.MLFlowLogger"),
            (
                "logger.m",
                node("lightning.pytorch.loggers.MLFlowLogger", tracking_uri="http://example.com"),
                "lightning.pytorch.loggers.MLFlowLogger",
            ),
            ("logger.w", node("lightning.pytorch.loggers.WandbLogger"), "lightning.pytorch.loggers.WandbLogger"),
            (
                "logger.w",
                node("lightning.pytorch.loggers.WandbLogger", save_dir=RUN, settings={"base_url": "x"}),
                "lightning.pytorch.loggers.WandbLogger",
            ),
        ],
    )
    def test_that_names_code_or_other_files_is_refused_with_the_flag(
        self, key: str, value: Any, flag: str, folder: Path
    ) -> None:
        config = changed(key, value)
        with pytest.raises(CheckpointError) as raised:
            trusted_config("x.ckpt", config)
        assert f"--trust {flag} " in str(raised.value)
        trusted_config("x.ckpt", config, [flag])
        require_untouched(folder)

    def test_of_an_evaluation_environment_is_checked_with_the_keys_that_it_inherits(self) -> None:
        config = changed("env", node("torchrl.envs.GymEnv", env_name="CartPole-v1"))
        trusted_config("x.ckpt", config)
        with pytest.raises(CheckpointError, match=r"eval\.env\.backend=beside"):
            trusted_config("x.ckpt", changed("eval.env", {"backend": "beside"}, config))

    @pytest.mark.parametrize(
        "value", ["${oc.env:HOME}", "${oc.decode:x}", "a${seed}", "${seed}", "${hydra:runtime.cwd}", "\\${x}", "???"]
    )
    def test_is_not_resolved(self, value: str) -> None:
        for key, part in (("env.id", value), ("run_dir", value), ("code_dirs", [value]), ("policy", {value: 1})):
            with pytest.raises(CheckpointError, match="no fixed value"):
                trusted_config("x.ckpt", changed(key, part), ["torchppo", "lightning"])

    def test_cannot_control_the_terminal(self) -> None:
        with pytest.raises(CheckpointError) as raised:
            trusted_config("x.ckpt", changed("policy.body._target_", "a; touch MARKER\x1b[2J\n\u202ex.y"))
        assert str(raised.value).isprintable()
        assert "--trust 'a; touch MARKER" in str(raised.value)


class TestMalformed:
    @pytest.mark.parametrize(
        "config",
        [
            *({}, [], None, 3, "os.system", {"env": {}}, {**CARTPOLE, "env": [1]}, {**CARTPOLE, "policy": None}),
            *({**CARTPOLE, "env": {"id": torch.zeros(3)}}, {**CARTPOLE, "env": {"id": b"x"}}, {**CARTPOLE, 3: {1, 2}}),
            *({**CARTPOLE, "env": {("a", "b"): 1}}, {**CARTPOLE, "run_dir": {1}}),
        ],
        ids=lambda value: str(value)[-30:],
    )
    def test_configuration_is_refused(self, config: Any) -> None:
        with pytest.raises(CheckpointError, match=r"x\.ckpt"):
            trusted_config("x.ckpt", config)

    def test_endless_structures_are_refused(self) -> None:
        loop: list[Any] = []
        loop.append(loop)
        wide: list[Any] = ["x"]
        for _ in range(40):
            wide = [wide, wide]
        for value in (loop, wide):
            with pytest.raises(CheckpointError, match="endless"):
                trusted_config("x.ckpt", {**CARTPOLE, "extra": value})


class TestAllowed:
    @pytest.mark.parametrize("preset", PRESETS)
    def test_presets(self, preset: str) -> None:
        config = config_of(f"experiment={preset}", "logger=[csv,tensorboard]")
        assert trusted_config("x.ckpt", config) == config

    @pytest.mark.parametrize(
        ("key", "value"),
        [
            ("env.id", "ALE/Breakout-v5"),
            ("env.id", "minigrid:MiniGrid-Empty-5x5-v0"),
            ("env.id", "torchppo.envs:torchppo/Recall-v0"),
            ("env.id", "NotRegistered-v0"),
            ("env", node("torchrl.envs.GymEnv", env_name="CartPole-v1", device="cuda:0")),
            ("env", node("torchrl.envs.DMControlEnv", env_name="cheetah", task_name="run")),
            ("env.shape", node("builtins.tuple", _args_=[[1, 2]])),
            ("env.wrappers", [node("gymnasium.wrappers.FrameStackObservation", _partial_=True, stack_size=4)]),
            ("transforms", [node("torchrl.envs.RewardScaling", loc=0.0, scale=0.1)]),
            ("trainer.callbacks", [node("lightning.pytorch.callbacks.EarlyStopping", monitor="eval/mean_reward")]),
            ("trainer.max_time", "00:01:00:00"),
            ("policy.critic_observations", ["agent.position", "goal"]),
            ("policy.body", node("torch.nn.Linear", in_features=3)),
            ("logger.w", node("lightning.pytorch.loggers.WandbLogger", save_dir=RUN, name="a.b: c", tags=["os.path"])),
            ("optimizer._target_", "torch.optim.SGD"),
        ],
    )
    def test_listed_and_registered_names(self, key: str, value: Any) -> None:
        trusted_config("x.ckpt", changed(key, value))

    def test_environment_that_the_process_has_registered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        spec = gymnasium.envs.registration.EnvSpec("own.Env-v0", "beside:function")
        with pytest.raises(CheckpointError):
            trusted_config("x.ckpt", changed("env.id", "own.Env-v0"))
        monkeypatch.setitem(gymnasium.registry, "own.Env-v0", spec)
        trusted_config("x.ckpt", changed("env.id", "own.Env-v0"))

    def test_list_contains_classes_of_the_packages_that_it_names(self) -> None:
        for name in LISTED_TARGETS:
            module, _, attribute = name.rpartition(".")
            found = getattr(import_module(module), attribute)
            assert isinstance(found, type), name
            assert found.__module__.split(".")[0] in (module.split(".")[0], "tensordict"), name
        assert shipped().modules == {"torchppo.envs", "minigrid"}

    def test_module_of_conf_in_the_working_directory_is_refused(self, folder: Path) -> None:
        (folder / "minigrid.py").touch()
        with pytest.raises(CheckpointError, match="--trust minigrid"):
            trusted_config("x.ckpt", config_of("experiment=minigrid_memory"))


class TestTrust:
    def test_names_packages_modules_or_single_names(self) -> None:
        config = changed("policy.body", node("own.deep.body", inner=node("other.thing"), text="own.name"))
        for trust in (["own", "other"], ["own.deep", "other.thing"], ["own.deep.body", "other"]):
            trusted_config("x.ckpt", config, trust)
        for trust in (["own"], ["ow", "other"], ["own.dee", "other"], ["", "."], [], "own"):
            with pytest.raises(CheckpointError, match="--trust o"):
                trusted_config("x.ckpt", config, trust)

    def test_of_one_package_as_text_is_not_a_list_of_letters(self) -> None:
        trusted_config("x.ckpt", changed("policy.body", node("own.body")), "own")

    def test_flags_of_the_message_can_be_pasted(self) -> None:
        config = changed("policy.body", node("own.body"))
        config = changed("env.id", "my_envs:Walk-v0", config)
        with pytest.raises(CheckpointError) as raised:
            trusted_config("x.ckpt", config)
        assert "--trust my_envs --trust own (in Python trust=['my_envs', 'own'])" in str(raised.value)

    def test_adds_only_the_folder_of_the_package(self, folder: Path) -> None:
        (folder / "theirs").mkdir()
        (folder / "theirs" / "their_module.py").touch()
        (folder / "other").mkdir()
        dirs = [str(folder / "other"), str(folder / "theirs"), "theirs", 3]
        add_code_folders(dirs, ["json", "missing"])
        assert str(folder) not in sys.path
        add_code_folders(dirs, ["their_module.Class"])
        assert sys.path[-1] == str(folder / "theirs")
        add_code_folders(dirs, ["beside"])
        assert sys.path[-1] == str(folder)
        assert str(folder / "other") not in sys.path
        assert "theirs" not in sys.path


class Malicious:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, ("MARKER",)


class TestEveryWayToLoad:
    """The command line, and Python with the whole configuration or with the Trainer."""

    @pytest.fixture
    def run(self, trained: Path, folder: Path) -> Path:
        """Return a run directory whose checkpoint names a module in the working directory."""
        checkpoint = load_checkpoint(trained)
        config = checkpoint["torchppo"]["config"]
        config["policy"]["body"] = node("beside.function", cmd=["touch", "MARKER"])
        config["code_dirs"] = [".", str(folder)]
        (folder / "run" / "checkpoints").mkdir(parents=True)
        torch.save(checkpoint, path := folder / "run" / "checkpoints" / "last.ckpt")
        add_checksum(path)
        return folder / "run"

    def require_untouched(self, folder: Path) -> None:
        files = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        assert sorted(map(str, files)) == ["beside.py", "run/checkpoints/last.ckpt"]
        assert "beside" not in sys.modules
        assert str(folder) not in sys.path

    @pytest.mark.parametrize(
        "words", ["eval run/checkpoints/last.ckpt", "resume run", "resume run/checkpoints/last.ckpt"]
    )
    def test_commands_refuse_it_in_one_line(
        self, words: str, run: Path, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(words.split()) == 5
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert "policy.body._target_=beside.function" in err
        assert "--trust beside " in err
        self.require_untouched(folder)

    @pytest.mark.parametrize("load", [torchppo.load_policy, PPO.load_from_checkpoint])
    def test_python_refuses_it(self, load: Callable[..., Any], run: Path, folder: Path) -> None:
        with pytest.raises(CheckpointError, match="--trust beside"):
            load(run / "checkpoints" / "last.ckpt")
        self.require_untouched(folder)

    @pytest.mark.parametrize("words", ["eval run/checkpoints/last.ckpt --trust beside", "resume run --trust beside"])
    def test_trust_imports_it(
        self, words: str, run: Path, folder: Path, trained: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (folder / "beside.py").write_text("from torchppo.modules.features.bodies import mlp as function\n")
        checkpoint = load_checkpoint(run / "checkpoints" / "last.ckpt")
        checkpoint["torchppo"]["config"]["policy"]["body"] = node("beside.function", _partial_=True, num_cells=[8])
        torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
        shutil.copy(trained.parent.parent / "metrics.csv", run)
        monkeypatch.delitem(sys.modules, "beside", raising=False)
        assert main(words.split() + ["--no-video"] * words.startswith("eval")) == 0
        assert sys.modules.pop("beside").__file__ == str(folder / "beside.py")

    def test_python_passes_trust_on(self, run: Path, folder: Path, make: Any) -> None:
        with pytest.raises(CheckpointError, match="--trust builtins"):
            torchppo.load_policy(self.with_body(run, "builtins.len"), trust=["beside"])
        with pytest.raises(CheckpointError, match="--trust builtins"):
            PPO.load_from_checkpoint(self.with_body(run, "builtins.len"), trust=["beside"])
        ppo, _ = make()
        with pytest.raises(ConfigurationError, match="trust"):
            PPO.load_from_checkpoint(run, trust=["beside"], objective=ppo.objective)

    @staticmethod
    def with_body(run: Path, target: str) -> Path:
        checkpoint = load_checkpoint(run / "checkpoints" / "last.ckpt")
        checkpoint["torchppo"]["config"]["policy"]["body"] = node(target)
        torch.save(checkpoint, run / "checkpoints" / "last.ckpt")
        return run / "checkpoints" / "last.ckpt"

    def test_checkpoint_outside_of_a_run_is_not_resumed(self, trained: Path, folder: Path) -> None:
        """The directory that the file names may be anything."""
        checkpoint = load_checkpoint(trained)
        checkpoint["torchppo"]["config"]["run_dir"] = str(folder / "elsewhere")
        torch.save(checkpoint, folder / "last.ckpt")
        assert main(["resume", "last.ckpt"]) == 5
        assert not (folder / "elsewhere").exists()

    def test_video_does_not_replace_what_a_link_points_to(self, trained: Path, folder: Path) -> None:
        shutil.copytree(trained.parent, folder / "run" / "checkpoints")
        (folder / "run" / "videos").mkdir()
        (folder / "run" / "videos" / "last.mp4").symlink_to(folder / "beside.py")
        assert main(["eval", "run/checkpoints/last.ckpt"]) == 5
        assert (folder / "beside.py").read_text().startswith("open")

    @pytest.mark.parametrize("place", ["state_dict", "hyper_parameters", "torchppo", "callbacks", None])
    @pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])
    def test_pickles_are_not_executed(
        self, place: str | None, is_zip: bool, trained: Path, make: Any, folder: Path
    ) -> None:
        content = load_checkpoint(trained)
        content = Malicious() if place is None else {**content, place: {"x": Malicious()}}
        folder = folder / "run" / "checkpoints"
        folder.mkdir(parents=True)
        torch.save(content, folder / "last.ckpt", _use_new_zipfile_serialization=is_zip)
        for command in ("eval", "resume"):
            assert main([command, "run/checkpoints/last.ckpt"]) == 5
        for load in (torchppo.load_policy, PPO.load_from_checkpoint):
            with pytest.raises(CheckpointError):
                load(folder / "last.ckpt")
        ppo, collector = make()
        for options in ({}, {"weights_only": False}):
            with pytest.raises(CheckpointError):
                quiet_trainer().fit(ppo, train_dataloaders=collector, ckpt_path=str(folder / "last.ckpt"), **options)
        with pytest.raises(CheckpointError, match="not a file"):
            quiet_trainer().fit(ppo, train_dataloaders=collector, ckpt_path="http://127.0.0.1:9/last.ckpt")
        assert not Path("MARKER").exists()


def quiet_trainer() -> Any:
    from lightning import Trainer

    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    return Trainer(max_epochs=1, accelerator="cpu", devices=1, log_every_n_steps=1, **quiet)
