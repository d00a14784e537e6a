"""Data sets by name: each is one function here and one line in SOURCES.

A source is random access to encoded images with their captions (glide_jax.data.records); all
that follows, cropping, captions, batches, is the loader's and the same for every data set.
"""

import difflib
import importlib.util
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from glide_jax.config import DataConfig
from glide_jax.data.folder import open_folder
from glide_jax.data.mixture import Mixture
from glide_jax.data.records import (
    BadRecordError,
    Record,
    Source,
    check_bad_fraction,
    clean_captions,
    list_problems,
)
from glide_jax.data.shards import ShardsSource
from glide_jax.errors import UserError

logger = logging.getLogger(__name__)


def open_source(config: DataConfig, split: str) -> Source:
    """Opens one split of the configured data set; prepares it first where that is needed.

    Args:
        config: which data set, and where it is kept.
        split: config.train_split, config.validation_split, or another that the data set has.

    Returns:
        At least one record.

    Raises:
        UserError: there is no such data set, split or feature; or it is empty, or cannot be made.
    """
    if config.mixture:
        return _mixture(config, split)
    if config.source not in SOURCES:
        raise UserError(
            f"data.source {config.source!r} is not a data set: choose {', '.join(SOURCES)}"
        )
    source = SOURCES[config.source](config, split)
    where = f"split {split!r} of {config.source} {config.name or config.path}"
    if len(source) == 0:
        raise UserError(f"{where} is empty")
    if config.caption_pattern:
        source = MatchingSource(source, config.caption_pattern, config.max_bad_fraction)
    if len(source) == 0:
        raise UserError(
            f"{where}: data.caption_pattern {config.caption_pattern!r} is in no caption"
        )
    return source


def _mixture(config: DataConfig, split: str) -> Source:
    """Every part's own split of that role; a split of neither role is the same for all parts."""
    parts = []
    for _, part in config.parts:
        own = {config.validation_split: part.validation_split, config.train_split: part.train_split}
        parts.append(open_source(part, own.get(split, split)))
    return Mixture(parts, [weight for weight, _ in config.parts])


def _scenes(config: DataConfig, split: str) -> Source:
    # Here, since it imports TFDS: half a second that other sources do not need.
    from glide_jax.data.scenes.builder import load

    records = load(split, config.data_dir, config.name or "full")
    return TfdsSource(records, "image", "captions")


def _tfds(config: DataConfig, split: str) -> Source:
    records = _tfds_split(_tfds_builder(config.name, config.data_dir), split)
    return TfdsSource(records, config.image_key, config.caption_key)


def _folder(config: DataConfig, split: str) -> Source:
    return open_folder(Path(config.path).expanduser(), split, config.max_bad_fraction)


def _shards(config: DataConfig, split: str) -> Source:
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "glide_jax", "shards")
    return ShardsSource(config.path, split, Path(config.cache_dir or cache).expanduser())


SOURCES: dict[str, Callable[[DataConfig, str], Source]] = {
    "scenes": _scenes,
    "tfds": _tfds,
    "folder": _folder,
    "shards": _shards,
}


