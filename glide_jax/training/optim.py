"""AdamW with warm-up and gradient clipping."""

from collections.abc import Mapping
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool

from glide_jax.config import OptimConfig

Tree = TypeVar("Tree")


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """Linear warm-up, then a constant rate or cosine decay to the minimum, which then stays."""
    if config.decay_steps:
        return optax.warmup_cosine_decay_schedule(
            0.0,
            config.learning_rate,
            config.warmup_steps,
            config.decay_steps,
            end_value=config.min_learning_rate,
        )
    if config.warmup_steps == 0:  # optax's linear_schedule would stay at 0
        return optax.constant_schedule(config.learning_rate)
    return optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)


def select(condition: Bool[Array, ""], new: Tree, old: Tree) -> Tree:
    """The new tree if the condition holds, else the old one."""
    return jax.tree.map(lambda new, old: jnp.where(condition, new, old), new, old)


def optimizer(
    config: OptimConfig, trained: Mapping[str, bool]
) -> optax.GradientTransformationExtraArgs:
    """Clipping by the global norm, then AdamW (arXiv 1711.05101).

    Weight decay excludes parameters with one axis: biases and the scales of norms. `update` takes
    `finite`: unless it holds, the state stays as it is, and the updates mean nothing.

    Args:
        config: optimizer settings.
        trained: by parameter name; frozen parameters have no optimizer state.
    """
    clipped = optax.chain(optax.clip_by_global_norm(config.clip_norm), _adamw(config))
    if all(trained.values()):
        return clipped
    frozen = {name: not is_trained for name, is_trained in trained.items()}
    return optax.chain(
        optax.masked(clipped, dict(trained)), optax.masked(optax.set_to_zero(), frozen)
    )


def _adamw(config: OptimConfig) -> optax.GradientTransformationExtraArgs:
    """`optax.adamw`, with the moments selected by `finite` before anything follows from them.

    Selected afterwards, new moments would be computed twice, the second time for the parameters,
    and the compiler would have to copy the old ones, which it overwrites.
    """
    adam = optax.scale_by_adam(mu_dtype=config.first_moment_dtype)

    def update(
        grads: optax.Updates,
        state: optax.ScaleByAdamState,
        params: optax.Params | None = None,
        *,
        finite: Bool[Array, ""],
    ) -> tuple[optax.Updates, optax.ScaleByAdamState]:
        count = state.count + 1
        mu = optax.tree.update_moment(grads, state.mu, config.b1, 1)
        mu = select(finite, mu, state.mu)
        nu = optax.tree.update_moment(grads, state.nu, config.b2, 2)
        nu = select(finite, nu, state.nu)
        mu_hat = optax.tree.bias_correction(mu, config.b1, count)
        nu_hat = optax.tree.bias_correction(nu, config.b2, count)
        rate = learning_rate(config)(state.count)

        def step(m: Array, v: Array, p: Array) -> Array:
            direction = m / (jnp.sqrt(v) + config.eps)
            return -rate * (direction + config.weight_decay * p if p.ndim > 1 else direction)

        mu = optax.tree.cast(mu, config.first_moment_dtype)
        state = optax.ScaleByAdamState(jnp.where(finite, count, state.count), mu, nu)
        return jax.tree.map(step, mu_hat, nu_hat, params), state

    return optax.GradientTransformationExtraArgs(adam.init, update)
