"""AdamW with warm-up and gradient clipping."""

from collections.abc import Mapping

import jax
import optax

from glide_jax.config import OptimConfig


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
            mu_dtype=config.first_moment_dtype,
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
