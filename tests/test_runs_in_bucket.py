"""Run folders in a bucket: the same as local ones, also after interruptions."""

import json
import random
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
from helpers import tiny
from helpers.bucket import bucket, files, folder
from helpers.bucket_server import BUCKET, environment
from helpers.kill_while_saving import state_of
from helpers.model_set import CAPTIONS, write_random_run
from test_checkpoint import restored
from test_logging import logged_numbers, shown_numbers
from test_train import assert_same_result, finish, metrics, wait_for

from glide_jax import Glide, UserError
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.errors import exit_on_user_error
from glide_jax.export.publish import export
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.paths import COMMITTED, saved_steps
from glide_jax.storage import path_of
from glide_jax.train import main as train_command
from glide_jax.training.step import Trainer

__all__ = ["bucket", "folder"]  # fixtures


def save(run_dir, *steps):
    checkpoints = Checkpoints(run_dir, max_checkpoints=3)
    for step in steps:
        checkpoints.save(state_of(step), {"loader": {"batch": step}, "log": {"window": {}}})
    checkpoints.close()


@pytest.mark.slow
def test_a_checkpoint_without_a_marker_is_ignored(folder):
    save(folder, 1, 2)
    assert saved_steps(folder) == [2, 1]
    (folder / "checkpoints" / "2" / COMMITTED).unlink()  # a kill before the end of the write
    assert saved_steps(folder) == [1]
    assert restored(folder) == 1
    save(folder, 2)
    assert restored(folder) == 2


@pytest.mark.slow
def test_an_interrupted_move_of_a_damaged_checkpoint_loses_nothing(folder, capsys):
    save(folder, 1, 2)
    two = folder / "checkpoints" / "2"
    filesystem, root = fsspec.url_to_fs(str(two))
    largest = max(filesystem.find(f"{root}/params"), key=filesystem.size)
    content = bytearray(filesystem.cat_file(largest))
    content[len(content) // 2] ^= 1
    filesystem.pipe_file(largest, bytes(content))
    content_before = files(two)
    # Interrupted copy: some files exist twice.
    movable = sorted(set(content_before) - {f"/{COMMITTED}"})
    some = random.Random(0).sample(movable, len(content_before) // 2)
    for name in some:
        filesystem.pipe_file(f"{root}.damaged{name}", content_before[name])
    assert restored(folder) == 1
    errors = capsys.readouterr().err
    assert "2 is damaged (" in errors
    aside = two.with_name(errors.partition("moved to ")[2].partition(",")[0])
    assert files(aside) == content_before
    assert saved_steps(folder) == [1]
    # Interrupted deletion: the remaining files do not count.
    for name in some:
        filesystem.pipe_file(f"{root}{name}", content_before[name])
    assert saved_steps(folder) == [1]
    assert restored(folder) == 1
    assert files(aside) == content_before
    save(folder, 2)
    assert restored(folder) == 2


def test_an_exported_model_is_loaded_from_a_bucket(folder, tmp_path):
    run = tmp_path / "run"
    write_random_run(run, tiny.get_config(), Tokenizer.train(CAPTIONS, 300))
    for to in (tmp_path / "here", folder / "there"):
        export(run, to)
    with pytest.raises(UserError, match="there already exists: remove it"):
        export(run, folder / "there")
    ours = Glide.load(str(folder / "there")).stage("base")
    theirs = Glide.load(tmp_path / "here").stage("base")
    for name, value in theirs.params.items():
        np.testing.assert_array_equal(ours.params[name], value, err_msg=name)
    assert ours.config == theirs.config


class ReadOnly(BaseHTTPRequestHandler):
    """An empty, read-only bucket."""

    def parse_request(self) -> bool:
        super().parse_request()
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        listing = self.command == "GET" and self.path.partition("?")[0].endswith("/o")
        error = {"code": 403, "message": "you have no storage.objects.create access"}
        status = 200 if listing else 403 if self.command == "POST" else 404
        content = json.dumps({} if listing else {"error": error}).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        return False

    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def read_only(bucket, monkeypatch):
    """Directs gs:// to a read-only bucket."""
    import gcsfs  # reads its settings from the environment, which the fixture `bucket` has set

    with HTTPServer(("127.0.0.1", 0), ReadOnly) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        for name, value in environment(server.server_port).items():
            monkeypatch.setenv(name, value)
        gcsfs.GCSFileSystem.clear_instance_cache()
        yield
        gcsfs.GCSFileSystem.clear_instance_cache()
        server.shutdown()


def test_a_missing_bucket_is_named(bucket):
    with pytest.raises(UserError, match="cannot read gs://nowhere/run: no such bucket"):
        saved_steps(path_of("gs://nowhere/run"))


def test_a_read_only_bucket_is_refused_before_training(
    read_only, color_folder, monkeypatch, capsys
):
    monkeypatch.setattr(Trainer, "init", lambda *_: pytest.fail("training began"))
    flags = ["--config", str(Path(tiny.__file__)), "--train.run-dir", f"gs://{BUCKET}/run"]
    flags += ["--data.source", "folder", str(color_folder)]
    flags += ["--data.train-split", "all", "--data.validation-split", "all"]
    monkeypatch.setattr(sys, "argv", ["train.py", *flags])
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        train_command()
    errors = capsys.readouterr().err
    assert f"error: cannot write the run folder gs://{BUCKET}/run: Forbidden: " in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_a_run_in_a_bucket_equals_a_local_run(bucket, train, tmp_path):
    flags = "--sample.steps 2"
    flags += " --train.steps 9 --train.checkpoint-every-steps 3 --train.log-every-steps 3"
    flags += " --train.validate-every-steps 0 --train.sample-every-steps 9"
    here, run_dir = tmp_path / "run", bucket / "run"
    uninterrupted = train(here, *flags.split())
    # After a kill, training resumes from the bucket.
    own = {"environment": {"TMPDIR": str(tmp_path)}}
    process = train(run_dir, *flags.split(), **own)
    wait_for((run_dir / "checkpoints" / "3" / COMMITTED).exists, process)
    process.kill()
    process.wait()
    finish(uninterrupted)
    left = set(tmp_path.glob("glide_jax_*"))
    output = finish(train(run_dir, *flags.split(), "--profile", "1:2", **own))
    assert set(tmp_path.glob("glide_jax_*")) == left
    assert "resumed at step" in output
    assert_same_result(run_dir, here)
    assert [line["step"] for line in metrics(run_dir)] == [3, 6, 9]
    (image,) = (here / "samples").iterdir()
    assert (run_dir / "samples" / image.name).read_bytes() == image.read_bytes()
    assert f"wrote a profile to {run_dir}/profile" in output
    assert any(name.endswith(".xplane.pb") for name in files(run_dir / "profile"))
    assert shown_numbers(run_dir) == logged_numbers(run_dir)
    assert saved_steps(run_dir)[0] == 9
