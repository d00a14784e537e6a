"""Which output files already exist, as far as their metadata say."""

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from glide_jax.errors import UserError
from glide_jax.images import save_png
from glide_jax.sampling.outputs import Job, earlier_images, make_jobs, read_metadata, remove_images

COMMON = {
    "command": "generate",
    "steps": "4",
    "first_seed": "0",
    "keep": None,
    "weights": "base a1",
}
PIXELS = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)


@pytest.fixture
def job(tmp_path):
    """A job whose file is complete."""
    job = Job("all red", 0, (tmp_path / "00000-0.png",))
    save_png(job.files[0], PIXELS, COMMON | job.metadata | {"seed": "0"})
    return job


def test_metadata_that_are_unset_are_not_written(job):
    given = {name: value for name, value in COMMON.items() if value is not None}
    assert read_metadata(job.files[0]) == given | {"prompt": "all red", "seed": "0"}
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
        ({"weights": "base b2"}, "weights 'base a1', not 'base b2'"),
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
def test_a_damaged_file_is_sampled_again(job, cut, capsys):
    (file,) = job.files
    file.write_bytes(file.read_bytes()[:cut])
    assert not job.is_done(COMMON)
    assert capsys.readouterr().err == f"{file} is damaged: it is sampled again\n"


def test_what_is_no_image_is_refused(job):
    (file,) = job.files
    bomb = PngImagePlugin.PngInfo()
    bomb.add_itxt("prompt", "a" * 2**22, zip=True)
    Image.fromarray(PIXELS).save(file, pnginfo=bomb)
    with pytest.raises(UserError, match="written by another program"):
        job.is_done(COMMON)
    for content, why in ((b"text", "not an image in one of"), (None, "Is a directory")):
        file.unlink()
        file.mkdir() if content is None else file.write_bytes(content)
        with pytest.raises(UserError, match=rf"^cannot read .*00000-0\.png: .*({why}).*remove it"):
            job.is_done(COMMON)


def test_inputs_are_compared_by_content(tmp_path):
    """A model folder or an image may move; another image of the same name is another image."""
    small = tmp_path / "small.png"
    save_png(small, PIXELS)
    job = Job("all red", 0, (tmp_path / "00000-0.png",), small)
    save_png(job.files[0], PIXELS, COMMON | job.metadata | {"checkpoint": "a", "image": "b"})
    assert job.is_done(COMMON | {"checkpoint": "other/a", "image": "other/b"})
    save_png(small, PIXELS + 1)
    with pytest.raises(UserError, match="was sampled with low_res_digest "):
        job.is_done(COMMON)


def grid(tmp_path, images):
    """Files of a grid as a command writes them, and what it removes of an earlier one."""
    files = [f for job in make_jobs(["a"], None, range(images), 1, tmp_path / "x.png")
             for f in job.files]  # fmt: skip
    earlier = earlier_images(tmp_path / "x.png", files)
    remove_images(earlier)
    for file in files:
        save_png(file, PIXELS, COMMON)
    return sorted(file.name for file in (tmp_path / "x").glob("*"))


def test_the_folder_of_a_grid_has_the_images_of_that_grid(tmp_path):
    assert grid(tmp_path, 4) == [f"000{i}.png" for i in range(4)]
    (tmp_path / "x" / "0003.png").write_bytes(b"")  # damaged
    (tmp_path / "x" / ".DS_Store").touch()
    assert grid(tmp_path, 2) == [".DS_Store", "0000.png", "0001.png"]
    (tmp_path / "x" / ".DS_Store").unlink()
    grid(tmp_path, 1)  # a single image has no folder
    assert not (tmp_path / "x").exists() and (tmp_path / "x.png").exists()


@pytest.mark.parametrize("name", ["photo.jpg", "0000.png", "00000-0.png"])
def test_images_of_a_grid_are_not_mixed_with_other_files(tmp_path, name):
    (tmp_path / "x").mkdir()
    save_png(tmp_path / "x" / name, PIXELS, {"Software": "an editor"})
    with pytest.raises(UserError, match=rf"the folder .*x, which has other files \({name}\)"):
        grid(tmp_path, 2)
    grid(tmp_path, 1)
    assert (tmp_path / "x" / name).exists()
    (tmp_path / "x" / name).unlink()
    (tmp_path / "x").rmdir()
    (tmp_path / "x").touch()
    with pytest.raises(UserError, match="x is a file, not a folder"):
        grid(tmp_path, 2)


def test_each_image_is_a_job_of_its_own_unless_the_best_are_kept(tmp_path):
    jobs = make_jobs(["a", "b"], None, [5, 6], 1, tmp_path)
    assert [(job.prompt, job.seed, job.files[0].name) for job in jobs] == [
        ("a", 5, "00000-0.png"), ("a", 6, "00000-1.png"),
        ("b", 5, "00001-0.png"), ("b", 6, "00001-1.png"),
    ]  # fmt: skip
    _, job = make_jobs(["a", "b"], None, [5], 2, tmp_path / "x.png")
    assert [file.name for file in job.files] == ["0002.png", "0003.png"]
