"""What `UnCLIP` refuses, and how its commands call it; nothing is compiled."""

import dataclasses
from pathlib import Path
from unittest.mock import create_autospec

import numpy as np
import pytest
from helpers.unclip_set import unclip_config
from PIL import Image

from glide_jax import Glide, UnCLIP, UserError, sample
from glide_jax.runs.folder import Run
from glide_jax.sampling.arguments import require_numbers
from glide_jax.sampling.samples import Samples
from glide_jax.sampling.unclip_commands import UnclipCommand
from glide_jax.sampling.unclip_request import Noise, require_choice
from glide_jax.sampling.user_images import Fit

PIXELS = np.zeros((6, 9, 3), np.uint8)


def run(role, fingerprint="", **model):
    """A run of which only the configuration is there."""
    config = unclip_config(role)
    train = dataclasses.replace(config.train, clip_fingerprint=fingerprint)
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, **model), train=train
    )
    made = Run(Path(role), config)
    made.__dict__["fingerprint"] = "f"
    return made


def models(*roles, **changed):
    return UnCLIP({role: changed.get(role) or run(role) for role in roles})


ALL = ("clip", "prior", "decoder", "upsample")


@pytest.mark.parametrize(
    ("roles", "task", "why"),
    [
        (("clip", "decoder"), lambda u: u.generate("a"), "no prior model is given, only: clip, d"),
        (("clip", "prior"), lambda u: u.variations(PIXELS), "no decoder .* its run folder too"),
        (("decoder",), lambda u: u.generate("a", prior="none"), "no clip model is given"),
        (("clip", "decoder"), lambda u: u.variations(PIXELS, upsample=True), "no upsample model"),
        (ALL, lambda u: u.generate("a", sede=1), "unknown setting sede"),
        (ALL, lambda u: u.generate("a", prior_settings={"steps": 0}), "is not a respacing"),
        (ALL, lambda u: u.generate("a", prior_settings={"dynamic_threshold": 0.9}), "for images"),
        (ALL, lambda u: u.generate("a", clip_guidance_scale=1.0), "is for GLIDE's models"),
        (ALL, lambda u: u.text_diff(PIXELS, "a", "b", 1.5), r"theta must be in \[0, 1\], not 1.5"),
        (ALL, lambda u: u.interpolate(__file__, "b"), "is a file, but a string is a prompt here"),
        (ALL, lambda u: u.interpolate("a", "b", 1), "n must be at least 2"),
        (ALL, lambda u: u.variations(PIXELS[..., :2]), r"image must have shape \(h, w, 3\)"),
        (
            ALL,
            lambda u: u.probe_pca(PIXELS, embeddings=np.zeros((5, 7))),
            "embeddings have 7 channels, but the CLIP's have 16",
        ),
    ],
)
def test_refusals(roles, task, why):
    with pytest.raises(UserError, match=why):
        task(models(*roles))


@pytest.mark.parametrize(
    ("refuse", "why"),
    [
        (lambda: require_choice("noise", "x", Noise), "noise must be shared or slerp, not 'x'"),
        (lambda: require_choice("fit", 3, Fit), "fit must be crop or pad or stretch, not 3"),
        (lambda: require_numbers("theta", ["x"], 1), r"theta must be numbers, not \['x'\]"),
        (lambda: require_numbers("z", np.zeros((2, 3, 4)), 2), r"z must have 2 dim.*\(2, 3, 4\)"),
        (lambda: require_numbers("z", [[np.nan]], 2), "z has numbers that are not finite"),
    ],
)
def test_arguments_of_other_types(refuse, why):
    with pytest.raises(UserError, match=why):
        refuse()


