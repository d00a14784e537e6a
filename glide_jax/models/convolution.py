"""Convolutions of stride 1 that keep height and width, in float32 or a narrower type."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.models.layers import add_bias, uniform_init
from glide_jax.models.remat import save_matmul

Convolve = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]
"""`(x, kernel, bias) -> out`: (b, h, w, c), (size, size, c, c2) and (c2,) to (b, h, w, c2)."""

MIN_SHIFTED_CHANNELS = 320
"""Fewest input channels for which shifted matmuls are faster than a convolution on a CPU."""


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "size size c c2"], bias: Float[Array, "c2"]
) -> Float[Array, "b h w c2"]:
    """XLA's convolution, on any platform."""
    layout = ("NHWC", "HWIO", "NHWC")
    out = jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)
    return add_bias(out, bias)


def convolve_on_cpu(
    x: Float[Array, "b h w c"], kernel: Float[Array, "size size c c2"], bias: Float[Array, "c2"]
) -> Float[Array, "b h w c2"]:
    """Shifted matmuls for wide 3x3 kernels in bfloat16, XLA's convolution for all others.

    On a CPU, XLA computes bfloat16 convolutions no faster than float32 ones, but bfloat16 matmuls
    with the CPU's own instructions (benchmarks/sample.py measures both).
    """
    h, w, channels, _ = kernel.shape
    wide = h == w == 3 and channels >= MIN_SHIFTED_CHANNELS
    if wide and x.dtype == jnp.bfloat16:
        return shifted_matmuls(x, kernel, bias)
    return convolve(x, kernel, bias)


def shifted_matmuls(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c c2"], bias: Float[Array, "c2"]
) -> Float[Array, "b h w c2"]:
    """A 3x3 convolution as nine matmuls with shifted inputs, summed in float32."""
    _, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))  # b h+2 w+2 c
    total = bias.astype(jnp.float32)
    for i in range(3):
        for j in range(3):
            shifted = padded[:, i : i + h, j : j + w]  # b h w c
            total = total + jnp.einsum(
                "bhwc,cd->bhwd", shifted, kernel[i, j], preferred_element_type=jnp.float32
            )  # b h w c2
    return total.astype(x.dtype)


class Conv(nnx.Conv):
    """A convolution, computed in `dtype`; its kernel is float32 or stored in `dtype`.

    Args:
        c_in: input channels.
        c_out: output channels.
        size: height and width of the kernel, px.
        dtype: of the matmuls and the output.
        rngs: initial values.
        zero: whether the kernel and the bias start as zeros.
        convolve: the platform's implementation.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
        *,
        zero: bool = False,
        convolve: Convolve = convolve,
    ) -> None:
        init = uniform_init(c_in * size * size, zero)
        super().__init__(c_in, c_out, (size, size), dtype=dtype, rngs=rngs, **init)
        self.convolve = convolve

    def __call__(self, inputs: Array, out_sharding: Any = None) -> Array:
        """(b, h, w, c) to (b, h, w, c2), as nnx.Conv."""
        assert self.bias is not None
        x, kernel = inputs.astype(self.dtype), self.kernel[...].astype(self.dtype)
        return save_matmul(self.convolve(x, kernel, self.bias[...]))
