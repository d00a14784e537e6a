"""Folders of images and captions as a source."""

import json
import logging
import os
from pathlib import Path

import pytest
from helpers.numbered_images import write_images

from glide_jax.data.folder import FolderSource, open_folder
from glide_jax.data.folder_index import INDEX_FILE
from glide_jax.data.records import BadRecordError
from glide_jax.errors import UserError


def contents(source: FolderSource) -> dict[str, tuple[str, ...]]:
    return {source[i].name: source[i].captions for i in range(len(source))}


def test_images_with_text_files_in_sub_folders(tmp_path: Path) -> None:
    write_images(tmp_path, 2)
    write_images(tmp_path / "more" / "of them", 1)
    write_images(tmp_path / ".hidden", 1)
    (tmp_path / "00.png").rename(tmp_path / "00.JPG")
    (tmp_path / "00.txt").write_bytes("café\r\n\r\n another \r\n".encode())
    (tmp_path / "notes.txt").write_text("not a caption")
    source = open_folder(tmp_path, "all", 0.0)
    assert contents(source) == {
        f"{tmp_path}/00.JPG": ("café", "another"),
        f"{tmp_path}/01.png": ("number 1",),
        f"{tmp_path}/more/of them/00.png": ("number 0",),
    }
    assert source[1].image == (tmp_path / "01.png").read_bytes()
    assert source.captions(0) == source[0].captions


def test_texts_of_any_editor_are_the_same(tmp_path: Path) -> None:
    """A byte order mark, CRLF, and separators that do not end a line."""
    captions = ("a red\u2028star", "café\x85x")
    for name, text in {
        "x.txt": "\ufeffa red\u2028star\r\ncafé\x85x\r\n",
        "captions.jsonl": "\ufeff"
        + "".join(json.dumps({"image": "00.png", "caption": c}) + "\r\n" for c in captions),
    }.items():
        folder = tmp_path / name
        write_images(folder, 1)
        (folder / name.replace("x.", "00.")).write_bytes(text.encode())
        assert contents(open_folder(folder, "all", 0.0)) == {f"{folder}/00.png": captions}


def test_a_captions_file_lists_images_and_captions(tmp_path: Path) -> None:
    write_images(tmp_path / "in", 3)
    rows = [
        {"image": "in/01.png", "caption": "one", "width": 12},
        {"image": "./in/00.png", "captions": ["zero", "none"]},
        {"image": "in/01.png", "caption": "uno"},
    ]
    (tmp_path / "captions.jsonl").write_text("\n\n".join(map(json.dumps, rows)))
    assert contents(open_folder(tmp_path, "all", 0.0)) == {
        f"{tmp_path}/in/00.png": ("zero", "none"),
        f"{tmp_path}/in/01.png": ("one", "uno"),
    }


def test_splits_are_disjoint_and_stable(tmp_path: Path) -> None:
    for count in (2, 60):
        write_images(tmp_path, count)
        parts = {
            split: set(contents(open_folder(tmp_path, split, 0.0)))
            for split in ("train", "validation", "all")
        }
        assert parts["train"] | parts["validation"] == parts["all"]
        assert not parts["train"] & parts["validation"]
        assert len(parts["all"]) == count
        assert 1 <= len(parts["validation"]) <= 1 + count // 10


def test_a_single_image_belongs_to_train(tmp_path: Path) -> None:
    write_images(tmp_path, 1)
    assert len(open_folder(tmp_path, "train", 0.0)) == 1
    with pytest.raises(UserError, match="cannot be split"):
        open_folder(tmp_path, "validation", 0.0)


