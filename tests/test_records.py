"""Records: captions, and the replacement of broken records."""

import logging
import threading
from pathlib import Path

import pytest
from helpers.numbered_images import write_images

from glide_jax.data.folder import FolderSource, open_folder
from glide_jax.data.records import (
    BadRecordError,
    Record,
    RecordReader,
    clean_captions,
    random_captions,
)
from glide_jax.errors import UserError


def source_without(tmp_path: Path, count: int, missing: list[int]) -> FolderSource:
    """Deletes some images after indexing."""
    source = open_folder(write_images(tmp_path / "images", count), "all", 0.0)
    for number in missing:
        (tmp_path / "images" / f"{number:02}.png").unlink()
    return source


def name(record: Record) -> str:
    return Path(record.name).stem


def test_captions_are_stripped_and_empty_ones_dropped() -> None:
    assert clean_captions([b"\xef\xbb\xbf a star \n", "", " \t", "b"], "x") == ("a star", "b")


@pytest.mark.parametrize(
    ("texts", "why"),
    [([], "empty"), (["  "], "empty"), ([b"caf\xe9"], "not UTF-8"), (["\ud800"], "not UTF-8")],
)
def test_unusable_captions_name_their_record(texts: list[str | bytes], why: str) -> None:
    with pytest.raises(BadRecordError, match=f"^dogs/x.txt: the caption is {why}"):
        clean_captions(texts, "dogs/x.txt")


def test_the_next_good_record_replaces_a_bad_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reader = RecordReader(source_without(tmp_path, 6, [2, 3, 5]), max_bad_fraction=0.5)
    with caplog.at_level(logging.WARNING):
        read = [reader.read(index, name) for index in (1, 2, 3, 5, 2)]
    assert read == ["01", "04", "04", "00", "04"]
    assert reader.bad_records == 3
    assert len(caplog.records) == 3  # each is logged once
    assert "02.png: No such file" in caplog.text


def test_records_whose_preparation_fails_are_bad(tmp_path: Path) -> None:
    def refuse_first(record: Record) -> str:
        if name(record) == "00":
            raise BadRecordError("00 is refused")
        return name(record)

    reader = RecordReader(source_without(tmp_path, 3, []), max_bad_fraction=0.1)
    assert reader.read(0, refuse_first) == "01"
    assert reader.bad_records == 1


@pytest.mark.parametrize(("fraction", "allowed"), [(0.0, 0), (0.01, 1), (0.2, 2), (0.21, 3)])
def test_reading_stops_past_the_fraction_of_bad_records(
    tmp_path: Path, fraction: float, allowed: int
) -> None:
    reader = RecordReader(source_without(tmp_path, 10, [1, 3, 5, 7]), fraction)
    with pytest.raises(UserError, match=rf"^{allowed + 1} of 10 .* allows {allowed}: .*01.png"):
        for index in range(10):
            reader.read(index, name)
    assert reader.bad_records == allowed + 1


def test_reading_stops_when_all_records_are_bad(tmp_path: Path) -> None:
    reader = RecordReader(source_without(tmp_path, 3, [0, 1, 2]), max_bad_fraction=1.0)
    with pytest.raises(UserError, match=r"no record can be used: .*01.png"):
        reader.read(1, name)


def test_threads_agree_on_the_count(tmp_path: Path) -> None:
    reader = RecordReader(source_without(tmp_path, 40, list(range(0, 40, 2))), max_bad_fraction=0.5)
    read: list[str] = []
    threads = [
        threading.Thread(target=lambda: read.extend(reader.read(i, name) for i in range(40)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reader.bad_records == 20
    assert sorted(read) == sorted([f"{i:02}" for i in range(1, 40, 2)] * 8)


def test_random_captions_are_spread_out_and_deterministic(tmp_path: Path) -> None:
    source = source_without(tmp_path, 30, [])
    all_captions = list(random_captions(source, 100))
    assert sorted(all_captions) == sorted(f"number {i}" for i in range(30))
    few = list(random_captions(source, 10))
    assert len(set(few)) == 10
    assert few == list(random_captions(source, 10))
    assert few != [f"number {i}" for i in range(10)]
