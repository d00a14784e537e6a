"""What is done otherwise on CPUs, in one place.

XLA computes bfloat16 convolutions on a CPU no faster than float32 ones, but has matmuls in
bfloat16 that use what the CPU has for them. A wide 3x3 convolution is therefore quicker as nine
products with shifted inputs: benchmarks/sample.py measures it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import jax.numpy as jnp
from jaxtyping import Array, Float

_drawing = ContextVar("drawing on a CPU", default=False)

WIDE = 320
"""Input channels from which on it pays."""


@contextmanager
def drawing_on(platform: str) -> Iterator[None]:
    """Around the tracing of a program that draws, and so has no gradient, on this platform."""
    token = _drawing.set(platform == "cpu")
    try:
        yield
    finally:
        _drawing.reset(token)


def pays_to_shift(kernel: Float[Array, "h w c c2"], dtype: jnp.dtype) -> bool:
    """Whether `shifted_matmuls` is the quicker way to a convolution, here and now."""
    h, w, channels, _ = kernel.shape
    return _drawing.get() and dtype == jnp.bfloat16 and h == w == 3 and channels >= WIDE


def shifted_matmuls(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c c2"], bias: Float[Array, "c2"]
) -> Float[Array, "b h w c2"]:
    """A 3x3 convolution of stride 1 that keeps height and width, summed in float32."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    total = bias.astype(jnp.float32)
    for i in range(3):
        for j in range(3):
            shifted = padded[:, i : i + h, j : j + w]
            total = total + jnp.einsum(
                "bhwc,cd->bhwd", shifted, kernel[i, j], preferred_element_type=jnp.float32
            )
    return total.astype(x.dtype)
