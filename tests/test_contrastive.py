import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import model_set
from helpers.one_device import assert_same_gradient, one_device_mesh

from glide_jax.parallel import sharding
from glide_jax.training.contrastive import MAX_SCALE, Contrastive, _compare
from glide_jax.training.step import Trainer

B = 8


def config_with(**train):
    config = model_set.clip_config()
    optim = dataclasses.replace(config.optim, learning_rate=2e-3, warmup_steps=5)
    changes = {"batch_examples": B} | train
    return dataclasses.replace(
        config, optim=optim, train=dataclasses.replace(config.train, **changes)
    )


@pytest.fixture(scope="module")
def batch():
    """Eight different images and captions."""
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (B, 8, 8, 3), np.uint8),
        "tokens": rng.integers(0, 500, (B, 8)).astype(np.int32),
        "token_mask": np.arange(8)[None] < rng.integers(3, 8, (B, 1)),
    }


def gradient(config, mesh, batch):
    trainer = Trainer(config, Contrastive(config), mesh)
    found = jax.jit(trainer.gradient)({}, trainer.init(), sharding.to_devices(batch, mesh))
    return jax.device_get((found.grads, found.metrics))


@pytest.fixture(scope="module")
def single(batch):
    return gradient(config_with(), one_device_mesh(), batch)


@pytest.mark.parametrize(("fsdp", "micro_batches"), [(1, 1), (4, 1), (None, 4)])
def test_negatives_span_devices_and_micro_batches(batch, single, fsdp, micro_batches, monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    config = config_with(fsdp=fsdp or 1, micro_batches=micro_batches)
    mesh = one_device_mesh() if fsdp is None else sharding.make_mesh(config)
    assert_same_gradient(gradient(config, mesh, batch), single)


def test_loss_is_the_symmetric_cross_entropy(batch):
    objective = Contrastive(config_with())
    params = jax.tree.map(jnp.asarray, objective.network.init(seed=0))
    batch = jax.tree.map(jnp.asarray, batch)
    found = jax.jit(objective.validate)(params, {}, batch, jax.random.key(0))
    _, eps_key = jax.random.split(jax.random.key(0))
    x_t = objective._noised(batch["image"], found.t, eps_key)

    @jax.jit
    def embeddings(params):
        clip = objective.network.bind(params)
        text = clip.encode_text(batch["tokens"], batch["token_mask"])
        return clip.encode_image(x_t, found.t), text

    image, text = (np.asarray(e, np.float64) for e in embeddings(params))
    logits = image @ text.T / 0.07
    exp = np.exp(logits)
    of_captions = -np.log(np.diag(exp) / exp.sum(1))
    of_images = -np.log(np.diag(exp) / exp.sum(0))
    np.testing.assert_allclose(found.values["loss"], (of_captions + of_images) / 2, rtol=1e-4)
    np.testing.assert_array_equal(found.values["accuracy"], logits.argmax(1) == np.arange(B))


def test_losses_compare_logits_of_one_matmul_of_full_precision():
    """Embeddings in which lower precision would give the own pair another logit than its row."""
    rng = np.random.default_rng(0)
    image = rng.normal(size=(B, 16)).astype(np.float32)
    image /= np.linalg.norm(image, axis=1, keepdims=True)
    scale = jnp.log(jnp.float32(MAX_SCALE))
    values = jax.jit(_compare)(image, image, scale)
    logits = MAX_SCALE * image.astype(np.float64) @ image.T
    expected = np.log(np.exp(logits - np.diag(logits)[:, None]).sum(1))
    np.testing.assert_allclose(values["loss"], expected, rtol=1e-3, atol=1e-6)
    assert (values["loss"] >= 0).all()
    program = str(jax.make_jaxpr(_compare)(image, image, scale))
    assert program.count("dot_general") == 1
    assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 1


def test_training_separates_eight_pairs_without_noise(batch):
    config = config_with()
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, steps=1))
    trainer = Trainer(config, Contrastive(config), one_device_mesh())
    state = trainer.init()
    first = trainer.validate(state.params, batch, 0).values["loss"].mean()
    for _ in range(80):
        state, metrics = trainer.step(state, batch)
    found = trainer.validate(state.params, batch, 0)
    assert found.values["loss"].mean() < 0.2 * first
    assert found.values["accuracy"].mean() == 1
    assert 0 < metrics["temperature"] < 0.2


def test_t_depends_on_the_key_and_the_logit_scale_is_bounded(batch):
    objective = Contrastive(config_with())
    params = jax.tree.map(jnp.asarray, objective.network.init(seed=0))
    batch = jax.tree.map(jnp.asarray, batch)
    t_of = jax.jit(lambda key: objective.gradient(params, {}, batch, key, None).t)
    draws = [t_of(jax.random.key(i)) for i in (0, 1)]
    assert (draws[0] != draws[1]).any()
    held = objective.constrain({"logit_scale": jnp.float32(9), "other": jnp.float32(9)})
    np.testing.assert_allclose(np.exp(held["logit_scale"]), MAX_SCALE, rtol=1e-6)
    assert held["other"] == 9
