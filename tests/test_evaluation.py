"""The measures of upsamplers and CLIPs, and their commands on small random models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import model_set
from PIL import Image

from glide_jax import UserError
from glide_jax.config import DiffusionConfig, Folder
from glide_jax.data.scenes.graph import make
from glide_jax.data.scenes.rendering import render
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.evaluation import retrieval, upsampling
from glide_jax.evaluation.scenes import attribute_binding, guidance, inpainting
from glide_jax.evaluation.scenes.captions import Asked, parse_caption
from glide_jax.evaluation.scenes.reader import read_scenes


def test_psnr_is_in_decibels():
    whole = np.full((2, 4, 4, 3), 100, np.uint8)
    off = whole.copy()
    off[0] += 10
    np.testing.assert_allclose(upsampling.psnr(off, whole), [20 * np.log10(25.5), np.inf])


def test_top_1_counts_own_captions_within_groups():
    text = np.eye(5)
    assert retrieval.top_1(text, text, 2) == 1  # the fifth fills no group
    swapped = text[[1, 0, 2, 3, 4]]
    assert retrieval.top_1(swapped, text, 2) == 0.5
    assert retrieval.top_1(swapped, text, 5) == 3 / 5


@pytest.fixture
def on_colors(models, color_folder, monkeypatch):
    """The models' data set is the eight colors."""
    real = upsampling.open_source

    def opened(config, split):
        return real(replace(config, source=Folder(str(color_folder))), "all")

    for module in (upsampling, retrieval):
        monkeypatch.setattr(module, "open_source", opened)
    return models


def test_upsampling_is_compared_with_bicubic(on_colors, tmp_path, capsys):
    out = tmp_path / "grid.png"
    upsampling.main(upsampling.Arguments(on_colors, n=3, steps="2", batch_size=2, out=out))
    said = capsys.readouterr().out
    assert "upsampler" in said and "bicubic" in said and "3 images, 8 to 16 px" in said
    assert Image.open(out).size[0] > 8 * 192
    with pytest.raises(UserError, match="--n 0"):
        upsampling.main(upsampling.Arguments(on_colors, n=0))


def test_retrieval_prints_a_share_for_each_noise_level(on_colors, tmp_path, capsys):
    out = tmp_path / "curve.png"
    clip = on_colors / "clip"
    retrieval.main(retrieval.Arguments(clip, n=8, among=4, caption_index=0, t=(0, 500), out=out))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["t =   0", "t = 500"]
    assert Image.open(out).size[0] > 500
    with pytest.raises(UserError, match="--caption-index 1: some records have 1 captions"):
        retrieval.main(retrieval.Arguments(clip, n=8, among=4))
    with pytest.raises(UserError, match="there are 8 records"):
        retrieval.main(retrieval.Arguments(clip, n=9, among=9))
    with pytest.raises(UserError, match="--among 9"):
        retrieval.main(retrieval.Arguments(clip, n=8, among=9))
    with pytest.raises(UserError, match="a CLIP is needed"):
        retrieval.main(retrieval.Arguments(on_colors / "base", n=8, among=4))


def test_retrieval_noises_images_by_the_schedule_of_the_run(color_folder, tmp_path, monkeypatch):
    """With zero_terminal_snr, images of the last step hold nothing but the same noise."""
    data = replace(model_set.clip_config().data, source=Folder(str(color_folder)))
    diffusion = DiffusionConfig(schedule="linear", prediction="v", zero_terminal_snr=True)
    config = replace(model_set.clip_config(), data=data, diffusion=diffusion)
    tokenizer = ClipTokenizer.train(model_set.CAPTIONS, 600)
    model_set.write_random_run(tmp_path / "clip", config, tokenizer)
    seen = []

    def encode(stage, images, t):
        seen.append(images)
        return np.zeros((len(images), 16))

    monkeypatch.setattr(retrieval.ClipStage, "encode_images", encode)
    retrieval.main(
        retrieval.Arguments(
            tmp_path / "clip", n=8, among=4, split="all", caption_index=0, t=(0, 999)
        )
    )
    _, noise = seen
    expected = np.random.default_rng(0).standard_normal(noise.shape, np.float32)
    np.testing.assert_allclose(noise, expected, atol=2e-4)


