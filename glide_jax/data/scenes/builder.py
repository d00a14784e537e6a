"""The built-in data set `scenes`: captioned images, generated on first use without a download.

Most callers need only `load`. The TFDS builder writes array_record files and works without
TensorFlow, since images are passed and read in encoded form. Record i of a split is
`make(split, i)`, or `make(split, i, closeup=True)` for close-ups, for any size of the split.
"""

import contextlib
import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from glide_jax.data.scenes.graph import SPLITS, Scene, Thing, make
from glide_jax.data.scenes.workers import SIZE_PX, encoded_scenes
from glide_jax.data.tfds import check_metadata
from glide_jax.errors import UserError

__all__ = ["SPLITS", "Scene", "Scenes", "ScenesConfig", "Thing", "load", "make"]

SMALL_SPLIT = 1000
"""Splits up to this size are finished before worker processes would have started."""
MAX_WORKERS = 16
"""The single writer is the bottleneck beyond this number."""


@dataclasses.dataclass(eq=False)
class ScenesConfig(tfds.core.BuilderConfig):
    """Number of images in each split, and their kind."""

    train: int = 50_000
    validation: int = 2_000
    novel: int = 2_000
    closeup: bool = False
    """One large object per image, see `graph.make`."""


class Scenes(tfds.core.GeneratorBasedBuilder):
    """One or two shapes per image, with captions of varying detail.

    A record has `image` (JPEG, 128 px), `captions` (four, see `graph.make`) and `scene` (JSON for
    `Scene.from_json`). Splits: train, validation, and novel, whose pairs of shape and color are
    in neither of the others.
    """

    VERSION = tfds.core.Version("2.0.0")
    RELEASE_NOTES = {  # noqa: RUF012 (the name and type that TFDS reads)
        "1.0.0": "First version.",
        "2.0.0": "Fields of the scene JSON use American spelling. Same images and captions.",
    }
    BUILDER_CONFIGS = [  # noqa: RUF012 (the name and type that TFDS reads)
        ScenesConfig(name="full"),
        ScenesConfig(name="mini", train=256, validation=64, novel=64),
        ScenesConfig(name="closeups", train=20_000, validation=1_000, novel=1_000, closeup=True),
    ]

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(shape=(SIZE_PX, SIZE_PX, 3), encoding_format="jpeg"),
                "captions": tfds.features.Sequence(tfds.features.Text()),
                "scene": tfds.features.Text(),
            }
        )
        return tfds.core.DatasetInfo(
            builder=self,
            description="Procedurally generated scenes of colored shapes.",
            features=features,
            disable_shuffling=True,  # a record's index is that of its scene
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SPLITS}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        config = self.builder_config
        count = getattr(config, split)
        workers = 1 if count <= SMALL_SPLIT else min(os.cpu_count() or 1, MAX_WORKERS)
        records = encoded_scenes(split, count, workers, closeup=config.closeup)
        for index, record in enumerate(tqdm(records, f"rendering scenes: {split}", count)):
            yield (
                index,
                {
                    "image": io.BytesIO(record.image),
                    "captions": list(record.captions),
                    "scene": record.scene,
                },
            )


def load(
    split: str, data_dir: str | Path = "", config: str | ScenesConfig = "full"
) -> Sequence[dict[str, Any]]:
    """Opens a split. Generates the data set first if it does not exist.

    The data set is written to a temporary folder that is renamed when complete, so an interrupted
    generation is never mistaken for a data set.

    Args:
        split: train, validation, novel, or a TFDS slice such as "train[:1000]".
        data_dir: TFDS's data folder, or empty for its default.
        config: "full" (50,000 + 2,000 + 2,000 images), "mini" (256 + 64 + 64), "closeups"
            (20,000 + 1,000 + 1,000, one large object each), or a `ScenesConfig`.

    Returns:
        Random access to records: a dict of `image` (JPEG bytes), `captions` (list of UTF-8 bytes)
        and `scene` (JSON bytes).

    Raises:
        UserError: there is no such split or config, or the data set cannot be written.
    """
    names = [known.name for known in Scenes.BUILDER_CONFIGS]
    if isinstance(config, str) and config not in names:
        raise UserError(f"scenes has no config {config!r}: choose {', '.join(names)}")
    check_metadata("scenes", str(data_dir))
    arguments = {"data_dir": data_dir or None, "config": config, "file_format": "array_record"}
    _prepare(Scenes(**arguments))
    # A second builder for reading: the first may have lost a race, see `_prepare`.
    builder = Scenes(**arguments)
    try:
        return builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    except ValueError as error:
        raise UserError(f"scenes has no split {split!r}: choose {', '.join(SPLITS)}") from error


def _prepare(builder: Scenes) -> None:
    """Generates the data set unless it exists."""
    tfds.display_progress_bar(False)  # `_generate_examples` has its own
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # TFDS reports a download
            builder.download_and_prepare()
    except (OSError, RuntimeError) as error:  # RuntimeError: array_record's, of a full disk
        # Another process may have generated the same data set in the meantime.
        if not Path(builder.data_dir).exists():
            raise UserError(f"cannot write scenes to {builder.data_dir}: {error}") from error
    finally:
        tfds.display_progress_bar(True)
