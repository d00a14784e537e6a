"""Accuracy of unCLIP's images of scenes."""

import shutil

import pytest
from helpers.unclip_set import write_unclip

from glide_jax.errors import UserError
from glide_jax.evaluation.scenes import principal_components, unclip
from glide_jax.evaluation.scenes.flags import CaptionFlags, SplitFlags
from glide_jax.evaluation.scenes.score import MEASURES


def test_accuracy_by_guidance_scale(tmp_path, capsys):
    models, out = write_unclip(tmp_path / "models"), tmp_path / "plot.png"
    flags = ["--n", "2", "--steps", "2", "--scales", "1", "--no-glide", "--out", str(out)]
    folders = [
        flag for role in ("clip", "decoder") for flag in ("--checkpoint", str(models / role))
    ]
    unclip.main([*folders, "--embeddings", "true", *flags])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "unCLIP, true embedding"
    assert lines[2].split()[1].endswith("%")
    assert out.exists()


def test_accuracy_by_number_of_components(tmp_path, capsys):
    models, out = write_unclip(tmp_path / "models"), tmp_path / "plot.png"
    shutil.rmtree(models / "prior")
    flags = ["--checkpoint", str(models), "--n", "4", "--steps", "2", "--embeddings", "20"]
    flags += ["--guidance-scale", "1"]  # the program of the test above
    principal_components.main([*flags, "--components", "16", "3", "--out", str(out)])
    header, *rows = (line.split() for line in capsys.readouterr().out.splitlines()[:4])
    assert header[:3] == ["components", "variance", "count"] and header[-1] == "cosine"
    assert [row[0] for row in rows] == ["0", "3", "16"]
    shares = [float(row[1].removesuffix("%")) for row in rows]
    assert shares[0] == 0 < shares[1] < shares[2] == 100
    assert out.exists()
    with pytest.raises(UserError, match=r"--components 17: .* give at most 16"):
        principal_components.main([*flags, "--components", "17"])


def test_accuracies_of_the_scenes_own_images():
    scenes = SplitFlags(n=8, split="validation")
    captions = CaptionFlags(n=8, caption_index=1).captions(closeup=False)
    found = principal_components.accuracies(scenes.images(64, closeup=False), captions)
    assert set(found) == {*MEASURES, "exact match"} and min(found.values()) > 0.8
