"""sample.py as a user runs it."""

import sys

import numpy as np
import pytest
from PIL import Image

from glide_jax import sample
from glide_jax.errors import exit_on_user_error


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
    with exit_on_user_error():
        sample.main()


FAST = ("--steps", 4, "--batch-size", 2)


def test_grid_and_single_images_with_metadata(monkeypatch, trained_run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\nall blue\n\n  all white  \n")
    out = tmp_path / "out.png"
    run(
        monkeypatch, "--checkpoint", trained_run, "--prompt", "all red", "--prompts-file", prompts,
        "--n", 2, "--seed", 5, "--negative-prompt", "all black", "--out", out, *FAST,
    )  # fmt: skip
    assert Image.open(out).size[0] > 2 * 192
    files = sorted((tmp_path / "out").iterdir())
    texts = [Image.open(file).text for file in files]
    assert [t["prompt"] for t in texts] == [
        p for p in ("all red", "all blue", "all white") for _ in range(2)
    ]
    assert [t["seed"] for t in texts] == ["5", "6"] * 3
    assert texts[0]["steps"] == "4" and texts[0]["sampler"] == "ddim"
    assert texts[0]["guidance_scale"] == "2.0" and texts[0]["negative_prompt"] == "all black"
    assert Image.open(files[0]).size == (8, 8)


def test_one_image_is_one_file_and_depends_on_its_seed_alone(monkeypatch, trained_run, tmp_path):
    for name, flags in {
        "a": ("--seed", 3), "b": ("--seed", 3), "c": ("--seed", 4), "zero": ("--guidance-scale", 0)
    }.items():  # fmt: skip
        run(
            monkeypatch, "--checkpoint", trained_run, "--prompt", "all red", *FAST, *flags,
            "--out", tmp_path / f"{name}.png",
        )  # fmt: skip
    a, b, c = (np.asarray(Image.open(tmp_path / f"{name}.png")) for name in "abc")
    assert a.shape == (8, 8, 3)
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    assert not (tmp_path / "a").exists()
    assert Image.open(tmp_path / "zero.png").text["guidance_scale"] == "0.0"


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--prompt", "x", "--n", 0), "--n 0: must be at least 1"),
        ((), "nothing to draw"),
        (("--prompts-file", "/no/such"), "--prompts-file /no/such"),
        (("--prompt", "x", "--out", "x.jpg"), "--out x.jpg: must end in .png, or be a folder"),
        (("--prompt", "x", "--out", "gs://a/x.png"), "gs://a/x.png: give a file or folder of this"),
        (("--prompt", "x", "--out", "gs://a/x"), "gs://a/x: use a local file or folder"),
        (("--prompt", "x", "--sampler", "dream"), "sampler 'dream' is unknown"),
        (("--prompt", "x", "--steps", "0"), "steps '0'"),
        (("--prompt", "x", "--steps", "5000"), "steps '5000'"),
        (
            ("--prompt", "x", "--guidance-scale", "nan"),
            "config: sample.guidance_scale must be a number",
        ),
        (("--prompt", "x", "--batch-size", "0"), "batch size 0"),
        (("--prompt", "x", "--sampler", "ddim", "--eta", "2"), "eta (2.0)"),
        (("--prompt", "x", "--n", "3", "--keep", "4"), "this needs a model for clip"),
        (("--prompt", "x", "--n", "3", "--keep", "0"), "--keep 0: must be at least 1"),
        (("--prompt", "x", "--clip-guidance-scale", "3"), "this needs a model for clip"),
        (("--prompt", "x", "--seed", "-1"), "seeds must be in"),
    ],
)
def test_bad_input_is_one_line_and_status_2(monkeypatch, capsys, trained_run, flags, line):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--checkpoint", trained_run, *flags)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"error: {line}" in said


def test_a_folder_is_filled_and_what_is_there_is_passed_over(
    monkeypatch, capsys, trained_run, tmp_path
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("all red\nall blue\nall white\n")
    flags = ("--checkpoint", trained_run, "--prompts-file", prompts, "--n", 2, *FAST)
    run(monkeypatch, *flags, "--out", tmp_path / "night")
    files = sorted((tmp_path / "night").iterdir())
    assert [f.name for f in files] == [f"{row:05d}-{i}.png" for row in range(3) for i in range(2)]
    texts = [Image.open(file).text for file in files]
    assert [(t["prompt"], t["seed"]) for t in texts[1:3]] == [("all red", "1"), ("all blue", "0")]
    before = {file: file.read_bytes() for file in files}
    files[2].unlink()
    times = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    run(monkeypatch, *flags, "--out", tmp_path / "night")
    assert "1 of 3 prompts to draw" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in files} == before
    assert all(files[i].stat().st_mtime_ns == times[files[i]] for i in (0, 1, 4, 5))
    with pytest.raises(SystemExit):
        run(monkeypatch, *flags, "--guidance-scale", 5, "--out", tmp_path / "night")
    assert "00000-0.png was drawn with guidance_scale '2.0', not '5.0'" in capsys.readouterr().err


