"""unCLIP's published weights to run folders and back: Karlo's files and diffusers' pipelines."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.unclip_golden import unclip_golden
from helpers.unclip_models import clip_config, decoder_config, prior_config, sr_config

from glide_jax.config import Config, DiffusionConfig
from glide_jax.convert.__main__ import main
from glide_jax.convert.models import LOGIT_SCALE
from glide_jax.convert.to_pipeline import _require_unclip
from glide_jax.data.tokenizers.clip_bpe import MIN_VOCAB_SIZE, ClipTokenizer
from glide_jax.errors import UserError
from glide_jax.pretrained.weight_files import read_tensors, write_tensors
from glide_jax.runs.folder import Run

TOKENS = "token_embedding.weight"
FILES = {"prior": "prior.ckpt", "decoder": "decoder.ckpt", "upsample": "sr.ckpt", "clip": "clip.pt"}


@pytest.fixture(scope="module")
def originals():
    """Weights of the golden models by file, under the published names."""
    weights = {name: dict(unclip_golden(name)[1]) for name in ("prior", "decoder", "sr", "clip")}
    _, _, arrays = unclip_golden("prior")
    clip = weights["clip"]
    # A tokenizer has every byte twice: more tokens than the golden model.
    vocab_size, width = clip[TOKENS].shape
    rows = np.resize(clip[TOKENS], (max(vocab_size, MIN_VOCAB_SIZE), width))
    return {
        "prior.ckpt": weights["prior"],
        "prior_stats.th": {"0": arrays["clip_mean"], "1": arrays["clip_std"]},
        "decoder.ckpt": weights["decoder"],
        "sr.ckpt": weights["sr"],
        "clip.pt": clip | {TOKENS: rows},
    }


@pytest.fixture(scope="module")
def folder(originals, tmp_path_factory):
    """The files; runs/ from the files, pipeline/ from the runs, and again/ from the pipeline."""
    folder = tmp_path_factory.mktemp("unclip")
    for name, tensors in originals.items():
        write_tensors(folder / name, tensors)
    ClipTokenizer.train([], MIN_VOCAB_SIZE).save(folder / "tokenizer")
    sr, prior, clip = sr_config(), prior_config(), clip_config()
    common = (
        "--to", folder / "runs", "--clip-tokenizer", folder / "tokenizer", "--dtype", "float32",
        "--upsample-px", sr.unet.resolution_px, "--text-length", clip.text.length,
    )  # fmt: skip
    for files, head_width, base_px in (
        (("prior_stats.th", "prior.ckpt"), prior.width // prior.heads, 1),
        (("decoder.ckpt",), decoder_config().unet.head_width, decoder_config().resolution_px),
        (("sr.ckpt",), 32, sr.low_res_px),
        (("clip.pt",), clip.text.width // clip.text.heads, 1),
    ):
        flags = (*common, "--head-width", head_width, "--base-px", base_px)
        main([*map(str, (*(folder / name for name in files), *flags))])
    pipeline = folder / "pipeline"
    main([str(folder / "runs"), "--to", str(pipeline)])
    shard(pipeline / "decoder", "diffusion_pytorch_model.safetensors")
    in_half_precision(pipeline / "text_encoder")
    flags = ("--base-px", sr.low_res_px, "--dtype", "float32")
    main([*map(str, (pipeline, "--to", folder / "again", *flags))])
    return folder


def test_karlos_files_become_run_folders(folder):
    configs = {name: Run.open(folder / "runs" / name).config for name in FILES}
    models = {name: config.model for name, config in configs.items()}
    assert models["upsample"] == sr_config()
    assert models["decoder"].unet == decoder_config().unet
    assert models["prior"].heads == prior_config().heads
    assert models["clip"].image == clip_config().image
    sampling = {
        name: (c.sample.sampler, c.sample.steps, c.sample.guidance_scale)
        for name, c in configs.items()
        if name != "clip"
    }
    assert sampling == {
        "prior": ("ddpm", "25", 4.0),
        "decoder": ("ddpm", "50", 8.0),
        "upsample": ("ddpm", "7", 1.0),
    }
    assert {config.diffusion.schedule for config in configs.values()} == {"squaredcos_cap_v2"}
    for name in FILES:
        assert (folder / "runs" / name / "tokenizer").exists() == (name != "upsample")


def test_a_pipeline_of_diffusers_becomes_the_same_run_folders_and_files(
    folder, originals, tmp_path
):
    for name, file in FILES.items():
        before, again = (Run.open(folder / runs / name) for runs in ("runs", "again"))
        assert again.config.model == before.config.model
        assert again.config.sample == before.config.sample
        main([str(folder / "again" / name), "--to", str(tmp_path / file)])
    for file, tensors in originals.items():
        back = read_tensors(tmp_path / file)
        assert back.keys() == tensors.keys()
        for key, value in tensors.items():
            if key == "logit_scale":  # a pipeline does not have it
                assert back[key] == pytest.approx(LOGIT_SCALE)
                continue
            np.testing.assert_array_equal(back[key], value, err_msg=key)


def test_the_models_of_a_set_know_its_clip(folder):
    clip = Run.open(folder / "again" / "clip").clip_fingerprint
    for name in ("prior", "decoder"):
        assert Run.open(folder / "again" / name).config.train.clip_fingerprint == clip
        assert not Run.open(folder / "runs" / name).config.train.clip_fingerprint  # one by one


def shard(component, file):
    """Split a component's weights into two files and an index."""
    tensors = read_tensors(component / file)
    (component / file).unlink()
    weight_map = {}
    for i, names in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        name = f"{file.split('.')[0]}-0000{i + 1}-of-00002.bin"
        write_tensors(component / name, {key: tensors[key] for key in names})
        weight_map |= dict.fromkeys(names, name)
    index = component / f"{file.split('.')[0]}.bin.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))


