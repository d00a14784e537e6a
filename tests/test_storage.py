"""Local paths and buckets behind one interface."""

import errno
import os
import sys
import tracemalloc
from pathlib import Path

import pytest
from helpers.bucket import bucket, files, folder
from helpers.parsing import parse_config

from glide_jax import UserError
from glide_jax.config import Config
from glide_jax.storage import (
    MirroredFolder,
    expand_home,
    path_of,
    plain_name,
    read_regular,
    relative_path,
    require_file,
    require_folder,
    text_lines,
    write_atomically,
)

__all__ = ["bucket", "folder"]  # fixtures


def test_a_path_is_local_or_in_a_bucket(tmp_path):
    assert path_of("runs/a") == Path("runs/a")
    assert path_of(tmp_path) == tmp_path
    remote = path_of("gs://some/runs/a")
    assert str(remote / "x") == "gs://some/runs/a/x" and path_of(remote) == remote
    for other in ("s3://some/runs/a", "https://some/runs/a"):
        with pytest.raises(UserError, match=rf"{other}: use a local folder or gs://"):
            path_of(other)


def test_the_home_directory_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert path_of("~/runs/a") == Path("/home/me/runs/a")
    assert expand_home("gs://some/~") == "gs://some/~" and expand_home("a~") == "a~"
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as if it were unknown
    with pytest.raises(UserError, match=r"^~/a: the home directory is unknown: set HOME"):
        path_of("~/a")


def test_only_line_ends_end_lines():
    text = "\ufeffone\r\ntwo\u2028and\x85more\x0cof it\rthree\n".encode()
    assert text_lines(text) == ["one", "two\u2028and\x85more\x0cof it", "three"]
    with pytest.raises(UnicodeDecodeError):
        text_lines(b"caf\xe9")


def test_output_files_and_folders_are_checked(tmp_path):
    require_file("--out", None)
    require_file("--out", Path("x.PNG"), (".png",))
    require_file("--out", tmp_path / "a:" / "x")
    require_folder("--out", tmp_path / "new" / "folder")
    require_folder("--out", path_of("gs://some/folder"))
    (tmp_path / "file").touch()
    for check, path, why in (
        (require_file, Path("gs://some/x.png"), r"--out gs://some/x\.png: use a local"),
        (require_file, tmp_path, "is a folder: give the name of a file"),
        (require_file, tmp_path / "file" / "x", "file is a file, not a folder"),
        (require_file, tmp_path / ("x" * 300) / "x", "File name too long"),
        (require_folder, tmp_path / "file", "file is a file, not a folder"),
        (require_folder, Path("gs://some"), "--out gs://some: use a local"),
    ):
        with pytest.raises(UserError, match=why):
            check("--out", path)
    with pytest.raises(UserError, match=r"--out x\.jpg: the name must end in \.png, \.svg"):
        require_file("--out", Path("x.jpg"), (".png", ".svg"))


def test_a_failed_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def full(path, content):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "x").write_bytes(b"before")
    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "x", b"after")
    assert [file.name for file in tmp_path.iterdir()] == ["x"]
    assert (tmp_path / "x").read_bytes() == b"before"


def test_a_bucket_without_gcsfs_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://some/run needs gcsfs: pip install -e '\.\[gcs\]'"):
        path_of("gs://some/run")


def test_the_config_keeps_a_bucket_url():
    config_file = str(Path(__file__).parent / "helpers" / "tiny.py")
    flags = ("--config", config_file, "--train.run-dir", "gs://some/runs/a")
    _, config = parse_config(flags, "train.py", "")
    assert Config.from_json(config.to_json()).train.run_dir == "gs://some/runs/a"


def test_a_mirrored_folder_uploads_changed_files(folder, tmp_path):
    local = MirroredFolder(tmp_path)
    assert local.path == tmp_path
    local.copy()
    write_atomically(folder / "log", b"one\n")
    write_atomically(folder / "other", b"one\n")
    mirrored = MirroredFolder(folder, ("log", "new"))
    assert [path.name for path in mirrored.path.iterdir()] == ["log"]
    with (mirrored.path / "log").open("a") as log:
        log.write("two\n")
    (mirrored.path / "sub").mkdir()
    (mirrored.path / "sub" / "new").write_text("1")
    mirrored.copy()
    assert files(folder) == {"/log": b"one\ntwo\n", "/other": b"one\n", "/sub/new": b"1"}
    (folder / "log").unlink()
    mirrored.copy()  # the local file has not changed
    assert set(files(folder)) == {"/other", "/sub/new"}
    with (mirrored.path / "log").open("a") as log:
        log.write("three\n")
    mirrored.close()
    assert files(folder)["/log"] == b"one\ntwo\nthree\n"
    assert not mirrored.path.exists()
    local.close()
    assert tmp_path.exists()


def test_a_mirrored_folder_is_removed_even_if_its_last_upload_fails(bucket):
    mirrored = MirroredFolder(path_of("gs://nowhere/run"))
    (mirrored.path / "log").write_text("one")
    with pytest.raises(UserError, match="cannot write gs://nowhere/run/log: no such bucket"):
        mirrored.close()
    assert not mirrored.path.exists()


OUTSIDE = ["/etc/passwd", "../x", "a/../../x", "..", ".", "", "C:/x", "//host/x"]
INVALID = [None, 7, ["x"], "a\0b", "\ud800", "x" * 256, f"a/{'ü' * 128}/b"]


@pytest.mark.parametrize("name", [*OUTSIDE, *INVALID])
def test_names_from_files_stay_inside_their_folder(name):
    for check in (relative_path, plain_name):
        with pytest.raises(ValueError, match=r"is not a|is longer than") as error:
            check(name)
        assert "\n" not in str(error.value) and len(str(error.value)) < 150


def test_relative_paths_are_normalized():
    assert relative_path("./a//b/../c d.png") == "a/c d.png"
    assert relative_path("a:1.png") == "a:1.png"  # no drive, but on Windows
    assert relative_path("..x") == plain_name("..x") == "..x"
    for name in ("a/b", "./a", "a/", "a\\b", "a\nb"):
        with pytest.raises(ValueError, match="is not a plain file name"):
            plain_name(name)


def test_only_regular_files_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    with pytest.raises(OSError, match="larger than 0 MB"):
        read_regular(tmp_path / "file", 4)
    os.mkfifo(tmp_path / "pipe")  # opening it would block
    (tmp_path / "zero").symlink_to("/dev/zero")
    for name, why in (("pipe", "not a reg"), ("zero", "not a reg"), (".", "Is a directory")):
        with pytest.raises(OSError, match=why):
            read_regular(tmp_path / name, 5)


def test_the_largest_size_of_a_file_is_not_allocated(tmp_path):
    (tmp_path / "file").write_bytes(b"12345")
    tracemalloc.start()
    read_regular(tmp_path / "file", 2**29)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
