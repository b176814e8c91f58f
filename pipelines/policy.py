"""A trained policy as a function from observations to actions."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv as GymnasiumVectorEnv
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import EnvBase, ExplorationType, set_exploration_type
from torchrl.modules import GRUModule, LSTMModule

from ..envs import VectorEnv
from ..envs.spaces.conversion import SpaceConverter
from ..errors import CheckpointError, ConfigurationError
from ..modules.actor_critic import without_critic
from ..modules.features.extractor import recurrent_state_shapes
from .checkpoint import load_actor, restore
from .collectors.vector import as_array, is_action
from .components.instantiate import build_evaluation_env, call, evaluation_config
from .components.single_env import is_single_env, single_env_config
from .step_factory import device_of

GymnasiumEnv = VectorEnv | gymnasium.Env[Any, Any] | GymnasiumVectorEnv[Any, Any, Any]


class Policy:
    """A trained policy for your own loop over a Gymnasium environment; see `load_policy`.

    It keeps the recurrent state between calls. Networks run eagerly, without gradients.

    Args:
        actor: the policy as a TensorDict module, which is set to evaluation mode.
        env: an environment with the spaces of the observations and actions. Without it, or with a TorchRL environment
            that is not a `VectorEnv`, only `actor` can be called.
        config: configuration of the training, for `make_env`.

    """

    def __init__(self, actor: Any, env: GymnasiumEnv | None = None, config: DictConfig | None = None) -> None:
        if any(isinstance(module, LSTMModule | GRUModule) for module in actor.modules()):
            raise ConfigurationError(
                "load_policy does not keep the states of TorchRL's LSTMModule and GRUModule; use "
                "torchppo.evaluate(actor, env, episodes) with a TorchRL environment"
            )
        self.actor = without_critic(actor).eval()
        self._config = config
        self._converter = make_converter(env)
        self._state_shapes = recurrent_state_shapes(self.actor)
        self._state: dict[str, Tensor] = {}
        self.reset()

    def reset(self) -> None:
        """Start new episodes with the next call."""
        self._num_envs: int | None = None

    def __call__(
        self, observation: Any, *, is_init: NDArray[np.bool_] | bool | None = None, deterministic: bool = True
    ) -> Any:
        """Return the actions of one observation or a batch.

        Args:
            observation: an element of the environment's observation space, or a batch as `gymnasium.vector` returns it.
            is_init: whether an episode begins with this observation, for a batch `[num_envs]`. `None` continues the
                episodes. It affects only policies with a memory. The first call always begins episodes.
            deterministic: whether to use the `deterministic_sample` of the distribution instead of a random sample.

        Returns:
            One action or a batch, ready for `env.step`: an element of the environment's action space.

        Raises:
            ConfigurationError: if the observation does not fit, or the number of observations changes in an episode.

        """
        if self._converter is None:
            raise ConfigurationError(
                "policy(observation) needs the spaces of a Gymnasium environment; use load_policy(path, env=env), or "
                "call policy.actor with TensorDicts after a training with transforms"
            )
        arrays, is_single = self._converter.observations(observation)
        num_envs = len(next(iter(arrays.values())))
        is_init = self._begin_episodes(num_envs, is_init)
        device = device_of(self.actor)
        inputs = {key: torch.from_numpy(array).to(device) for key, array in arrays.items()}
        inputs |= {"is_init": torch.from_numpy(is_init).unsqueeze(-1).to(device), **self._state}
        exploration = ExplorationType.DETERMINISTIC if deterministic else ExplorationType.RANDOM
        with torch.no_grad(), set_exploration_type(exploration):
            outputs = self.actor(TensorDict(inputs, [num_envs]))
        self._state = {key: outputs["next", key] for key in self._state}
        actions = {key: as_array(outputs[key]) for key in self.actor.out_keys if is_action(key)}
        return self._converter.actions(actions, is_single=is_single)

    def _begin_episodes(self, num_envs: int, is_init: NDArray[np.bool_] | bool | None) -> NDArray[np.bool_]:
        """Return where episodes begin, `[num_envs]`. Create the recurrent state if all episodes begin."""
        given = np.asarray(False if is_init is None else is_init, np.bool_)
        if given.shape not in ((), (num_envs,)):
            raise ConfigurationError(
                f"is_init has shape {given.shape}; expected ({num_envs},), one value for each observation"
            )
        mask = np.array(np.broadcast_to(given, num_envs))
        if self._num_envs is None or mask.all():
            mask[:] = True
            self._num_envs = num_envs
            shapes = self._state_shapes.items()
            self._state = {key: torch.zeros(num_envs, *shape, device=device_of(self.actor)) for key, shape in shapes}
        elif self._state and num_envs != self._num_envs:
            raise ConfigurationError(
                f"the policy has a memory of {self._num_envs} episodes, but received {num_envs} observations; call "
                "policy.reset() to start new episodes"
            )
        return mask

    def make_env(self, num_envs: int = 1, *, seed: int = 0, **changes: Any) -> EnvBase:
        """Make the training environment, with its wrappers, transforms and keyword arguments.

        As in `torchppo eval`, Atari games do not end with the loss of a life, and `eval.env` replaces keys. With
        `num_envs=min(episodes, 20)`, `torchppo.evaluate(policy.actor, env, episodes)` has the same result.

        Args:
            num_envs: number of environments; a TorchRL environment without this key ignores it.
            seed: seed of the environments.
            changes: other keyword arguments of the environment, such as `render_mode="human"`.

        Returns:
            The batched environment, without worker processes unless `num_workers` is given. Close it after use.

        Raises:
            CheckpointError: if the policy was loaded without a configuration.

        """
        config = self._changed_config(changes)
        return build_evaluation_env(config, seed=seed, **{"num_envs": num_envs, "num_workers": 0, **changes})

    def make_gymnasium_env(self, **changes: Any) -> gymnasium.Env[Any, Any]:
        """Make one Gymnasium environment for your own loop, with the wrappers and keyword arguments of `make_env`.

        Args:
            changes: other keyword arguments of the environment, such as `render_mode="human"`.

        Raises:
            CheckpointError: if the policy was loaded without a configuration.
            ConfigurationError: if the training used Atari games, vector wrappers or a TorchRL environment; use
                `make_env`.

        """
        node = evaluation_config(self._changed_config(changes)).env
        if not is_single_env(node):
            raise ConfigurationError(
                f"{node.get('id', node._target_)} is not a single Gymnasium environment; use policy.make_env()"
            )
        return cast(gymnasium.Env[Any, Any], call(single_env_config(node), **changes))

    def _changed_config(self, changes: dict[str, Any]) -> DictConfig:
        """Return the configuration with the keys of `changes`. `build_env` replaces only existing keys."""
        if self._config is None:
            raise CheckpointError(
                "policy.make_env needs a checkpoint of torchppo train that is loaded without actor; use "
                "torchppo.make_env(id, num_envs)"
            )
        new = {key: None for key in changes if key not in self._config.env}
        return cast(DictConfig, OmegaConf.merge(self._config, {"env": new}))


def load_policy(
    path: Path | str, *, actor: Any = None, env: GymnasiumEnv | None = None, trust: Iterable[str] = ()
) -> Policy:
    """Load the policy of a checkpoint.

    Args:
        path: path of a `.ckpt` file.
        actor: an actor that is built as in the training and receives the weights of the checkpoint. Required
            after a training from Python, whose checkpoint has no configuration.
        env: a Gymnasium environment, a Gymnasium vector environment or a `VectorEnv` with the spaces of the
            observations and actions. Required for `policy(observation)` if `actor` is given or if the training used a
            TorchRL environment. `policy.actor` does not need it. It cannot replace the transforms of a training.
        trust: packages, modules or dotted names that the configuration in the checkpoint may name, in addition to
            torchppo's components. They are imported and called, and found also in the folders of the training.

    Raises:
        CheckpointError: if the file is not a checkpoint, has no configuration and `actor` is missing, does not fit
            the actor, or names other code; the message says what to trust.

    """
    if actor is not None:
        load_actor(path, actor)
        return Policy(actor, env)
    ppo, config, training_env = restore(path, seed=0, num_workers=0, trust=trust)
    training_env.close()
    if env is not None and config.transforms:
        raise ConfigurationError(
            "the training used transforms, which policy(observation) does not apply; use policy.actor in "
            "policy.make_env()"
        )
    return Policy(ppo.actor, training_env if env is None else env, config)


def make_converter(env: Any) -> SpaceConverter | None:
    """Return the converter for the spaces of an environment, or `None` if the spaces are unknown."""
    if isinstance(env, VectorEnv):
        env = env.vector
    if isinstance(env, GymnasiumVectorEnv):
        return SpaceConverter(env.single_observation_space, env.single_action_space)
    if isinstance(env, gymnasium.Env):
        return SpaceConverter(env.observation_space, env.action_space)
    return None
