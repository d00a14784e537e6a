"""Convolutions with batch normalization, for networks that are used and not trained here."""

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.models.convolution import Convolve, convolve
from glide_jax.models.layers import uniform_init

EPSILON = 1e-3
"""Added to the variance, as in TensorFlow's networks."""
Padding = Literal["SAME", "VALID"]
"""TensorFlow's: with a stride, SAME pads the end more than the start."""


class NormalizedConv(nnx.Module):
    """A convolution without bias, then batch normalization by running statistics, in float32.

    Args:
        c_in: input channels.
        c_out: output channels.
        size: height and width of the kernel, px; one number for both.
        rngs: initial values.
        stride: in both directions, px.
        padding: SAME or VALID.
        depthwise: whether each channel is convolved alone, as many as `c_out`.
        convolve: the platform's implementation.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int | tuple[int, int],
        rngs: nnx.Rngs,
        *,
        stride: int = 1,
        padding: Padding = "SAME",
        depthwise: bool = False,
        convolve: Convolve = convolve,
    ) -> None:
        h, w = (size, size) if isinstance(size, int) else size
        shape = (h, w, 1 if depthwise else c_in, c_out)
        init = uniform_init(math.prod(shape[:3]), False)["kernel_init"]
        self.kernel = nnx.Param(init(rngs.params(), shape, jnp.float32))
        self.scale = nnx.Param(np.ones(c_out, np.float32))
        self.bias = nnx.Param(np.zeros(c_out, np.float32))
        self.mean = nnx.Param(np.zeros(c_out, np.float32))
        self.variance = nnx.Param(np.ones(c_out, np.float32))
        self.stride, self.padding, self.depthwise = stride, padding, depthwise
        self.dtype, self.convolve = jnp.float32, convolve

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """The normalized output, before the activation."""
        gain = self.scale[...] * jax.lax.rsqrt(self.variance[...] + EPSILON)  # c2
        offset = self.bias[...] - self.mean[...] * gain
        h, w, _, c2 = self.kernel.shape
        if self.depthwise:
            return self._depthwise(x) * gain + offset
        if self.stride > 1 or h != w:
            return self._convolve(x) * gain + offset
        # Kernels stay as they are: to scale them takes longer than to scale the output of a batch.
        out = self.convolve(x, self.kernel[...], jnp.zeros(c2)) * gain + offset
        # XLA is faster on a CPU if it pads, even if the margin is then cropped.
        margin = h // 2 if self.padding == "VALID" else 0
        return out[:, margin : x.shape[1] - margin, margin : x.shape[2] - margin]

    def _convolve(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        layout: Any = ("NHWC", "HWIO", "NHWC")
        stride, padding = self.stride, self._padding(x)
        if self.padding == "VALID":  # an end that no output reads: faster, too
            reach = (n - k for n, k in zip(x.shape[1:3], self.kernel.shape[:2], strict=True))
            padding = [(0, stride - 1 - distance % stride) for distance in reach]
        return jax.lax.conv_general_dilated(
            x, self.kernel[...], (stride, stride), padding, dimension_numbers=layout
        )

    def _depthwise(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
        """One sum of shifted images: XLA's convolution takes a CPU far longer."""
        h, w, _, c = self.kernel.shape
        padded = jnp.pad(x, ((0, 0), *self._padding(x), (0, 0)))
        b, height, width, _ = padded.shape
        out = jnp.zeros(())
        for i in range(h):
            for j in range(w):
                end = (b, height - h + 1 + i, width - w + 1 + j, c)
                strides = (1, self.stride, self.stride, 1)
                shifted = jax.lax.slice(padded, (0, i, j, 0), end, strides)
                out = out + shifted * self.kernel[...][i, j, 0]
        return out

    def _padding(self, x: Float[Array, "b h w c"]) -> list[tuple[int, int]]:
        strides = (self.stride, self.stride)
        return jax.lax.padtype_to_pads(x.shape[1:3], self.kernel.shape[:2], strides, self.padding)