@pytest.fixture
def photo(tmp_path):
    """An image with a hole, and the hole as a mask."""
    rgb = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    known = np.full((20, 30), 255, np.uint8)
    known[4:16, 8:22] = 0
    Image.fromarray(np.dstack([rgb, known])).save(tmp_path / "hole.png")
    Image.fromarray(rgb).save(tmp_path / "photo.png")
    Image.fromarray(known).save(tmp_path / "mask.png")
    return tmp_path


def test_inpaint_by_alpha_and_by_mask_are_the_same(monkeypatch, models, photo):
    for name, image in {
        "a": (photo / "hole.png",), "b": (photo / "photo.png", "--mask", photo / "mask.png")
    }.items():  # fmt: skip
        run(
            monkeypatch, "inpaint", "--checkpoint", models, "--image", *image, "--prompt",
            "all red", "--steps", 2, "--fit", "pad", "--out", photo / f"{name}.png",
        )  # fmt: skip
    a, b = (Image.open(photo / f"{name}.png") for name in "ab")
    assert a.size == (16, 16) and a.text["image"].endswith("hole.png") and a.text["steps"] == "2"
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


@pytest.mark.slow
def test_edit_upsample_and_rank(monkeypatch, capsys, models, photo):
    both = ("--checkpoint", models / "base", "--checkpoint", models / "upsample")
    run(
        monkeypatch, "edit", *both, "--image", photo / "photo.png", "--prompt", "all red",
        "--strength", 0.5, "--n", 2, "--steps", 4, "--out", photo / "edited.png",
    )  # fmt: skip
    edited = [photo / "edited" / f"{i:04d}.png" for i in range(2)]
    assert [Image.open(file).size for file in edited] == [(16, 16)] * 2
    assert Image.open(edited[0]).text["strength"] == "0.5"
    run(
        monkeypatch, "upsample", *both, "--low-res", photo / "photo.png", "--prompt", "all red",
        "--out", photo / "large.png",
    )  # fmt: skip
    assert Image.open(photo / "large.png").size == (16, 16)
    run(
        monkeypatch, "upsample", *both, "--low-res", edited[0], "--low-res", edited[1],
        "--prompt", "all red", "--out", photo / "larger",
    )  # fmt: skip
    texts = [Image.open(photo / "larger" / f"0000{i}-0.png").text for i in range(2)]
    assert [text["low_res"] for text in texts] == [str(file) for file in edited]
    capsys.readouterr()
    run(
        monkeypatch, "rank", "--checkpoint", models, "--image", edited[0], "--image", edited[1],
        "--prompt", "all red",
    )  # fmt: skip
    prompt, *lines = capsys.readouterr().out.splitlines()
    scores = [float(line.split()[0]) for line in lines]
    assert prompt == "all red" and len(lines) == 2 and scores == sorted(scores, reverse=True)


def test_kept_images_tell_the_seeds_that_draw_them_again(monkeypatch, models, tmp_path):
    flags = ("--checkpoint", models, "--prompt", "all red", "--steps", 2, "--no-upsample")
    run(monkeypatch, *flags, "--n", 4, "--keep", 2, "--seed", 3, "--out", tmp_path / "best.png")
    for i in range(2):
        file = tmp_path / "best" / f"{i:04d}.png"
        seed = Image.open(file).text["seed"]
        run(monkeypatch, *flags, "--seed", seed, "--out", tmp_path / "again.png")
        again = np.asarray(Image.open(tmp_path / "again.png")).astype(int)
        assert np.abs(again - np.asarray(Image.open(file))).max() <= 1


@pytest.mark.parametrize("what", ["absent", "empty", "no checkpoint", "other config"])
def test_a_folder_that_is_not_a_run_is_refused(monkeypatch, capsys, trained_run, tmp_path, what):
    folder = tmp_path / "run"
    expected = "is not a folder"
    if what != "absent":
        folder.mkdir()
        expected = "is not a run folder"
    if what in ("no checkpoint", "other config"):
        config = (trained_run / "config.json").read_text()
        (folder / "config.json").write_text(config)
        (folder / "checkpoints").mkdir()
        expected = "has no whole checkpoint"
    if what == "other config":
        (folder / "checkpoints").rmdir()
        (folder / "checkpoints").symlink_to(trained_run / "checkpoints")
        (folder / "config.json").write_text(config.replace('"channels": 32', '"channels": 64'))
        expected = "the config does not match the checkpoint"
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--checkpoint", folder, "--prompt", "x")
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err
