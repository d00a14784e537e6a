"""The Inception v3 of FID: inception-2015-12-05, neither torchvision's nor Keras's.

Inception v3 (arXiv 1512.00567) as TensorFlow's image classifier of 2015 stores it, with 1008
outputs. Its average pools do not count padding, and the last block pools by maximum: pytorch-fid
found both. Names of blocks and branches are those of torchvision.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.models.layers import linear
from glide_jax.models.network import Network
from glide_jax.models.normalized_conv import NormalizedConv
from glide_jax.models.platform import Platform

INPUT_PX = 299
FEATURES, CLASSES = 2048, 1008
SPATIAL_CHANNELS = 7
"""Channels of the spatial features: 17 x 17 x 7 = 2023 numbers, about as many as pooled ones."""


class ReluConv(NormalizedConv):
    """A normalized convolution with ReLU."""

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """The activations."""
        return jax.nn.relu(super().__call__(x))


class PooledConv(NormalizedConv):
    """A 1x1 convolution of the means of 3 x 3 px, with ReLU.

    The means are taken of the convolution's output, which has fewer channels: they are the same.
    """

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        """The activations."""
        return jax.nn.relu(average_pool(super().__call__(x)))


class InceptionA(nnx.Module):
    """35 x 35 px: 1x1, 5x5 and two 3x3 convolutions."""

    def __init__(self, c: int, pool: int, rngs: nnx.Rngs, platform: Platform) -> None:
        conv = partial(ReluConv, rngs=rngs, convolve=platform.convolve_often)
        self.branch1x1 = conv(c, 64, 1)
        self.branch5x5_1, self.branch5x5_2 = conv(c, 48, 1), conv(48, 64, 5)
        self.branch3x3dbl_1 = conv(c, 64, 1)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = conv(64, 96, 3), conv(96, 96, 3)
        self.branch_pool = PooledConv(c, pool, 1, rngs, convolve=platform.convolve_often)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        """The branches' outputs, side by side."""
        branches = (
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(x),
        )
        return jnp.concatenate(branches, -1)


class ReductionA(nnx.Module):
    """From 35 x 35 to 17 x 17 px."""

    def __init__(self, c: int, rngs: nnx.Rngs, platform: Platform) -> None:
        conv = partial(ReluConv, rngs=rngs, convolve=platform.convolve_often)
        self.branch3x3 = conv(c, 384, 3, stride=2, padding="VALID")
        self.branch3x3dbl_1, self.branch3x3dbl_2 = conv(c, 64, 1), conv(64, 96, 3)
        self.branch3x3dbl_3 = conv(96, 96, 3, stride=2, padding="VALID")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """The branches' outputs and the pooled input, side by side."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return jnp.concatenate((self.branch3x3(x), double, halve(x)), -1)


class InceptionC(nnx.Module):
    """17 x 17 px: 1x1, one and two 7x7 convolutions, each as (1, 7) and (7, 1)."""

    def __init__(self, c7: int, rngs: nnx.Rngs, platform: Platform) -> None:
        conv = partial(ReluConv, rngs=rngs, convolve=platform.convolve_often)
        c = 768
        self.branch1x1 = conv(c, 192, 1)
        self.branch7x7_1, self.branch7x7_2 = conv(c, c7, 1), conv(c7, c7, (1, 7))
        self.branch7x7_3 = conv(c7, 192, (7, 1))
        self.branch7x7dbl_1, self.branch7x7dbl_2 = conv(c, c7, 1), conv(c7, c7, (7, 1))
        self.branch7x7dbl_3, self.branch7x7dbl_4 = conv(c7, c7, (1, 7)), conv(c7, c7, (7, 1))
        self.branch7x7dbl_5 = conv(c7, 192, (1, 7))
        self.branch_pool = PooledConv(c, 192, 1, rngs, convolve=platform.convolve_often)

    def __call__(self, x: Float[Array, "b h w c"]) -> tuple[Array, Array]:
        """The branches' outputs, side by side, and that of the first alone."""
        single = self.branch1x1(x)
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = (
            single,
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(x),
        )
        return jnp.concatenate(branches, -1), single


class ReductionC(nnx.Module):
    """From 17 x 17 to 8 x 8 px."""

    def __init__(self, c: int, rngs: nnx.Rngs, platform: Platform) -> None:
        conv = partial(ReluConv, rngs=rngs, convolve=platform.convolve_often)
        self.branch3x3_1 = conv(c, 192, 1)
        self.branch3x3_2 = conv(192, 320, 3, stride=2, padding="VALID")
        self.branch7x7x3_1, self.branch7x7x3_2 = conv(c, 192, 1), conv(192, 192, (1, 7))
        self.branch7x7x3_3 = conv(192, 192, (7, 1))
        self.branch7x7x3_4 = conv(192, 192, 3, stride=2, padding="VALID")

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """The branches' outputs and the pooled input, side by side."""
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        branches = (self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), halve(x))
        return jnp.concatenate(branches, -1)


