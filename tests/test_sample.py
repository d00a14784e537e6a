"""glide_jax.sample as a user runs it."""

import dataclasses
import runpy
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from glide_jax import sample
from glide_jax.config import SampleConfig
from glide_jax.errors import exit_on_user_error
from glide_jax.sampling.commands import Generate


def run(*arguments):
    with exit_on_user_error():
        sample.main([str(argument) for argument in arguments])


FAST = ("--steps", 4, "--batch-size", 2)


def test_help_of_sample_py_describes_the_flags(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["sample.py", "--help"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(Path(__file__).parent.parent / "sample.py"), run_name="__main__")
    shown = capsys.readouterr().out
    assert "Generates images for prompts." in shown
    assert "Run folder, a folder of run folders" in shown
    assert "Classifier-free guidance scale" in shown and "(default: the run's own)" in shown


def test_grid_and_single_images_with_metadata(trained_run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\nall blue\n\n  all white  \n")
    out = tmp_path / "out.png"
    run(
        "--checkpoint", trained_run, "--prompt", "all red", "--prompts-file", prompts,
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


def test_one_image_is_one_file_and_depends_only_on_its_seed(trained_run, tmp_path):
    for name, flags in {
        "a": ("--seed", 3), "b": ("--seed", 3), "c": ("--seed", 4), "zero": ("--guidance-scale", 0)
    }.items():  # fmt: skip
        run(
            "--checkpoint", trained_run, "--prompt", "all red", *FAST, *flags,
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
        ((), "no prompts: give --prompt"),
        (("--prompts-file", "/no/such"), "--prompts-file /no/such"),
        (("--prompt", "x", "--out", "x.jpg"), "--out x.jpg: must end in .png, or be a folder"),
        (
            ("--prompt", "x", "--out", "gs://a/x.png"),
            "--out gs://a/x.png: use a local file or folder",
        ),
        (("--prompt", "x", "--out", "gs://a/x"), "--out gs://a/x: use a local file or folder"),
        (("--prompt", "x", "--sampler", "dream"), "sampler 'dream' is unknown"),
        (("--prompt", "x", "--steps", "0"), "steps '0'"),
        (("--prompt", "x", "--steps", "5000"), "steps '5000'"),
        (("--prompt", "x", "--guidance-scale", "nan"), "--guidance-scale nan: must be a number"),
        (("--prompt", "x", "--batch-size", "0"), "--batch-size 0: must be at least 1"),
        (("--prompt", "x", "--sampler", "ddim", "--eta", "2"), "eta (2.0)"),
        (("--prompt", "x", "--n", "3", "--keep", "3"), "no clip model is given"),
        (
            ("--prompt", "x", "--n", "3", "--keep", "4", "--checkpoint", "nowhere"),
            "--keep 4: must be at most --n 3",
        ),
        (("--prompt", "x", "--n", "3", "--keep", "0"), "--keep 0: must be at least 1"),
        (("--prompt", "x", "--clip-guidance-scale", "3"), "no clip model is given"),
        (("--prompt", "x", "--seed", "-1"), "--seed -1: must be at least 0"),
        (
            ("--prompt", "x", "--n", "1001"),
            "--out samples.png: a grid of 1,001 images",
        ),
        (("--prompt", "x", "--n", "1000000000"), "--n 1000000000: must be at most 1,000,000"),
        (
            ("--prompt", "x", "--prompt", "y", "--n", "1000000"),
            "2,000,000 images: at most 1,000,000",
        ),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    capsys, trained_run, flags, line, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # the default --out is a file of the current folder
    with pytest.raises(SystemExit) as stop:
        run("--checkpoint", trained_run, *flags)
    assert stop.value.code == 2
    assert f"error: {line}" in capsys.readouterr().err


def test_images_that_exist_in_a_folder_are_skipped(capsys, trained_run, tmp_path):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("all red\nall blue\nall white\n")
    flags = ("--checkpoint", trained_run, "--prompts-file", prompts, "--n", 2, *FAST)
    run(*flags, "--out", tmp_path / "night")
    files = sorted((tmp_path / "night").iterdir())
    assert [f.name for f in files] == [f"{row:05d}-{i}.png" for row in range(3) for i in range(2)]
    texts = [Image.open(file).text for file in files]
    assert [(t["prompt"], t["seed"]) for t in texts[1:3]] == [("all red", "1"), ("all blue", "0")]
    before = {file: file.read_bytes() for file in files}
    files[2].unlink()
    times = {file: file.stat().st_mtime_ns for file in files if file.exists()}
    run(*flags, "--out", tmp_path / "night")
    assert "1 of 6 images left to sample" in capsys.readouterr().out
    assert {file: file.read_bytes() for file in files} == before
    assert all(files[i].stat().st_mtime_ns == times[files[i]] for i in (0, 1, 4, 5))


@pytest.fixture(scope="module")
def sampled_folder(trained_run, tmp_path_factory):
    """Flags, and the folder that they have filled."""
    folder = tmp_path_factory.mktemp("sampled")
    flags = ("--checkpoint", trained_run, "--prompt", "all red", *FAST, "--out", folder)
    run(*flags)
    return flags, folder


@pytest.mark.parametrize(
    ("flags", "difference"),
    [
        (("--guidance-scale", 5), "guidance_scale '2.0', not '5.0'"),
        (("--seed", 1), "first_seed '0', not '1'"),
        (("--negative-prompt", "all blue"), "negative_prompt '', not 'all blue'"),
        (("--no-upsample",), "upsample 'True', not 'False'"),
        (("--eta", 0.5), "eta '0.0', not '0.5'"),
        (("--checkpoint", "demo/upsample"), "weights 'base "),
    ],
)
def test_a_folder_sampled_with_other_flags_is_refused(capsys, sampled_folder, flags, difference):
    before, folder = sampled_folder
    with pytest.raises(SystemExit):
        run(*before, *flags)
    error = capsys.readouterr().err
    assert f"00000-0.png was sampled with {difference}" in error and "give another --out" in error
    assert len(list(folder.iterdir())) == 1


def test_a_folder_sampled_by_another_command_is_refused(capsys, sampled_folder, photo):
    before, _ = sampled_folder
    with pytest.raises(SystemExit):
        run("edit", *before, "--image", photo / "photo.png")
    assert "was sampled with command 'generate', not 'edit'" in capsys.readouterr().err


def test_flags_that_change_no_image_do_not_matter_for_resuming(
    capsys, sampled_folder, trained_run, tmp_path
):
    _, folder = sampled_folder
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("all red")
    run(
        "--checkpoint", trained_run, "--prompts-file", prompts, "--steps", 4, "--batch-size", 1,
        "--one-at-a-time", "--out", folder,
    )  # fmt: skip
    assert "0 of 1 images left to sample" in capsys.readouterr().out


def test_a_file_in_the_folder_that_is_no_image_is_refused(capsys, trained_run, tmp_path):
    (tmp_path / "00000-0.png").write_bytes(b"cut off")
    with pytest.raises(SystemExit):
        run("--checkpoint", trained_run, "--prompt", "all red", *FAST, "--out", tmp_path)
    assert "cannot read" in capsys.readouterr().err


def test_metadata_record_every_flag_that_affects_the_image_once(sampled_folder):
    _, folder = sampled_folder
    recorded = Image.open(folder / "00000-0.png").text
    settings = {one.name for one in dataclasses.fields(SampleConfig)}
    flags = {one.name for one in dataclasses.fields(Generate)} - settings
    unaffecting = {"fsdp", "batch_size", "one_at_a_time", "out", "prompts_file"}
    assert set(recorded) == settings | (flags - unaffecting - {"keep"}) | {
        "first_seed",
        "command",
        "weights",
    }


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


def test_inpaint_by_alpha_and_by_mask_are_the_same(models, photo):
    for name, image in {
        "a": (photo / "hole.png",), "b": (photo / "photo.png", "--mask", photo / "mask.png")
    }.items():  # fmt: skip
        run(
            "inpaint", "--checkpoint", models, "--image", *image, "--prompt",
            "all red", "--steps", 2, "--fit", "pad", "--out", photo / f"{name}.png",
        )  # fmt: skip
    a, b = (Image.open(photo / f"{name}.png") for name in "ab")
    assert a.size == (16, 16) and a.text["image"].endswith("hole.png") and a.text["steps"] == "2"
    np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_rank_checks_its_flags_before_it_prints(capsys, models, photo):
    image = ("--image", photo / "photo.png", "--prompt", "all red")
    with pytest.raises(SystemExit):
        run("rank", "--checkpoint", models, *image, "--fsdp", 3)
    printed = capsys.readouterr()
    assert printed.out == "" and "--fsdp 3" in printed.err


@pytest.mark.slow
def test_edit_upsample_and_rank(capsys, models, photo):
    both = ("--checkpoint", models / "base", "--checkpoint", models / "upsample")
    run(
        "edit", *both, "--image", photo / "photo.png", "--prompt", "all red",
        "--strength", 0.5, "--n", 2, "--steps", 4, "--out", photo / "edited.png",
    )  # fmt: skip
    edited = [photo / "edited" / f"{i:04d}.png" for i in range(2)]
    assert [Image.open(file).size for file in edited] == [(16, 16)] * 2
    assert Image.open(edited[0]).text["strength"] == "0.5"
    run(
        "upsample", *both, "--low-res", photo / "photo.png", "--prompt", "all red",
        "--out", photo / "large.png",
    )  # fmt: skip
    assert Image.open(photo / "large.png").size == (16, 16)
    run(
        "upsample", *both, "--low-res", edited[0], "--low-res", edited[1],
        "--prompt", "all red", "--out", photo / "larger",
    )  # fmt: skip
    texts = [Image.open(photo / "larger" / f"0000{i}-0.png").text for i in range(2)]
    assert [text["low_res"] for text in texts] == [str(file) for file in edited]
    capsys.readouterr()
    run(
        "rank", "--checkpoint", models, "--image", edited[0], "--image", edited[1],
        "--prompt", "all red",
    )  # fmt: skip
    heading, prompt, *lines = capsys.readouterr().out.splitlines()
    assert heading.startswith("CLIP scores")
    scores = [float(line.split()[0]) for line in lines]
    assert prompt == "all red" and len(lines) == 2 and scores == sorted(scores, reverse=True)


def test_the_recorded_seeds_of_kept_images_sample_them_again(models, tmp_path):
    flags = ("--checkpoint", models, "--prompt", "all red", "--steps", 2, "--no-upsample")
    run(*flags, "--n", 4, "--keep", 2, "--seed", 3, "--out", tmp_path / "best.png")
    for i in range(2):
        file = tmp_path / "best" / f"{i:04d}.png"
        seed = Image.open(file).text["seed"]
        run(*flags, "--seed", seed, "--out", tmp_path / "again.png")
        again = np.asarray(Image.open(tmp_path / "again.png")).astype(int)
        assert np.abs(again - np.asarray(Image.open(file))).max() <= 1


@pytest.mark.parametrize("what", ["absent", "empty", "no checkpoint", "other config"])
def test_a_folder_that_is_not_a_run_is_refused(capsys, trained_run, tmp_path, what):
    folder = tmp_path / "run"
    expected = "is not a folder"
    if what != "absent":
        folder.mkdir()
        expected = "is not a run folder"
    if what in ("no checkpoint", "other config"):
        config = (trained_run / "config.json").read_text()
        (folder / "config.json").write_text(config)
        (folder / "checkpoints").mkdir()
        expected = "has no complete checkpoint"
    if what == "other config":
        (folder / "checkpoints").rmdir()
        shutil.copytree(trained_run / "checkpoints", folder / "checkpoints")
        (folder / "config.json").write_text(config.replace('"channels": 32', '"channels": 64'))
        expected = "the config does not match the checkpoint"
    with pytest.raises(SystemExit) as stop:
        run("--checkpoint", folder, "--prompt", "x")
    assert stop.value.code == 2
    assert expected in capsys.readouterr().err