def in_half_precision(component):
    """Save a component as a variant, with the positions that transformers saved in 2022."""
    tensors = {
        k: x.astype(np.float16) for k, x in read_tensors(component / "model.safetensors").items()
    }
    (component / "model.safetensors").unlink()
    positions = {"text_model.embeddings.position_ids": np.arange(16)[None]}
    write_tensors(component / "model.fp16.safetensors", tensors | positions)


def refused(*arguments):
    with pytest.raises(UserError) as error:
        main([*map(str, arguments)])
    line = str(error.value)
    assert "\n" not in line
    return line


def test_incomplete_or_other_files_are_refused(folder, originals, tmp_path):
    to = ("--to", tmp_path / "runs", "--clip-tokenizer", folder / "tokenizer")
    prior, decoder = folder / "prior.ckpt", folder / "decoder.ckpt"
    assert refused(prior, *to) == (
        f"{prior} is a part of a prior: Karlo's CLIP statistics is missing (Karlo's files are "
        "prior-ckpt-step=01000000-of-01000000.ckpt and ViT-L-14_stats.th)"
    )
    assert refused(prior, prior, *to) == (
        f"{prior} and {prior} are both Karlo's prior models: give one of them"
    )
    assert "heads of 64 channels do not divide a width of 48" in refused(
        *resized_prior(originals, tmp_path), *to
    )
    wrong = tmp_path / "decoder.ckpt"
    weights = originals["decoder.ckpt"]
    for change, why in (
        ({"model.extra": np.zeros(3, np.float32)}, "unexpected tensor model.extra"),
        ({"model.clip_emb.bias": np.zeros(3, np.float32)}, "model.clip_emb.bias has shape (3,)"),
        ({"model.clip_emb.bias": None}, "the weights lack model.clip_emb.bias"),
    ):
        changed = {k: x for k, x in (weights | change).items() if x is not None}
        write_tensors(wrong, changed)
        unet = decoder_config().unet
        flags = (*to, "--head-width", unet.head_width, "--base-px", unet.resolution_px)
        assert refused(wrong, *flags).startswith(f"{wrong}: {why}")
    assert not (tmp_path / "runs").exists()
    assert refused(decoder, "--to", tmp_path / "x.ckpt").startswith("--to ")


def resized_prior(originals, tmp_path):
    """Files of a prior whose width 64 channels do not divide."""
    weights = originals["prior.ckpt"] | {"model.prd_emb": np.zeros((1, 1, 48), np.float32)}
    write_tensors(tmp_path / "prior.ckpt", weights)
    write_tensors(tmp_path / "stats.th", originals["prior_stats.th"])
    return tmp_path / "prior.ckpt", tmp_path / "stats.th"


def test_incomplete_or_other_pipelines_are_refused(folder, tmp_path):
    to = ("--to", tmp_path / "runs")
    text = tmp_path / "text_encoder"
    shutil.copytree(folder / "pipeline" / "text_encoder", text)
    assert "text_encoder is a part of a clip: image_encoder/ is missing (kakaobrain/" in refused(
        text, *to
    )
    decoder = tmp_path / "decoder"
    shutil.copytree(folder / "pipeline" / "decoder", decoder)
    missing = "diffusion_pytorch_model-00002-of-00002.bin"
    (decoder / missing).unlink()
    assert refused(decoder, *to).endswith(f"lists {missing}, which is missing: download it too")
    prior = tmp_path / "prior"
    shutil.copytree(folder / "pipeline" / "prior", prior)
    settings = json.loads((prior / "config.json").read_text())
    for changed, why in (
        (settings | {"num_layers": 1}, "unexpected tensor prior.transformer_blocks.1."),
        (settings | {"num_layers": "3"}, "config.json: num_layers is '3', not a whole number"),
        (settings | {"additional_embeddings": 3}, "config.json: additional_embeddings is not"),
    ):
        (prior / "config.json").write_text(json.dumps(changed))
        assert refused(prior, *to).startswith(f"{prior}: {why}")
    (prior / "config.json").write_text("[1]")
    assert refused(prior, *to) == f"{prior / 'config.json'} is not a JSON object"
    prior.rename(tmp_path / "other")
    assert "is a component of an unknown kind" in refused(tmp_path / "other", *to)
    empty = tmp_path / "empty"
    empty.mkdir()
    (empty / "model_index.json").write_text("{}")
    assert "has no components of unCLIP" in refused(empty, *to)
    assert not (tmp_path / "runs").exists()
    assert "already exists" in refused(folder / "runs", "--to", tmp_path)


def test_diffusers_has_karlos_noise_alone():
    """Its schedulers have one schedule and predict eps."""
    for changed in ({"schedule": "linear"}, {"prediction": "v"}):
        config = Config(model=decoder_config(), diffusion=DiffusionConfig(**changed))
        with pytest.raises(UserError, match=f"needs diffusion.{next(iter(changed))} "):
            _require_unclip(config, Path("x"))
