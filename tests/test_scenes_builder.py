"""The built-in data set's TFDS builder and worker processes."""

import io
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from glide_jax.data.scenes import workers
from glide_jax.data.scenes.builder import ScenesConfig, load
from glide_jax.data.scenes.graph import SPLITS, Scene, make
from glide_jax.data.scenes.rendering import render
from glide_jax.data.scenes.workers import encoded_scene, encoded_scenes
from glide_jax.errors import UserError

TINY = ScenesConfig(name="tiny", train=12, validation=4, novel=4)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("data")


@pytest.mark.parametrize("split", SPLITS)
def test_record_i_is_scene_i(data_dir, split):
    source = load(split, data_dir, TINY)
    assert len(source) == getattr(TINY, split)
    for index in range(len(source)):
        scene, captions = make(split, index)
        record = source[index]
        assert Scene.from_json(record["scene"]) == scene
        assert tuple(caption.decode() for caption in record["captions"]) == captions
        pixels = np.asarray(Image.open(io.BytesIO(record["image"])))
        assert np.abs(pixels.astype(float) - render(scene, 128)).mean() < 2


def test_an_existing_data_set_is_reused(data_dir):
    load("train", data_dir, TINY)
    before = {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")}
    load("train[:3]", data_dir, TINY)
    assert {path: path.stat().st_mtime_ns for path in data_dir.rglob("*")} == before


def test_worker_processes_make_the_same_records_in_order():
    made = list(encoded_scenes("train", 7, workers=2))
    assert made == [encoded_scene("train", index) for index in range(7)]


def test_the_signal_that_killed_a_worker_is_named(monkeypatch):
    def start(*_):
        return subprocess.Popen(["sh", "-c", "kill -SEGV $$"], stdout=subprocess.PIPE)

    monkeypatch.setattr(workers, "_start", start)
    with pytest.raises(UserError, match=r"^a worker process ended by SIGSEGV before scene 0"):
        next(encoded_scenes("train", 7, workers=2))


def test_closing_the_iterator_ends_the_workers():
    made = encoded_scenes("train", 10**6, workers=2)
    next(made)
    made.close()


def load_elsewhere(data_dir, images: int) -> subprocess.Popen:
    """Another process that loads `tiny` with this many training images."""
    config = f"ScenesConfig(name='tiny', train={images}, validation=4, novel=4)"
    return subprocess.Popen(
        [
            sys.executable,
            "-c",
            "from glide_jax.data.scenes.builder import ScenesConfig, load;"
            f"print(len(load('train', {str(data_dir)!r}, {config})))",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until_started(data_dir, process: subprocess.Popen) -> None:
    while not list(data_dir.rglob("incomplete*")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)


def test_a_killed_process_leaves_no_data_set(tmp_path):
    process = load_elsewhere(tmp_path, 4000)
    wait_until_started(tmp_path, process)
    process.kill()
    process.communicate()
    assert len(load("train", tmp_path, TINY)) == TINY.train


def test_two_processes_may_generate_the_same_data_set(tmp_path):
    process = load_elsewhere(tmp_path, 300)
    wait_until_started(tmp_path, process)
    images = len(load("train", tmp_path, TINY))  # of the process that finished first
    output, _ = process.communicate()
    assert process.returncode == 0 and output.splitlines()[-1] == str(images), output


def test_errors_name_the_split_config_or_folder(data_dir, tmp_path):
    with pytest.raises(UserError, match=r"no split 'test': choose train, validation, novel"):
        load("test", data_dir, TINY)
    with pytest.raises(UserError, match=r"no config 'huge': choose full, mini, closeups"):
        load("train", data_dir, "huge")
    (tmp_path / "scenes").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write scenes to .*scenes"):
        load("train", tmp_path, TINY)


def test_metadata_of_others_are_checked(tmp_path):
    folder = tmp_path / "scenes" / "mini" / "2.0.0"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text('{"name": "scenes", "splits": [{"name": "../x"}]}')
    with pytest.raises(UserError, match=r"'\.\./x' is not a path inside the folder"):
        load("train", tmp_path, "mini")
