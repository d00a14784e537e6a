"""LPIPS, the learned perceptual distance between images (arXiv 1801.03924), version 0.1."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from glide_jax.models.layers import uniform_init
from glide_jax.models.network import Network

Trunk = Literal["alex", "vgg"]

_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)
"""Mean and deviation of ImageNet's channels, for pixels in [-1, 1]."""


@dataclass(frozen=True)
class _Layer:
    """A convolution followed by a ReLU."""

    index: int
    """In torchvision's sequence of features, which names its parameters."""
    channels: int
    size: int = 3
    stride: int = 1
    pool: int = 0
    """Side of the max pooling before it, of stride 2; 0: none."""
    compared: bool = True
    """Whether the distance reads its output."""


_TRUNKS: dict[str, tuple[_Layer, ...]] = {
    "alex": (
        _Layer(0, 64, size=11, stride=4),
        _Layer(3, 192, size=5, pool=3),
        _Layer(6, 384, pool=3),
        _Layer(8, 256),
        _Layer(10, 256),
    ),
    "vgg": (
        _Layer(0, 64, compared=False),
        _Layer(2, 64),
        _Layer(5, 128, pool=2, compared=False),
        _Layer(7, 128),
        _Layer(10, 256, pool=2, compared=False),
        _Layer(12, 256, compared=False),
        _Layer(14, 256),
        _Layer(17, 512, pool=2, compared=False),
        _Layer(19, 512, compared=False),
        _Layer(21, 512),
        _Layer(24, 512, pool=2, compared=False),
        _Layer(26, 512, compared=False),
        _Layer(28, 512),
    ),
}


class Lpips(nnx.Module):
    """The distance with an AlexNet or a VGG-16 as trunk.

    Args:
        trunk: "alex" or "vgg".
        rngs: initial values, for tests: it is not trained here.
    """

    def __init__(self, trunk: Trunk, rngs: nnx.Rngs) -> None:
        self.layers = _TRUNKS[trunk]
        convolutions, heads, c_in = {}, [], 3
        for layer in self.layers:
            convolutions[str(layer.index)] = nnx.Conv(
                c_in,
                layer.channels,
                (layer.size, layer.size),
                strides=layer.stride,
                # AlexNet's first convolution pads 2, all others half their size.
                padding=2 if layer.stride > 1 else layer.size // 2,
                rngs=rngs,
                **uniform_init(c_in * layer.size**2, False),
            )
            if layer.compared:
                heads.append(nnx.Param(np.ones(layer.channels, np.float32)))
            c_in = layer.channels
        self.features = nnx.Dict(convolutions)
        self.heads = nnx.List(heads)

    def __call__(
        self, a: Float[Array, "b h w 3"], b: Float[Array, "b h w 3"]
    ) -> tuple[Float[Array, "b"], Float[Array, "layers b"]]:
        """The distance of each pair, and its parts by layer.

        Args:
            a, b: images in [-1, 1].
        """
        parts = []
        features = zip(self.compared(a), self.compared(b), self.heads, strict=True)
        for of_a, of_b, head in features:
            difference = jnp.square(_normalized(of_a) - _normalized(of_b))  # b h w c
            parts.append(jnp.mean(difference @ head[...], (1, 2)))  # b
        by_layer = jnp.stack(parts)  # layers b
        return by_layer.sum(0), by_layer

    def compared(self, images: Float[Array, "b h w 3"]) -> list[Float[Array, "b h2 w2 c"]]:
        """Features of the layers that the distance reads."""
        x = (images - jnp.array(_SHIFT)) / jnp.array(_SCALE)
        found = []
        for layer in self.layers:
            if layer.pool:
                x = nnx.max_pool(x, (layer.pool, layer.pool), (2, 2))
            x = jax.nn.relu(self.features[str(layer.index)](x))  # b h2 w2 c
            if layer.compared:
                found.append(x)
        return found


def _normalized(x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Features of unit length at each pixel."""
    return x / (jnp.sqrt(jnp.sum(jnp.square(x), -1, keepdims=True)) + 1e-10)


def lpips(trunk: Trunk) -> Network[Lpips]:
    """The network without parameters."""
    return Network(lambda rngs, platform: Lpips(trunk, rngs))
