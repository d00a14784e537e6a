"""Prompts into a folder of images, without models."""

import dataclasses
import errno
import os
import tracemalloc
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from glide_jax import Glide, UserError, sample
from glide_jax.config import SampleConfig
from glide_jax.errors import exit_on_user_error
from glide_jax.sample import write_grid
from glide_jax.sampling import folders
from glide_jax.sampling.commands import Generate, join_texts
from glide_jax.sampling.folders import fill_folder
from glide_jax.sampling.samples import Samples

GLIDE = Mock(spec=Glide)


class Stub(Generate):
    """A command whose models are not loaded."""

    def sample_prompts(self, glide, prompts, *, seed, batch_size, **_):
        assert len(prompts) <= batch_size
        images = np.full((len(prompts), 64, 64, 3), 7, np.uint8)
        return Samples(images, prompts, seed, SampleConfig())


@pytest.fixture
def stub(monkeypatch, tmp_path):
    """Makes a command that samples nothing, into a folder."""
    for module in (sample, folders):
        metadata = {"first_seed": "0", "weights": ""}
        monkeypatch.setattr(module, "png_metadata", lambda *_, found=metadata: found)
    return lambda **flags: Stub(prompt=("a",), out=tmp_path / "night", **flags)


def test_memory_does_not_grow_with_the_number_of_images(stub, monkeypatch):
    monkeypatch.setattr(folders, "save_png", lambda *_: None)
    peaks = []
    for n in (16, 1600):
        command = stub(n=n, batch_size=8)
        tracemalloc.start()
        fill_folder(GLIDE, command, command.jobs())
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # Jobs, and what the garbage collector has not seen yet; 1,600 images have twice as much.
    assert peaks[1] - peaks[0] < 6000 * 1600


def test_every_image_resumes(stub, capsys):
    command = stub(n=5, seed=3)
    fill_folder(GLIDE, command, command.jobs())
    for name in ("00000-1.png", "00000-4.png"):
        (command.out / name).unlink()
    fill_folder(GLIDE, command, command.jobs())
    assert "night: 2 of 5 images left" in capsys.readouterr().out
    seeds = [Image.open(file).text["seed"] for file in sorted(command.out.iterdir())]
    assert seeds == ["3", "4", "5", "6", "7"]


def test_ctrl_c_and_a_full_disk_say_one_line(stub, monkeypatch, capsys):
    command = stub()

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match="130"):
        patch.setattr(Stub, "sample_prompts", interrupt)
        with exit_on_user_error():
            fill_folder(GLIDE, command, command.jobs())
    assert capsys.readouterr().err == "interrupted: the same command resumes\n"
    monkeypatch.setattr("glide_jax.images.write_atomically", full)
    with pytest.raises(SystemExit, match="2"), exit_on_user_error():
        fill_folder(GLIDE, command, command.jobs())
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write") and "No space left" in error
    assert error.count("\n") == 1


def test_an_interrupted_grid_has_no_images_of_an_earlier_one(stub, monkeypatch):
    command = dataclasses.replace(stub(n=4, batch_size=2), out=stub().out / "x.png")
    jobs = command.jobs()
    files = [file for job in jobs for file in job.files]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()

    def once(command, glide, prompts, *, seed, **_):
        if seed != [0, 1]:
            raise KeyboardInterrupt
        return Samples(np.zeros((2, 8, 8, 3), np.uint8), prompts, seed, SampleConfig())

    monkeypatch.setattr(Stub, "sample_prompts", once)
    with pytest.raises(KeyboardInterrupt):
        write_grid(GLIDE, command, jobs, files)
    assert sorted(files[0].parent.iterdir()) == files[:2]


def test_images_of_two_checkpoints_are_not_mixed(stub, monkeypatch):
    command = stub(n=4, batch_size=2)
    found = iter("aab")  # the folder's, the first batch's, the second batch's
    monkeypatch.setattr(folders, "png_metadata", lambda *_: {"weights": next(found)})
    with pytest.raises(UserError, match="was trained on while its images were sampled"):
        fill_folder(GLIDE, command, command.jobs())
    assert len(list(command.out.iterdir())) == 2


def test_seeds_beyond_the_last_one_are_refused_before_any_image(stub):
    with pytest.raises(UserError, match="seeds must be in"):
        stub(seed=2**32 - 2, n=3).jobs()


def test_texts_may_begin_with_a_dash():
    for given, joined in (
        (["--prompt", "-a", "--n", "2"], ["--prompt=-a", "--n", "2"]),
        (["--negative_prompt", "--b c"], ["--negative_prompt=--b c"]),
        (["--prompt", "--no-upsample"], ["--prompt", "--no-upsample"]),
        (["--prompt", "--batch_size=2"], ["--prompt", "--batch_size=2"]),
    ):
        assert join_texts(given, Generate) == joined


def test_prompts_are_lines(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa red\xe2\x80\xa8star\r\n\r\n a ring \r\n")
    assert Generate(prompts_file=file).prompts() == ["a red\u2028star", "a ring"]
    file.write_bytes(b"caf\xe9")
    with pytest.raises(UserError, match=f"^--prompts-file {file}: not UTF-8 text$"):
        Generate(prompts_file=file).prompts()
