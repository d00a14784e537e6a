"""Which output files already exist, as far as their metadata say."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from glide_jax.errors import UserError
from glide_jax.images import save_png
from glide_jax.sampling.outputs import Job, read_metadata

COMMON = {"command": "generate", "steps": "4", "first_seed": "0", "keep": None}
PIXELS = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)


@pytest.fixture
def job(tmp_path):
    """A job whose file is complete."""
    job = Job("all red", (tmp_path / "00000-0.png",))
    save_png(job.files[0], PIXELS, COMMON | job.metadata | {"seed": "0"})
    return job


def test_metadata_that_are_unset_are_not_written(job):
    texts = {"command": "generate", "steps": "4", "first_seed": "0", "prompt": "all red"}
    assert read_metadata(job.files[0]) == texts | {"seed": "0"}
    assert job.is_done(COMMON)


def test_an_image_that_an_editor_saved_again_is_done(job):
    """Editors add a resolution, a color profile and texts of their own."""
    (file,) = job.files
    info = PngImagePlugin.PngInfo()
    for name, text in {**read_metadata(file), "Software": "an editor"}.items():
        info.add_itxt(name, text, zip=True)
    with Image.open(file) as image:
        image.load()
        image.save(file, pnginfo=info, dpi=(72, 72), icc_profile=b"profile", gamma=0.45)
    assert "Software" in read_metadata(file) and "dpi" not in read_metadata(file)
    assert job.is_done(COMMON)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"steps": "5"}, "steps '4', not '5'"),
        ({"keep": "1"}, "keep None, not '1'"),
        ({"command": "edit"}, "command 'generate', not 'edit'"),
    ],
)
def test_other_metadata_are_named(job, changes, difference):
    with pytest.raises(UserError, match=f"was sampled with {difference}: give another --out"):
        job.is_done(COMMON | changes)


def test_a_flag_that_is_no_longer_given_is_named(job):
    save_png(job.files[0], PIXELS, COMMON | job.metadata | {"keep": "1"})
    with pytest.raises(UserError, match="was sampled with keep '1', not None"):
        job.is_done(COMMON)


def test_a_file_of_an_earlier_version_is_refused(job):
    save_png(job.files[0], PIXELS, {"prompt": "all red", "seed": "0", "steps": "4"})
    with pytest.raises(UserError, match=r"sampled by an earlier version.*give another --out"):
        job.is_done(COMMON)


@pytest.mark.parametrize("cut", [0, 20, 60, -40])
def test_a_damaged_file_is_refused(job, cut):
    (file,) = job.files
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(UserError, match=r"cannot read .*00000-0\.png"):
        job.is_done(COMMON)
