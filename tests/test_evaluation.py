"""Metrics, and the commands that measure models, on small random models."""

import re
from dataclasses import replace

import numpy as np
import pytest
from helpers import model_set
from PIL import Image

from glide_jax import UserError
from glide_jax.config import (
    Config,
    DataConfig,
    DiffusionConfig,
    Folder,
    Mixture,
    MixturePart,
    Scenes,
    Unknown,
)
from glide_jax.data.scenes.graph import make
from glide_jax.data.scenes.rendering import render
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.evaluation import held_out, retrieval, upsampling
from glide_jax.evaluation.metrics.image_quality import diversity, psnr
from glide_jax.evaluation.metrics.retrieval import retrieval_accuracy
from glide_jax.evaluation.scenes import __main__ as scenes
from glide_jax.evaluation.scenes import attribute_binding, guidance, inpainting
from glide_jax.evaluation.scenes.captions import Description, parse_caption
from glide_jax.evaluation.scenes.flags import require_scenes
from glide_jax.evaluation.scenes.reader import read_scenes
from glide_jax.export.publish import _portable_source


def run(module, checkpoint, *flags):
    """Runs a command as from the command line."""
    module.main(["--checkpoint", str(checkpoint), *map(str, flags)])


def test_psnr_is_in_decibels():
    original = np.full((2, 4, 4, 3), 100, np.uint8)
    off = original.copy()
    off[0] += 10
    np.testing.assert_allclose(psnr(off, original), [20 * np.log10(25.5), np.inf])


def test_retrieval_accuracy_counts_own_captions_within_groups():
    text = np.eye(5)
    assert retrieval_accuracy(text, text, 2) == 1  # the fifth fills no group
    swapped = text[[1, 0, 2, 3, 4]]
    assert retrieval_accuracy(swapped, text, 2) == 0.5
    assert retrieval_accuracy(swapped, text, 5) == 3 / 5


@pytest.fixture
def on_colors(models, color_folder, monkeypatch):
    """The models' data set is the eight colors."""
    real = held_out.open_source

    def opened(config, split):
        return real(replace(config, source=Folder(str(color_folder))), "all")

    monkeypatch.setattr(held_out, "open_source", opened)
    return models


@pytest.fixture
def as_if_of_scenes(monkeypatch):
    """The models of colors are scored as if their data set were scenes."""
    for module in (scenes, guidance, inpainting, attribute_binding):
        monkeypatch.setattr(module, "require_scenes", lambda config: None)


@pytest.mark.parametrize(
    "module", [scenes, guidance, inpainting, attribute_binding], ids=lambda module: module.__name__
)
def test_models_of_other_data_are_not_scored_on_scenes(models, module):
    with pytest.raises(UserError, match=r"data\.source of this one is folder: give a model"):
        run(module, models / "base")


def test_models_of_scenes_are_scored_and_converted_ones_are_not():
    def config(source):
        return Config(data=DataConfig(source))

    require_scenes(config(Scenes("closeups")))
    require_scenes(config(Mixture((MixturePart(1.0, Folder("x")), MixturePart(2.0, Scenes())))))
    with pytest.raises(UserError, match="is unknown"):
        require_scenes(config(Unknown()))
    with pytest.raises(UserError, match="of a converted model is not known"):
        held_out.open_source(DataConfig(Unknown()), "validation")
    assert _portable_source(Unknown()) == Unknown()
    assert Config.from_json(config(Unknown()).to_json()) == config(Unknown())


def test_upsampling_is_compared_with_bicubic(on_colors, tmp_path, capsys):
    out = tmp_path / "grid.png"
    run(upsampling, on_colors, "--n", 3, "--steps", 2, "--batch-size", 2, "--out", out)
    printed = capsys.readouterr().out
    for part in ("upsampler", "bicubic", "SSIM: ", "3 images, 8 to 16 px"):
        assert part in printed
    assert Image.open(out).size[0] > 8 * 192
    with pytest.raises(UserError, match="--n 0"):
        run(upsampling, on_colors, "--n", 0)


def test_broken_held_out_images_are_left_out(tmp_path):
    for name in ("a", "b", "c"):
        Image.new("RGB", (9, 8), "red").save(tmp_path / f"{name}.png")
        (tmp_path / f"{name}.txt").write_text(f"image {name}")
    (tmp_path / "b.png").write_bytes(b"no image")
    data = DataConfig(source=Folder(str(tmp_path)), max_bad_fraction=0.5)
    images, captions = held_out.held_out_images(Config(data=data), "all", 2, resolution_px=8)
    assert images.shape == (2, 8, 8, 3)
    assert captions == [("image a",), ("image c",)]


def test_retrieval_prints_the_accuracy_at_each_noise_level(on_colors, tmp_path, capsys):
    out = tmp_path / "curve.png"
    clip = on_colors / "clip"
    few = ("--n", 8, "--among", 4)
    run(retrieval, clip, *few, "--caption-index", 0, "--t", 0, 500, "--out", out)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["t =   0", "t = 500"]
    assert Image.open(out).size[0] > 500
    with pytest.raises(UserError, match="--caption-index 1: some records have 1 captions"):
        run(retrieval, clip, *few)
    with pytest.raises(UserError, match="there are 8 records"):
        run(retrieval, clip, "--n", 9, "--among", 9)
    with pytest.raises(UserError, match="--among 9"):
        run(retrieval, clip, "--n", 8, "--among", 9)
    with pytest.raises(UserError, match="a CLIP is needed"):
        run(retrieval, on_colors / "base", *few)


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

    monkeypatch.setattr(retrieval.ClipScorer, "encode_images", encode)
    few = ("--n", 8, "--among", 4, "--split", "all", "--caption-index", 0)
    run(retrieval, tmp_path / "clip", *few, "--t", 0, 999)
    _, noise = seen
    expected = np.random.default_rng(0).standard_normal(noise.shape, np.float32)
    np.testing.assert_allclose(noise, expected, atol=2e-4)


