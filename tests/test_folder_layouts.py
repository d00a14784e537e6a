"""Layouts and names of files in folders of images: each image is read, or counted and named."""

import json
import logging
import os
import shutil
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from helpers.numbered_images import write_images

from glide_jax.data.folder import open_folder
from glide_jax.data.folder_index import INDEX_FILE, read_index


def write_lines(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_metadata_of_the_hub_lists_images_and_texts(tmp_path: Path) -> None:
    write_images(tmp_path / "train", 2)
    write_images(tmp_path / "test", 1)
    write_images(tmp_path / "others", 1)
    row = {"file_name": "00.png", "text": "a cat", "label": 3}
    write_lines(tmp_path / "train" / "metadata.jsonl", [row])
    write_lines(tmp_path / "test" / "metadata.jsonl", [row | {"text": ["a dog", "a pet"]}])
    entries, problems = read_index(tmp_path)
    assert entries == [
        ("others/00.png", ("number 0",)),
        ("test/00.png", ("a dog", "a pet")),
        ("train/00.png", ("a cat",)),
    ]
    assert not problems


def test_images_without_a_line_are_counted_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, 4)
    write_lines(tmp_path / "captions.jsonl", [{"image": "02.png", "caption": "two"}])
    for _ in range(2):  # from the files, and from the cached index
        caplog.clear()
        assert read_index(tmp_path) == ([("02.png", ("two",))], [])
        (line,) = caplog.messages
        assert "3 images have no line in captions.jsonl" in line
        assert "such as 00.png" in line


def test_metadata_of_something_else_is_not_read_and_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, 1)
    write_lines(tmp_path / "metadata.jsonl", [{"url": "x"}])
    (tmp_path / "metadata.csv").write_text("file_name,text\n00.png,a cat\n")
    assert read_index(tmp_path) == ([("00.png", ("number 0",))], [])
    csv, jsonl = sorted(caplog.messages)
    assert "metadata.csv is not read: write captions.jsonl instead" in csv
    assert "metadata.jsonl is not read: " in jsonl
    assert 'line 1: needs "image" or "file_name"' in jsonl


def test_linked_folders_are_read_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_images(tmp_path / "elsewhere" / "deep", 2)
    write_images(tmp_path / "mine" / "own", 1)
    (tmp_path / "mine" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "mine" / "alias").symlink_to("own")
    (tmp_path / "elsewhere" / "loop").symlink_to(tmp_path / "mine")
    (tmp_path / "mine" / "itself").symlink_to("itself")
    entries, problems = read_index(tmp_path / "mine")
    assert [path for path, _ in entries] == ["link/deep/00.png", "link/deep/01.png", "own/00.png"]
    assert not problems
    assert "mine: 1 links lead nowhere, such as itself" in caplog.text


def test_formats_and_cases_of_suffixes(tmp_path: Path) -> None:
    write_images(tmp_path, 8)
    for number, suffix in enumerate((".jfif", ".AVIF", ".jpe", ".HEIC", ".svg", ".PNG")):
        (tmp_path / f"{number:02}.png").rename(tmp_path / f"{number:02}{suffix}")
    (tmp_path / "05.txt").rename(tmp_path / "05.TXT")
    (tmp_path / "04.txt").unlink()  # not captioned: an icon or the like
    entries, problems = read_index(tmp_path)
    names = ["00.jfif", "01.AVIF", "02.jpe", "05.PNG", "06.png", "07.png"]
    assert [path for path, _ in entries] == names
    (problem,) = problems
    assert "03.HEIC: images .heic cannot be read: convert it to JPEG or PNG" in problem


