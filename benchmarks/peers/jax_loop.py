"""A PPO loop in JAX, in the style of PureJaxRL: environment, rollouts and updates of CartPole-v1 are one XLA program.

    python benchmarks/peers/jax_loop.py    # trains on CartPole-v1 and prints the mean training return

One CPU device and one thread. As in PureJaxRL, truncated episodes are not bootstrapped.
"""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any, NamedTuple

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"  # XLA reads both variables when it starts
os.environ["NPROC"] = "1"  # size of its thread pool

import jax
import jax.numpy as jnp
import optax

GAMMA, LAMBDA, CLIP, CRITIC_COEFF, MAX_NORM = 0.99, 0.95, 0.2, 0.5, 0.5
OPTIMIZER = optax.chain(optax.clip_by_global_norm(MAX_NORM), optax.adam(3e-4, eps=1e-5))

Array = Any
Params = Any


class Transition(NamedTuple):
    observation: Array
    action: Array
    log_prob: Array
    value: Array
    reward: Array
    done: Array


class State(NamedTuple):
    """The state of the training between rollouts; `physics` is `[num_envs, 4]`."""

    params: Params
    optimizer: Any
    physics: Array
    steps: Array
    last_return: Array
    key: Array


def init_mlp(key: Array, outputs: int, gain: float) -> Params:
    sizes = [(4, 64, 2**0.5), (64, 64, 2**0.5), (64, outputs, gain)]
    keys = jax.random.split(key, len(sizes))
    return [
        (jax.nn.initializers.orthogonal(scale)(k, (rows, columns)), jnp.zeros(columns))
        for k, (rows, columns, scale) in zip(keys, sizes, strict=True)
    ]


def mlp(params: Params, x: Array) -> Array:
    for weight, bias in params[:-1]:
        x = jnp.tanh(x @ weight + bias)
    return x @ params[-1][0] + params[-1][1]


def policy(params: Params, observation: Array) -> tuple[Array, Array]:
    """Return log-probabilities `[..., 2]` and values `[...]`."""
    return jax.nn.log_softmax(mlp(params[0], observation)), mlp(params[1], observation)[..., 0]


def step_cartpole(physics: Array, action: Array) -> tuple[Array, Array]:
    """Gymnasium's CartPole-v1 with Euler integration. Return the next states and whether they are terminal."""
    x, x_dot, theta, theta_dot = physics.T
    force = jnp.where(action == 1, 10.0, -10.0)
    cos, sin = jnp.cos(theta), jnp.sin(theta)
    temp = (force + 0.05 * theta_dot**2 * sin) / 1.1
    theta_acc = (9.8 * sin - cos * temp) / (0.5 * (4.0 / 3.0 - 0.1 * cos**2 / 1.1))
    x_acc = temp - 0.05 * theta_acc * cos / 1.1
    tau = 0.02
    moved = jnp.stack([x + tau * x_dot, x_dot + tau * x_acc, theta + tau * theta_dot, theta_dot + tau * theta_acc], 1)
    return moved, (jnp.abs(moved[:, 0]) > 2.4) | (jnp.abs(moved[:, 2]) > 12 * 2 * jnp.pi / 360)


def act(state: State, _: Any) -> tuple[State, Transition]:
    """Step all environments once, and reset those whose episode ends."""
    key, key_action, key_reset = jax.random.split(state.key, 3)
    log_probs, value = policy(state.params, state.physics)
    action = jax.random.categorical(key_action, log_probs)
    moved, is_terminal = step_cartpole(state.physics, action)
    steps = state.steps + 1
    done = is_terminal | (steps >= 500)
    first = jax.random.uniform(key_reset, moved.shape, minval=-0.05, maxval=0.05)
    log_prob = jnp.take_along_axis(log_probs, action[:, None], 1)[:, 0]
    reward = jnp.ones_like(value)
    transition = Transition(state.physics, action, log_prob, value, reward, done.astype(jnp.float32))
    last_return = jnp.where(done, steps, state.last_return)
    physics, steps = jnp.where(done[:, None], first, moved), jnp.where(done, 0, steps)
    return state._replace(physics=physics, steps=steps, last_return=last_return, key=key), transition


def gae(rollout: Transition, last_value: Array) -> Array:
    def back(carry: Any, transition: Transition) -> Any:
        advantage, next_value = carry
        going = GAMMA * (1 - transition.done)
        delta = transition.reward + going * next_value - transition.value
        advantage = delta + LAMBDA * going * advantage
        return (advantage, transition.value), advantage

    return jax.lax.scan(back, (jnp.zeros_like(last_value), last_value), rollout, reverse=True)[1]


def loss(params: Params, rows: tuple[Transition, Array, Array]) -> Array:
    old, advantage, target = rows
    log_probs, value = policy(params, old.observation)
    ratio = jnp.exp(jnp.take_along_axis(log_probs, old.action[:, None], 1)[:, 0] - old.log_prob)
    surrogate = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - CLIP, 1 + CLIP) * advantage)
    return CRITIC_COEFF * ((value - target) ** 2).mean() - surrogate.mean()


def learn(state: State, _: Any, *, num_steps: int, minibatch_size: int, epochs: int) -> tuple[State, Array]:
    """Collect a rollout and learn from it. Return the mean return of the last episode of each environment."""
    state, rollout = jax.lax.scan(act, state, None, num_steps)
    advantage = gae(rollout, policy(state.params, state.physics)[1])
    target = advantage + rollout.value
    advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    rows = jax.tree.map(lambda array: array.reshape(-1, *array.shape[2:]), (rollout, advantage, target))

    def step(carry: Any, minibatch: Any) -> Any:
        params, optimizer = carry
        updates, optimizer = OPTIMIZER.update(jax.grad(loss)(params, minibatch), optimizer)
        return (optax.apply_updates(params, updates), optimizer), None

    def epoch(carry: Any, key: Array) -> Any:
        order = jax.random.permutation(key, advantage.size).reshape(-1, minibatch_size)
        return jax.lax.scan(step, carry, jax.tree.map(lambda array: array[order], rows))

    key, *keys = jax.random.split(state.key, epochs + 1)
    (params, optimizer), _ = jax.lax.scan(epoch, (state.params, state.optimizer), jnp.stack(keys))
    return state._replace(params=params, optimizer=optimizer, key=key), state.last_return.mean()


def make_train(num_envs: int, num_steps: int, minibatch_size: int, epochs: int, rollouts: int) -> tuple[Any, State]:
    """Return a compiled function that trains on `rollouts` rollouts, and its first argument."""
    key, key_actor, key_critic, key_reset = jax.random.split(jax.random.key(0), 4)
    params = [init_mlp(key_actor, 2, 0.01), init_mlp(key_critic, 1, 1.0)]
    physics = jax.random.uniform(key_reset, (num_envs, 4), minval=-0.05, maxval=0.05)
    steps = jnp.zeros(num_envs, jnp.int32)
    state = State(params, OPTIMIZER.init(params), physics, steps, steps, key)
    body = partial(learn, num_steps=num_steps, minibatch_size=minibatch_size, epochs=epochs)
    return jax.jit(lambda state: jax.lax.scan(body, state, None, rollouts)).lower(state).compile(), state


if __name__ == "__main__":
    train, first = make_train(8, 128, 256, 4, 300)
    start = time.perf_counter()
    print("mean return", float(train(first)[1][-1]))
    print("seconds", time.perf_counter() - start)
