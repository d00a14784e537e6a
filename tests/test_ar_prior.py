"""The autoregressive prior: codes of embeddings, sampling from a cache, and the objective."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import model_set
from helpers.tiny_prior import changed, prior_config

from glide_jax.models.ar_prior import LIMIT, ar_prior
from glide_jax.models.clip import clip_network
from glide_jax.sampling.prior_stage import PriorStage
from glide_jax.shapes import TextStates
from glide_jax.training.ar_prior import AutoregressivePrior, statistics_of
from glide_jax.training.build import make_objective
from glide_jax.training.frozen_clip import FrozenClip

B, D, COMPONENTS, BUCKETS, DOTS = 4, 16, 12, 50, 8


@pytest.fixture(scope="module")
def config():
    sizes = {"components": COMPONENTS, "buckets": BUCKETS, "dot_buckets": DOTS}
    return changed(prior_config(), "model", architecture="autoregressive", **sizes)


@pytest.fixture(scope="module")
def embeddings():
    """Image embeddings with variances that fall by half, and text embeddings."""
    rng = np.random.default_rng(0)
    rotation, _ = np.linalg.qr(rng.standard_normal((D, D)))
    image = rng.standard_normal((4000, D)) * 2.0 ** -np.arange(D) @ rotation.T + 3
    return image.astype(np.float32), rng.standard_normal((4000, D)).astype(np.float32)


@pytest.fixture(scope="module")
def params(config, embeddings):
    network = ar_prior(config.prior)
    rng = np.random.default_rng(1)
    moved = {
        name: value + 0.3 * rng.standard_normal(value.shape, np.float32)
        for name, value in network.init(seed=0).items()
    }
    return jax.device_put(moved | statistics_of(*embeddings, config.prior))


@pytest.fixture(scope="module")
def text():
    rng = np.random.default_rng(2)
    states = rng.standard_normal((B, 8, 32)).astype(np.float32)
    mask = np.arange(8) < np.array([8, 5, 3, 2])[:, None]
    return TextStates(rng.standard_normal((B, D)).astype(np.float32), states, mask)


def test_codes_keep_the_principal_components(config, params, embeddings):
    prior, image = ar_prior(config.prior).bind(params), embeddings[0][:500]
    codes = np.asarray(prior.encode(jnp.asarray(image)))
    assert codes.shape == (500, COMPONENTS) and codes.min() >= 0 and codes.max() < BUCKETS
    basis = np.asarray(params["basis"]).reshape(D, COMPONENTS)
    difference = (np.asarray(prior.decode(jnp.asarray(codes))) - image) @ basis / params["std"]
    inside = np.abs((image - params["mean"]) @ basis / params["std"]) < LIMIT
    assert inside.mean() > 0.999
    assert np.abs(difference[inside]).max() <= LIMIT / BUCKETS + 1e-3  # half a bucket
    ratios = np.asarray(params["std"][:-1] / params["std"][1:])
    np.testing.assert_allclose(ratios, 2, rtol=0.1)  # the most important first


def test_dot_products_are_coded_by_their_quantiles(config, params, embeddings):
    prior, (image, text) = ar_prior(config.prior).bind(params), embeddings
    states = np.zeros((len(text), 8, 32), np.float32)
    mask = np.arange(8) < np.full((len(text), 1), 5)
    captions = TextStates(jnp.asarray(text), jnp.asarray(states), mask)
    codes = np.asarray(prior.dot_code(jnp.asarray(image), captions))
    np.testing.assert_allclose(np.bincount(codes, minlength=DOTS), 4000 / DOTS, atol=1)
    empty = captions._replace(mask=np.arange(8) < np.full((4000, 1), 2))
    assert not np.asarray(prior.dot_code(jnp.asarray(image), empty)).any()


def test_sampling_from_the_cache_equals_the_full_pass(config, params, text):
    network = ar_prior(config.prior)
    dot = jnp.arange(B)

    noise = jax.random.gumbel(jax.random.key(0), (COMPONENTS, B, BUCKETS))

    @jax.jit
    def drawn(params, text):
        prior = network.bind(params)
        codes = prior.sample(dot, text, lambda logits, i: jnp.argmax(logits + noise[i], -1))
        return codes, prior(codes, dot, text)

    codes, logits = drawn(params, text)
    assert len(np.unique(codes)) > COMPONENTS  # they differ
    np.testing.assert_array_equal(codes, np.argmax(logits + noise.swapaxes(0, 1), -1))


def test_the_objective_is_the_cross_entropy_of_codes(config, params, text):
    clip_config = model_set.clip_config().clip
    clip = FrozenClip(clip_config, jax.device_put(clip_network(clip_config).init(seed=0)))
    objective = make_objective(config, clip)
    assert isinstance(objective, AutoregressivePrior)
    rng = np.random.default_rng(3)
    batch = {
        "image_embedding": jnp.asarray(rng.standard_normal((B, D)), jnp.float32) + 3,
        "tokens": jnp.asarray(rng.integers(0, 500, (B, 8)), jnp.int32),
        "token_mask": jnp.asarray(text.mask),
    }
    gradient = jax.jit(objective.gradient)
    zeros = params | {"out.kernel": jnp.zeros((32, BUCKETS)), "out.bias": jnp.zeros(BUCKETS)}
    found = gradient(zeros, objective.frozen, batch, jax.random.key(0), None)
    np.testing.assert_allclose(found.losses, np.log(BUCKETS), rtol=1e-5)
    found = gradient(params, objective.frozen, batch, jax.random.key(0), None)
    assert np.isfinite(found.losses).all() and (found.losses > 0).all()
    still = {name for name, grad in found.grads.items() if not np.any(grad)}
    assert still == {"mean", "std", "basis", "dot_edges"}


def test_a_stage_samples_embeddings(config, params, text):
    stage = PriorStage(config, params)
    empty = jax.tree.map(lambda x: x[3:], text)
    captions = jax.tree.map(lambda x: x[:3], text)
    found = stage.sample(captions, empty, [0, 1, 2], config.sample)
    assert found.shape == (3, D) and np.isfinite(found).all()
    again = stage.sample(jax.tree.map(lambda x: x[::-1], captions), empty, [2, 1, 0], config.sample)
    np.testing.assert_allclose(again, found[::-1], atol=1e-5)  # wherever in the batch
    # An empty prompt has the dot product's code 0, as in training.
    other = params | {"dot_embedding": params["dot_embedding"].at[1:].set(np.nan)}
    prompts = jax.tree.map(lambda x: np.repeat(np.asarray(x[3:]), 3, 0), text)
    found = PriorStage(config, other).sample(prompts, empty, [0, 1, 2], config.sample)
    assert np.isfinite(found).all()
