"""Classes and functions that a configuration from a checkpoint may name: those of `conf/`, and a list.

Those of the list neither execute a string, import what a string names, read or write files, nor start programs.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml

CONF = Path(__file__).parents[2] / "conf"

ACTIVATIONS = """
    CELU ELU GELU GLU Hardshrink Hardsigmoid Hardswish Hardtanh LeakyReLU LogSigmoid LogSoftmax Mish PReLU RReLU ReLU
    ReLU6 SELU SiLU Sigmoid Softmax Softmin Softplus Softshrink Softsign Tanh Tanhshrink Threshold
"""
LAYERS = """
    AdaptiveAvgPool1d AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
    AlphaDropout AvgPool1d AvgPool2d AvgPool3d BatchNorm1d BatchNorm2d BatchNorm3d Bilinear ConstantPad1d ConstantPad2d
    Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Dropout Dropout1d Dropout2d Dropout3d Embedding
    EmbeddingBag Flatten Fold GRU GRUCell GroupNorm Identity InstanceNorm1d InstanceNorm2d InstanceNorm3d LSTM LSTMCell
    LayerNorm LazyConv1d LazyConv2d LazyConv3d LazyLinear Linear LocalResponseNorm MaxPool1d MaxPool2d MaxPool3d
    ModuleDict ModuleList MultiheadAttention PixelShuffle PixelUnshuffle RMSNorm RNN RNNCell ReflectionPad1d
    ReflectionPad2d ReplicationPad1d ReplicationPad2d Sequential SyncBatchNorm Transformer TransformerDecoder
    TransformerDecoderLayer TransformerEncoder TransformerEncoderLayer Unflatten Unfold Upsample ZeroPad1d ZeroPad2d
"""
OPTIMIZERS = """
    ASGD Adadelta Adafactor Adagrad Adam AdamW Adamax LBFGS Muon NAdam RAdam RMSprop Rprop SGD SparseAdam
"""
TRANSFORMS = """
    ActionDiscretizer ActionMask ActionScaling BinarizeReward CatFrames CatTensors CenterCrop ClipTransform Compose Crop
    DTypeCastTransform DeviceCastTransform DiscreteActionProjection DoubleToFloat EndOfLifeTransform ExcludeTransform
    FiniteTensorDictCheck FlattenAction FlattenObservation FrameSkipTransform GrayScale InitTracker LineariseRewards
    NoopResetEnv ObservationNorm PermuteTransform RandomTruncationTransform RenameTransform Resize RewardClipping
    RewardScaling RewardSum SelectTransform SignTransform SqueezeTransform Stack StepCounter TargetReturn
    TensorDictPrimer TimeMaxPool Timer ToTensorImage TrajCounter UnsqueezeTransform VecNorm VecNormV2
"""
TORCHRL_ENVS = "DMControlEnv GymEnv JumanjiEnv ParallelEnv PendulumEnv SerialEnv TicTacToeEnv"
TORCHRL_MODULES = """
    ActorValueOperator ConvNet GRU GRUModule IndependentNormal LSTM LSTMModule MLP MaskedCategorical NoisyLazyLinear
    NoisyLinear NormalParamExtractor OneHotCategorical ProbabilisticActor SafeModule SafeSequential TanhNormal
    TruncatedNormal ValueOperator
"""
WRAPPERS = """
    AddRenderObservation AddWhiteNoise AtariPreprocessing ClipAction ClipReward DelayObservation DiscretizeAction
    DiscretizeObservation DtypeObservation FilterObservation FlattenObservation FrameStackObservation
    GrayscaleObservation MaxAndSkipObservation NormalizeObservation NormalizeReward ObstructView OrderEnforcing
    PassiveEnvChecker RecordEpisodeStatistics RepeatAction RescaleAction RescaleObservation ReshapeObservation
    ResizeObservation StickyAction TimeAwareObservation TimeLimit TransformAction TransformObservation TransformReward
"""
VECTOR_WRAPPERS = """
    ClipAction ClipReward DtypeObservation FilterObservation FlattenObservation GrayscaleObservation RescaleAction
    RescaleObservation ReshapeObservation ResizeObservation TransformAction TransformObservation TransformReward
"""

LISTED_TARGETS = frozenset(
    f"{module}.{name}"
    for module, names in {
        "builtins": "tuple",  # arguments that must be tuples, see `envs/entry_points.py`
        "gymnasium.wrappers": WRAPPERS,
        "gymnasium.wrappers.vector": VECTOR_WRAPPERS,
        "lightning.pytorch.callbacks": "EarlyStopping LearningRateMonitor",
        "torch.nn": ACTIVATIONS + LAYERS,
        "torch.optim": OPTIMIZERS,
        "torchrl.data": "Binary Bounded Categorical Composite MultiCategorical MultiOneHot OneHot Unbounded",
        "torchrl.envs": TORCHRL_ENVS + TRANSFORMS,
        "torchrl.envs.transforms": TRANSFORMS,
        "torchrl.modules": TORCHRL_MODULES,
        "torchrl.objectives.value": "VTrace",
        "torchppo.envs.recall": "Recall",
        "torchppo.envs.wrappers": "ActionMask ChannelsFirst ObservationEntries",
        "torchppo.modules.adaptive_controllers": "AdaptiveBeta",
    }.items()
    for name in names.split()
)

PATH_OF_LOGGER = {
    "lightning.pytorch.loggers.CSVLogger": "save_dir",
    "lightning.pytorch.loggers.MLFlowLogger": "tracking_uri",
    "lightning.pytorch.loggers.TensorBoardLogger": "save_dir",
    "lightning.pytorch.loggers.WandbLogger": "save_dir",
}
"""Loggers, and the argument that says where each writes. Without it, they write to the working directory."""

UNSAFE_KEYS = frozenset({"backend", "backend_options", "collector_class"})
"""Arguments that name a module to import or a program to run, such as `backend` of TorchRL's `GymEnv`."""

UNSAFE_KEYS_OF_LOGGERS = frozenset({"config", "experiment", "save_code", "settings", "sync_tensorboard"})


class Shipped(NamedTuple):
    """What `conf/` names: targets, all texts, and the modules of its environments."""

    targets: frozenset[str]
    texts: frozenset[str]
    modules: frozenset[str]


@cache
def shipped() -> Shipped:
    """Read all files of `conf/`."""
    values = [pair for path in CONF.rglob("*.yaml") for pair in texts_of(yaml.safe_load(path.read_text()))]
    ids = [text for name, text in values if name == "id" and ":" in text]
    return Shipped(
        frozenset(text for name, text in values if name == "_target_"),
        frozenset(text for _, text in values),
        frozenset(text.partition(":")[0] for text in ids),
    )


def texts_of(node: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Yield all texts of nested dictionaries and lists with the name of their key."""
    if isinstance(node, dict):
        for key, child in node.items():
            yield from texts_of(child, str(key))
    elif isinstance(node, list):
        for child in node:
            yield from texts_of(child, name)
    elif isinstance(node, str):
        yield name, node