def test_names_that_unicode_considers_equal_are_equal(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    write_images(tmp_path, 1)
    (tmp_path / "00.png").rename(tmp_path / f"{decomposed}.png")
    (tmp_path / "00.txt").rename(tmp_path / f"{composed}.txt")
    assert read_index(tmp_path) == ([(f"{decomposed}.png", ("number 0",))], [])
    write_lines(tmp_path / "captions.jsonl", [{"image": f"{composed}.png", "caption": "one"}])
    assert read_index(tmp_path) == ([(f"{decomposed}.png", ("one",))], [])
    (tmp_path / "captions.jsonl").unlink()
    shutil.copy(tmp_path / f"{decomposed}.png", tmp_path / f"{composed}.png")
    (tmp_path / f"{decomposed}.txt").write_text("two")
    captions = {f"{composed}.png": ("number 0",), f"{decomposed}.png": ("two",)}
    assert dict(read_index(tmp_path)[0]) == captions


def test_names_with_patterns_line_breaks_and_other_encodings(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "a[b]*?", 3)
    names = [b"[0].png", b"1\n2.png", b"caf\xe9.png"]
    for number, name in enumerate(names):
        (folder / f"{number:02}.png").rename(folder / os.fsdecode(name))
        if number < 2:
            text = os.fsdecode(name).replace(".png", ".txt")
            (folder / f"{number:02}.txt").rename(folder / text)
    source = open_folder(folder, "all", 0.5)
    assert [source[i].name for i in range(2)] == [f"{folder}/1\\n2.png", f"{folder}/[0].png"]
    _, problems = read_index(folder)
    assert problems == [f"{folder}/caf\\udce9.png: no caption file caf\\udce9.txt"]


def test_a_captions_file_is_read_within_its_folder(tmp_path: Path) -> None:
    folder = write_images(tmp_path / "own", 1)
    write_images(tmp_path, 1)
    good = {"image": "./00.png", "caption": "one"}
    outside = ["../00.png", str(tmp_path / "00.png"), "../own/00.png", "x/../../00.png"]
    long = ["x" * 300 + ".png", "/".join(["x" * 200] * 30), "a\0b", 7]
    rows = [good, *({"image": name, "caption": "x"} for name in (*outside, *long))]
    write_lines(folder / "captions.jsonl", rows)
    with (folder / "captions.jsonl").open("a") as file:
        file.write('{"image": "00.png", "caption": ' + "[" * 100_000)
    entries, problems = read_index(folder)
    assert entries == [("00.png", ("one",))]
    assert len(problems) == len(rows)
    whys = ["not a path inside the folder"] * 4
    whys += ["longer than 255", "no image", "not a file", "not a file", "not JSON"]
    for problem, why in zip(problems, whys, strict=True):
        assert why in problem


def test_a_caption_of_the_same_size_and_time_is_noticed(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    for caption in ("a cat", "a dog"):
        (tmp_path / "00.txt").write_text(caption)
        os.utime(tmp_path / "00.txt", (1e9, 1e9))
        assert read_index(tmp_path) == ([("00.png", (caption,))], [])


@pytest.mark.parametrize(
    "changed",
    [
        {"entries": [["../00.png", ["x"]]]},
        {"entries": [["00.png", "x"]]},
        {"entries": [["00.png", [3]]]},
        {"entries": [[["00.png"], ["x"]]]},
        {"problems": "none"},
        {"notes": None},
    ],
)
def test_a_cached_index_is_validated(tmp_path: Path, changed: dict[str, object]) -> None:
    write_images(tmp_path, 1)
    right = read_index(tmp_path)
    stored = json.loads((tmp_path / INDEX_FILE).read_text())
    (tmp_path / INDEX_FILE).write_text(json.dumps(stored | changed))
    assert read_index(tmp_path) == right
    (tmp_path / INDEX_FILE).write_text("[" * 100_000)
    assert read_index(tmp_path) == right
    (tmp_path / INDEX_FILE).unlink()
    os.mkfifo(tmp_path / INDEX_FILE)  # opening it would block
    assert read_index(tmp_path) == right


def test_no_note_where_nothing_is_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        read_index(write_images(tmp_path, 2))
    assert not caplog.messages
