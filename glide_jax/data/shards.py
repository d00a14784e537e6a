"""Sharded ArrayRecords: what `prepare` writes, and source=shards reads.

    images-train.array_record-00000-of-00042    records: tf.Example of image, captions and name
    shards.json                                   every shard with its records and bytes
    features.json, dataset_info.json              the same for TFDS's own tools

The folder may be a URL that fsspec can read. Its shards are then copied into a local folder, each
when it is first needed. What a shard should hold is known beforehand: one that is missing or of
another size is refused before training starts.
"""

import bisect
import hashlib
import itertools
import json
import os
import tempfile
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import filelock
import fsspec

from glide_jax.data.records import BadRecordError, Record, clean_captions
from glide_jax.errors import UserError

INDEX_FILE = "shards.json"
DATASET = "images"
"""Its name in file names and for TFDS."""
WRITER_OPTIONS = "group_size:1,uncompressed"
"""Records are read one by one, and images are compressed already."""
OPEN_SHARDS = 500
"""At once, each with a file descriptor, of which systems allow few; others are opened again."""


@dataclass(frozen=True)
class Shard:
    """One file."""

    file: str
    records: int
    bytes: int


def shard_name(split: str, number: int, count: int) -> str:
    """The file name of shard `number` of `count`, as TFDS spells it."""
    return f"{DATASET}-{split}.array_record-{number:05}-of-{count:05}"


# Writing --------------------------------------------------------------------------------------


def encode(image: bytes, captions: Sequence[str], name: str) -> bytes:
    """A record as it is stored: a tf.Example."""
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    values = {"image": [image], "captions": [text.encode() for text in captions]}
    for key, value in (values | {"name": [os.fsencode(name)]}).items():
        example.features.feature[key].bytes_list.value.extend(value)
    return example.SerializeToString(deterministic=True)


def write_records(path: Path, records: Iterable[bytes]) -> None:
    """Writes a file of records: all of it or nothing.

    Raises:
        OSError: it cannot be written; or RuntimeError, array_record's own.
    """
    from array_record.python.array_record_module import ArrayRecordWriter

    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    writer = ArrayRecordWriter(str(unfinished), WRITER_OPTIONS)
    for record in records:
        writer.write(record)
    writer.close()
    unfinished.replace(path)


def write_index(folder: str, splits: Mapping[str, Sequence[Shard]], identity: str) -> None:
    """Writes the index of a folder of shards, ours and TFDS's.

    Args:
        folder: a path or a URL.
        splits: every split's shards in order.
        identity: tells apart what was prepared differently.
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
    index = {
        "identity": identity,
        "splits": {split: [asdict(shard) for shard in splits[split]] for split in splits},
    }
    put_text(json.dumps(index, indent=1), folder, INDEX_FILE)


def put(path: Path, folder: str) -> None:
    """Copies a file into a folder, a path or a URL, where it appears when it is whole."""
    filesystem, root = fsspec.url_to_fs(folder)
    unfinished = f"{root}/{path.name}.{uuid.uuid4().hex}"
    filesystem.put_file(str(path), unfinished)
    filesystem.mv(unfinished, f"{root}/{path.name}")


def put_text(text: str, folder: str, name: str) -> None:
    """Writes a text file into a folder, likewise."""
    with tempfile.TemporaryDirectory() as here:
        path = Path(here) / name
        path.write_text(text)
        put(path, folder)


# Reading --------------------------------------------------------------------------------------


class ShardsSource:
    """One split of a folder of shards. Random access, safe for threads.

    Args:
        folder: a path, or a URL that fsspec can read.
        split: train or validation.
        cache_dir: where the shards of a URL are copied to.

    Raises:
        UserError: there is no such folder or split, or a shard is missing or of another size.
    """

    def __init__(self, folder: str, split: str, cache_dir: Path) -> None:
        from tensorflow_datasets.proto import tf_example_pb2

        self._parse = tf_example_pb2.Example.FromString
        self._files = Files(folder, cache_dir)
        self._shards = self._files.shards(split)
        self._ends = list(itertools.accumulate(shard.records for shard in self._shards))
        self._reader = lru_cache(OPEN_SHARDS)(self._open)

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Record:
        feature, name = self._read(index)
        images = feature["image"].bytes_list.value
        captions = clean_captions(feature["captions"].bytes_list.value, name)
        return Record(images[0] if images else b"", captions, name)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions at `index`. Raises BadRecordError."""
        feature, name = self._read(index)
        return clean_captions(feature["captions"].bytes_list.value, name)

    def _read(self, index: int) -> tuple[Any, str]:
        """The features of a record, and what to call it."""
        if not 0 <= index < len(self):
            raise IndexError(index)
        number = bisect.bisect_right(self._ends, index)
        shard = self._shards[number]
        position = index - self._ends[number] + shard.records
        name = f"{self._files.folder}/{shard.file} record {position}"
        reader = self._reader(number)
        try:
            return self._parse(reader[position]).features.feature, name
        except Exception as error:  # whatever array_record or protobuf make of damaged bytes
            raise BadRecordError(f"{name}: {str(error).splitlines()[0]}") from error

    def _open(self, number: int) -> Any:
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        shard = self._shards[number]
        path = self._files.local(shard)
        return ArrayRecordDataSource(f"{path}[0:{shard.records}]")


