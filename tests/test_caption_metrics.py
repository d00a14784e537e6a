"""Metrics of images with captions by python -m glide_jax.evaluate: CLIP score, retrieval, LPIPS."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.model_set import clip_config, upsampler_config, write_random_run
from helpers.vision_configs import small_clip_config
from PIL import Image, PngImagePlugin

from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.errors import UserError
from glide_jax.evaluate import __main__ as command
from glide_jax.evaluation import clip_scorer, upsampling
from glide_jax.evaluation.feature_networks import NETWORKS
from glide_jax.evaluation.metrics.clip_score import PROMPT_PREFIX, paired_cosines
from glide_jax.evaluation.perceptual import load_lpips
from glide_jax.models.lpips import lpips
from glide_jax.models.openai_clip import openai_clip
from glide_jax.pretrained.names import to_original
from glide_jax.pretrained.vision_names import LPIPS
from glide_jax.pretrained.weight_files import write_tensors
from glide_jax.runs.folder import Run

GOLDEN = Path(__file__).parent / "golden" / "evaluation" / "clip_tiny.npz"
CAPTIONS = ["a red cat", "a red cat", "two dogs", "two dogs", "a boat"]
"""Of the images, in order."""
RULES = "clip_score,clip_score_torchmetrics,clip_score_hessel"


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs the command: values by name, and the settings."""
    monkeypatch.setattr(command, "use_all_cores", lambda *_: None)

    def run(*flags):
        out = tmp_path / "results.json"
        command.main([*map(str, flags), "--out", str(out), "--batch-size", "4"])
        values = json.loads(out.read_bytes())
        return {result["name"]: result for result in values["results"]}, values["settings"]

    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of images with captions, a tokenizer, and weights of a small CLIP and of LPIPS."""
    root = tmp_path_factory.mktemp("captions")
    random = np.random.default_rng(0)
    (root / "images").mkdir()
    for i, caption in enumerate(CAPTIONS):
        info = PngImagePlugin.PngInfo()
        info.add_itxt("prompt", caption)
        image = Image.fromarray(random.integers(0, 256, (32, 40, 3), np.uint8))
        image.save(root / "images" / f"{i}.png", pnginfo=info)
    tokenizer = ClipTokenizer.train(CAPTIONS, 600)
    tokenizer.save(root / "tokenizer")
    weights = {
        name.removeprefix("w/"): x.astype(np.float32)
        for name, x in np.load(GOLDEN).items()
        if name.startswith("w/")
    }
    table = "token_embedding.weight"
    weights[table] = weights[table][: tokenizer.vocab_size]
    write_tensors(root / "clip.npz", weights)
    trunk = {k: v for k, v in lpips("alex").init(0).items() if k.startswith("features.")}
    write_tensors(root / "alex.npz", to_original(trunk, LPIPS))
    return root


@pytest.fixture
def small_clip(monkeypatch, place):
    """The small CLIP in the place of ViT-B/16, and the flags that name it."""
    name = "clip-vit-b-16"
    with np.load(place / "clip.npz") as file:
        vocab_size = len(file["token_embedding.weight"])
    config = small_clip_config(json.loads(str(np.load(GOLDEN)["meta"])), vocab_size)
    small = replace(NETWORKS[name], network=lambda: openai_clip(config))
    monkeypatch.setitem(NETWORKS, name, small)
    monkeypatch.setitem(clip_scorer.RELEASED, name, config)
    return "--clip", place / "clip.npz", "--clip-tokenizer", place / "tokenizer"


def test_scores_retrieval_and_diversity(run, place, small_clip):
    metrics = f"{RULES},clip_retrieval,lpips_diversity"
    flags = ("--images", place / "images", "--metrics", metrics, "--lpips", place / "alex.npz")
    results, settings = run(*flags, *small_clip)
    ours = " (CLIP ViT-B/16)"
    assert list(results) == [
        f"CLIP score{ours}",
        f"CLIP score of torchmetrics{ours}",
        f"CLIP score of Hessel et al.{ours}",
        f"CLIP retrieval among 3{ours}",  # of distinct captions
        "LPIPS diversity (AlexNet)",
    ]
    assert all(result["standard_error"] is not None for result in results.values())
    scorer = clip_scorer.load_pair_scorer(small_clip[1], "clip-vit-b-16", str(small_clip[3]), 8)
    images = [np.asarray(Image.open(path)) for path in sorted((place / "images").iterdir())]
    of_images = scorer.embed_images(images)
    scores = {"CLIP score": 100 * paired_cosines(of_images, scorer.embed_captions(CAPTIONS))}
    prefixed = scorer.embed_captions([PROMPT_PREFIX + caption for caption in CAPTIONS])
    hessel = 2.5 * np.maximum(paired_cosines(of_images, prefixed), 0)
    scores["CLIP score of Hessel et al."] = hessel
    scores["CLIP score of torchmetrics"] = np.maximum(scores["CLIP score"].mean(), 0)
    for name, expected in scores.items():
        found = results[name + ours]["value"]
        assert found == pytest.approx(expected.mean(), rel=1e-4, abs=1e-6)
    assert settings["n"] == str(len(CAPTIONS))
    assert settings["clip.network"] == "clip-vit-b-16"
    assert settings["lpips.network"] == "lpips-alex"
    assert len(settings["clip.weights"]) == len(settings["lpips.weights"]) == 64


def test_a_clip_of_this_project(run, place, tmp_path):
    folder = tmp_path / "our_clip"
    write_random_run(folder, clip_config(), ClipTokenizer.train(CAPTIONS, 600))
    flags = ("--images", place / "images", "--metrics", "clip_score", "--clip", folder)
    results, settings = run(*flags)
    assert list(results) == ["CLIP score (our_clip)"]
    assert settings["clip.network"] == "our_clip"
    assert settings["clip.weights"] == Run.open(folder).fingerprint


def test_a_caption_is_needed(run, place, small_clip, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "0.png")
    flags = ("--images", tmp_path, "--metrics", "clip_score", *small_clip)
    with pytest.raises(UserError, match=r"0\.png has no caption: it needs the prompt in its PNG"):
        run(*flags)
    (tmp_path / "0.txt").write_text("a boat", encoding="utf-8")
    with pytest.raises(UserError, match="clip_retrieval needs images of at least two different"):
        run(*flags[:3], "clip_retrieval", *small_clip)
    with pytest.raises(UserError, match="LPIPS diversity needs several images of a caption"):
        run(*flags[:3], "lpips_diversity", "--lpips", place / "alex.npz")


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (("clip_score_hessel",), "clip_score_hessel needs --clip: a file of OpenAI's CLIP"),
        (("lpips_diversity",), "lpips_diversity needs --lpips: torchvision's file of AlexNet"),
        (("clip_scor",), "unknown metric 'clip_scor': did you mean clip_score?"),
    ],
)
def test_flags_that_are_missing_are_named(run, place, flags, why):
    with pytest.raises(UserError) as error:
        run("--images", place / "images", "--metrics", *flags)
    assert why in str(error.value)


def test_another_vocabulary_is_refused(place, small_clip, tmp_path):
    ClipTokenizer.train(["x"], 514).save(tmp_path)
    with pytest.raises(UserError, match=r"514 tokens, but clip-vit-b-16 has \d+: give OpenAI's"):
        clip_scorer.load_pair_scorer(small_clip[1], "clip-vit-b-16", str(tmp_path))


def test_a_clip_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"--clip none\.pt is neither a file .* none\.pt is not a"):
        clip_scorer.load_pair_scorer("none.pt", "clip-vit-b-16", "")


def test_upsampled_images_are_compared_by_lpips(place, tmp_path):
    distance = load_lpips("alex", place / "alex.npz", batch_size=3)
    original = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
    decibels, _, perceptual = upsampling.comparison(original, original ^ 15, original, distance)
    assert decibels.startswith("upsampler inf dB, bicubic")
    assert perceptual.startswith("LPIPS (AlexNet): upsampler 0.0000, bicubic 0.")
    write_random_run(tmp_path, upsampler_config(inpaint=False), Tokenizer.train(CAPTIONS, 300))
    flags = ("--checkpoint", str(tmp_path), "--lpips", str(place / "alex.npz"))
    with pytest.raises(UserError, match="alex needs images of at least 31 px a side, not 16x16"):
        upsampling.main(flags)
