"""Configurations that users write are sound, or refused in one line that names the mistake."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from torchppo.errors import ConfigurationError
from torchppo.pipelines.build import build_training
from torchppo.pipelines.cli.config import check_all, compose
from torchppo.pipelines.cli.keys.schema import ARGUMENTS, FIELDS

BASE = (
    *("env=cartpole", "total_frames=512", "collector.frames_per_env=32", "eval.video=false", "eval.episodes=2"),
    *("logger=csv", "compile=false"),
)
"""Overrides before those of every line."""
LONG = "a" * 300

MIRROR = "env=pendulum symmetry=mirror ppo.symmetry.mirror._target_=copy.copy"
REFUSED = {  # line: a part of the message. PyTorch is not needed to refuse it.
    "seed=abc": "seed=abc",
    "seed=[1]": "seed=[1]",
    "total_frames=-5": "total_frames=-5",
    "total_frames=inf": "total_frames=inf",
    "total_frames=''": "total_frames=''",
    "total_frames=512.5": "total_frames=512.5",
    "num_threads=1.5": "num_threads=1.5",
    "num_threads=null": "num_threads=null",
    "optimizer.lr=-1": "optimizer.lr=-1",
    "optimizer.lr=nan": "optimizer.lr=nan",
    "optimizer.betas=[0.9]": "+optimizer.betas=",
    "+optimizer.eps=nan": "without +",
    "+optimizer.weight_decay=-1": "optimizer.weight_decay=-1",
    "+optimizer.foo=1": "optimizer.foo is not an argument of torch.optim.Adam",
    "update.minibatch_size=0": "update.minibatch_size=0",
    "update.minibatch_size=null": "update.minibatch_size=null",
    "update.epochs=0": "update.epochs=0",
    "update.epochs=1.5": "update.epochs=1.5",
    "update.target_kl=-1": "update.target_kl=-1",
    "update.target_kl=abc": "update.target_kl=abc",
    "+update.sequence_length=7": "update.sequence_length=7",
    "update.recompute_advantage=5": "update.recompute_advantage=5",
    "estimator.gamma=-0.1": "estimator.gamma=-0.1",
    "estimator.gamma=nan": "estimator.gamma=nan",
    "estimator.gamma=null": "estimator.gamma=null",
    "estimator.lmbda=abc": "estimator.lmbda=abc",
    f"{MIRROR} trust_region=kl": "trust_region does not work with ppo.symmetry.augment=true",
    "intrinsic=rnd +intrinsic.rnd.optimizer.lr=-1": "intrinsic.rnd.optimizer.lr=-1 must be",
    "trust_region=kl trust_region.meanbound=1": "did you mean 'trust_region.mean_bound'?",
    "update=natural_gradient update.dampingg=1": "did you mean 'update.damping'?",
    "controller@controller.lr=linear controller.lr.fina=1": "did you mean 'controller.lr.final'?",
    "critic=hl_gauss critic.v_min=-1": "write critic.head.v_min=-1",
    "reward=clipped reward.limit=2": "write ppo.reward_normalizer.limit=2",
    "controller.lr=linear": "; write controller@controller.lr=linear",
    "ppo.symmetry=my_robot.mirror": "; write ppo.symmetry._target_=my_robot.mirror",
    "+controller@controller.clip_epsilon=linear": "without +",
    "controller@controller.lr=foo": "unknown choice controller@controller.lr=foo",
    "critic.epochs=-1": "critic.epochs=-1",
    "critic.epochs=abc": "critic.epochs=abc",
    "critic.lmbda=abc": "critic.lmbda=abc",
    "objective.clip_epsilon=nan": "objective.clip_epsilon=nan",
    "objective.clip_epsilon=0": "objective.clip_epsilon=0",
    "objective.entropy_coeff=inf": "objective.entropy_coeff=inf",
    "objective.clip_epsilon=null": "objective.clip_epsilon=null",
    "ppo.max_grad_norm=0": "ppo.max_grad_norm=0",
    "ppo.max_grad_norm=nan": "ppo.max_grad_norm=nan",
    "ppo.max_grad_norm=-1": "ppo.max_grad_norm=-1",
    "ppo.normalize_advantage=batch": "rollout, minibatch",
    "ppo.value_pretraining=-1": "ppo.value_pretraining=-1",
    "ppo.value_pretraining=0.5": "ppo.value_pretraining=0.5",
    "ppo.value_pretraining=abc": "ppo.value_pretraining=abc",
    "+ppo.foo=1": "ppo.foo",
    "env.num_envs=0": "env.num_envs=0",
    "env.num_envs=-1": "env.num_envs=-1",
    "env.num_envs=1.5": "env.num_envs=1.5",
    "env.num_envs=null": "env.num_envs=null",
    "env.num_envs=auto": "env.num_envs=auto",
    "env.num_workers=9": "env.num_workers=9",
    "env.num_workers=-1": "env.num_workers=-1",
    "env.num_workers=true": "env.num_workers=true",
    "env.num_workers=1.5": "env.num_workers=1.5",
    "env.step_timeout=nan": "env.step_timeout=nan",
    "env.id=''": "env.id=''",
    "env.id=null": "env.id=null",
    "env.id=42": "env.id=42",
    "env.id=../../etc/passwd": "env.id=../../etc/passwd",
    "optimizer._target_=torch.optim.SGD": "choose torch.optim.SGD with a YAML file",
    "+env.foo=1": "env.foo is not an argument of CartPole-v1",
    "env.wrappers=[abc]": "env.wrappers=[abc]",
    "+env.max_episode_steps=0": "env.max_episode_steps=0",
    "+env.max_episode_steps=-5": "env.max_episode_steps=-5",
    "+env.max_episode_steps=abc": "env.max_episode_steps=abc",
    "env._target_=os.system": "not an argument of os.system",
    "env._target_=torchppo.nope.Nope": "there is no torchppo.nope",
    "env._target_=null": "env._target_=null",
    "ppo._target_=builtins.print": "not an argument of builtins.print",
    "optimizer._target_=torch.optim.SGDD": "there is no torch.optim.SGDD",
    "optimizer=sgd": "adam, adamw",
    "policy.body.num_cells=[-4]": "policy.body.num_cells=[-4]",
    "policy.body.num_cells=[a]": "policy.body.num_cells=[a]",
    "policy.body.num_cells=null": "policy.body.num_cells=null",
    "+policy.body.activation=foo": "without +",
    "collector.frames_per_env=0": "collector.frames_per_env=0",
    "collector.frames_per_env=-1": "collector.frames_per_env=-1",
    "collector.frames_per_env=null": "collector.frames_per_env=null",
    "collector.double_buffer=yes": "collector.double_buffer=yes",
    "collector.double_buffer=true": "Atari games",
    "env.vectorization=serial": "env.num_workers",
    "eval.every_frames=0": "eval.every_frames=0",
    "eval.every_frames=-1": "eval.every_frames=-1",
    "eval.every_frames=abc": "eval.every_frames=abc",
    "eval.episodes=null": "eval.episodes=null",
    "eval.episodes=1.5": "eval.episodes=1.5",
    "eval.stop_at=nan": "eval.stop_at=nan",
    "trainer.precision=64": "32-true",
    "trainer.strategy=foo": "auto or ddp",
    "trainer.strategy=fsdp": "auto or ddp",
    "trainer.log_every_n_steps=-1": "trainer.log_every_n_steps=-1",
    "+trainer.foo=1": "trainer.foo",
    "+trainer.accumulate_grad_batches=4": "update.minibatch_size",
    "+trainer.callbacks=[foo]": "trainer.callbacks=[foo]",
    "+trainer.max_time=abc": "DD:HH:MM:SS",
    "+ckpt_path=/nope": "torchppo resume",
    "resume=x": "resume",
    "logger=null": "logger=[]",
    "schedule@schedule.lr=cubic": "schedule",
    "schedule.lr=5": "schedule.lr",
    "critic=foo": "hl_gauss",
    "transforms=foo": "transforms=foo",
    "run_dir=": "run_dir=''",
    "run_dir=/proc/x": "run_dir=/proc/x",
    f"run_dir={LONG}": "File name too long",
    "run_dir='bad\x01name'": "run_dir",
    "compile=maybe": "compile=maybe",
    "compile=null": "compile=null",
    "compile=5": "compile=5",
    "experiment=nope": "experiment=nope",
    "experiment=null": "experiment=null",
    "foo=1": "'foo'",
    "${seed}": "${seed}",
    "seed=${seed}": "seed",
    "seed=${nope}": "nope",
    "~env": "~env",
    "~ppo": "~ppo",
    "~optimizer": "~optimizer",
    "hydra.run.dir=x": "run_dir=",
    "env=": "unknown choice env=",
    "env=null": "env=null",
    "env=[cartpole,pong]": "-m env=cartpole,pong",
    "seed=1,2": "-m",
    "seed=range(3)": "-m",
    "seed=choice(1,2)": "-m",
    "\\u202eseed=1": "seed",
    "\u202eseed=1": "override",
    "'seed= x'": "seed=x",
    "SEED=1": "seed=1",
    "Seed=1": "seed=1",
    "env=CartPole": "cartpole",
    "objective=clipp": "'clip'",
    "--config-dir=/nope": "/nope",
    "--config-dir=/etc/passwd": "/etc/passwd",
    # others of the same kinds
    "trainer.devices=1000": "trainer.devices=1000",
    "+trainer.num_nodes=2": "torchrun",
    "+trainer.default_root_dir=x": "run_dir",
    "+trainer.gradient_clip_val=1": "ppo.max_grad_norm",
    "num_threads=1e9": "num_threads",
    "env.num_envs=1e9": "env.num_envs",
    "policy.body.num_cells=[64.0]": "policy.body.num_cells=[64.0]",
    "policy.body.num_cells=[true]": "policy.body.num_cells=[true]",
    "policy.body.num_cells=[1e9]": "policy.body.num_cells",
    "+optimizer.betas=abc": "optimizer.betas=abc",
    "+critic.optimizer.lr=nan": "critic.optimizer.lr=nan",
    "+eval.env.max_episode_steps=abc": "eval.env.max_episode_steps=abc",
    "+eval.env.num_envs=0": "eval.env.num_envs=0",
    "objective=[clip,kl_penalty]": "-m objective=clip,kl_penalty",
    "env=../env/cartpole": "not a choice",
    "policy=mlp.yaml": "unknown choice",
    "policy.body={}": "changes nothing",
    "eval=null": "eval=null must be a group of keys",
    "hydra.verbose=true": "no effect",
    "hydra/launcher=joblib": "-m",
    "controller.lr.final=0": "controller@controller.lr=",
    "transforms=[{_target_:torchrl.envs.NoSuch}]": "there is no torchrl.envs.NoSuch",
    "env.wrappers=[{_target_:gymnasium.wrappers.TimeLimit,_partial_:true,foo:5}]": "env.wrappers[0].foo",
    "env.wrappers=[{_target_:gymnasium.wrappers.NoSuch,_partial_:true}]": "NoSuch cannot be imported",
    "env.render_mode=1": "env.render_mode=1",
    f"seed={LONG}": "...",
    "policy=cnn": "policy=cnn needs a single image",
    "policy=resnet": "policy=resnet needs a single image",
    "head=beta": "head=beta has no effect on discrete actions",
    "head=gsde": "head=gsde has no effect on discrete actions",
    "head=beta env.id=gymnasium.envs.classic_control.CartPoleEnv": "head=beta has no effect on discrete actions",
    "policy=cnn env.id=gymnasium.envs.classic_control.CartPoleEnv": "policy=cnn needs a single image",
    "env.render_mode=bogus": "human, rgb_array",
    "collector.frames_per_env=1e9": "collector.frames_per_env=1000000000",
    "policy.head.log_std=-100": "between -20 and 10",
    "policy.body.num_cells=[]": "non-empty",
    "trainer.devices=0": "trainer.devices=0",
    "transforms=[{_target_:os.system}]": "standard library",
    "transforms=[{_target_:os.system,command:ls}]": "standard library",
    "env.wrappers=[{_target_:gymnasium.wrappers.TimeLimit,_partial_:true,max_episode_steps:-5}]": "env.wrappers[0]",
    "transforms=[{_target_:torchrl.envs.StepCounter,max_steps:abc}]": "transforms[0].max_steps=abc",
    "transforms=[{_target_:torchrl.envs.RewardScaling,scale:1}]": "transforms[0] lacks loc",
    "+trainer.callbacks=[{_target_:lightning.pytorch.callbacks.EarlyStopping}]": "lacks monitor",
}
SOUND = {  # line: a key, and its value
    "seed=99999999999999999999999": ("seed", 99999999999999999999999),
    "num_threads=2": ("num_threads", 2),
    "optimizer.lr=0": ("optimizer.lr", 0),
    "policy=gru": ("policy.memory.width", 128),
    "eval.episodes=0": ("eval.episodes", 0),
    "+trainer.detect_anomaly=true": ("trainer.detect_anomaly", True),
    "trainer.enable_checkpointing=true": ("trainer.enable_checkpointing", True),
    "memory=lstm": ("policy.memory.width", 128),
    "memory=transformer": ("policy.memory.num_layers", 2),
    "seed=1 seed=2": ("seed", 2),
    "'seed= 1'": ("seed", 1),
    r"run_dir='bad\\x01name'": ("run_dir", r"bad\x01name"),
    "logger=[]": ("logger", {}),
    "run_dir=null": ("seed", 0),
    "+optimizer.betas=[0.8,0.9]": ("optimizer.betas", [0.8, 0.9]),
    "ppo.max_grad_norm=inf": ("ppo.max_grad_norm", float("inf")),
    "env.id=gymnasium.envs.classic_control.CartPoleEnv": ("env.num_envs", 8),
}

RunCommand = Callable[[str], Any]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def words_of(line: str) -> list[str]:
    return [*BASE, *shlex.split(line)]


@pytest.mark.parametrize("line", [line for line in REFUSED if not line.startswith("--")], ids=lambda line: line[:60])
def test_a_mistake_is_refused_in_one_line(line: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        compose(words_of(line), reserve=True)
    assert REFUSED[line] in str(raised.value)
    assert len(str(raised.value)) < 700
    assert not [path for path in Path.cwd().rglob("*") if path.name != "runs"]


@pytest.mark.parametrize("line", [line for line in REFUSED if line.startswith("--")])
def test_a_wrong_option_is_refused_in_one_line(line: str, run_command: RunCommand) -> None:
    code, _, err, trained = run_command(f"train {line}")
    assert (code, err.count("\n"), trained) == (2, 1, [])
    assert REFUSED[line] in err


@pytest.mark.parametrize("line", SOUND)
def test_a_sound_configuration_is_built(line: str) -> None:
    words = words_of(line)
    cfg = compose(words)
    key, value = SOUND[line]
    assert OmegaConf.select(cfg, key) == value
    with closing(build_training(cfg, 0, words)) as training:
        assert training.ppo.total_frames == 512


NUMBERS = st.integers(-(10**20), 10**20) | st.floats() | st.sampled_from([0, 1, -1, 0.5, 1e9])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=20) | st.sampled_from(["auto", "x" * 1000, "\x00", "1,2"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "_target_", "1"]), inner, max_size=2)
    ),
    max_leaves=4,
)
DEFAULTS = compose(["logger=[csv,tensorboard]", "memory=transformer", "reward=normalized", "critic=hl_gauss"])
KEYS = [key for key in [*FIELDS, *ARGUMENTS] if "*" not in key]


@settings(max_examples=60)
@given(st.sampled_from(KEYS), VALUES)
def test_any_value_of_any_key_is_accepted_or_refused_in_one_line(key: str, value: Any) -> None:
    cfg = DEFAULTS.copy()
    try:
        OmegaConf.update(cfg, key, value, force_add=True)
    except Exception:  # noqa: BLE001 - not a value of YAML, or the parent is not a group
        return
    try:
        check_all(cfg, lambda: DEFAULTS, [key], set())
    except ConfigurationError as error:
        assert len(str(error)) < 1000  # noqa: PT017


@settings(max_examples=10)
@given(st.text(max_size=12))
def test_any_word_is_accepted_or_refused(word: str) -> None:
    try:
        compose([word])
    except ConfigurationError as error:
        assert "\n" not in str(error)  # noqa: PT017