class Files:
    """The files of a folder of shards, where they are or as local copies.

    Args:
        folder: a path or a URL.
        cache_dir: where the shards of a URL are copied to.

    Raises:
        UserError: the folder cannot be read.
    """

    def __init__(self, folder: str, cache_dir: Path) -> None:
        self.folder = folder.rstrip("/")
        self._is_remote = "://" in folder
        # A protocol's library may be missing: fsspec says which.
        try:
            self._filesystem, self._root = fsspec.url_to_fs(self.folder)
            text = self._filesystem.cat_file(f"{self._root}/{INDEX_FILE}")
            index = json.loads(text)
            self._splits = {
                split: [Shard(**shard) for shard in shards]
                for split, shards in index["splits"].items()
            }
        except FileNotFoundError:
            raise UserError(
                f"data.path {folder}: there is no {INDEX_FILE} in it; "
                "python -m glide_jax.prepare makes such folders"
            ) from None
        except (OSError, ValueError, ImportError, KeyError, TypeError) as error:
            raise UserError(f"data.path {folder}: cannot read {INDEX_FILE}: {error}") from None
        # Prepared anew, the same URL has other copies.
        identity = hashlib.sha256(f"{self.folder} {index.get('identity')}".encode()).hexdigest()
        self._cache = cache_dir / identity[:16]

    def shards(self, split: str) -> list[Shard]:
        """The shards of a split, all of which are there in full.

        Raises:
            UserError: no such split, or a file is missing or of another size.
        """
        if split not in self._splits:
            raise UserError(
                f"data.path {self.folder} has no split {split!r}: choose {', '.join(self._splits)}"
            )
        shards = self._splits[split]
        sizes = self._sizes()
        for shard in shards:
            size = sizes.get(shard.file) or self._size(shard.file)
            if size != shard.bytes:
                what = "is missing" if size is None else f"has {size:,} bytes"
                raise UserError(
                    f"{self.folder}/{shard.file} {what}, but {INDEX_FILE} says {shard.bytes:,} "
                    "bytes: copy it again, or prepare the folder again"
                )
        return shards

    def local(self, shard: Shard) -> Path:
        """Where a shard can be read; of a URL, its copy, made by the first to ask for it.

        Raises:
            UserError: it cannot be copied.
        """
        if not self._is_remote:
            return Path(self._root) / shard.file
        copy = self._cache / shard.file
        unfinished = copy.with_name(f"{copy.name}.unfinished")
        try:
            if copy.exists():
                return copy
            self._cache.mkdir(parents=True, exist_ok=True)
            # Other processes of this machine, and other threads, want the same shard.
            with filelock.FileLock(f"{copy}.lock"):
                if not copy.exists():
                    self._filesystem.get_file(f"{self._root}/{shard.file}", str(unfinished))
                    size = unfinished.stat().st_size
                    if size != shard.bytes:
                        raise OSError(f"{size:,} of {shard.bytes:,} bytes came")
                    unfinished.replace(copy)
        except OSError as error:
            raise UserError(
                f"cannot copy {self.folder}/{shard.file} to {self._cache}: {error}"
            ) from None
        return copy

    def _sizes(self) -> dict[str, int | None]:
        """Sizes by file name, of all that a listing tells."""
        try:
            entries = self._filesystem.ls(self._root, detail=True)
        except OSError:  # not every web server lists
            return {}
        return {os.path.basename(entry["name"]): entry["size"] for entry in entries}

    def _size(self, file: str) -> int | None:
        try:
            return int(self._filesystem.size(f"{self._root}/{file}"))
        except (OSError, TypeError):
            return None
