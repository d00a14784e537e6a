"""Data sets: one class for each kind, opened by glide_jax.data.sources."""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from glide_jax.config.bounds import Between
from glide_jax.config.checks import Settings


@dataclass(frozen=True)
class Scenes(Settings):
    """The built-in data set: rendered scenes of simple shapes."""

    kind: ClassVar[str] = "scenes"

    subset: Literal["full", "closeups", "mini"] = "full"
    """full; closeups: scenes of one large object; mini: a few hundred images, for trials."""
    data_dir: str = ""
    """Folder of prepared data sets. Empty: TFDS's default, ~/tensorflow_datasets."""


@dataclass(frozen=True)
class Tfds(Settings):
    """A data set of TensorFlow Datasets."""

    kind: ClassVar[str] = "tfds"

    name: str
    """Name in TFDS: coco_captions, coco_captions/2014."""
    image_key: str = "image"
    """Feature of the image."""
    caption_key: str = "captions"
    """Feature of the caption or captions; nested features as captions/text."""
    data_dir: str = ""
    """Folder of prepared data sets. Empty: TFDS's default, ~/tensorflow_datasets."""

    def _check(self) -> None:
        self.require(bool(self.name), "name", "is empty")


@dataclass(frozen=True)
class Folder(Settings):
    """A folder of images with caption files beside them."""

    kind: ClassVar[str] = "folder"

    path: str
    """The folder; its subfolders are read too."""

    def _check(self) -> None:
        self.require(bool(self.path), "path", "is empty")


@dataclass(frozen=True)
class Shards(Settings):
    """Shards written by glide_jax.prepare."""

    kind: ClassVar[str] = "shards"

    path: str
    """Folder of the shards, local or a URL: gs://bucket/folder."""
    cache_dir: str = ""
    """Local copies of shards of a URL. Empty: ~/.cache/glide_jax/shards."""

    def _check(self) -> None:
        self.require(bool(self.path), "path", "is empty")


@dataclass(frozen=True)
class Embeddings(Settings):
    """Image embeddings with captions, written by glide_jax.embed."""

    kind: ClassVar[str] = "embeddings"

    path: str
    """Folder of the shards, local or a URL: gs://bucket/folder."""
    cache_dir: str = ""
    """Local copies of shards of a URL. Empty: ~/.cache/glide_jax/shards."""

    def _check(self) -> None:
        self.require(bool(self.path), "path", "is empty")


OneSource = Scenes | Tfds | Folder | Shards | Embeddings


@dataclass(frozen=True)
class MixturePart(Settings):
    """One data set of a mixture."""

    weight: Annotated[float, Between(0, 10**9)]
    """Frequency of its records, relative to the other parts."""
    source: OneSource
    """Data set."""
    train_split: str = ""
    """Split to train on. Empty: data.train_split."""
    validation_split: str = ""
    """Split of held-out images. Empty: data.validation_split."""

    def _check(self) -> None:
        self.require(self.weight > 0, "weight", f"must be a number above 0, not {self.weight}")


@dataclass(frozen=True)
class Mixture(Settings):
    """Several data sets, each with a weight."""

    kind: ClassVar[str] = "mixture"

    parts: tuple[MixturePart, ...]
    """The data sets."""

    def _check(self) -> None:
        self.require(bool(self.parts), "parts", "is empty")
        embedded = {isinstance(part.source, Embeddings) for part in self.parts}
        self.require(
            len(embedded) == 1,
            "parts",
            "must all be embeddings, or none of them: batches have both",
        )


@dataclass(frozen=True)
class Unknown(Settings):
    """The data set of a converted model: files of weights do not name it."""

    kind: ClassVar[str] = "unknown"


AnySource = OneSource | Mixture | Unknown
