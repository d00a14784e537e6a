"""Flags that the commands about scenes share."""

from dataclasses import dataclass
from typing import Annotated

import numpy as np
from jaxtyping import UInt8

from glide_jax.config import Config, DataConfig, Mixture, Scenes
from glide_jax.config.bounds import Between
from glide_jax.data.scenes.graph import SPLITS, make
from glide_jax.data.scenes.workers import encoded_scene
from glide_jax.data.transforms import load_pixels
from glide_jax.errors import UserError

SCENES = Between(1, 1_000_000)
"""Bounds of --n."""


@dataclass(frozen=True, kw_only=True)
class SplitFlags:
    """Which scenes."""

    n: Annotated[int, SCENES] = 64
    """Number of scenes: the first of the split."""
    split: str = "validation"
    """train, validation or novel (shapes in colors they never have in training)."""

    def check(self) -> None:
        """Raises UserError unless these are scenes of the data set."""
        if self.split not in SPLITS:
            raise UserError(f"--split {self.split}: must be one of {', '.join(SPLITS)}")

    def images(self, px: int, closeup: bool) -> UInt8[np.ndarray, "n {px} {px} 3"]:
        """The data set's own images, of close-ups or of scenes of one or two objects."""
        scenes = (encoded_scene(self.split, i, closeup=closeup) for i in range(self.n))
        return np.stack([load_pixels(scene.image, px) for scene in scenes])


@dataclass(frozen=True, kw_only=True)
class CaptionFlags(SplitFlags):
    """Which scenes, and which of their captions."""

    caption_index: Annotated[int, Between(0, 3)] = 0
    """Which of a scene's four captions: 0 gives colors and relation, 1 is complete."""

    def captions(self, closeup: bool) -> list[str]:
        """The captions, of close-ups or of scenes of one or two objects."""
        scenes = (make(self.split, index, closeup=closeup) for index in range(self.n))
        return [captions[self.caption_index] for _, captions in scenes]


def require_scenes(config: Config) -> None:
    """Raises UserError if a run's data set has no scenes: all its samples would be wrong."""
    source = config.data.source
    parts = [part.source for part in source.parts] if isinstance(source, Mixture) else [source]
    if not any(isinstance(part, Scenes) for part in parts):
        raise UserError(
            f"this command scores models of the scenes data set, but data.source of this one is "
            f"{source.kind}: give a model that was trained on scenes"
        )


def has_closeups(data: DataConfig) -> bool:
    """Whether a run's data set is the scenes data set's close-ups."""
    return isinstance(data.source, Scenes) and data.source.subset == "closeups"
