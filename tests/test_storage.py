"""Run folders in a bucket: the same as on this machine, whatever stops a run."""

import json
import os
import random
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import fsspec
import numpy as np
import pytest
import tyro
from helpers import tiny
from helpers.bucket import BUCKET, environment
from helpers.kill_while_saving import state_of
from helpers.model_set import CAPTIONS, write_random_run
from test_checkpoint import restored
from test_logging import logged_numbers, shown_numbers
from test_train import assert_same_result, finish, metrics, wait_for

from glide_jax import Glide, UserError
from glide_jax.cli import parse_config
from glide_jax.config import Config
from glide_jax.convert import __main__ as convert
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.evaluation import retrieval, upsampling
from glide_jax.evaluation.scenes import __main__ as scenes
from glide_jax.evaluation.scenes import guidance, inpainting, train_reader
from glide_jax.export.publish import export
from glide_jax.plot import __main__ as plot
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.layout import COMMITTED, saved_steps
from glide_jax.storage import AnyPath, MirroredFolder, path_of, require_local, write_atomically


@pytest.fixture(scope="session")
def bucket():
    """An empty bucket, for this process and for those with the same environment."""
    command = [sys.executable, "-m", "tests.helpers.bucket", "0"]
    with subprocess.Popen(
        command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        os.environ |= environment(int(server.stdout.readline()))
        yield path_of(f"gs://{BUCKET}")
        server.terminate()


@pytest.fixture
def folder(bucket, request):
    """A folder of a test's own in the bucket."""
    return bucket / request.node.name


def save(run_dir, *steps):
    checkpoints = Checkpoints(run_dir, max_checkpoints=3)
    for step in steps:
        checkpoints.save(state_of(step), {"loader": {"batch": step}, "log": {"window": {}}})
    checkpoints.close()


def files(folder: AnyPath) -> dict[str, bytes]:
    """All below it, by name."""
    filesystem, root = fsspec.url_to_fs(str(folder))
    found = filesystem.find(root)
    return {name.removeprefix(root): filesystem.cat_file(name) for name in found}


def test_a_path_is_of_this_machine_or_of_a_bucket(tmp_path):
    assert path_of("runs/a") == Path("runs/a")
    assert path_of(tmp_path) == tmp_path
    there = path_of("gs://some/runs/a")
    assert str(there / "x") == "gs://some/runs/a/x" and path_of(there) == there
    for other in ("s3://some/runs/a", "https://some/runs/a"):
        with pytest.raises(UserError, match=rf"{other}: give a folder of this machine, or gs://"):
            path_of(other)


def test_what_is_written_on_this_machine_alone_is_not_asked_for_elsewhere(tmp_path):
    require_local(None, Path("x.png"), tmp_path / "a:" / "x.png", Path("."))
    url = "gs://some/place/x.png"
    trained = ("--checkpoint", "runs/a")
    commands = {guidance: trained, inpainting: trained, retrieval: trained, scenes: trained}
    commands |= {upsampling: trained, train_reader: ()}
    for module, flags in commands.items():
        arguments = tyro.cli(module.Arguments, args=[*flags, "--out", url])
        with pytest.raises(UserError, match=f"^{url}: give a file or folder of this machine$"):
            module.main(arguments)
    for main, flags in (
        (plot.main, ("runs/a", "--out", url)),
        (plot.main, ("runs/a", "--samples", url)),
        (convert.main, ("runs/a", "--to", url)),
    ):
        with pytest.raises(UserError, match=f"^{url}: give a file or folder of this machine$"):
            main(flags)


def test_what_reads_buckets_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gs://some/run needs gcsfs: pip install -e '\.\[gcs\]'"):
        path_of("gs://some/run")


def test_the_configuration_keeps_a_bucket():
    flags = ("--config", "tests/tiny.py", "--train.run-dir", "gs://some/runs/a")
    _, config = parse_config(flags, "train.py", "")
    assert Config.from_json(config.to_json()).train.run_dir == "gs://some/runs/a"


def test_files_that_grow_are_copied_when_they_have_grown(folder, tmp_path):
    here = MirroredFolder(tmp_path)
    assert here.path == tmp_path
    here.copy()
    write_atomically(folder / "log", b"one\n")
    write_atomically(folder / "other", b"one\n")
    growing = MirroredFolder(folder, ("log", "new"))
    assert [path.name for path in growing.path.iterdir()] == ["log"]
    with (growing.path / "log").open("a") as log:
        log.write("two\n")
    (growing.path / "sub").mkdir()
    (growing.path / "sub" / "new").write_text("1")
    growing.copy()
    assert files(folder) == {"/log": b"one\ntwo\n", "/other": b"one\n", "/sub/new": b"1"}
    (folder / "log").unlink()
    growing.copy()  # which has not changed
    assert set(files(folder)) == {"/other", "/sub/new"}
    with (growing.path / "log").open("a") as log:
        log.write("three\n")
    growing.close()
    assert files(folder)["/log"] == b"one\ntwo\nthree\n"
    assert not growing.path.exists()
    here.close()
    assert tmp_path.exists()


def test_what_cannot_be_copied_for_the_last_time_is_removed_all_the_same(bucket):
    growing = MirroredFolder(path_of("gs://nowhere/run"))
    (growing.path / "log").write_text("one")
    with pytest.raises(UserError, match="cannot write gs://nowhere/run/log: no such bucket"):
        growing.close()
    assert not growing.path.exists()


@pytest.mark.slow
def test_what_is_not_marked_whole_is_no_checkpoint(folder):
    save(folder, 1, 2)
    assert saved_steps(folder) == [2, 1]
    (folder / "checkpoints" / "2" / COMMITTED).unlink()  # a kill before the end of the write
    assert saved_steps(folder) == [1]
    assert restored(folder) == 1
    save(folder, 2)
    assert restored(folder) == 2


@pytest.mark.slow
def test_a_damaged_checkpoint_is_moved_aside_and_an_interrupted_move_loses_nothing(folder, capsys):
    save(folder, 1, 2)
    two = folder / "checkpoints" / "2"
    filesystem, root = fsspec.url_to_fs(str(two))
    largest = max(filesystem.find(f"{root}/params"), key=filesystem.size)
    content = bytearray(filesystem.cat_file(largest))
    content[len(content) // 2] ^= 1
    filesystem.pipe_file(largest, bytes(content))
    whole = files(two)
    # Interrupted while it is copied: some files are there twice.
    some = random.Random(0).sample(sorted(set(whole) - {f"/{COMMITTED}"}), len(whole) // 2)
    for name in some:
        filesystem.pipe_file(f"{root}.damaged{name}", whole[name])
    assert restored(folder) == 1
    said = capsys.readouterr().err
    assert "2 is damaged (" in said
    aside = two.with_name(said.partition("moved to ")[2].partition(",")[0])
    assert files(aside) == whole
    assert saved_steps(folder) == [1]
    # Interrupted while the old ones are deleted: what is left does not count.
    for name in some:
        filesystem.pipe_file(f"{root}{name}", whole[name])
    assert saved_steps(folder) == [1]
    assert restored(folder) == 1
    assert files(aside) == whole
    save(folder, 2)
    assert restored(folder) == 2


def test_an_exported_model_is_loaded_from_a_bucket(folder, tmp_path):
    run = tmp_path / "run"
    write_random_run(run, tiny.get_config(), Tokenizer.train(CAPTIONS, 300))
    for to in (tmp_path / "here", folder / "there"):
        export(run, to)
    with pytest.raises(UserError, match="there is there already: remove it"):
        export(run, folder / "there")
    ours = Glide.load(str(folder / "there")).stage("base")
    theirs = Glide.load(tmp_path / "here").stage("base")
    for name, value in theirs.params.items():
        np.testing.assert_array_equal(ours.params[name], value, err_msg=name)
    assert ours.config == theirs.config


class NotAllowed(BaseHTTPRequestHandler):
    """A bucket that may be read, is empty, and may not be written."""

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


def test_a_bucket_that_cannot_be_used_is_named_before_training(bucket, train):
    nowhere = path_of("gs://nowhere/run")
    with pytest.raises(UserError, match="cannot read gs://nowhere/run: no such bucket"):
        saved_steps(nowhere)
    with HTTPServer(("127.0.0.1", 0), NotAllowed) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        refused = train(f"gs://{BUCKET}/run", environment=environment(server.server_port))
        said = finish(refused, status=2)
        server.shutdown()
    assert f"error: cannot write the run folder gs://{BUCKET}/run: Forbidden: " in said
    assert "Traceback" not in said


@pytest.mark.slow
def test_a_run_in_a_bucket_is_the_run_of_a_folder_here(bucket, train, tmp_path):
    flags = "--model.unet.channel-mult 1 --model.unet.attention-px 8 --sample.steps 2"
    flags += " --train.steps 9 --train.checkpoint-every-steps 3 --train.log-every-steps 3"
    flags += " --train.validate-every-steps 0 --train.sample-every-steps 9"
    here, run_dir = tmp_path / "run", bucket / "run"
    undisturbed = train(here, *flags.split())
    # Killed while it trains, it goes on from what is in the bucket.
    own = {"environment": {"TMPDIR": str(tmp_path)}}
    process = train(run_dir, *flags.split(), **own)
    wait_for((run_dir / "checkpoints" / "3" / COMMITTED).exists, process)
    process.kill()
    process.wait()
    finish(undisturbed)
    left = set(tmp_path.glob("glide_jax_*"))
    said = finish(train(run_dir, *flags.split(), "--profile", "1:2", **own))
    assert set(tmp_path.glob("glide_jax_*")) == left
    assert "resumed at step" in said
    assert_same_result(run_dir, here)
    assert [line["step"] for line in metrics(run_dir)] == [3, 6, 9]
    (image,) = (here / "samples").iterdir()
    assert (run_dir / "samples" / image.name).read_bytes() == image.read_bytes()
    assert f"wrote a trace of the steps to {run_dir}/profile" in said
    assert any(name.endswith(".xplane.pb") for name in files(run_dir / "profile"))
    assert shown_numbers(run_dir) == logged_numbers(run_dir)
    assert saved_steps(run_dir)[0] == 9
