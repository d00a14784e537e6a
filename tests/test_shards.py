"""Folders of shards: local, remote and damaged."""

import json
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import fsspec
import pytest
import tensorflow_datasets as tfds
from fsspec.implementations.local import LocalFileSystem
from helpers.packed_images import image, open_shards

from glide_jax.data import shard_folder, shards
from glide_jax.data.records import BadRecordError, RecordReader, Source
from glide_jax.data.shard_folder import Shard, ShardFolder
from glide_jax.data.shards import (
    ShardsSource,
    encode,
    shard_name,
    write_index,
    write_records,
)
from glide_jax.errors import UserError

COUNTS = (5, 1, 4)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten training images in three shards, and one validation image."""
    folder = tmp_path / "data"
    folder.mkdir()
    splits, number = {"train": list[Shard](), "validation": list[Shard]()}, 0
    for split, counts in (("train", COUNTS), ("validation", (1,))):
        for place, count in enumerate(counts):
            name = shard_name(split, place, len(counts))
            examples = [
                encode(image(i), (f"café {i}", f"or {i}"), f"{i}.png")
                for i in range(number, number + count)
            ]
            write_records(folder / name, examples)
            splits[split].append(Shard(name, count, (folder / name).stat().st_size))
            number += count
    write_index(str(folder), splits, "of this test")
    return folder


def check(source: Source) -> None:
    assert len(source) == sum(COUNTS)
    for index in reversed(range(len(source))):
        assert source[index].image == image(index)
        assert source[index].captions == (f"café {index}", f"or {index}")
        assert source.captions(index) == source[index].captions
    for index in (-1, len(source)):
        with pytest.raises(IndexError):
            source[index]


def test_a_local_folder_is_not_copied(folder: Path, tmp_path: Path) -> None:
    source = open_shards(folder, tmp_path / "cache")
    check(source)
    check(pickle.loads(pickle.dumps(source)))  # for worker processes
    assert source[7].name == f"{folder}/{shard_name('train', 2, 3)} record 1"
    assert len(open_shards(folder, tmp_path, "validation")) == 1
    assert not (tmp_path / "cache").exists()


def test_tfds_reads_the_folder(folder: Path) -> None:
    builder = tfds.builder_from_directory(str(folder))
    records = builder.as_data_source("train")
    assert len(records) == sum(COUNTS)
    assert records[7]["captions"] == ["café 7".encode(), b"or 7"]
    assert records[7]["image"].shape == (30, 40, 3)
    assert builder.info.splits["validation"].num_examples == 1
    assert "tensorflow" not in sys.modules


def test_one_open_file_is_enough(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MAX_OPEN_SHARDS", 1)
    check(open_shards(folder, folder))


def test_remote_shards_are_downloaded_on_first_use(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    source = open_shards(f"file://{folder}", cache)
    assert not cache.exists()
    assert source[0].image == image(0)
    (kept,) = cache.glob("*/*-of-00003")
    assert kept.read_bytes() == (folder / shard_name("train", 0, 3)).read_bytes()
    check(source)
    assert len([*cache.glob("*/*-of-00003")]) == 3
    # Existing copies are reused: another download would fail.
    source = open_shards(f"file://{folder}", cache)
    for path in folder.glob("*.array_record*"):
        path.unlink()
    check(source)
    with pytest.raises(UserError, match=r"train.array_record-00000-of-00003 is missing"):
        open_shards(f"file://{folder}", cache)


def test_shards_prepared_again_are_downloaded_again(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    check(open_shards(f"file://{folder}", cache))
    name = shard_name("train", 1, 3)
    size = (folder / name).stat().st_size
    write_records(folder / name, [encode(image(99), ("new",), "99.png")])
    assert (folder / name).stat().st_size == size  # array_record pads files to complete blocks
    index = folder / "shards.json"
    index.write_text(index.read_text().replace("of this test", "of another"))
    assert open_shards(f"file://{folder}", cache)[COUNTS[0]].captions == ("new",)


def test_a_failed_download_names_the_shard(folder: Path, tmp_path: Path) -> None:
    for name, damage in (
        (shard_name("train", 0, 3), Path.unlink),
        (shard_name("train", 1, 3), truncate),
    ):
        source = open_shards(f"file://{folder}", tmp_path / "cache")
        content = (folder / name).read_bytes()
        damage(folder / name)
        with pytest.raises(UserError, match=rf"^cannot copy file://{folder}/{name} to "):
            RecordReader(source, 0.0).read(0 if "00000-of" in name else COUNTS[0], lambda r: r)
        (folder / name).write_bytes(content)
    check(source)


@pytest.mark.slow
def test_threads_and_processes_share_one_download(folder: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from glide_jax.data.shards import ShardsSource\n"
        "source = ShardsSource(sys.argv[1], 'train', Path(sys.argv[2]))\n"
        "print(sum(len(source[i].image) for i in range(len(source))))"
    )
    command = [sys.executable, "-c", program, f"file://{folder}", str(tmp_path / "cache")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    others = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    source = open_shards(f"file://{folder}", tmp_path / "cache")
    threads = [threading.Thread(target=check, args=[source]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = sum(len(image(i)) for i in range(sum(COUNTS)))
    assert [int(other.communicate(timeout=60)[0]) for other in others] == [expected] * 2
    assert len([*tmp_path.glob("cache/*/*.array_record*-of-00003")]) == 3
    assert not [*tmp_path.glob("cache/*/*.unfinished")]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize(
    ("damage", "why"), [(Path.unlink, "is missing"), (truncate, "has [0-9,]+ bytes")]
)
def test_missing_and_truncated_shards_are_refused_on_opening(
    folder: Path, prefix: str, damage: object, why: str
) -> None:
    name = shard_name("train", 1, 3)
    damage(folder / name)
    with pytest.raises(UserError, match=rf"{folder}/{name} {why}, but shards.json says 131,072"):
        open_shards(f"{prefix}{folder}", folder)
    assert len(open_shards(f"{prefix}{folder}", folder, "validation")) == 1


def test_damaged_records_are_bad_records(folder: Path) -> None:
    path = folder / shard_name("train", 0, 3)
    content = bytearray(path.read_bytes())
    place = content.find(image(1))
    content[place : place + 20] = bytes(20)
    path.write_bytes(content)
    source = open_shards(folder, folder)
    assert source[0].image == image(0)
    with pytest.raises(BadRecordError, match=rf"^{path} record 1: .*[Cc]orrupt") as error:
        source[1]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("nowhere", "has no shards.json: create the folder with python -m glide_jax.prepare"),
        ("nothing://x", "cannot read shards.json: Protocol not known"),
        ("broken", "cannot read shards.json: Expecting value"),
        ("other", "cannot read shards.json"),
        ("number", "cannot read shards.json: 'int' object"),
        ("deep", "cannot read shards.json: maximum recursion"),
        ("data", "has no split 'test': choose train, validation"),
    ],
)
def test_invalid_folders_are_refused(
    folder: Path, path: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    texts = {"broken": "x", "other": "[]", "number": "7", "deep": "[" * 100_000}
    for name, text in texts.items():
        Path(name).mkdir()
        (Path(name) / "shards.json").write_text(text)
    with pytest.raises(UserError, match=rf"^data.source.path {path}.*{why}"):
        ShardsSource(path, "test", folder)


GOOD = {"file": "x", "records": 1, "bytes": 10}


@pytest.mark.parametrize("prefix", ["", "file://"])
@pytest.mark.parametrize(
    ("shards", "why"),
    [
        ([GOOD | {"file": "../../x"}], "'../../x' is not a path inside the folder"),
        ([GOOD | {"file": "/tmp/x"}], "'/tmp/x' is not a path inside the folder"),
        ([GOOD | {"file": "a/x"}], "'a/x' is not a plain file name"),
        ([GOOD | {"file": 7}], "7 is not a file name"),
        ([GOOD | {"records": -1}], "x cannot hold -1 records in 10 bytes"),
        ([GOOD | {"records": 10**18}], "x cannot hold 1,000,000,000,000,000,000 records"),
        ([GOOD | {"records": 0, "bytes": 0}], "x cannot hold 0 records in 0 bytes"),
        ([GOOD | {"bytes": "10"}], "records and bytes of x must be integers"),
        ([GOOD | {"more": 1}], "a shard needs file, records and bytes"),
        ([GOOD, GOOD], "a file is listed twice"),
        ([], "split 'train' has no shards"),
        ([7], "a shard needs"),
        (7, "'int' object is not iterable"),
    ],
)
def test_an_index_is_validated(prefix: str, shards: object, why: str, tmp_path: Path) -> None:
    """A name outside the folder would be written there."""
    index = {"fingerprint": "\ud800", "splits": {"train": shards}}
    (tmp_path / "shards.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=rf"cannot read shards.json: .*{why}"):
        ShardsSource(f"{prefix}{tmp_path}", "train", tmp_path / "cache")


def test_an_index_is_a_regular_file_of_limited_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = tmp_path / "shards.json"
    index.symlink_to("/dev/zero")
    with pytest.raises(UserError, match=r"cannot read shards.json: .*not a regular file"):
        ShardFolder(str(tmp_path), tmp_path)
    index.unlink()
    index.write_text(" " * 20)
    monkeypatch.setattr(shard_folder, "MAX_INDEX_BYTES", 19)
    for prefix in ("", "file://"):
        with pytest.raises(UserError, match=r"cannot read shards.json: .*larger than"):
            ShardFolder(f"{prefix}{tmp_path}", tmp_path)


def test_a_download_ends_at_the_announced_size(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As of a web server, which may send without end."""

    def endless(self: object, source: str, target: str, callback: fsspec.Callback) -> None:
        for _ in range(1000):
            callback.relative_update(1000)

    source = open_shards(f"file://{folder}", tmp_path / "cache")
    monkeypatch.setattr(LocalFileSystem, "get_file", endless)
    with pytest.raises(UserError, match=r"cannot copy .*: received more than 131,072 bytes"):
        source[0]