class MatchingSource:
    """The captions of a source in which a pattern is found, and their images.

    Every record is read once to begin with; those whose captions are broken are left out.

    Args:
        source: all captions.
        pattern: a regular expression; case counts.
        max_bad_fraction: the share of broken records past which this is refused, in [0, 1].

    Raises:
        UserError: too many records are broken.
    """

    def __init__(self, source: Source, pattern: str, max_bad_fraction: float) -> None:
        self._source = source
        self._found = re.compile(pattern).search
        indices, problems = [], []
        for index in range(len(source)):
            try:
                if any(map(self._found, source.captions(index))):
                    indices.append(index)
            except BadRecordError as error:
                problems.append(str(error))
        if problems:
            logger.warning("skipped %d records: %s", len(problems), list_problems(problems))
            check_bad_fraction(problems, len(source), max_bad_fraction)
        self._indices = np.array(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        record = self._source[int(self._indices[index])]
        return replace(record, captions=tuple(filter(self._found, record.captions)))

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions at `index`. Raises BadRecordError."""
        return tuple(filter(self._found, self._source.captions(int(self._indices[index]))))


class TfdsSource:
    """One split of a TFDS data set in the array_record format, read without TensorFlow.

    Args:
        records: what `builder.as_data_source(split)` returns.
        image_key: the feature that holds the image.
        caption_key: the feature that holds the caption or the captions: "captions/text".

    Raises:
        UserError: there is no such feature, or it is of another kind.
    """

    def __init__(self, records: Any, image_key: str, caption_key: str) -> None:
        from tensorflow_datasets.proto import tf_example_pb2

        info = records.dataset_info
        kinds = {path: _kind(feature) for path, feature in _features(info.features, "")}
        for setting, key, kind in (
            ("data.image_key", image_key, "image"),
            ("data.caption_key", caption_key, "text"),
        ):
            if kinds.get(key) != kind:
                raise UserError(
                    f"{setting} = {key!r} is not a feature of {info.full_name} that holds {kind}s; "
                    f"it has {', '.join(f'{path} ({kind})' for path, kind in kinds.items())}"
                )
        self._name = f"{info.full_name} {records.split}"
        self._image_key, self._caption_key = image_key, caption_key
        # TFDS decodes a record's every feature, in Python, at ten times the cost of reading it;
        # the stored tf.Example holds the two that matter, encoded, under their paths.
        self._stored = records.data_source
        self._parse = tf_example_pb2.Example.FromString

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> Record:
        images, captions, name = self._read(index)
        return Record(images[0] if images else b"", clean_captions(captions, name), name)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions at `index`. Raises BadRecordError."""
        _, captions, name = self._read(index)
        return clean_captions(captions, name)

    def _read(self, index: int) -> tuple[Sequence[bytes], Sequence[bytes], str]:
        name = f"{self._name} record {index}"
        try:
            feature = self._parse(self._stored[index]).features.feature
        except Exception as error:  # whatever array_record or protobuf make of a damaged file
            raise BadRecordError(f"{name}: {_first_line(error)}") from error
        images, captions = feature[self._image_key], feature[self._caption_key]
        return images.bytes_list.value, captions.bytes_list.value, name


def _tfds_builder(name: str, data_dir: str) -> Any:
    """A prepared TFDS builder: downloaded and written as array_record if it is not there yet.

    Args:
        name: as TFDS spells it: coco_captions, coco_captions/2014, my_dataset:1.0.0.
        data_dir: where data sets are kept; empty: TFDS's own default.

    Raises:
        UserError: TFDS does not know it, or cannot prepare it.
    """
    import tensorflow_datasets as tfds

    _name_tensorflow_types()
    # A version, even any, makes TFDS read what is prepared before it asks the data set's program.
    wanted = name if ":" in name else f"{name}:*.*.*"
    # Data sets are other people's programs: their errors are of all kinds.
    try:
        builder = tfds.builder(wanted, data_dir=data_dir or None, file_format="array_record")
        builder.download_and_prepare()
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.split("/")[0].split(":")[0], known, n=5, cutoff=0.5)
        raise UserError(
            f"TFDS has no data set {name!r}, and none is prepared under "
            f"{data_dir or 'its default folder'}"
            + (f"; similar names: {', '.join(near)}" if near else "; see tfds.list_builders()")
        ) from None
    except ImportError as error:
        raise UserError(
            f"TFDS cannot prepare {name!r} here: {_first_line(error)}. Install what is missing, or "
            f"prepare it where it is installed (tfds build {name} --file_format=array_record) "
            "and set data.data_dir to the result"
        ) from error
    except Exception as error:
        raise UserError(f"TFDS cannot prepare {name!r}: {_first_line(error)}") from error
    return builder


def _name_tensorflow_types() -> None:
    """Lets data sets spell a feature's type `tf.int64`, as COCO does, without TensorFlow.

    TFDS takes NumPy types as well; it looks names up in its stand-in for the module first.
    """
    from tensorflow_datasets.core.utils import lazy_imports_utils

    if importlib.util.find_spec("tensorflow") is None:
        names = ("bool", "uint8", "int32", "int64", "float32", "float64")
        types = {name: np.dtype(name).type for name in names} | {"string": np.object_}
        vars(lazy_imports_utils.tensorflow).update(types)


def _tfds_split(builder: Any, split: str) -> Any:
    try:
        return builder.as_data_source(split)
    except ValueError as error:
        raise UserError(
            f"{builder.info.full_name} has no split {split!r} ({_first_line(error)}); there are "
            f"{', '.join(builder.info.splits)}, and parts of them as in train[:98%]"
        ) from None
    except NotImplementedError:
        raise UserError(
            f"{builder.data_dir} holds {builder.info.full_name} in another format than "
            "array_record: delete it, or set data.data_dir to prepare it elsewhere"
        ) from None


def _features(feature: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every simple feature under its path in a stored record, where a list looks like its parts."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        for key, child in feature.items():
            yield from _features(child, f"{path}/{key}" if path else key)
    elif isinstance(feature, tfds.features.Sequence):
        yield from _features(feature.feature, path)
    else:
        yield path, feature


def _kind(feature: Any) -> str:
    """ "image", "text", or the name of another kind of feature."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return "image"
    return "text" if np.dtype(feature.np_dtype).kind in "OSU" else type(feature).__name__


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