@pytest.mark.parametrize("index", range(20))
def test_a_case_hides_one_object_and_asks_for_another(index):
    case = inpainting.make_case("validation", index, 64)
    scene, _ = make("validation", index)
    whole = render(scene, 64)
    np.testing.assert_array_equal(case.image, whole)
    assert case.asked.color in case.caption and case.asked.shape in case.caption
    (thing,) = (t for t in scene.things if (t.x, t.y) == (case.asked.x, case.asked.y))
    assert (thing.shape, thing.color) != (case.asked.shape, case.asked.color)

    def painted(thing):
        things = tuple(thing if t.x == case.asked.x else t for t in scene.things)
        return np.where(case.known, whole, render(replace(scene, things=things), 64))

    # The hole is large enough for what is asked for, and does not show what it hides.
    as_asked, as_before = read_scenes(np.stack([painted(case.asked), whole]))
    assert inpainting.is_right(as_asked, case.asked)
    assert not inpainting.is_right(as_before, case.asked)


def test_inpainting_is_judged(models, tmp_path, capsys):
    out = tmp_path / "grid.png"
    inpainting.main(inpainting.Arguments(models, n=3, steps="2", out=out))
    assert "painted as asked 0 of 3 (0.0%)" in capsys.readouterr().out
    assert Image.open(out).size[0] > 6 * 192
    with pytest.raises(UserError, match="--split test"):
        inpainting.main(inpainting.Arguments(models, split="test"))


def test_diversity_is_a_difference_in_levels():
    same = np.full((3, 2, 4, 4, 3), 7, np.uint8)
    assert guidance.diversity(same) == 0
    differing = same.copy()
    differing[:, 1] += 10
    np.testing.assert_allclose(guidance.diversity(differing), 10 / np.sqrt(2))


def test_guidance_is_swept(models, tmp_path, capsys):
    out = tmp_path / "sweep.png"
    arguments = guidance.Arguments(
        models, n=2, scales=(1.0, 2.0), clip_scales=(1.0,), steps="2", out=out
    )
    guidance.main(arguments)
    said = capsys.readouterr().out
    assert said.count("0.0%") == 3 and "CLIP guidance" in said
    assert Image.open(out).size[0] > 500
    with pytest.raises(UserError, match="--caption-index 4"):
        guidance.main(guidance.Arguments(models, caption_index=4))
    with pytest.raises(UserError, match="--clip-sampler euler"):
        guidance.main(guidance.Arguments(models, clip_sampler="euler"))


def test_wrong_captions_have_the_same_words_in_another_order():
    scene = next(
        s for s in (make("validation", i)[0] for i in range(20)) if attribute_binding.all_differs(s)
    )
    a, b = parse_caption(attribute_binding.caption(scene)).objects
    relation = parse_caption(attribute_binding.caption(scene)).relation
    asked = {
        name: parse_caption(say(scene))
        for name, say in attribute_binding.WRONG.items()
        if say(scene)
    }
    assert asked["objects exchanged"] == Asked((b, a), relation)
    assert asked["colors exchanged"].objects == (
        replace(a, color=b.color),
        replace(b, color=a.color),
    )
    assert asked["shapes exchanged"].objects == (
        replace(a, shape=b.shape),
        replace(b, shape=a.shape),
    )
    assert asked["another relation"] == Asked((a, b), attribute_binding.TURNED[relation])


def test_word_order_compares_losses_at_the_same_noise(models, capsys, monkeypatch):
    attribute_binding.main(attribute_binding.Arguments(models / "base", n=5))
    lines = capsys.readouterr().out.splitlines()
    assert [line[:18].strip() for line in lines[1:-1]] == list(attribute_binding.WRONG)
    assert "5 scenes" in lines[-1] and "%" in lines[1]
    with pytest.raises(UserError, match="is for clip"):
        attribute_binding.main(attribute_binding.Arguments(models / "clip"))
    monkeypatch.setattr(
        attribute_binding, "WRONG", {"same": attribute_binding.caption, "none": lambda scene: ""}
    )
    _, losses, _ = attribute_binding.measure(attribute_binding.Arguments(models / "base", n=5))
    np.testing.assert_array_equal(losses["same"], losses["right"])
    assert (losses["none"] != losses["right"]).all()


@pytest.mark.slow
def test_the_shipped_base_reads_captions():
    _, losses, _ = attribute_binding.measure(attribute_binding.Arguments(Path("demo/base"), n=64))
    for name in ("objects exchanged", "colors exchanged", "shapes exchanged"):
        # By 0.1% at most as long as it only knew which words there are.
        assert losses[name].mean() > 1.1 * losses["right"].mean(), name
