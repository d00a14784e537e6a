"""AdamW with warm-up and gradient clipping, and the EMA of the parameters."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from glide_jax.config import OptimConfig
from glide_jax.shapes import Params


def learning_rate(config: OptimConfig) -> optax.Schedule:
    """Linear warm-up, then a constant rate or cosine decay to zero."""
    if config.decay_steps:
        return optax.warmup_cosine_decay_schedule(
            0.0, config.learning_rate, config.warmup_steps, config.decay_steps
        )
    if config.warmup_steps == 0:  # optax's linear_schedule would stay at 0
        return optax.constant_schedule(config.learning_rate)
    return optax.linear_schedule(0.0, config.learning_rate, config.warmup_steps)


def optimizer(config: OptimConfig, trained: Mapping[str, bool]) -> optax.GradientTransformation:
    """Clipping by the global norm, then AdamW (arXiv 1711.05101).

    Weight decay excludes parameters with one axis: biases and the scales of norms.

    Args:
        config: optimizer settings.
        trained: by parameter name; frozen parameters have no optimizer state.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.adamw(
            learning_rate(config),
            b1=config.b1,
            b2=config.b2,
            eps=config.eps,
            weight_decay=config.weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params),
        ),
    )
    if all(trained.values()):
        return adamw
    frozen = {name: not is_trained for name, is_trained in trained.items()}
    return optax.chain(
        optax.masked(adamw, dict(trained)), optax.masked(optax.set_to_zero(), frozen)
    )


def ema_decay(config: OptimConfig, step: Int[Array, ""]) -> Float[Array, ""]:
    """min(ema_decay, (1 + step) / (10 + step)): early on, the EMA soon forgets the initial values.

    Args:
        config: the final decay.
        step: number of steps before this one.
    """
    return jnp.minimum(config.ema_decay, (1.0 + step) / (10.0 + step))


def ema_update(ema: Params, params: Params, decay: Float[Array, ""]) -> Params:
    """decay * ema + (1 - decay) * params."""
    return jax.tree.map(lambda e, p: e + (1 - decay) * (p - e), ema, params)
