"""Training of unCLIP's decoders and upsamplers: what they are given beside the image."""

import dataclasses
import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import model_set, tiny
from helpers.unread_source import UnreadSource
from PIL import Image

from glide_jax.config import Config, Folder, LowResConfig, TextConfig
from glide_jax.data.examples import ExampleReader
from glide_jax.data.loader import collated
from glide_jax.data.records import Record
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.transforms import to_float
from glide_jax.errors import UserError
from glide_jax.models.clip import clip_network
from glide_jax.models.platform import ANY_PLATFORM
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.runs.folder import Run
from glide_jax.train import train
from glide_jax.training.build import clip_run_of, require_startable, tokenizer_of, with_clip
from glide_jax.training.denoising import Denoising
from glide_jax.training.frozen_clip import FrozenClip
from glide_jax.training.profiling import Profile

CLIP = model_set.clip_config().clip
B = 3


def decoder_config(encoder="transformer", **changes) -> Config:
    base = tiny.get_config()
    text = base.model.text
    if encoder == "clip":
        sizes = CLIP.text
        text = TextConfig("clip", sizes.vocab_size, sizes.length, 32, clip_width=sizes.width)
    model = dataclasses.replace(
        base.model, text=text, image_embedding_width=CLIP.embedding_width, image_tokens=2
    )
    return dataclasses.replace(base, model=dataclasses.replace(model, **changes))


def text_free_upsampler() -> Config:
    base = model_set.upsampler_config(inpaint=False)
    model = dataclasses.replace(
        base.model,
        text=TextConfig("none", length=1),
        unet=dataclasses.replace(base.model.unet, middle_attention=False, embedding="add"),
        low_res_resize="bicubic",
        learned_variance=False,
    )
    low_res = LowResConfig(crop_px=8, degradation="bsr")
    data = dataclasses.replace(base.data, low_res=low_res)
    return dataclasses.replace(base, model=model, data=data)


def random_params(network, seed=0):
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(0.1 * rng.standard_normal(shape.shape), jnp.float32)
        for name, shape in network.shapes.items()
    }


@pytest.fixture(scope="module")
def clip():
    return FrozenClip(CLIP, random_params(clip_network(CLIP)))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    length, px = CLIP.text.length, CLIP.resolution_px
    return {
        "image": jnp.asarray(rng.integers(0, 256, (B, px, px, 3), np.uint8)),
        "tokens": jnp.asarray(rng.integers(0, 300, (B, length)), jnp.int32),
        "token_mask": jnp.arange(length)[None] < jnp.array([[2], [5], [length]]),
    }


def test_embeddings_are_of_the_batch_or_of_the_frozen_clip(clip, batch):
    objective = Denoising(decoder_config("clip"), clip)
    assert objective.frozen is clip.params
    params = random_params(objective.network, 1)

    @jax.jit
    def text(frozen, batch, given):
        model = objective.network.bind(params)
        draws = objective._draw(jax.random.key(0), batch, None)._replace(embedding_given=given)
        image = to_float(batch["image"])
        return objective._text(model, frozen, batch, image, draws, ANY_PLATFORM).embedding

    every, none = jnp.ones(B, bool), jnp.zeros(B, bool)
    found = text(clip.params, batch, every)
    embedding = jax.jit(clip.embed_image)(clip.params, to_float(batch["image"]))
    np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=-1), 1, rtol=1e-5)
    for other in (
        batch | {"image_embedding": embedding},
        batch | {"clip_image": batch["image"], "image": jnp.zeros_like(batch["image"])},
    ):
        np.testing.assert_allclose(text(clip.params, other, every), found, rtol=1e-5, atol=1e-6)
    dropped = text(clip.params, batch, none)
    again = text(clip.params, batch | {"image": batch["image"][::-1]}, none)
    np.testing.assert_array_equal(dropped, again)
    assert np.abs(dropped - found).max() > 1e-3


def test_embeddings_are_dropped_at_random_and_never_in_validation(clip):
    config = decoder_config()
    data = dataclasses.replace(config.data, embedding_dropout=0.3)
    objective = Denoising(dataclasses.replace(config, data=data), clip)
    many = {"image": np.zeros((4000, 1, 1, 3), np.uint8)}
    given = objective._draw(jax.random.key(0), many, None).embedding_given
    assert abs(float(given.mean()) - 0.7) < 0.03


