"""2x2 mean pooling and nearest-neighbor upsampling: transposes of each other up to a factor."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

RepeatX2 = Callable[[jax.Array], jax.Array]
"""(b, h, w, c) to (b, 2h, 2w, c): the forward pass of `nearest_x2`."""


def repeat_x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Each pixel four times, by broadcasting."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None, :], (b, h, 2, w, 2, c))
    return x.reshape(b, 2 * h, 2 * w, c)


def repeat_x2_by_padding(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Each pixel four times, as the maximum of four dilated images padded with -inf.

    Faster than broadcasting on TPUs, slower elsewhere.
    """

    def spread(down: int, right: int) -> jax.Array:
        rows, columns = (down, 1 - down, 1), (right, 1 - right, 1)
        gap = jnp.array(-jnp.inf, x.dtype)
        return jax.lax.pad(x, gap, ((0, 0, 0), rows, columns, (0, 0, 0)))  # b 2h 2w c

    upper, lower = (jnp.maximum(spread(row, 0), spread(row, 1)) for row in (0, 1))
    return jnp.maximum(upper, lower)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def mean_pool(x: Float[Array, "b h w c"], repeat: RepeatX2) -> Float[Array, "b h2 w2 c"]:
    """Half the height and width, by 2x2 means.

    Args:
        x: images or features.
        repeat: the platform's implementation, for the gradient.
    """
    return (_sums_of_2x2(x) / 4).astype(x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def nearest_x2(x: Float[Array, "b h w c"], repeat: RepeatX2) -> Float[Array, "b h2 w2 c"]:
    """Twice the height and width, by repeating pixels.

    Args:
        x: images or features, floating-point.
        repeat: the platform's implementation.
    """
    return repeat(x)


def _sums_of_2x2(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """In float32. TPUs add four slices faster than they sum over axes of length 2."""
    x = x.astype(jnp.float32)
    return x[:, ::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, ::2] + x[:, 1::2, 1::2]


mean_pool.defvjp(
    lambda x, repeat: (mean_pool(x, repeat), None),
    lambda repeat, _, d_out: (nearest_x2(d_out / 4, repeat),),
)
nearest_x2.defvjp(
    lambda x, repeat: (nearest_x2(x, repeat), None),
    lambda repeat, _, d_out: (_sums_of_2x2(d_out).astype(d_out.dtype),),
)
