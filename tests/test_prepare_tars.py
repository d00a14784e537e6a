"""Tars of all kinds and orders of members, damaged and hostile ones."""

import bz2
import gzip
import io
import lzma
import os
import shutil
import tarfile
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFile
from helpers.packed_images import image, write_tar

from glide_jax.data.records import BadRecordError, Record
from glide_jax.prepare import tar_members, tars
from glide_jax.prepare.inputs import find_units, read_unit
from glide_jax.prepare.tars import read_tar
from glide_jax.prepare.units import Keys

IMAGES = [image(number) for number in range(4)]

Files = Sequence[tuple[str, bytes, Mapping[str, Any]]]


def pack(path: Path, files: Files, form: int = tarfile.GNU_FORMAT) -> Path:
    """A tar of names, contents and attributes of headers."""
    with tarfile.open(path, "w", format=form, encoding="utf-8", errors="surrogateescape") as tar:
        for name, content, attributes in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in attributes.items():
                setattr(info, key, value)
            tar.addfile(info, io.BytesIO(content))
    return path


def pair(name: str, number: int = 0, suffix: str = "png") -> Files:
    return [(f"{name}.{suffix}", IMAGES[number], {}), (f"{name}.txt", name.encode(), {})]


def link(name: str, to: str, kind: bytes = tarfile.SYMTYPE) -> Files:
    return [(name, b"", {"type": kind, "linkname": to})]


def read(path: Path, caption_key: str = "") -> tuple[dict[str, str], list[str]]:
    """The first caption of each record, by its name in the tar, and all problems."""
    records: dict[str, str] = {}
    problems = []
    for result in read_tar(str(path), Keys(caption_key)):
        if isinstance(result, BadRecordError):
            problems.append(str(result).removeprefix(f"{path}"))
        else:
            assert result.image in IMAGES
            records[result.name.removeprefix(f"{path}/")] = result.captions[0]
    return records, problems


def test_members_may_have_any_order(tmp_path: Path) -> None:
    files = [*pair("d/a"), *pair("b", 1), *pair("c", 2)]
    for order in (files[::2] + files[1::2], files[::-1]):
        records, problems = read(pack(tmp_path / "x.tar", order))
        assert records == {"d/a.png": "d/a", "b.png": "b", "c.png": "c"}
        assert not problems


def test_links_are_followed_within_the_tar(tmp_path: Path) -> None:
    files = [*pair("d/a"), *link("b.png", "d/a.png", tarfile.LNKTYPE), ("b.txt", b"b", {})]
    files += [*link("d/c.png", "./later.png"), ("d/c.txt", b"c", {}), *link("e", "d")]
    files += [*link("l.png", "l.png"), ("l.txt", b"l", {}), *link("cats", "../pool")]
    files += [*link("p.png", "/etc/x.png"), ("p.txt", b"p", {}), *pair("d/later", 1)]
    files += [("f.png", b"", {"type": tarfile.FIFOTYPE}), ("f.txt", b"f", {}), *pair("z", 2)]
    records, problems = read(pack(tmp_path / "x.tar", files))
    assert records == dict(
        zip(
            ("d/a.png", "b.png", "d/c.png", "d/later.png", "z.png"),
            ("d/a", "b", "c", "d/later", "z"),
            strict=True,
        )
    )
    assert len(problems) == 4
    assert "/l.png: a link to l.png" in problems[0]
    assert "/cats: no image" in problems[1]
    assert "/p.png: a link to etc/x.png, which is no file of the tar: use tar -h" in problems[2]
    assert "/f.png: not a regular file" in problems[3]


def test_names_equal_but_for_case_normalization_or_dots(tmp_path: Path) -> None:
    composed, decomposed = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))
    files = [(f"{decomposed}.png", IMAGES[0], {}), (f"{composed}.txt", b"cafe", {})]
    files += [("A.PNG", IMAGES[1], {}), ("A.TXT", b"upper", {})]
    files += [*pair("at 10.32.11"), *pair("at 10.45"), ("seg.mask.png", IMAGES[2], {})]
    files += [*pair("seg", 3), *pair("two"), ("two.jfif", IMAGES[1], {})]
    files += [*pair("seg.1.5"), *pair("case"), ("case.PNG", IMAGES[1], {})]
    files += [("q.heic", b"", {}), ("q.txt", b"q", {}), ("._x.png", b"of macOS", {})]
    records, problems = read(pack(tmp_path / "x.tar", files))
    assert records == {
        f"{decomposed}.png": "cafe",
        "A.PNG": "upper",
        "at 10.32.11.png": "at 10.32.11",
        "at 10.45.png": "at 10.45",
        "seg.png": "seg",
        "seg.1.5.png": "seg.1.5",
        "two.png": "two",
        "two.jfif": "two",
        "case.png": "case",
    }
    assert len(problems) == 2
    assert "/case.PNG: no caption: no .txt file" in problems[0]
    assert "/q: images .heic cannot be read" in problems[1]


