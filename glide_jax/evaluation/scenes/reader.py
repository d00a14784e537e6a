"""Reads a picture of the scenes data set: which objects it shows, where, and on which ground.

A small convolutional network looks at the image at 32 px and finds objects as points, after
CenterNet (Zhou et al., "Objects as Points", arXiv 1904.07850): on an 8 x 8 grid it says of every
cell how surely an object's center lies in it, how far the center is from the cell's middle, and the
object's diameter, shape, color and texture. Objects are the cells that are surer than all their
neighbors. `train_scene_reader` made its weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, UInt8
from PIL import Image

from glide_jax.data.scenes.graph import BACKGROUNDS, COLORS, SHAPES, TEXTURES
from glide_jax.data.transforms import to_float
from glide_jax.models.convolution import Conv
from glide_jax.models.layers import GroupNorm
from glide_jax.models.network import Network
from glide_jax.pretrained.weight_files import read_tensors
from glide_jax.shapes import Params

WEIGHTS = Path(__file__).with_name("reader.safetensors")
READ_PX = 32
"""Side at which images are read, whatever their own: real ones tell all they know at it."""
CELLS = 8
"""Cells along a side. Two objects of a scene are at least 2.6 of them apart."""
ATTRIBUTES = {"shape": SHAPES, "color": tuple(COLORS), "texture": TEXTURES}
"""What a cell says about its object by a choice of words."""
LEAST_CONFIDENCE = 0.5
"""Below it, an object does not count as one, and a word is not read."""
BATCH = 64
"""Images read by one call of the network, which is compiled for this number."""
WIDTH = (32, 64, 96)
"""Channels at 32, 16 and 8 px."""


@dataclass(frozen=True)
class Found:
    """An object seen in an image; lengths are fractions of the image's side."""

    shape: str
    """One of SHAPES; '' if none is likelier than LEAST_CONFIDENCE. So too the next two."""
    color: str
    texture: str
    x: float
    """Center, to the right."""
    y: float
    """Center, down."""
    diameter: float
    confidence: float
    """That there is an object, 0..1."""

    @property
    def size(self) -> str:
        """small, large, or '' for the size of close-ups: cut halfway between the drawn ranges."""
        return "small" if self.diameter < 0.35 else "large" if self.diameter < 0.52 else ""


@dataclass(frozen=True)
class Reading:
    """What an image shows."""

    objects: tuple[Found, ...]
    """The surest first."""
    background: str
    """One of BACKGROUNDS; '' if none is likelier than LEAST_CONFIDENCE."""


class SceneReader(nnx.Module):
    """The network: residual blocks at 16 and 8 px, and a linear layer for every cell."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype("float32")
        first, middle, last = WIDTH
        self.enter = Conv(3, first, 3, dtype, rngs)
        self.halve = Conv(4 * first, middle, 1, dtype, rngs)
        self.middle = nnx.List([Block(middle, rngs) for _ in range(2)])
        self.halve_again = Conv(4 * middle, last, 1, dtype, rngs)
        self.last = nnx.List([Block(last, rngs) for _ in range(2)])
        self.norm = GroupNorm(last)
        words = sum(map(len, ATTRIBUTES.values()))
        self.cells = Conv(last, 4 + words, 1, dtype, rngs)
        self.background = Conv(last, len(BACKGROUNDS), 1, dtype, rngs)

    def __call__(
        self, x: Float[Array, "b 32 32 3"]
    ) -> tuple[dict[str, Float[Array, "b 8 8 _"]], Float[Array, "b 8"]]:
        """Of every cell, and of the whole.

        Returns:
            `object` (logit), `place` (x and y of the center less the cell's middle, in cells, and
            the diameter, in images) and logits of each of ATTRIBUTES; logits of the background.
        """
        x = nnx.silu(self.enter(x))
        x = self.halve(_fold(x))
        for block in self.middle:
            x = block(x)
        x = self.halve_again(_fold(x))
        for block in self.last:
            x = block(x)
        x = nnx.silu(self.norm(x))
        sizes = {"object": 1, "place": 3} | {name: len(w) for name, w in ATTRIBUTES.items()}
        ends = np.cumsum(list(sizes.values()))
        parts = jnp.split(self.cells(x), ends[:-1], axis=-1)
        return dict(zip(sizes, parts, strict=True)), jnp.mean(self.background(x), (1, 2))


class Block(nnx.Module):
    """A residual block of two convolutions (arXiv 1603.05027)."""

    def __init__(self, width: int, rngs: nnx.Rngs) -> None:
        dtype = jnp.dtype("float32")
        self.norm1 = GroupNorm(width)
        self.conv1 = Conv(width, width, 3, dtype, rngs)
        self.norm2 = GroupNorm(width)
        self.conv2 = Conv(width, width, 3, dtype, rngs, zero=True)

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The same shape."""
        y = self.conv1(nnx.silu(self.norm1(x)))
        return x + self.conv2(nnx.silu(self.norm2(y)))


