"""Exponential moving average (EMA) of the parameters."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from glide_jax.config import OptimConfig
from glide_jax.shapes import Params


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
