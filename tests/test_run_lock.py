"""Locks of run folders, of files and of objects in a bucket."""

import errno
import os
import shutil
import threading

import pytest

from glide_jax.errors import UserError
from glide_jax.runs import lock
from glide_jax.runs.lock import LOCK, sole_training


def test_a_second_training_in_a_folder_is_refused(tmp_path):
    line = f"another training runs in {tmp_path}: wait for its end, or give another --train.run-dir"
    with sole_training(tmp_path):
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(UserError, match=line), sole_training(tmp_path):
            pass
        with sole_training(tmp_path, lead=False):  # another process of the same run
            pass
    with sole_training(tmp_path):  # once the first has ended
        pass
    assert (tmp_path / "config.json").exists()


def test_a_run_that_never_started_leaves_no_folder(tmp_path):
    folder = tmp_path / "new" / "run"
    with pytest.raises(UserError, match="a setting"), sole_training(folder):
        raise UserError("a setting is wrong")
    assert not folder.exists()


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "run"
    line = f"cannot write the run folder {folder}"
    with pytest.raises(UserError, match=line), sole_training(folder):
        pass


@pytest.mark.parametrize("why", [errno.ENOLCK, errno.EOPNOTSUPP, errno.EIO])
def test_a_file_system_without_locks_is_a_warning(tmp_path, monkeypatch, caplog, why):
    def refuse(*_):
        raise OSError(why, os.strerror(why))

    monkeypatch.setattr("fcntl.flock", refuse)
    if why == errno.EIO:  # a broken disk
        with pytest.raises(UserError, match="cannot write the run folder"), sole_training(tmp_path):
            pass
    else:
        with sole_training(tmp_path):
            (tmp_path / "config.json").write_text("{}")
        assert caplog.messages[0].startswith(f"{tmp_path}: its file system has no locks")


@pytest.fixture
def locked_object(tmp_path, monkeypatch):
    """The lock of a bucket, whose paths have these methods of local ones, on quick clocks."""
    monkeypatch.setattr(lock, "REWRITE_S", 0.05)
    file = tmp_path / LOCK
    return file, lambda: lock._locked_object(file)


def test_a_lock_in_a_bucket_is_alive_while_it_is_rewritten(locked_object):
    file, locked = locked_object
    with locked(), pytest.raises(UserError, match="another training runs in"), locked():
        pass
    assert not file.exists()


def test_a_lock_in_a_bucket_of_a_killed_training_is_taken_over(locked_object):
    file, locked = locked_object
    file.write_text("host 1 of a killed process")
    with locked():
        assert "killed" not in file.read_text()


def test_a_lock_in_a_bucket_that_ends_meanwhile_is_free_at_once(locked_object):
    file, locked = locked_object
    file.write_text("host 1 of a process that ends now")
    threading.Timer(0.02, file.unlink).start()
    with locked():
        assert "ends now" not in file.read_text()


def test_a_folder_that_is_deleted_meanwhile_does_not_hide_the_error(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(UserError, match="a setting"), sole_training(folder):
        shutil.rmtree(folder)
        raise UserError("a setting is wrong")


def test_of_two_that_lock_in_a_bucket_at_once_one_trains(locked_object, monkeypatch):
    file, locked = locked_object
    monkeypatch.setattr("time.sleep", lambda seconds: file.write_text("another 0"))
    with pytest.raises(UserError, match="another training runs in"), locked():
        pass