@pytest.mark.parametrize("index", range(20))
def test_a_case_hides_one_object_and_states_another(index):
    case = inpainting.make_case("validation", index, 64)
    scene, _ = make("validation", index)
    original = render(scene, 64)
    np.testing.assert_array_equal(case.image, original)
    assert case.expected.color in case.caption and case.expected.shape in case.caption
    (thing,) = (t for t in scene.things if (t.x, t.y) == (case.expected.x, case.expected.y))
    assert (thing.shape, thing.color) != (case.expected.shape, case.expected.color)

    def inpainted(thing):
        things = tuple(thing if t.x == case.expected.x else t for t in scene.things)
        return np.where(case.known, original, render(replace(scene, things=things), 64))

    # The hole is large enough for the stated object, and hides all of the other.
    correct, unchanged = read_scenes(np.stack([inpainted(case.expected), original]))
    assert inpainting.is_correct(correct, case.expected)
    assert not inpainting.is_correct(unchanged, case.expected)


def test_inpainting_prints_its_accuracy(models, tmp_path, capsys):
    out = tmp_path / "grid.png"
    run(inpainting, models, "--n", 3, "--steps", 2, "--out", out)
    text = capsys.readouterr().out
    printed = re.search(r"inpainting accuracy (\d) of 3 \((.+)%\)", text)
    assert printed and float(printed[2]) == round(100 * int(printed[1]) / 3, 1)
    assert "kept pixels: PSNR inf" in text
    assert Image.open(out).size[0] > 6 * 192
    with pytest.raises(UserError, match="--split test"):
        run(inpainting, models, "--split", "test")


def test_diversity_is_in_levels():
    same = np.full((3, 2, 4, 4, 3), 7, np.uint8)
    assert diversity(same) == 0
    differing = same.copy()
    differing[:, 1] += 10
    np.testing.assert_allclose(diversity(differing), 10 / np.sqrt(2))


def test_guidance_scales_are_swept(as_if_of_scenes, models, tmp_path, capsys):
    out = tmp_path / "sweep.png"
    few = ("--n", 2, "--scales", 1, 2, "--clip-scales", 1, "--steps", 2)
    run(guidance, models, *few, "--out", out)
    printed = capsys.readouterr().out
    assert printed.count("0.0%") == 3 and "CLIP guidance" in printed
    assert Image.open(out).size[0] > 500
    with pytest.raises(UserError, match="--caption-index 4"):
        run(guidance, models, "--caption-index", 4)
    with pytest.raises(UserError, match="--clip-sampler euler"):
        run(guidance, models, "--clip-sampler", "euler")
    with pytest.raises(UserError, match="--guidance-scale: give --scales instead"):
        run(guidance, models, "--guidance-scale", 2)


@pytest.mark.parametrize(
    "module", [scenes, guidance, inpainting, upsampling], ids=lambda module: module.__name__
)
def test_the_batch_size_decides_how_many_cores_are_used(module, monkeypatch):
    def stop(batch_examples):
        raise UserError(f"a batch of {batch_examples}")

    monkeypatch.setattr(module, "use_all_cores", stop)
    with pytest.raises(UserError, match=r"^a batch of 5$"):
        run(module, "nowhere", "--batch-size", 5)


def test_wrong_captions_bind_the_same_words_differently():
    scene = next(
        s
        for s in (make("validation", i)[0] for i in range(20))
        if attribute_binding.has_distinct_pair(s)
    )
    a, b = parse_caption(attribute_binding.caption(scene)).objects
    relation = parse_caption(attribute_binding.caption(scene)).relation
    wrong = {
        name: parse_caption(captioned(scene))
        for name, captioned in attribute_binding.WRONG.items()
        if captioned(scene)
    }
    assert wrong["objects exchanged"] == Description((b, a), relation)
    assert wrong["colors exchanged"].objects == (
        replace(a, color=b.color),
        replace(b, color=a.color),
    )
    assert wrong["shapes exchanged"].objects == (
        replace(a, shape=b.shape),
        replace(b, shape=a.shape),
    )
    assert wrong["another relation"] == Description((a, b), attribute_binding.TURNED[relation])


def test_attribute_binding_compares_losses_at_the_same_noise(
    as_if_of_scenes, models, capsys, monkeypatch
):
    run(attribute_binding, models / "base", "--n", 5)
    lines = capsys.readouterr().out.splitlines()
    assert [line[:18].strip() for line in lines[1:-1]] == list(attribute_binding.WRONG)
    assert "5 scenes" in lines[-1] and "%" in lines[1]
    with pytest.raises(UserError, match="is a clip model"):
        run(attribute_binding, models / "clip")
    monkeypatch.setattr(
        attribute_binding, "WRONG", {"same": attribute_binding.caption, "none": lambda scene: ""}
    )
    _, losses, _ = attribute_binding.measure(models / "base", "validation", n=5)
    np.testing.assert_array_equal(losses["same"], losses["true"])
    assert (losses["none"] != losses["true"]).all()


@pytest.mark.slow
def test_the_shipped_base_model_binds_attributes():
    _, losses, _ = attribute_binding.measure("demo/base", "validation", n=64)
    for name in ("objects exchanged", "colors exchanged", "shapes exchanged"):
        # A model that treats captions as bags of words has a rise of at most 0.1%.
        assert losses[name].mean() > 1.1 * losses["true"].mean(), name