def test_concatenated_tars_are_read_and_replaced_images_counted(tmp_path: Path) -> None:
    one = pack(tmp_path / "1.tar", [*pair("a"), *pair("b", 1)]).read_bytes()
    other = pack(tmp_path / "2.tar", [*pair("b", 2), *pair("c", 3)]).read_bytes()
    (tmp_path / "x.tar").write_bytes(one + other)
    records, problems = read(tmp_path / "x.tar")
    assert records == {"a.png": "a", "b.png": "b", "c.png": "c"}
    assert problems == [
        ": 1 images are replaced by later ones of the same name, such as b.png: "
        "rename them to keep them"
    ]
    by_name = {r.name: r for r in read_tar(str(tmp_path / "x.tar"), Keys()) if type(r) is Record}
    assert by_name[f"{tmp_path}/x.tar/b.png"].image == IMAGES[2]


@pytest.mark.parametrize(("suffix", "opener"), [("gz", gzip), ("bz2", bz2), ("xz", lzma)])
def test_compressed_tars_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, opener: Any
) -> None:
    plain = pack(tmp_path / "x.tar", [*pair("b", 1), *pair("a")]).read_bytes()
    packed = tmp_path / f"x.tar.{suffix}"
    packed.write_bytes(opener.compress(plain))
    (tmp_path / "x.tar").unlink()
    (unit,) = find_units([str(tmp_path)], Keys())
    assert (unit.kind, unit.path) == ("tar", str(packed))
    both = {"a.png": "a", "b.png": "b"}
    assert read(packed) == (both, [])
    renamed = packed.rename(tmp_path / "x.tar")  # as some tools name them
    assert read(renamed) == (both, [])
    renamed.write_bytes(renamed.read_bytes()[:-9])
    records, problems = read(renamed)
    assert set(records) <= set(both)
    assert "truncated or damaged after" in problems[-1]
    monkeypatch.setattr(tars, "MIN_EXPANDED_BYTES", 1024)
    monkeypatch.setattr(tars, "MAX_EXPANSION", 0)
    renamed.write_bytes(opener.compress(plain + bytes(2**21)))
    assert "decompressed, it has more than 0 MB" in read(renamed)[1][-1]


def test_a_damaged_header_costs_its_own_file(tmp_path: Path) -> None:
    path = pack(tmp_path / "x.tar", [*pair("a"), *pair("b", 1), *pair("c", 2)])
    content = bytearray(path.read_bytes())
    content[content.index(b"b.txt")] = 0
    path.write_bytes(content)
    records, problems = read(path)
    assert records == {"a.png": "a", "c.png": "c"}
    assert problems == [
        "/b.png: no caption: no .txt file",
        ": damaged: skipped 2 blocks of 512 bytes",
    ]


def test_names_of_tars_are_inside_and_printable(tmp_path: Path) -> None:
    names = ["../../a", "/etc/b", "x/../c", "caf\udce9", "1\n\x1b[2J"]
    files = [file for name in names for file in pair(name.encode(errors="ignore").decode())]
    files = [
        (name.replace("caf.", "caf\udce9."), content, attributes)
        for name, content, attributes in files
    ]
    records, problems = read(pack(tmp_path / "x.tar", files))
    inside = ["a", "etc/b", "c", "caf\\udce9", "1\\n\\x1b[2J"]
    assert list(records) == [f"{name}.png" for name in inside]
    assert not problems


def test_long_names_are_skipped_and_counted(tmp_path: Path) -> None:
    deep = "a/" * tar_members.MAX_NAME_CHARS
    files = [*pair("a"), *pair(deep + "b"), *link("c.png", deep), *pair("d")]
    records, problems = read(pack(tmp_path / "x.tar", files))
    assert records == {"a.png": "a", "d.png": "d"}
    assert problems == [": skipped 3 files with names of more than 4,096 characters"]


def test_captions_in_json_are_checked(tmp_path: Path) -> None:
    contents = [b'{"caption": "good"}', b"[" * 100_000, b"[1]", b'{"caption": 3}', b"9" * 5000]
    contents += [b'{"caption": "%s"}' % (b"x" * 2**20)]
    files = []
    for number, content in enumerate(contents):
        files += [(f"{number}.png", IMAGES[0], {}), (f"{number}.json", content, {})]
    records, problems = read(pack(tmp_path / "x.tar", files), "caption")
    assert records == {"0.png": "good"}
    whys = ("not JSON", "no .json with", "not a string", "not JSON", "larger than 1 MB")
    for problem, why in zip(problems, whys, strict=True):
        assert why in problem


def sparse(name: str, size: int, parts: str) -> Mapping[str, Any]:
    headers = {"GNU.sparse.map": parts, "GNU.sparse.size": str(size), "GNU.sparse.name": name}
    return {"pax_headers": headers}


