"""Training of unCLIP's decoders: image embeddings and text states of a frozen CLIP."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import model_set, tiny

from glide_jax.config import Config, TextConfig
from glide_jax.data.transforms import to_float
from glide_jax.errors import UserError
from glide_jax.models.clip import clip_network
from glide_jax.models.platform import ANY_PLATFORM
from glide_jax.runs.folder import Run
from glide_jax.training.build import clip_run_of, with_clip
from glide_jax.training.denoising import Denoising
from glide_jax.training.frozen_clip import FrozenClip

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
        return objective._text(model, frozen, batch, image, draws, ANY_PLATFORM)

    every, none = jnp.ones(B, bool), jnp.zeros(B, bool)
    found = text(clip.params, batch, every)
    embedding = jax.jit(clip.embed_image)(clip.params, to_float(batch["image"]))
    np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=-1), 1, rtol=1e-5)
    for other in (
        batch | {"image_embedding": embedding},
        batch | {"clip_image": batch["image"], "image": jnp.zeros_like(batch["image"])},
    ):
        for ours, theirs in zip(
            *map(jax.tree.leaves, (found, text(clip.params, other, every))), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    dropped = text(clip.params, batch, none)
    again = text(clip.params, batch | {"image": batch["image"][::-1]}, none)
    np.testing.assert_array_equal(dropped.embedding, again.embedding)
    assert np.abs(dropped.embedding - found.embedding).max() > 1e-3


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
