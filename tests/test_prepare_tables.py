"""Parquet files with unusable values, and inputs of which some cannot be read."""

import shutil
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFile
from helpers.numbered_images import write_images
from helpers.packed_images import image, write_parquet, write_tar
from helpers.preparation import contents, prepare

from glide_jax.data.records import BadRecordError, Record
from glide_jax.errors import UserError
from glide_jax.prepare import tables
from glide_jax.prepare.inputs import find_units, read_unit
from glide_jax.prepare.units import Keys

IMAGES = [image(number) for number in range(3)]


def read(*paths: Path) -> tuple[list[tuple[str, ...]], list[str]]:
    """The captions of all records, and all problems."""
    units = find_units(list(map(str, paths)), Keys())
    results = [result for unit in units for result in read_unit(unit, Keys())]
    captions = [result.captions for result in results if isinstance(result, Record)]
    return captions, [str(result) for result in results if isinstance(result, BadRecordError)]


def invalid_texts(*values: bytes) -> pa.Array:
    """A column of strings, not checked to be UTF-8."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


def test_a_bad_value_is_one_bad_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "MAX_FILE_BYTES", 10_000)
    paths = invalid_texts(b"\xff.png", b"x", b"x", b"x", b"x")
    files = pa.array([*IMAGES[:2], None, bytes(20_000), IMAGES[2]])
    captions = invalid_texts(b"zero", b"caf\xe9", b"two", b"three", b"four")
    struct = pa.StructArray.from_arrays([files, paths], ["bytes", "path"])
    pq.write_table(pa.table({"image": struct, "caption": captions}), tmp_path / "x.parquet")
    found, problems = read(tmp_path / "x.parquet")
    assert found == [("zero",), ("four",)]
    whys = ("row 1: 'utf-8' codec", "row 2: no image", "row 3: a value is larger than 0 MB")
    for problem, why in zip(problems, whys, strict=True):
        assert why in problem


def test_other_types_of_columns(tmp_path: Path) -> None:
    captions = {
        "dictionary": pa.array(["a", "b", "a"]).dictionary_encode(),
        "large": pa.array(["a", "b", "a"], pa.large_string()),
        "lists": pa.array([["a"], ["b"], ["a"]], pa.large_list(pa.string())),
        "dates": pa.array([2**60] * 3, pa.timestamp("ms")),
        "nested": pa.array([[["a"]]] * 3),
    }
    for name, column in captions.items():
        path = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"image": pa.array(IMAGES), "caption": column}), path)
        found, problems = read(path)
        usable = name not in ("dates", "nested")
        assert found == ([("a",), ("b",), ("a",)] if usable else [])
        assert len(problems) == (0 if usable else 3)


def test_a_large_row_is_decoded_in_small_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch_rows = []
    original = pq.ParquetFile.iter_batches

    def iter_batches(file: pq.ParquetFile, rows: int, **arguments: Any) -> Any:
        batch_rows.append(rows)
        return original(file, rows, **arguments)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", iter_batches)
    # Stored once, so its size says little about its rows.
    repeated = pa.table({"image": IMAGES[:1] * 100, "caption": ["a"] * 100})
    pq.write_table(repeated, tmp_path / "repeated.parquet")
    assert len(read(tmp_path / "repeated.parquet")[0]) == 100
    monkeypatch.setattr(tables, "BATCH_BYTES", 1)
    write_parquet(tmp_path / "x.parquet", IMAGES)
    assert read(tmp_path / "x.parquet")[0] == [(f"row {i}",) for i in range(3)]
    assert batch_rows == [8, 1]


def test_a_failing_network_loses_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "x.parquet", IMAGES)
    with fsspec.open("memory://x/z.parquet", "wb") as file:
        file.write(path.read_bytes())
    (unit,) = find_units(["memory://x/*.parquet"], Keys())
    assert len(list(read_unit(unit, Keys()))) == 3

    def fail(*_: object) -> None:
        raise Exception("503")

    monkeypatch.setattr(MemoryFile, "read", fail)
    with pytest.raises(OSError, match=r"z.parquet: 503"):
        list(read_unit(unit, Keys()))
    with pytest.raises(UserError, match=r"^--from memory://.*z.parquet: 503"):
        find_units(["memory://x/z.parquet"], Keys())


def test_files_that_cannot_be_read_are_problems_beside_others(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a" / "good.parquet", IMAGES)
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1")
    pq.write_table(pa.table({"other": [1]}), tmp_path / "other.parquet")
    pq.write_table(pa.table({"image": [b""], "caption": [""]})[:0], tmp_path / "empty.parquet")
    found, problems = read(tmp_path)
    assert len(found) == 3
    damaged, other = sorted(problems)
    assert "--image-column image: not in" in damaged
    assert "damaged.parquet: cannot read as parquet" in other
    (tmp_path / "a" / "good.parquet").unlink()
    assert read(tmp_path / "empty.parquet") == ([], [])
    with pytest.raises(UserError, match=r"damaged.parquet: cannot read as parquet"):
        read(tmp_path / "damaged.parquet")


def test_all_files_of_a_folder_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(tmp_path / "tars" / "0.tar", IMAGES[:1])
    write_parquet(tmp_path / "tars" / "0.parquet", IMAGES)  # img2dataset's metadata
    write_images(tmp_path / "00001", 1)
    write_parquet(tmp_path / "00001.parquet", IMAGES)  # the same
    write_parquet(tmp_path / "more" / "0.parquet", IMAGES[1:])
    (tmp_path / "metadata.parquet").touch()
    found, problems = read(tmp_path)
    assert found == [("image 0",), ("row 0",), ("row 1",), ("number 0",)]
    assert not problems
    assert "2 parquet files have the name of a tar or folder" in caplog.text


def test_bad_inputs_and_names_end_no_preparation(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "in", 1)
    shutil.copy(folder / "00.png", folder / "caf\udce9\n.png")
    shutil.copy(folder / "00.txt", folder / "caf\udce9\n.txt")
    (folder / "lone\udce9.png").touch()
    write_tar(folder / "bad.tar", IMAGES[:2])
    with (folder / "bad.tar").open("r+b") as tar:
        tar.seek(-12_000, 2)
        tar.truncate()
    (folder / "none.parquet").write_bytes(b"PAR1")
    (folder / "other.tar").write_bytes(b"no tar")
    report = prepare(tmp_path / "to", "--from", folder, "--px", 8, "--validation", 0)
    assert report.kept == {"train": 1 + 1}
    assert report.dropped["duplicate"] == 1
    broken = (tmp_path / "to" / "broken.txt").read_text().splitlines()
    assert broken == report.problems
    for line, name in zip(broken, ("bad.tar", "other.tar", "lone", "none.parquet"), strict=True):
        assert name in line
    assert len(contents(tmp_path / "to")["train"]) == 2


def test_inputs_without_a_record_are_refused(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b""], "caption": [""]})[:0], tmp_path / "empty.parquet")
    with pytest.raises(UserError, match="--from: the inputs have no images"):
        prepare(tmp_path / "to", "--from", tmp_path / "empty.parquet")
