"""The data set and its preparation."""

import dataclasses
import math
import re
import shlex
from dataclasses import dataclass, field
from typing import Any, Literal

from glide_jax.config.checks import Settings
from glide_jax.errors import UserError


@dataclass(frozen=True)
class MaskConfig(Settings):
    """Masks of inpainting training: relative frequencies of each kind.

    GLIDE does not publish its masks ("random regions").
    """

    rectangle: float = 1.0
    """A rectangle anywhere."""
    brush: float = 1.0
    """Brush strokes."""
    half_plane: float = 0.5
    """One side of a straight line."""
    whole: float = 0.25
    """The full image: keeps the model able to generate without known pixels."""
    place_caption: float = 0.0
    """Fraction of captions that name the position of the hidden region, as ", at the top left"."""

    def __post_init__(self) -> None:
        kinds = (self.rectangle, self.brush, self.half_plane, self.whole)
        self.require(
            min(kinds) >= 0 and sum(kinds) > 0,
            "",
            "needs frequencies of at least 0, at least one of them above 0",
        )
        self.require_fraction("place_caption")


@dataclass(frozen=True)
class LowResConfig(Settings):
    """Low-resolution images in upsampler training, degraded like a base model's samples."""

    crop_px: int = 0
    """Train on random crops of the high-resolution image, of this side in pixels (sec. 2.5, arXiv
    2205.11487); cost falls with their area. 0: full images."""
    blur_px: float = 0.0
    """Gaussian blur: largest standard deviation, in low-resolution pixels; uniform between 0 and
    this. unCLIP: 0.6 (arXiv 2204.06125)."""
    noise_steps: int = 0
    """Noise-conditioning augmentation (arXiv 2106.15282): noise at a random timestep below this of
    the model's own schedule. Requires model.low_res_noise."""

    def __post_init__(self) -> None:
        self.require_at_least(0, "crop_px", "blur_px", "noise_steps")


def _require(ok: bool, name: str, why: str) -> None:
    if not ok:
        raise UserError(f"config: {name} {why}")


MIXTURE_SETTINGS = (
    *("source", "name", "path", "data_dir", "cache_dir", "image_key", "caption_key"),
    *("train_split", "validation_split"),
)
"""Settings of a data set that each part of a mixture may have for itself."""


@dataclass(frozen=True)
class DataConfig(Settings):
    """Where captioned images come from and how they are prepared."""

    source: str = "scenes"
    """A key of glide_jax.data.sources.SOURCES: scenes, tfds, folder or shards."""
    name: str = ""
    """source=tfds: the data set's TFDS name, such as coco_captions or coco_captions/2014.
    source=scenes: full (or empty); closeups, of one large object each; or mini, a few hundred
    images for trying things out."""
    mixture: tuple[str, ...] = ()
    """Several data sets at once, in place of `source`: each as "weight=3 source=folder path=cats",
    with any of the settings of MIXTURE_SETTINGS; what it does not set is as said here."""
    path: str = ""
    """source=folder: the folder of images with captions beside them. source=shards: what
    glide_jax.prepare wrote, a folder or a URL such as gs://bucket/folder."""
    data_dir: str = ""
    """Where prepared data sets are kept; empty: TFDS's own default (~/tensorflow_datasets)."""
    cache_dir: str = ""
    """source=shards: where the shards of a URL are copied to; empty: ~/.cache/glide_jax/shards."""
    train_split: str = "train"
    validation_split: str = "validation"
    image_key: str = "image"
    """source=tfds: the image feature."""
    caption_key: str = "captions"
    """source=tfds: the caption feature, a text or a list of texts; parts separated by '/'."""
    caption_pattern: str = ""
    """Only captions in which this regular expression is found (case counts), and images that have
    one: for a part of a data set, or lessons. Held-out images go by it too. Empty: all."""
    crop: Literal["center", "random"] = "center"
    """Square crop after resizing the shorter side to the model's resolution."""
    horizontal_flip: bool = False
    """Mirror half of the images; wrong where captions speak of left and right."""
    caption_dropout: float = 0.2
    """Share of captions replaced by the empty one, for classifier-free guidance (paper: 0.2). A
    CLIP always gets its captions: without one there is nothing to compare."""
    masks: MaskConfig = field(default_factory=MaskConfig)
    low_res: LowResConfig = field(default_factory=LowResConfig)
    tokenizer: str = "train"
    """'train' (byte-level BPE on this data set's captions), a local folder, or a hub name: gpt2."""
    max_bad_fraction: float = 0.01
    """Bad records are skipped and counted; past this share of those read, the run stops."""
    loader_threads: int = 4

    def __post_init__(self) -> None:
        _require(0 <= self.caption_dropout <= 1, "data.caption_dropout", "must be in [0, 1]")
        try:
            re.compile(self.caption_pattern)
        except re.error as error:
            raise UserError(
                f"config: data.caption_pattern is no regular expression: {error}"
            ) from None
        _require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", "must be in [0, 1]")
        _require(self.loader_threads >= 1, "data.loader_threads", "must be at least 1")
        _require(self.source != "tfds" or bool(self.name), "data.name", "is needed by source=tfds")
        _require(
            self.source not in ("folder", "shards") or bool(self.path),
            "data.path",
            f"is needed by source={self.source}",
        )
        for text in self.mixture:
            _mixed(self, text)

    @property
    def parts(self) -> "tuple[tuple[float, DataConfig], ...]":
        """The data sets of the mixture, each with its weight; without a mixture, itself.

        Raises:
            UserError: one is not spelled as a mixture is.
        """
        return tuple(_mixed(self, text) for text in self.mixture) or ((1.0, self),)


def _mixed(data: DataConfig, text: str) -> tuple[float, DataConfig]:
    """A part of data.mixture: its weight, and `data` with its settings."""
    where = repr(text)
    try:
        words = shlex.split(text)
    except ValueError as error:  # an open quotation
        raise UserError(f"config: data.mixture {where}: {error}") from None
    values: dict[str, Any] = dict(word.partition("=")[::2] for word in words)
    unknown = [name for name in values if name not in MIXTURE_SETTINGS and name != "weight"]
    _require(
        not unknown and all("=" in word for word in words),
        "data.mixture",
        f"{where}: must be name=value, separated by spaces, with names of weight, "
        + ", ".join(MIXTURE_SETTINGS),
    )
    try:
        weight = float(values.pop("weight"))
    except (KeyError, ValueError):
        weight = 0.0
    _require(0 < weight < math.inf, "data.mixture", f"{where}: needs a weight above 0: weight=1")
    try:
        return weight, dataclasses.replace(data, **values, mixture=())
    except UserError as error:
        raise UserError(f"{error} (data.mixture {where})") from None