def test_a_clip_that_does_not_fit_is_refused():
    run = Run.open("demo/clip")
    sizes = run.config.clip.text
    text = TextConfig("clip", sizes.vocab_size, sizes.length, 32, clip_width=sizes.width)
    config = decoder_config(text=text, image_embedding_width=run.config.clip.embedding_width)
    config = dataclasses.replace(
        config, train=dataclasses.replace(config.train, clip_run="demo/clip")
    )
    assert clip_run_of(config) == run
    recorded = with_clip(config, run).train
    assert recorded.clip_fingerprint == run.fingerprint
    assert recorded.clip_px == run.config.clip.resolution_px  # 32: the model's images have 8

    def changed(**changes):
        return dataclasses.replace(config, model=dataclasses.replace(config.model, **changes))

    unet = dataclasses.replace(config.model.unet, resolution_px=32)
    assert with_clip(changed(unet=unet), run).train.clip_px == 0  # the model's own
    narrow = dataclasses.replace(text, clip_width=64)
    for other, line in (
        (changed(image_embedding_width=32), r"model.image_embedding_width is 32, but .* has 128: "),
        (changed(text=narrow), "model.text.clip_width is 64, but .* --model.text.clip-width 128"),
        (dataclasses.replace(config, train=tiny.get_config().train), "train.clip_run is needed"),
    ):
        with pytest.raises(UserError, match=line):
            clip_run_of(other)


def an_example(config, rng_seed=0):
    """The training example of a gradient of 64 px, whose levels tell its place and resolution."""
    y, x = np.mgrid[:64, :64] * 4
    file = io.BytesIO()
    Image.fromarray(np.stack([x, y, x], -1).astype(np.uint8)).save(file, "PNG")
    reader = ExampleReader(config, [])
    rng = np.random.default_rng(rng_seed)
    return reader._prepare(rng, Record(file.getvalue(), ("a gradient",), "gradient"))


def test_the_clip_sees_the_same_square_at_its_own_resolution():
    config = decoder_config()
    data = dataclasses.replace(config.data, horizontal_flip=True, crop="random")
    train = dataclasses.replace(config.train, clip_px=32)
    config = dataclasses.replace(config, data=data, train=train)
    mirrored = set()
    for seed in range(8):
        example = an_example(config, seed)
        assert example.pixels.shape == (8, 8, 3) and example.clip_pixels.shape == (32, 32, 3)
        small = example.clip_pixels.reshape(8, 4, 8, 4, 3).mean((1, 3))
        assert np.abs(small - example.pixels)[1:-1, 1:-1].max() < 2
        mirrored.add(bool(small[0, 0, 0] > small[0, -1, 0]))
    assert mirrored == {True, False}
    batch = collated([example] * 2, Tokenizer.train((), 257), config, None)
    assert batch["clip_image"].shape == (2, 32, 32, 3) and batch["image"].shape == (2, 8, 8, 3)


def test_an_upsampler_without_captions_gets_degraded_images_and_no_tokens():
    config = text_free_upsampler()
    example = an_example(config)
    assert example.pixels.shape == (8, 8, 3) and example.low_res.shape == (4, 4, 3)
    tokenizer = tokenizer_of(config, UnreadSource(8))
    batch = jax.tree.map(jnp.asarray, collated([example] * 2, tokenizer, config, None))
    assert not batch["token_mask"].any() and tokenizer.truncated == 0
    objective = Denoising(config)
    draws = objective._draw(jax.random.key(0), batch, None)
    low_res = objective._low_res(batch, to_float(batch["image"]), draws.low_res)
    np.testing.assert_array_equal(low_res, to_float(batch["low_res"]))
    with pytest.raises(UserError, match=r"not trained here: give --model\.no-last-step-network"):
        two = dataclasses.replace(config.model, last_step_network=True)
        require_startable(dataclasses.replace(config, model=two), UnreadSource(8), 8)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["decoder", "upsampler"])
def test_a_stage_trains_validates_and_samples(stage, color_folder, models, tmp_path):
    config = decoder_config("clip") if stage == "decoder" else text_free_upsampler()
    data = dataclasses.replace(
        config.data, source=Folder(str(color_folder)), train_split="all", validation_split="all"
    )
    train_settings = dataclasses.replace(
        config.train,
        steps=2,
        log_every_steps=1,
        sample_every_steps=2,
        validate_every_steps=2,
        clip_run=str(models / "clip"),
    )
    sample = dataclasses.replace(config.sample, steps="2")
    config = dataclasses.replace(config, data=data, train=train_settings, sample=sample)
    train(config, tmp_path / "run", ProcessGroup(), Profile())
    lines = [json.loads(x) for x in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    (validated,) = (line for line in lines if "validation_loss" in line)
    captions = {"validation_loss_shuffled_captions", "validation_loss_no_captions"}
    assert captions <= validated.keys() if stage == "decoder" else not captions & validated.keys()
    assert (tmp_path / "run" / "samples" / "0000002.png").exists()
    recorded = Run.open(tmp_path / "run").config.train.clip_fingerprint
    theirs = Run.open(models / "clip").fingerprint
    assert recorded == (theirs if stage == "decoder" else "")
    if stage == "decoder":
        other = dataclasses.replace(train_settings, clip_fingerprint="0" * 16)
        with pytest.raises(
            UserError, match=r"is not the CLIP with which the run in .* was started"
        ):
            Run.create(tmp_path / "run", dataclasses.replace(config, train=other), None)