class InceptionE(nnx.Module):
    """8 x 8 px: 1x1, one and two 3x3 convolutions that end in (1, 3) beside (3, 1).

    Args:
        c: input channels.
        max_pool: whether the last branch pools by maximum.
        rngs: initial values.
        platform: of the program.
    """

    def __init__(self, c: int, max_pool: bool, rngs: nnx.Rngs, platform: Platform) -> None:
        conv = partial(ReluConv, rngs=rngs, convolve=platform.convolve_often)
        self.branch1x1 = conv(c, 320, 1)
        self.branch3x3_1 = conv(c, 384, 1)
        self.branch3x3_2a, self.branch3x3_2b = conv(384, 384, (1, 3)), conv(384, 384, (3, 1))
        self.branch3x3dbl_1, self.branch3x3dbl_2 = conv(c, 448, 1), conv(448, 384, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = conv(384, 384, (1, 3)), conv(384, 384, (3, 1))
        self.branch_pool = (
            conv(c, 192, 1)
            if max_pool
            else PooledConv(c, 192, 1, rngs, convolve=platform.convolve_often)
        )
        self.max_pool = max_pool

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c2"]:
        """The branches' outputs, side by side."""
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        branches = (
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(max_pool(x) if self.max_pool else x),
        )
        return jnp.concatenate(branches, -1)


class Inception(nnx.Module):
    """The FID Inception network."""

    def __init__(self, rngs: nnx.Rngs, platform: Platform) -> None:
        conv = partial(ReluConv, rngs=rngs, convolve=platform.convolve_often)
        at: Any = {"rngs": rngs, "platform": platform}
        self.conv_1a = conv(3, 32, 3, stride=2, padding="VALID")
        self.conv_2a = conv(32, 32, 3, padding="VALID")
        self.conv_2b = conv(32, 64, 3)
        self.conv_3b = conv(64, 80, 1)
        self.conv_4a = conv(80, 192, 3, padding="VALID")
        self.mixed_5b = InceptionA(192, 32, **at)
        self.mixed_5c = InceptionA(256, 64, **at)
        self.mixed_5d = InceptionA(288, 64, **at)
        self.mixed_6a = ReductionA(288, **at)
        self.mixed_6b = InceptionC(128, **at)
        self.mixed_6c = InceptionC(160, **at)
        self.mixed_6d = InceptionC(160, **at)
        self.mixed_6e = InceptionC(192, **at)
        self.mixed_7a = ReductionC(768, **at)
        self.mixed_7b = InceptionE(1280, False, **at)
        self.mixed_7c = InceptionE(2048, True, **at)
        self.classifier = linear(FEATURES, CLASSES, jnp.dtype("float32"), rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b d"]]:
        """Features of images.

        Args:
            x: images of 299 x 299 px in [-1, 1].

        Returns:
            `pool`: (b, 2048), for FID, KID, precision and recall (TensorFlow's pool_3).
            `spatial`: (b, 2023), for sFID: the first 7 channels of mixed_6d.branch1x1 (mixed_6/conv
                in TensorFlow) at 17 x 17 px, flattened in the order h, w, c.
            `logits`: (b, 1008), for the Inception Score: without the classifier's bias, as in the
                evaluators of OpenAI's guided-diffusion and torch-fidelity.
            `pool_64`, `pool_192`, `pool_768`: means over pixels after both maximum pools and before
                mixed_7a, as in pytorch-fid.
        """
        x = self.conv_2b(self.conv_2a(self.conv_1a(x)))  # b 147 147 64
        x = halve(x)  # b 73 73 64
        taps = {"pool_64": jnp.mean(x, (1, 2))}
        x = halve(self.conv_4a(self.conv_3b(x)))  # b 35 35 192
        taps["pool_192"] = jnp.mean(x, (1, 2))
        x = self.mixed_6a(self.mixed_5d(self.mixed_5c(self.mixed_5b(x))))  # b 17 17 768
        x, _ = self.mixed_6b(x)
        x, _ = self.mixed_6c(x)
        x, spatial = self.mixed_6d(x)  # spatial: b 17 17 192
        x, _ = self.mixed_6e(x)
        taps["pool_768"] = jnp.mean(x, (1, 2))
        x = self.mixed_7c(self.mixed_7b(self.mixed_7a(x)))  # b 8 8 2048
        pool = jnp.mean(x, (1, 2))  # b 2048
        spatial = spatial[..., :SPATIAL_CHANNELS].reshape(len(x), -1)  # b 2023
        logits = pool @ self.classifier.kernel[...]  # b 1008
        return {"pool": pool, "spatial": spatial, "logits": logits, **taps}


def average_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Means of 3 x 3 px, of those inside the image only."""
    return nnx.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def max_pool(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Maxima of 3 x 3 px."""
    return nnx.max_pool(x, (3, 3), (1, 1), "SAME")


def halve(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c"]:
    """Maxima of 3 x 3 px at every second place."""
    return nnx.max_pool(x, (3, 3), (2, 2), "VALID")


@cache
def inception() -> Network[Inception]:
    """The FID Inception network without its parameters."""
    return Network(Inception)
