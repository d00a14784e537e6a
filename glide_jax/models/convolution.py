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


def convolve(
    x: Float[Array, "b h w c"], kernel: Float[Array, "size size c c2"], bias: Float[Array, "c2"]
) -> Float[Array, "b h w c2"]:
    """XLA's convolution, on any platform."""
    return add_bias(convolution(x, kernel), bias)


def convolution(
    x: Float[Array, "b h w c"], kernel: Float[Array, "size size c c2"]
) -> Float[Array, "b h w c2"]:
    """`convolve` without a bias."""
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


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