def test_models_of_different_clips_are_refused():
    other_width = models(*ALL, prior=run("prior", embedding_width=8))
    with pytest.raises(UserError, match=r"different widths \(clip 16, prior 8, decoder 16\)"):
        other_width.generate("a")
    other_clip = models(*ALL, prior=run("prior", "f"), decoder=run("decoder", "g"))
    with pytest.raises(UserError, match=r"of different CLIPs .*: prior prior, decoder decoder, cl"):
        other_clip.generate("a")
    with pytest.raises(UserError, match="the upsample model upsamples 4 px, but its images have 8"):
        models(*ALL, upsample=run("upsample", low_res_px=4)).generate("a")
    same = models(*ALL, prior=run("prior", "f"), decoder=run("decoder", "f"))
    same.require_stages({}, prior="model")


def test_roles_of_a_folder_with_both_systems():
    ours = [(run(role), role) for role in ALL]
    unet = dataclasses.replace(unclip_config("upsample").model.unet, resolution_px=32)
    larger = run("upsample", unet=unet, low_res_px=16)
    by_role = UnCLIP._with_roles([larger, *(one for one, _ in ours)])
    assert [role for _, role in by_role] == ["upsample2", *ALL]
    assert set(Glide.roles) & set(UnCLIP.roles) == {"clip", "upsample"}


COMMANDS = {
    "unclip": (("--prompt", "a", "--n", "2", "--prior-settings.steps", "7"), "generate"),
    "variations": (("--n", "2"), "variations"),
    "reconstruct": (("--eta", "0.5"), "reconstruct"),
    "interpolate": (("--n", "3", "--noise", "slerp"), "interpolate"),
    "text-diff": (("--after", "-b", "--theta", "0", "0.5"), "text_diff"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_commands(name, tmp_path, monkeypatch):
    """Their arguments reach `UnCLIP`, and their images have the settings that were used."""
    image, out = tmp_path / "image.png", tmp_path / "out"
    Image.fromarray(PIXELS).save(image)
    flags, method = COMMANDS[name]
    images = {"unclip": 0, "interpolate": 2}.get(name, 1)
    real, fake = models(*ALL), create_autospec(UnCLIP, instance=True)
    fake.runs, fake.has.side_effect, fake.config.side_effect = real.runs, real.has, real.config
    fake.settings.side_effect, calls = real.settings, []

    def sampled(*arguments, **options):
        calls.append((arguments, options))
        count = {"interpolate": 3, "reconstruct": 1}.get(name, 2)
        black = np.zeros((count, 8, 8, 3), np.uint8)
        return Samples(black, [""] * count, [0] * count, real.settings("decoder"))

    getattr(fake, method).side_effect = sampled
    monkeypatch.setattr(UnclipCommand, "load", lambda command: fake)
    given = ("--image", str(image)) * images
    sample.main([name, "--checkpoint", "x", *given, *flags, "--out", str(out)])
    ((arguments, options),) = calls
    texts = [Image.open(file).text for file in sorted(out.iterdir())]
    assert all(text["weights"].startswith("decoder f, clip f") for text in texts)
    assert len(texts) == len(sampled())
    inverted = name in ("reconstruct", "interpolate", "text-diff")
    assert {text["sampler"] for text in texts} == {"ddim" if inverted else "ddpm"}
    assert options["sampler"] == ("ddim" if inverted else None)
    if name == "unclip":
        assert options["prior_settings"]["steps"] == "7" and arguments == (["a", "a"],)
        assert "steps=7" in texts[0]["prior_settings"]
    if name == "text-diff":
        assert arguments[1:] == ("", "-b", (0.0, 0.5)) and texts[0]["theta"] == "(0.0, 0.5)"
    if name == "reconstruct":
        assert options["eta"] == 0.5 and options["guidance_scale"] == 1.0


def test_a_run_keeps_the_fingerprint_of_its_clip():
    assert run("clip").clip_fingerprint == "f"
    assert run("clip", "recorded").clip_fingerprint == "recorded"  # of an export


def test_the_shipped_models_are_of_one_clip():
    UnCLIP.load("demo").require_stages({}, prior="model", clip=True)
