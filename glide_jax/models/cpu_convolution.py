"""3x3 convolutions on a CPU, as matmuls where these are faster than XLA's convolution.

`winograd` has fewer multiplications. Besides, XLA computes bfloat16 convolutions on a CPU in
float32, but bfloat16 matmuls with the CPU's own instructions. Gradients of kernels remain XLA's.
benchmarks/against_torch.py measures the result.
"""

from collections.abc import Callable, Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from glide_jax.models.convolution import convolution, convolve
from glide_jax.models.layers import add_bias
from glide_jax.models.matmul import matmul_on_cpu

MIN_CHANNELS = 64
"""Fewest input and output channels for which the matmuls are faster."""
MIN_PRODUCTS = 2**30
"""Fewest multiplications of a convolution for which `winograd` is worth its time of compilation."""
MIN_PRODUCTS_OFTEN = 2**28
"""The same for networks that are compiled once for many calls."""
Algorithm = Callable[[jax.Array, jax.Array], jax.Array]
"""`(x, kernel) -> out`: (b, h, w, c) and (3, 3, c, c2) to (b, h, w, c2)."""


def convolve_on_cpu(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "size size c c2"],
    bias: Float[Array, "c2"],
    min_products: int | None = None,
) -> Float[Array, "b h w c2"]:
    """`convolve` by the fastest algorithm for the shapes and the type."""
    if kernel.shape[:2] == (1, 1):
        return add_bias(matmul_on_cpu(x, kernel[0, 0]), bias)
    algorithm = fastest_algorithm(x, kernel, min_products)
    if algorithm is None:
        return convolve(x, kernel, bias)
    return add_bias(_by(algorithm, x, kernel), bias)


convolve_often_on_cpu = partial(convolve_on_cpu, min_products=MIN_PRODUCTS_OFTEN)


def fastest_algorithm(
    x: Float[Array, "b h w c"],
    kernel: Float[Array, "size size c c2"],
    min_products: int | None = None,
) -> Algorithm | None:
    """The algorithm that is faster than XLA's convolution, if any."""
    b, h, w, c = x.shape
    size, _, _, c2 = kernel.shape
    if size != 3 or min(c, c2) < MIN_CHANNELS or x.dtype not in (jnp.float32, jnp.bfloat16):
        return None
    # For fewer tiles, transforming the kernel takes as long as is saved.
    many_tiles = b * h * w // 4 >= c // 8
    unpadded = h % 2 == w % 2 == 0 or x.dtype == jnp.float32  # bfloat16 has `by_rows` for the rest
    least = MIN_PRODUCTS if min_products is None else min_products
    if unpadded and many_tiles and b * h * w * kernel.size >= least:
        return winograd
    return by_rows if x.dtype == jnp.bfloat16 else None


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _by(algorithm: Algorithm, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return algorithm(x, kernel)


def _forward(
    algorithm: Algorithm, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return algorithm(x, kernel), (x, kernel)


def _backward(
    algorithm: Algorithm, saved: tuple[jax.Array, jax.Array], d_out: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    d_x = algorithm(d_out, jnp.flip(kernel, (0, 1)).swapaxes(2, 3))
    _, kernel_gradient = jax.vjp(lambda kernel: convolution(x, kernel), kernel)
    return d_x, *kernel_gradient(d_out)


_by.defvjp(_forward, _backward)

# Without barriers, XLA would compute what they hold again for every tile of the matmuls.
_materialize = jax.lax.optimization_barrier


@jax.jit
def by_rows(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c c2"]
) -> Float[Array, "b h w c2"]:
    """A matmul for each row of the kernel, of every pixel and its two neighbors in that row."""
    b, h, w, c = x.shape
    # XLA would copy bfloat16 arrays by way of float32; integers it just copies.
    padded = _pad(jax.lax.bitcast_convert_type(x, jnp.uint16))
    rows = jnp.concatenate([padded[:, :, j : j + w] for j in range(3)], -1)  # b h+2 w 3c
    rows = _materialize(rows)
    total = jnp.zeros((), jnp.float32)
    for i, kernel_row in enumerate(kernel.reshape(3, 3 * c, -1)):
        shifted = _materialize(rows[:, i : i + h].reshape(b * h * w, 3 * c))
        shifted = jax.lax.bitcast_convert_type(shifted, x.dtype)
        total = total + _matmul(shifted, kernel_row)
    return total.astype(x.dtype).reshape(b, h, w, -1)


@jax.jit
def winograd(
    x: Float[Array, "b h w c"], kernel: Float[Array, "3 3 c c2"]
) -> Float[Array, "b h w c2"]:
    """F(2x2, 3x3) of Sec. 4.1, arXiv 1509.09308: 16 multiplications instead of 36.

    A tile of 2 x 2 outputs is A^T [(G g G^T) * (B^T d B)] A, of 4 x 4 inputs d and the kernel g.
    The products are matmuls over the channels, one for each of the 16 places, of all tiles. Their
    factors are rounded to the input's type, which in bfloat16 adds to a network's rounding error.

    An odd height or width is padded to an even one, and the output cropped.
    """
    (b, height, width, c), dtype = x.shape, x.dtype
    h, w = height + height % 2, width + width % 2
    padded = _pad(x.astype(jnp.float32), h - height, w - width)  # b h+2 w+2 c
    products = []  # by row and column of a tile: (n, c2) each
    kernels = _matmul(jnp.asarray(KERNEL_TRANSFORM, dtype), kernel.reshape(9, -1))
    kernels = kernels.astype(dtype).reshape(4, 4, c, -1)
    for row, kernel_row in zip(_inputs(padded, 1, h), kernels, strict=True):
        tiles = _inputs(_materialize(row), 2, w)  # b h/2 w/2 c
        products.append(
            [
                _matmul(_materialize(tile.astype(dtype)).reshape(-1, c), k)
                for tile, k in zip(tiles, kernel_row, strict=True)
            ]
        )
    rows = zip(*(_outputs(row) for row in products), strict=True)
    columns = [_outputs(column) for column in rows]  # by column and row
    tiles = _materialize([[columns[j][i].astype(dtype) for j in range(2)] for i in range(2)])
    out = jnp.stack([jnp.stack(row, 1) for row in tiles], 1)  # n 2 2 c2
    out = out.reshape(b, h // 2, w // 2, 2, 2, -1).swapaxes(2, 3).reshape(b, h, w, -1)
    return out[:, :height, :width]


_G = np.array([[2, 0, 0], [1, 1, 1], [1, -1, 1], [0, 0, 2]], np.float32) / 2
KERNEL_TRANSFORM = np.kron(_G, _G)
"""From the 9 values of a kernel g to the 16 of G g G^T."""


def _matmul(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a @ b` in float32."""
    return jnp.matmul(a, b, preferred_element_type=jnp.float32)


def _inputs(x: jax.Array, axis: int, size: int) -> tuple[jax.Array, ...]:
    """B^T d along an axis, for all tiles."""
    d = [jax.lax.slice_in_dim(x, i, i + size - 1, 2, axis) for i in range(4)]
    return d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]


def _outputs(m: Sequence[jax.Array]) -> tuple[jax.Array, jax.Array]:
    """A^T m along an axis."""
    return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _pad(x: jax.Array, bottom: int = 0, right: int = 0) -> jax.Array:
    """`x` with a margin of one pixel of zeros, or more at the end."""
    return _materialize(jnp.pad(x, ((0, 0), (1, 1 + bottom), (1, 1 + right), (0, 0))))
