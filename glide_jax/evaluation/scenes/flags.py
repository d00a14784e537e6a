"""Flags that the commands about scenes share."""

from dataclasses import dataclass

from glide_jax.config import Config, DataConfig, Mixture, Scenes
from glide_jax.data.scenes.graph import SPLITS, make
from glide_jax.errors import UserError

MAX_SCENES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class SplitFlags:
    """Which scenes."""

    n: int = 64
    """Number of scenes: the first of the split."""
    split: str = "validation"
    """train, validation or novel (shapes in colors they never have in training)."""

    def check(self) -> None:
        """Raises UserError unless these are scenes of the data set."""
        if not 1 <= self.n <= MAX_SCENES:
            raise UserError(f"--n {self.n}: must be at least 1 and at most {MAX_SCENES:,}")
        if self.split not in SPLITS:
            raise UserError(f"--split {self.split}: must be one of {', '.join(SPLITS)}")


@dataclass(frozen=True, kw_only=True)
class CaptionFlags(SplitFlags):
    """Which scenes, and which of their captions."""

    caption_index: int = 0
    """Which of a scene's four captions: 0 gives colors and relation, 1 is complete."""

    def check(self) -> None:
        """Raises UserError unless these are captions of the data set."""
        super().check()
        if self.caption_index not in range(4):
            raise UserError(f"--caption-index {self.caption_index}: must be 0, 1, 2 or 3")

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
