"""EfficientNet-Lite0, a classifier of ImageNet, for its features.

Architecture: EfficientNet-B0 (arXiv 1905.11946) without squeeze-and-excitation and with ReLU6, as
in tensorflow/tpu's efficientnet/lite.
"""

from functools import cache, partial

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.models.layers import linear
from glide_jax.models.network import Network
from glide_jax.models.normalized_conv import NormalizedConv
from glide_jax.models.platform import Platform

INPUT_PX = 224
STEM_CHANNELS, FEATURES, CLASSES = 32, 1280, 1000
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
"""(blocks, kernel size, stride of the first block, expansion, output channels) of each stage."""


class InvertedResidual(nnx.Module):
    """Expand, depthwise convolution, project (MobileNetV2, arXiv 1801.04381).

    Args:
        c_in: input channels.
        c_out: output channels.
        size: of the depthwise kernel, px.
        stride: of the depthwise convolution.
        expansion: hidden channels per input channel.
        rngs: initial values.
        platform: of the program.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        size: int,
        stride: int,
        expansion: int,
        rngs: nnx.Rngs,
        platform: Platform,
    ) -> None:
        conv = partial(NormalizedConv, rngs=rngs, convolve=platform.convolve_often)
        hidden = expansion * c_in
        self.expand = conv(c_in, hidden, 1) if expansion > 1 else None
        self.depthwise = conv(hidden, hidden, size, stride=stride, depthwise=True)
        self.project = conv(hidden, c_out, 1)
        self.residual = stride == 1 and c_in == c_out

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c2"]:
        """The block's output, linear."""
        out = x if self.expand is None else jax.nn.relu6(self.expand(x))
        out = self.project(jax.nn.relu6(self.depthwise(out)))
        return x + out if self.residual else out


class EfficientNetLite0(nnx.Module):
    """The classifier and the features before it."""

    def __init__(self, rngs: nnx.Rngs, platform: Platform) -> None:
        conv = partial(NormalizedConv, rngs=rngs, convolve=platform.convolve_often)
        self.stem = conv(3, STEM_CHANNELS, 3, stride=2)
        blocks, c = [], STEM_CHANNELS
        for count, size, stride, expansion, c_out in STAGES:
            for i in range(count):
                first = stride if i == 0 else 1
                blocks.append(InvertedResidual(c, c_out, size, first, expansion, rngs, platform))
                c = c_out
        self.blocks = nnx.List(blocks)
        self.head = conv(c, FEATURES, 1)
        self.classifier = linear(FEATURES, CLASSES, jnp.dtype("float32"), rngs)

    def __call__(self, x: Float[Array, "b h w 3"]) -> dict[str, Float[Array, "b d"]]:
        """Features of images.

        Args:
            x: (levels - 127) / 128 of images of 224 x 224 px.

        Returns:
            `pool`: (b, 1280), the mean over pixels before the classifier.
            `logits`: (b, 1000) of ImageNet's classes.
        """
        x = jax.nn.relu6(self.stem(x))  # b 112 112 32
        for block in self.blocks:
            x = block(x)
        x = jax.nn.relu6(self.head(x))  # b 7 7 1280
        pool = jnp.mean(x, (1, 2))  # b 1280
        return {"pool": pool, "logits": self.classifier(pool)}


@cache
def efficientnet_lite0() -> Network[EfficientNetLite0]:
    """EfficientNet-Lite0 without its parameters."""
    return Network(EfficientNetLite0)