def test_bad_captions_are_listed_and_the_others_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_images(tmp_path, 6)
    (tmp_path / "01.txt").unlink()
    (tmp_path / "02.txt").write_text(" \n")
    (tmp_path / "04.txt").write_bytes(b"caf\xe9")
    with caplog.at_level(logging.WARNING):
        source = open_folder(tmp_path, "all", 0.5)
    assert [Path(name).stem for name in contents(source)] == ["00", "03", "05"]
    (line,) = caplog.messages
    assert "skipped 3 records" in line
    assert "01.png: no caption file 01.txt" in line
    assert "02.txt: the caption is empty" in line
    assert "04.txt: the caption is not UTF-8" in line
    with pytest.raises(
        UserError, match=r"^3 of 6 .* data.max_bad_fraction = 0.1 allows 1: .*01.png"
    ):
        open_folder(tmp_path, "train", 0.1)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b"{", "not JSON"),
        (b'{"image": "00.png", "caption": "caf\xe9"}', "not JSON .*utf-8"),
        (b'{"caption": "x"}', 'needs "image"'),
        (b'{"image": "00.png"}', 'needs "image"'),
        (b'{"image": "00.png", "captions": [3]}', 'needs "image"'),
        (b'["00.png", "x"]', 'needs "image"'),
        (b'{"image": "00.png", "captions": [" "]}', "the caption is empty"),
        (b'{"image": "lost.png", "caption": "x"}', "no image lost.png"),
    ],
)
def test_bad_lines_of_a_captions_file_are_named(tmp_path: Path, line: bytes, why: str) -> None:
    write_images(tmp_path, 2)
    good = b'{"image": "01.png", "caption": "one"}\n'
    (tmp_path / "captions.jsonl").write_bytes(good + b"\n" + line + b"\n")
    assert len(open_folder(tmp_path, "all", 0.5)) == 1
    with pytest.raises(UserError, match=rf"captions.jsonl line 3: {why}"):
        open_folder(tmp_path, "all", 0.0)


def test_unusable_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read the folder .*nowhere: No such file"):
        open_folder(tmp_path / "nowhere", "train", 0.0)
    for name, why in (("x" * 300, "File name too long"), ("a\0b", "embedded null")):
        with pytest.raises(UserError, match=f"cannot read the folder .*{why}"):
            open_folder(tmp_path / name, "train", 0.0)
    with pytest.raises(UserError, match=r"no images .*in this folder"):
        open_folder(tmp_path, "train", 1.0)
    write_images(tmp_path, 1)
    with pytest.raises(UserError, match="no split 'test': choose train, validation, all"):
        open_folder(tmp_path, "test", 1.0)
    (tmp_path / "00.txt").unlink()
    with pytest.raises(UserError, match=r"no image has a usable caption: .*00.png: no caption"):
        open_folder(tmp_path, "train", 1.0)


def test_an_image_lost_after_indexing_is_a_bad_record(tmp_path: Path) -> None:
    source = open_folder(write_images(tmp_path, 2), "all", 0.0)
    (tmp_path / "01.png").unlink()
    with pytest.raises(BadRecordError, match=r"01.png: No such file"):
        source[1]


def test_the_index_is_reused_until_a_file_changes(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    first = contents(open_folder(tmp_path, "all", 0.0))
    index = tmp_path / INDEX_FILE
    # An entry removed from the index is missing: the index was read.
    stored = json.loads(index.read_text())
    index.write_text(json.dumps(stored | {"entries": stored["entries"][:-1]}))
    assert len(open_folder(tmp_path, "all", 0.0)) == 2

    (tmp_path / "00.txt").write_text("another caption")
    assert contents(open_folder(tmp_path, "all", 0.0)) == {
        **first,
        f"{tmp_path}/00.png": ("another caption",),
    }
    (tmp_path / "01.png").unlink()
    assert len(open_folder(tmp_path, "all", 0.0)) == 2
    index.write_text('{"half')
    assert len(open_folder(tmp_path, "all", 0.0)) == 2
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == [INDEX_FILE]


def test_an_index_that_cannot_be_written_is_rebuilt(tmp_path: Path) -> None:
    write_images(tmp_path, 3)
    (tmp_path / INDEX_FILE).mkdir()  # blocks even root, which ignores permissions
    (tmp_path / INDEX_FILE / "x").touch()
    for _ in range(2):
        assert len(open_folder(tmp_path, "all", 0.0)) == 3
    assert not [name for name in os.listdir(tmp_path) if name.startswith(INDEX_FILE + ".")]