def test_sparse_files_are_read_within_limits(tmp_path: Path) -> None:
    whole = IMAGES[0]
    files = [("x", whole, sparse("a.png", len(whole), f"0,{len(whole)}")), ("a.txt", b"a", {})]
    files += [("x", b"hole", sparse("hole.txt", 9, "5,4")), ("hole.png", IMAGES[1], {})]
    for name, size, parts in (("large", 2**40, "0,5"), ("out", 9, "8,4"), ("less", 9, "4,-2")):
        files += [("x", b"12345", sparse(f"{name}.png", size, parts)), (f"{name}.txt", b"x", {})]
    files += pair("last", 2)
    records, problems = read(pack(tmp_path / "x.tar", files, tarfile.PAX_FORMAT))
    assert records == {"a.png": "a", "hole.png": "\0" * 5 + "hole", "last.png": "last"}
    whys = ("large.png: larger than 537 MB", "out.png: a damaged sparse", "less.png: a damaged")
    for problem, why in zip(problems, whys, strict=True):
        assert why in problem


def header(name: str, size: int = 0, **attributes: Any) -> bytes:
    info = tarfile.TarInfo(name)
    for key, value in attributes.items():
        setattr(info, key, value)
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (b"\xff" if size < 0 else b"\x80") + size.to_bytes(11, "big", signed=True)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(key: str, value: str) -> bytes:
    line = f" {key}={value}\n"
    length = len(line) + len(str(len(line) + 3))
    content = f"{length}{line}".encode()
    return header("x", len(content), type=tarfile.XHDTYPE) + content.ljust(512, b"\0")


HOSTILE = {
    "one that says 1 TB": header("b.png", 2**40),
    "one beyond the largest file": header("b.png", 2**62),
    "one beyond the largest number": header("b.png", 2**80),
    "one that leads backward": header("b.png", -1024),
    "one that leads backward by an extension": pax("size", "-2000") + header("b.png", 4),
    "a long name of 1 TB": header("b.png", 2**40, type=tarfile.GNUTYPE_LONGNAME),
    "a long name of 2 MB": header("b.png", 2**21, type=tarfile.GNUTYPE_LONGNAME) + bytes(2**21),
    "no numbers in a sparse map": pax("GNU.sparse.map", "a,b") + header("b.png"),
    "a sparse map without an end": pax("GNU.sparse.major", "1")[:512]
    + b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n".ljust(512, b"\0")
    + header("b.png", 512)
    + b"9\n".ljust(512, b"1"),
    "extensions of extensions": pax("path", "y") * 1200,
    "no tar at all": b"<html>not found</html>".ljust(2000),
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_is_one_problem(tmp_path: Path, content: bytes) -> None:
    path = write_tar(tmp_path / "x.tar", IMAGES[:2])
    good = path.read_bytes().rstrip(b"\0")
    path.write_bytes(good + bytes(-len(good) % 512) + content)
    results = list(read_tar(str(path), Keys()))
    assert [r.image for r in results if isinstance(r, Record)] == IMAGES[:2]
    assert len(results) <= 4
    assert f"{path}: " in str(results[-1])
    assert "damaged" in str(results[-1])


def test_names_with_signs_of_patterns_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "a[b]"
    folder.mkdir()
    path = pack(folder / "part[1]*.TAR", pair("a"))
    for given in (path, folder, f"file://{path}", tmp_path / "a*" / "*.TAR"):
        (unit,) = find_units([str(given)], Keys())
        assert unit.path == str(path)
    assert read(path) == ({"a.png": "a"}, [])


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_failing_network_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compress: Any
) -> None:
    path = pack(tmp_path / "x.tar", [*pair("a"), *pair("b", 1)])
    with fsspec.open("memory://x/y[1].tar", "wb") as file:
        file.write(compress(path.read_bytes()))
    (unit,) = find_units(["memory://x/y[1].tar"], Keys())
    assert [r.captions for r in read_unit(unit, Keys()) if type(r) is Record] == [("a",), ("b",)]

    def fail(*_: object) -> None:
        raise Exception("503")  # as gcsfs and aiohttp, of a type of their own

    monkeypatch.setattr(MemoryFile, "read", fail)
    with pytest.raises(OSError, match=r"y\[1\].tar: 503"):
        list(read_unit(unit, Keys()))


def test_a_pipe_named_as_a_tar_is_a_problem(tmp_path: Path) -> None:
    write_tar(tmp_path / "x.tar", IMAGES)
    os.mkfifo(tmp_path / "y.tar")  # opening it would block
    shutil.copy(tmp_path / "x.tar", tmp_path / "y.zip")
    units = find_units([str(tmp_path)], Keys())
    assert units[0].path.endswith("x.tar")
    assert "y.tar: not a regular file" in units[1].problems[0]
    assert "y.zip: unpack it" in units[2].problems[0]
