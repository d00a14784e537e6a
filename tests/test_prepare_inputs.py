"""Complete and broken folders, tars and parquet files as inputs of `prepare`."""

import shutil
from pathlib import Path

import pytest
from helpers.numbered_images import write_images
from helpers.packed_images import image, write_parquet, write_tar

from glide_jax.data import folder_index
from glide_jax.data.records import BadRecordError, Record
from glide_jax.errors import UserError
from glide_jax.prepare import inputs
from glide_jax.prepare.inputs import find_units, read_unit
from glide_jax.prepare.units import Keys

IMAGES = [image(number) for number in range(6)]


def read(path: Path | str, keys: Keys | None = None) -> tuple[list[Record], list[str]]:
    """All records and all problems."""
    keys = keys or Keys()
    results = [r for unit in find_units([str(path)], keys) for r in read_unit(unit, keys)]
    records = [result for result in results if isinstance(result, Record)]
    return records, [str(result) for result in results if isinstance(result, BadRecordError)]


def test_a_folder_is_read_in_units(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "UNIT_RECORDS", 2)
    write_images(tmp_path, 5)
    (tmp_path / "01.txt").unlink()
    records, problems = read(tmp_path)
    assert [record.captions for record in records] == [(f"number {i}",) for i in (0, 2, 3, 4)]
    assert records[1].image == (tmp_path / "02.png").read_bytes()
    monkeypatch.setattr(folder_index, "list_files", None)  # a second time, for minutes
    assert len(find_units([str(tmp_path)], Keys())) == 2
    assert len(problems) == 1
    assert "01.png: no caption" in problems[0]


def test_a_tar_is_read_by_names_up_to_the_first_dot(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "00000.tar", IMAGES)
    records, problems = read(path)
    assert [record.image for record in records] == IMAGES
    assert [record.captions for record in records] == [(f"image {i}",) for i in range(6)]
    assert records[3].name == f"{path}/000000003.jpg"
    assert not problems
    assert read(path, Keys(caption_key="caption"))[0][2].captions == ("json 2",)
    assert read(path, Keys(caption_key="all"))[0][2].captions == ("json 2", "another")
    records, problems = read(path, Keys(caption_key="nothing"))
    assert not records
    assert "000000000.jpg: no caption: no .json with 'nothing'" in problems[0]


def test_tars_take_precedence_over_parquet_files_in_a_folder(tmp_path: Path) -> None:
    for number in range(2):
        write_tar(tmp_path / f"{number:05}.tar", IMAGES[3 * number :][:3], first=3 * number)
    write_parquet(tmp_path / "00000.parquet", IMAGES)  # img2dataset's metadata
    for path in (tmp_path, tmp_path / "*.tar", f"file://{tmp_path}/*.tar"):
        assert [record.image for record in read(path)[0]] == IMAGES


def test_complete_records_of_a_truncated_tar_are_read(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "x.tar", IMAGES)
    complete = path.read_bytes()
    # A record has three headers, one block each of text and JSON, and the image.
    blocks = [5 + -(-len(image) // 512) for image in IMAGES]
    for kept in range(512, 512 * sum(blocks), 256):
        path.write_bytes(complete[:kept])
        records, problems = read(path)
        assert len(problems) == 1
        assert f"{path}: truncated or damaged after {len(records)} records" in problems[0]
        assert [record.image for record in records] == IMAGES[: len(records)]
        assert len(records) + 1 >= sum(512 * sum(blocks[: i + 1]) <= kept for i in range(6))
    path.write_bytes(complete[: 512 * sum(blocks) + 1024])
    assert len(read(path)[0]) == 6
    assert not read(path)[1]


def test_incomplete_records_of_a_tar_are_named(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", IMAGES[:3])
    folder = tmp_path / "x"
    shutil.unpack_archive(tmp_path / "x.tar", folder)
    (folder / "000000000.jpg").unlink()
    (folder / "000000001.txt").unlink()
    (folder / "000000002.txt").write_bytes(b"caf\xe9")
    (folder / "._000000002.jpg").write_bytes(b"metadata of macOS")
    shutil.make_archive(str(tmp_path / "x"), "tar", folder)
    records, problems = read(tmp_path / "x.tar")
    assert not records
    for problem, why in zip(
        sorted(problems), ("no image", "no .txt file", "not UTF-8"), strict=True
    ):
        assert why in problem


def test_parquet_files_are_read_by_column(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "x.parquet", IMAGES, rows_a_group=2)
    for keys in (Keys(), Keys(image_column="raw")):
        records, problems = read(tmp_path, keys)
        assert [record.image for record in records] == IMAGES
        assert [record.captions for record in records] == [(f"row {i}",) for i in range(6)]
        assert not problems
    assert read(path, Keys(caption_column="captions"))[0][1].captions == ("row 1", "another")
    monkeypatch.setattr(inputs, "UNIT_RECORDS", 4)
    assert [unit.groups for unit in find_units([str(path)], Keys())] == [(0, 1), (2,)]
    records, _ = read(path)
    assert records[5].name == f"{path} row group 2 row 1"


def test_columns_of_wrong_types_are_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", IMAGES[:1])
    for keys, why in (
        (Keys(image_column="caption"), "the image is str, not bytes"),
        (Keys(caption_column="image"), "not a string or a list of strings"),
    ):
        assert why in read(path, keys)[1][0]
    with pytest.raises(
        UserError, match=r"^--caption-column text: not in .*: choose from image, caption, raw"
    ):
        find_units([str(path)], Keys(caption_column="text"))


def test_complete_records_of_a_damaged_parquet_file_are_read(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "x.parquet", [image(i, 200, 200) for i in range(40)], 10)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle - 30_000 : middle + 30_000] = bytes(60_000)
    path.write_bytes(content)
    records, problems = read(path)
    lost = [int(problem.split(" rows are lost")[0].split()[-1]) for problem in problems]
    assert len(records) + sum(lost) == 40
    assert 20 <= len(records) < 40
    assert all(f"{path} row group" in problem for problem in problems)
    path.write_bytes(content[:middle])
    with pytest.raises(UserError, match=r"x.parquet: cannot read as parquet"):
        find_units([str(path)], Keys())


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("nowhere", "no such file or folder"),
        ("x" * 300, "no such file or folder"),
        ("no/*.tar", "no such file or folder"),
        ("x.txt", "must be a folder or a .tar or .parquet file"),
        ("empty", "has no tars, parquet files or images"),
        ("nothing://x/y.tar", "Protocol not known: nothing"),
    ],
)
def test_invalid_inputs_are_refused(
    tmp_path: Path, name: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x.txt").touch()
    Path("empty").mkdir()
    with pytest.raises(UserError, match=rf"^--from .*{why}"):
        find_units([name], Keys())
