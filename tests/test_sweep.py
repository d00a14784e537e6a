"""python -m glide_jax.evaluate.sweep: a point per guidance scale, and a plot."""

import json

import pytest
from PIL import Image

from glide_jax.errors import UserError
from glide_jax.evaluate import results, sweep


@pytest.fixture
def run(efficientnet, models, monkeypatch, tmp_path):
    """Runs the command on a small base model and its CLIP, with the shared extractor."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(results, "load_extractor", lambda *_: efficientnet)
    monkeypatch.setattr(sweep, "use_all_cores", lambda *_: None)
    fixed = ("--checkpoint", models / "base", "--checkpoint", models / "clip")
    fixed += ("--n", 4, "--reference-n", 4, "--steps", 2, "--samples", tmp_path / "samples")
    return lambda *flags: sweep.main([*map(str, (*fixed, *flags))])


def test_a_point_per_scale_and_a_plot(run, models, tmp_path, capsys):
    out, plot = tmp_path / "sweep.json", tmp_path / "sweep.png"
    flags = ("--scales", 2, "--clip-scales", 1, "--metrics", "kid,precision_recall,clip_score")
    flags += ("--clip", models / "clip", "--out", out, "--plot", plot)
    run(*flags)
    assert capsys.readouterr().out.count("4 of 4 images left to sample") == 2
    points = json.loads(out.read_bytes())
    found = [(point["guidance"], point["scale"]) for point in points]
    kinds = (f"{sweep.CLASSIFIER_FREE}, ddim", f"{sweep.CLIP}, ddpm")
    assert found == [(kinds[0], 2.0), (kinds[1], 1.0)]
    folders = {path.name for path in (tmp_path / "samples").iterdir()}
    assert folders == {"classifier-free-2", "clip-1"}  # each resumes as a folder of `evaluate`
    for point in points:
        names = [name.split(" (")[0] for name in point["values"]]
        assert names == ["KID", "precision", "recall", "CLIP score"]
        assert point["standard_errors"].keys() == point["values"].keys()
    settings = [point["settings"] for point in points]
    assert [found["sample.sampler"] for found in settings] == ["ddim", "ddpm"]
    assert [found["sample.guidance_scale"] for found in settings] == ["2.0", "1.0"]
    assert settings[1]["sample.clip_guidance_scale"] == "1.0"
    assert all(found["n"] == found["reference_n"] == "4" for found in settings)
    assert points[0]["values"] != points[1]["values"]
    width, height = Image.open(plot).size
    assert width > 1.5 * height  # two panels


def test_flags_that_do_not_fit_are_refused(run, tmp_path):
    for flags, why in (
        (("--guidance-scale", 2), "--guidance-scale: give --scales instead"),
        (("--scales", -1), "--scales: scales are numbers from 0 on"),
        (("--plot", "x.png", "--metrics", "kid"), "--plot needs the metrics fd (or fid, kid) and"),
        (("--network", "vgg", "--clip", "x"), "--network vgg: choose one of"),
        (("--clip-sampler", "euler"), "--clip-sampler euler: must be one of"),
        (("--plot", tmp_path / "x.jpg"), "--plot"),
        (("--metrics", "clip_score"), "clip_score needs --clip"),
    ):
        with pytest.raises(UserError) as error:
            run(*flags)
        assert why in str(error.value)
        assert "\n" not in str(error.value)
