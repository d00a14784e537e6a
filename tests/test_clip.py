"""The noised CLIP against golden values of the original code, and its own invariants."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_models import load_golden_clip

from glide_jax.config import ClipConfig
from glide_jax.models.clip import clip_network, similarity_gradient


def close(ours, theirs, tolerance=1e-4):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.fixture(scope="module")
def golden():
    config, params, arrays = load_golden_clip()
    g = {name: jnp.asarray(array) for name, array in arrays.items()}
    g["mask"] = jnp.arange(config.text.length) < g["lengths"][:, None]
    return config, params, g


def embeddings(config, params, g):
    clip = clip_network(config).bind(params)
    return clip.encode_text(g["tokens"], g["mask"]), clip.encode_image(g["x"], g["t"])


def test_embeddings_and_gradient_agree_with_the_original(golden):
    config, params, g = golden

    @jax.jit
    def compute(params):
        clip = clip_network(config).bind(params)
        text = clip.encode_text(g["tokens"], g["mask"])
        gradient = similarity_gradient(clip, text, g["grad_scale"])(g["x"], g["t"])
        return text, clip.encode_image(g["x"], g["t"]), gradient

    text, image, gradient = compute(params)
    close(text, g["text_embeddings"])
    close(image, g["image_embeddings"])
    close(gradient, g["grad"])


def test_bfloat16_stays_near_float32(golden):
    config, params, g = golden
    config = dataclasses.replace(config, dtype="bfloat16")
    text, image = jax.jit(lambda p: embeddings(config, p, g))(params)
    assert text.dtype == image.dtype == jnp.float32
    close(text, g["text_embeddings"], 0.03)
    close(image, g["image_embeddings"], 0.03)


def test_embeddings_depend_on_the_tokens_before_the_end_alone(golden):
    config, params, g = golden
    encode = jax.jit(clip_network(config).bind(params).encode_text)
    text = encode(g["tokens"], g["mask"])
    after = jnp.where(g["mask"], g["tokens"], (g["tokens"] + 7) % 101)
    np.testing.assert_array_equal(encode(after, g["mask"]), text)
    first = g["tokens"].at[:, 0].set((g["tokens"][:, 0] + 1) % 101)
    assert (jnp.abs(encode(first, g["mask"]) - text).max(-1) > 1e-3).all()


def test_released_towers_have_the_published_number_of_parameters():
    shapes = clip_network(ClipConfig()).shapes
    counts = {"text": 0, "image": 0, "logit_scale": 0}
    for name, shape in shapes.items():
        counts[name.split(".")[0]] += math.prod(shape.shape)
    assert counts == {"text": 71_679_488, "image": 86_443_776, "logit_scale": 1}


def test_initial_values_are_those_of_clip(golden):
    config, _, g = golden
    network = clip_network(config)
    params = jax.device_put(network.init(seed=0))
    assert {name: (p.shape, p.dtype) for name, p in params.items()} == {
        name: (s.shape, jnp.dtype("float32")) for name, s in network.shapes.items()
    }
    np.testing.assert_allclose(np.exp(-params["logit_scale"]), 0.07, rtol=1e-6)
    for embedding in jax.jit(lambda p: embeddings(config, p, g))(params):
        np.testing.assert_allclose(jnp.linalg.norm(embedding, axis=-1), 1, atol=1e-5)
        assert len(np.unique(np.asarray(embedding).round(4), axis=0)) == 3  # all different
