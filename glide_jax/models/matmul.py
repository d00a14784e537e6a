"""Matrix products of activations and kernels: XLA's own on any platform, or a CPU's."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Matmul = Callable[[jax.Array, jax.Array], jax.Array]
"""`(x, kernel) -> out`: (..., d) and (d, d2) to (..., d2), all of one type."""


def matmul(x: Float[Array, "*b d"], kernel: Float[Array, "d d2"]) -> Float[Array, "*b d2"]:
    """`x @ kernel`, as XLA compiles it on any platform."""
    return x @ kernel


MIN_PRODUCTS = 2**24
"""Fewest multiplications for which `matmul_on_cpu` is worth its time of compilation."""


def matmul_on_cpu(x: Float[Array, "*b d"], kernel: Float[Array, "d d2"]) -> Float[Array, "*b d2"]:
    """`x @ kernel`; large ones with the CPU's bfloat16 instructions, as are their gradients.

    XLA has them for matmuls with a float32 result only, and for rows by columns only: transposed
    factors are therefore copied first, which pays for float32 too.
    """
    if x.size * kernel.shape[1] < MIN_PRODUCTS:
        return matmul(x, kernel)
    return _copying_transposed(x, kernel)


@jax.custom_vjp
def _copying_transposed(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _product(x, kernel)


def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, kernel), (x, kernel)


def _backward(saved: tuple[jax.Array, jax.Array], d_out: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    d_x = _product(d_out, jax.lax.optimization_barrier(kernel.T))
    columns = jax.lax.optimization_barrier(x.reshape(-1, x.shape[-1]).T)  # d b
    return d_x, _product(columns, d_out.reshape(-1, d_out.shape[-1]))


_copying_transposed.defvjp(_forward, _backward)
