"""The data and its preparation."""

import re
from dataclasses import dataclass, field
from typing import Annotated, Literal

from glide_jax.config.bounds import FRACTION, Between
from glide_jax.config.checks import Settings
from glide_jax.config.diffusion import MAX_DIFFUSION_STEPS
from glide_jax.config.model import MAX_PX
from glide_jax.config.sources import AnySource, Scenes
from glide_jax.errors import first_line


@dataclass(frozen=True)
class MaskConfig(Settings):
    """Masks of inpainting training: relative frequencies of each kind.

    GLIDE does not publish its masks ("random regions").
    """

    rectangle: Annotated[float, Between(0, 10**6)] = 1.0
    """A rectangle anywhere."""
    brush: Annotated[float, Between(0, 10**6)] = 1.0
    """Brush strokes."""
    half_plane: Annotated[float, Between(0, 10**6)] = 0.5
    """One side of a straight line."""
    full: Annotated[float, Between(0, 10**6)] = 0.25
    """The full image: keeps the model able to generate without known pixels."""
    caption_location: Annotated[float, FRACTION] = 0.0
    """Fraction of captions that name the location of the hidden region: ", at the top left"."""

    def _check(self) -> None:
        kinds = (self.rectangle, self.brush, self.half_plane, self.full)
        self.require(
            sum(kinds) > 0,
            "",
            "needs frequencies of at least 0, at least one of them above 0",
        )


@dataclass(frozen=True)
class LowResConfig(Settings):
    """Low-resolution images in upsampler training, degraded like a base model's samples."""

    crop_px: Annotated[int, Between(0, MAX_PX)] = 0
    """Train on random crops of the high-resolution image, of this side in pixels (sec. 2.5, arXiv
    2205.11487); cost falls with their area. 0: full images."""
    blur_px: Annotated[float, Between(0, 100)] = 0.0
    """Gaussian blur: largest standard deviation, in low-resolution pixels; uniform between 0 and
    this. unCLIP: 0.6 (arXiv 2204.06125)."""
    noise_steps: Annotated[int, Between(0, MAX_DIFFUSION_STEPS)] = 0
    """Noise-conditioning augmentation (arXiv 2106.15282): noise at a random timestep below this of
    the model's own schedule. Requires model.low_res_noise."""
    degradation: Literal["none", "bsr"] = "none"
    """Degradation: bsr, random blurs, resizes, noise and JPEG artifacts as for unCLIP's 256 to 1024
    px upsampler (arXiv 2204.06125), or none: the area average."""


@dataclass(frozen=True)
class DataConfig(Settings):
    """Data and its preparation."""

    source: AnySource = field(default_factory=Scenes)
    """Data set. On the command line: scenes [SUBSET], tfds NAME, folder PATH, shards PATH or
    embeddings PATH, then further settings as NAME=VALUE (tfds coco_captions
    caption_key=captions/text); or mixture and quoted parts, each with a weight: mixture "3 folder
    cats/" "1 folder dogs/"."""
    train_split: str = "train"
    """Split to train on."""
    validation_split: str = "validation"
    """Split of held-out images."""
    caption_pattern: str = ""
    """Regular expression (case-sensitive): use only captions that match it, and images with such a
    caption, in training and validation; for curriculum stages. Empty: all."""
    crop: Literal["center", "random"] = "center"
    """Position of the square that is cut from each image and resized to the model's resolution: as
    large as the shorter side, from the center or a random place. Transparency becomes white."""
    horizontal_flip: bool = False
    """Mirror half of the images. Wrong for captions that mention left and right."""
    caption_dropout: Annotated[float, FRACTION] = 0.2
    """Fraction of captions replaced by the empty caption, for classifier-free guidance (paper:
    0.2; its empty caption is also a CLIP's, for models that read a CLIP's text). Not applied to a
    CLIP."""
    embedding_dropout: Annotated[float, FRACTION] = 0.1
    """Fraction of image embeddings replaced by the learned null embedding, for classifier-free
    guidance of unCLIP's decoder (sec. 2.1, arXiv 2204.06125: 0.1); independent of the captions."""
    masks: MaskConfig = field(default_factory=MaskConfig)
    low_res: LowResConfig = field(default_factory=LowResConfig)
    tokenizer: str = "train"
    """Tokenizer: train (byte-level BPE on this data's captions), a folder, or a name on the Hugging
    Face hub: gpt2."""
    max_bad_fraction: Annotated[float, FRACTION] = 0.01
    """Bad records are skipped and counted. Above this fraction of the records read, the run stops.
    """
    loader_threads: Annotated[int, Between(1, 1024)] = 4
    """Threads that read and decode images, in this process or in each of loader_workers."""
    loader_workers: Annotated[int, Between(0, 256)] = 0
    """Processes that make batches, for each process of the run. 0: threads only, which share one
    core for their Python code."""

    def _check(self) -> None:
        try:
            re.compile(self.caption_pattern)
        except (re.error, OverflowError, RecursionError) as error:
            why = first_line(error)
            self.require(False, "caption_pattern", f"is no regular expression: {why}")
