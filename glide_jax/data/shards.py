"""Folders of ArrayRecord shards, written by `prepare` and read by source=shards.

    images-train.array_record-00000-of-00042    records: tf.Example of image, captions and name
    shards.json                                   every shard with its records and bytes
    features.json, dataset_info.json              the same metadata for TFDS

The folder may be any URL that fsspec can read, see `ShardFolder`.
"""

import bisect
import itertools
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec

from glide_jax.data.records import BadRecordError, Record, clean_captions
from glide_jax.data.shard_folder import INDEX_FILE, Shard, ShardFolder
from glide_jax.data.tfds import parse_example

DATASET = "images"
"""The data set's name in file names and in TFDS."""
WRITER_OPTIONS = "group_size:1,uncompressed"
"""Records are read one by one, and images are already compressed."""
MAX_OPEN_SHARDS = 500
"""Shards open at the same time. Each holds a file descriptor, a limited resource."""


def shard_name(split: str, number: int, count: int) -> str:
    """The file name of shard `number` of `count`, in TFDS's format."""
    return f"{DATASET}-{split}.array_record-{number:05}-of-{count:05}"


# Writing --------------------------------------------------------------------------------------


def encode(image: bytes, captions: Sequence[str], name: str, **more: bytes) -> bytes:
    """Serializes a record, and further features by name, as a tf.Example."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    values = {"image": [image], "captions": [text.encode() for text in captions]}
    values |= {"name": [os.fsencode(name)]} | {key: [value] for key, value in more.items()}
    for key, value in values.items():
        example.features.feature[key].bytes_list.value.extend(value)
    return example.SerializeToString(deterministic=True)


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Writes a complete ArrayRecord file or none.

    Raises:
        OSError: the file cannot be written.
        RuntimeError: the same, from array_record.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    writer = ArrayRecordWriter(str(unfinished), WRITER_OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()
    unfinished.replace(path)


def write_index(folder: str, splits: Mapping[str, Sequence[Shard]], fingerprint: str) -> None:
    """Writes shards.json and the metadata files of TFDS.

    Args:
        folder: a path or a URL.
        splits: every split's shards in order.
        fingerprint: hash of the inputs and settings that the shards were prepared from.
    """
    import tensorflow_datasets as tfds

    template = tfds.core.ShardedFileTemplate(
        data_dir=folder, dataset_name=DATASET, filetype_suffix="array_record"
    )
    tfds.folder_dataset.write_metadata(
        data_dir=folder,
        features={
            "image": tfds.features.Image(),
            "captions": tfds.features.Sequence(tfds.features.Text()),
            "name": tfds.features.Text(),
        },
        split_infos=[
            tfds.core.SplitInfo(
                name=split,
                shard_lengths=[shard.records for shard in shards],
                num_bytes=sum(shard.bytes for shard in shards),
                filename_template=template,
            )
            for split, shards in splits.items()
        ],
        filename_template=template,
        description="Captioned images, written by glide_jax.prepare.",
        check_data=False,  # it would need TensorFlow
    )
    write_shard_list(folder, splits, fingerprint=fingerprint)


def write_shard_list(folder: str, splits: Mapping[str, Sequence[Shard]], **about: Any) -> None:
    """Writes shards.json: the shards of every split, and what else there is to know of them."""
    shards = {split: [asdict(shard) for shard in splits[split]] for split in splits}
    upload_text(json.dumps(about | {"splits": shards}, indent=1), folder, INDEX_FILE)


def upload(path: Path, folder: str) -> None:
    """Copies a file atomically into a folder, a path or a URL."""
    filesystem, root = fsspec.url_to_fs(folder)
    unfinished = f"{root}/{path.name}.{uuid.uuid4().hex}"
    filesystem.put_file(str(path), unfinished)
    filesystem.mv(unfinished, f"{root}/{path.name}")


def upload_text(text: str, folder: str, name: str) -> None:
    """Writes a text file atomically into a folder, a path or a URL."""
    with tempfile.TemporaryDirectory() as here:
        path = Path(here) / name
        path.write_text(text, encoding="utf-8")
        upload(path, folder)


# Reading --------------------------------------------------------------------------------------


class ShardsSource:
    """One split of a folder of shards. Random access, thread-safe.

    Args:
        folder: a path, or a URL that fsspec can read.
        split: train or validation.
        cache_dir: local folder for downloaded shards.

    Raises:
        UserError: there is no such folder or split, or a shard is missing or has the wrong size.
    """

    command = "prepare"
    """The command that writes such folders."""

    def __init__(self, folder: str, split: str, cache_dir: Path) -> None:
        self._arguments = folder, split, cache_dir
        self._folder = ShardFolder(folder, cache_dir, self.command)
        self._shards = self._folder.shards(split)
        self._ends = list(itertools.accumulate(shard.records for shard in self._shards))
        self._reader = lru_cache(MAX_OPEN_SHARDS)(self._open)

    def __reduce__(self) -> tuple[type["ShardsSource"], tuple[str, str, Path]]:
        return type(self), self._arguments  # a worker process opens its own files

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        return self._record(*self._read(index))

    def _record(self, feature: Any, name: str) -> Record:
        images = feature["image"].bytes_list.value
        captions = clean_captions(feature["captions"].bytes_list.value, name)
        return Record(images[0] if images else b"", captions, name)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions at `index`. Raises BadRecordError."""
        feature, name = self._read(index)
        return clean_captions(feature["captions"].bytes_list.value, name)

    def _read(self, index: int) -> tuple[Any, str]:
        """The features and the name of a record."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        shard = self._shards[number]
        position = index - self._ends[number] + shard.records
        name = f"{self._folder.url}/{shard.file} record {position}"
        reader = self._reader(number)
        try:
            return parse_example(reader[position]).features.feature, name
        except Exception as error:  # array_record and protobuf raise many kinds on damaged bytes
            raise BadRecordError(f"{name}: {str(error).splitlines()[0]}") from error

    def _open(self, number: int) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        shard = self._shards[number]
        path = self._folder.local_path(shard)
        return ArrayRecordDataSource(f"{path}[0:{shard.records}]")