def _fold(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c4"]:
    """Half the height and width: each 2 x 2 pixels become the channels of one."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // 2, w // 2, 4 * c)


NETWORK = Network(lambda rngs, platform: SceneReader(rngs))


def read_scenes(images: UInt8[np.ndarray, "n h w 3"]) -> list[Reading]:
    """What each image shows, as well as the network can tell.

    Args:
        images: 8-bit sRGB; validated from 32 to 128 px.
    """
    readings: list[Reading] = []
    for start in range(0, len(images), BATCH):
        part = images[start : start + BATCH]
        small = np.zeros((BATCH, READ_PX, READ_PX, 3), np.uint8)
        small[: len(part)] = at_reading_size(part)
        cells, background = jax.device_get(_read(_weights(), to_float(small)))
        for i in range(len(part)):
            one = {name: values[i] for name, values in cells.items()}
            readings.append(Reading(_objects(one), _word(tuple(BACKGROUNDS), background[i])))
    return readings


def at_reading_size(images: UInt8[np.ndarray, "n h w 3"]) -> UInt8[np.ndarray, "n 32 32 3"]:
    """By the filter that makes the training images small."""
    if images.shape[1:3] == (READ_PX, READ_PX):
        return images
    size, bicubic = (READ_PX, READ_PX), Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(p).resize(size, bicubic)) for p in images])


@jax.jit
def _read(
    params: Params, x: Float[Array, "b 32 32 3"]
) -> tuple[dict[str, Float[Array, "b 8 8 _"]], Float[Array, "b 8"]]:
    """The network's answers with logits made probabilities, and its own peaks left in `object`."""
    cells, background = NETWORK.bind(params)(x)
    confidence = jax.nn.sigmoid(cells["object"])
    highest = nnx.max_pool(confidence, (3, 3), padding="SAME")
    read = {name: jax.nn.softmax(cells[name]) for name in ATTRIBUTES}
    read["object"] = jnp.where(confidence == highest, confidence, 0)
    read["place"] = cells["place"]
    return read, jax.nn.softmax(background)


def _objects(cells: dict[str, Float[np.ndarray, "8 8 _"]]) -> tuple[Found, ...]:
    confidence = cells["object"][..., 0]
    found = []
    for row, column in np.argwhere(confidence >= LEAST_CONFIDENCE):
        dx, dy, diameter = cells["place"][row, column].tolist()
        read = {name: _word(words, cells[name][row, column]) for name, words in ATTRIBUTES.items()}
        found.append(
            Found(
                **read,
                x=(column + 0.5 + dx) / CELLS,
                y=(row + 0.5 + dy) / CELLS,
                diameter=diameter / CELLS,
                confidence=float(confidence[row, column]),
            )
        )
    return tuple(sorted(found, key=lambda one: -one.confidence))


def _word(words: Sequence[str], shares: Float[np.ndarray, "k"]) -> str:
    best = int(np.argmax(shares))
    return words[best] if shares[best] >= LEAST_CONFIDENCE else ""


@cache
def _weights() -> Params:
    return jax.device_put(read_tensors(WEIGHTS))
