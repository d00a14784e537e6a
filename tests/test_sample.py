"""sample.py as a user runs it."""

import sys

import numpy as np
import pytest
from PIL import Image

import sample
from glide_jax.errors import exit_on_user_error


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["sample.py", *map(str, arguments)])
    with exit_on_user_error():
        sample.main()


FAST = ("--steps", 4, "--batch-size", 2)


def test_grid_and_single_pictures_with_metadata(monkeypatch, trained_run, tmp_path):
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


def test_one_picture_is_one_file_and_depends_on_its_seed_alone(monkeypatch, trained_run, tmp_path):
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
        (("--prompt", "x", "--out", "x.jpg"), "--out x.jpg: must end in .png"),
        (("--prompt", "x", "--sampler", "dream"), "sampler 'dream' is unknown"),
        (("--prompt", "x", "--steps", "0"), "steps '0'"),
        (("--prompt", "x", "--steps", "5000"), "steps '5000'"),
        (("--prompt", "x", "--guidance-scale", "nan"), "guidance scale nan"),
        (("--prompt", "x", "--batch-size", "0"), "batch size 0"),
        (("--prompt", "x", "--sampler", "ddim", "--eta", "2"), "eta (2.0)"),
    ],
)
def test_bad_input_is_one_line_and_status_2(monkeypatch, capsys, trained_run, flags, line):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--checkpoint", trained_run, *flags)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert f"error: {line}" in said


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
