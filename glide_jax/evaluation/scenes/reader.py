"""The reader: detects the objects and the background of images of the scenes data set.

A small convolutional network sees the image at 32 px and detects objects as points, as CenterNet
(Zhou et al., "Objects as Points", arXiv 1904.07850). For each cell of an 8 x 8 grid it predicts the
probability of an object's center in it, the center's offset from the middle of the cell, and the
object's diameter, shape, color and texture. Objects are local maxima of the probability.
`train_reader` trained its weights.
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
"""Side to which images are resized; real images can be read without errors at it."""
CELLS = 8
"""Cells along a side. The objects of a scene are at least 2.6 cells apart."""
ATTRIBUTES = {"shape": SHAPES, "color": tuple(COLORS), "texture": TEXTURES}
"""Words of each attribute that a cell classifies."""
MIN_CONFIDENCE = 0.5
"""Least probability of a detected object, and of a word."""
BATCH = 64
"""Images per call of the network."""
WIDTH = (32, 64, 96)
"""Channels at 32, 16 and 8 px."""


@dataclass(frozen=True)
class Detection:
    """A detected object; lengths are fractions of the image's side."""

    shape: str
    """One of SHAPES; '' if none reaches MIN_CONFIDENCE."""
    color: str
    """One of COLORS, or ''."""
    texture: str
    """One of TEXTURES, or ''."""
    x: float
    """Center, from the left."""
    y: float
    """Center, from the top."""
    diameter: float
    confidence: float
    """Probability of an object, 0..1."""

    @property
    def size(self) -> str:
        """small, large, or '' for close-ups; thresholds halfway between the data set's ranges."""
        return "small" if self.diameter < 0.35 else "large" if self.diameter < 0.52 else ""


@dataclass(frozen=True)
class Reading:
    """The content of an image."""

    objects: tuple[Detection, ...]
    """By descending confidence."""
    background: str
    """One of BACKGROUNDS; '' if none reaches MIN_CONFIDENCE."""


class SceneReader(nnx.Module):
    """The network: residual blocks at 16 and 8 px, and a linear layer per cell."""

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
        """Predictions for each cell, and for the image.

        Returns:
            For each cell `object` (a logit), `place` (offset of the center from the middle of the
            cell, x and y, and the diameter, in cells) and logits of each of ATTRIBUTES; for the
            image logits of the background.
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
        """A residual step of the same shape."""
        y = self.conv1(nnx.silu(self.norm1(x)))
        return x + self.conv2(nnx.silu(self.norm2(y)))


def _fold(x: Float[Array, "b h w c"]) -> Float[Array, "b h2 w2 c4"]:
    """Space to depth: 2 x 2 pixels become the channels of one."""
    b, h, w, c = x.shape
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // 2, w // 2, 4 * c)


NETWORK = Network(lambda rngs, platform: SceneReader(rngs))


def read_scenes(images: UInt8[np.ndarray, "n h w 3"]) -> list[Reading]:
    """Reads images.

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
    """Images resized to READ_PX with the filter of the training images."""
    if images.shape[1:3] == (READ_PX, READ_PX):
        return images
    size, bicubic = (READ_PX, READ_PX), Image.Resampling.BICUBIC
    return np.stack([np.asarray(Image.fromarray(p).resize(size, bicubic)) for p in images])


@jax.jit
def _read(
    params: Params, x: Float[Array, "b 32 32 3"]
) -> tuple[dict[str, Float[Array, "b 8 8 _"]], Float[Array, "b 8"]]:
    """The network's predictions as probabilities; in `object` only local maxima are kept."""
    cells, background = NETWORK.bind(params)(x)
    confidence = jax.nn.sigmoid(cells["object"])
    highest = nnx.max_pool(confidence, (3, 3), padding="SAME")
    read = {name: jax.nn.softmax(cells[name]) for name in ATTRIBUTES}
    read["object"] = jnp.where(confidence == highest, confidence, 0)
    read["place"] = cells["place"]
    return read, jax.nn.softmax(background)


def _objects(cells: dict[str, Float[np.ndarray, "8 8 _"]]) -> tuple[Detection, ...]:
    confidence = cells["object"][..., 0]
    detections = []
    for row, column in np.argwhere(confidence >= MIN_CONFIDENCE):
        dx, dy, diameter = cells["place"][row, column].tolist()
        read = {name: _word(words, cells[name][row, column]) for name, words in ATTRIBUTES.items()}
        detections.append(
            Detection(
                **read,
                x=(column + 0.5 + dx) / CELLS,
                y=(row + 0.5 + dy) / CELLS,
                diameter=diameter / CELLS,
                confidence=float(confidence[row, column]),
            )
        )
    return tuple(sorted(detections, key=lambda one: -one.confidence))


def _word(words: Sequence[str], probabilities: Float[np.ndarray, "k"]) -> str:
    best = int(np.argmax(probabilities))
    return words[best] if probabilities[best] >= MIN_CONFIDENCE else ""


@cache
def _weights() -> Params:
    return jax.device_put(read_tensors(WEIGHTS))
