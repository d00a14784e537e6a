"""Updates computed by hand, and the gradient of a model with all conditions on eight devices."""

import dataclasses
from types import SimpleNamespace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import model_set, tiny
from helpers.one_device import assert_same_gradient, one_device_mesh

from glide_jax.config import OptimConfig
from glide_jax.parallel import sharding
from glide_jax.training.denoising import Denoising
from glide_jax.training.flops import abstract_batch
from glide_jax.training.objective import BatchGradient, Validation
from glide_jax.training.step import Trainer

OPTIM = OptimConfig(
    learning_rate=0.1,
    b1=0.8,
    b2=0.9,
    eps=1e-3,
    weight_decay=0.5,
    warmup_steps=2,
    clip_norm=0.7,
    ema_decay=0.3,
)
INITIAL = {
    "a.kernel": np.array([[0.5, -1.0, 2.0], [1.5, 0.25, -0.75]], np.float32),
    "a.bias": np.array([0.1, -0.2, 0.3], np.float32),
}


class Linear:
    """Regression of an image's colors on its first two pixels, without random numbers."""

    network = SimpleNamespace(
        shapes={name: jax.ShapeDtypeStruct(v.shape, v.dtype) for name, v in INITIAL.items()},
        init=lambda seed: INITIAL,
    )
    frozen: ClassVar[dict] = {}
    timestep_count = 10

    def gradient(self, params, frozen, batch, key, history, platform=None):
        def loss(params):
            x, y = batch["image"][:, 0, :2, 0], batch["image"][:, 1, 0]
            return jnp.mean((x @ params["a.kernel"] + params["a.bias"] - y) ** 2, 1)

        losses = loss(params)
        grads = jax.grad(lambda params: jnp.mean(loss(params)))(params)
        t = jnp.zeros(len(losses), jnp.int32)
        return BatchGradient(grads, {"loss": jnp.mean(losses)}, t, losses)

    def validate(self, params, frozen, batch, key, platform=None):
        return Validation(jnp.zeros(8, jnp.int32), {"loss": jnp.zeros(8)})

    def constrain(self, params):
        return params | {"a.bias": jnp.minimum(params["a.bias"], 0.25)}


def updates_by_hand(batches):
    """Parameters and EMA after each batch, in float64, and the norms before clipping."""
    params = {name: value.astype(np.float64) for name, value in INITIAL.items()}
    ema = dict(params)
    m, v = ({name: np.zeros_like(value) for name, value in params.items()} for _ in range(2))
    for k, image in enumerate(batches):
        x, y = image[:, 0, :2, 0].astype(np.float64), image[:, 1, 0].astype(np.float64)
        d = 2 * (x @ params["a.kernel"] + params["a.bias"] - y) / y.size
        grads = {"a.kernel": x.T @ d, "a.bias": d.sum(0)}
        norm = np.sqrt(sum((g**2).sum() for g in grads.values()))
        learning_rate = OPTIM.learning_rate * min(k / OPTIM.warmup_steps, 1)
        decay = min(OPTIM.ema_decay, (1 + k) / (10 + k))
        for name, g in grads.items():
            g = g * min(1, OPTIM.clip_norm / norm)
            m[name] = OPTIM.b1 * m[name] + (1 - OPTIM.b1) * g
            v[name] = OPTIM.b2 * v[name] + (1 - OPTIM.b2) * g**2
            m_hat, v_hat = m[name] / (1 - OPTIM.b1 ** (k + 1)), v[name] / (1 - OPTIM.b2 ** (k + 1))
            step = m_hat / (np.sqrt(v_hat) + OPTIM.eps)
            if params[name].ndim > 1:  # biases do not decay
                step = step + OPTIM.weight_decay * params[name]
            params[name] = params[name] - learning_rate * step
        params["a.bias"] = np.minimum(params["a.bias"], 0.25)
        ema = {name: decay * ema[name] + (1 - decay) * params[name] for name in ema}
        yield dict(params), dict(ema), norm, learning_rate


@pytest.mark.parametrize("fsdp", [None, 2])
def test_an_update_is_clipping_adamw_and_ema(fsdp, monkeypatch):
    """Four steps: of warm-up, with and without clipping; on one device and on eight."""
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 4)
    config = dataclasses.replace(tiny.get_config(), optim=OPTIM)
    mesh = one_device_mesh() if fsdp is None else sharding.local_mesh(fsdp)
    trainer = Trainer(config, Linear(), mesh)
    state = trainer.init()
    rng = np.random.default_rng(0)
    scales = (0.2, 3.0, 0.2, 3.0)
    batches = [s * rng.standard_normal((8, 2, 2, 3), np.float32) for s in scales]
    text = {"tokens": np.zeros((8, 4), np.int32), "token_mask": np.ones((8, 4), bool)}
    norms = []
    for image, (params, ema, norm, rate) in zip(batches, updates_by_hand(batches), strict=True):
        batch = sharding.to_devices({"image": image} | text, mesh)
        state, metrics = trainer.step(state, batch)
        norms.append(norm)
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-5)
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
        for name in INITIAL:
            np.testing.assert_allclose(state.params[name], params[name], rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(state.ema[name], ema[name], rtol=1e-5, atol=1e-6)
    assert min(norms) < OPTIM.clip_norm < max(norms)


def test_an_inpainting_upsampler_has_the_same_gradient_on_eight_devices(monkeypatch):
    """Every condition at once; for a CLIP, see test_contrastive.py."""
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    config = model_set.upsampler_config(inpaint=True)
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, fsdp=4))
    rng = np.random.default_rng(0)

    def some(shape):
        if shape.dtype == jnp.bool_ and len(shape.shape) == 4:
            return rng.random(shape.shape) < 0.5  # of inpainting
        if shape.dtype == jnp.bool_:
            return np.arange(shape.shape[1])[None] < rng.integers(2, 8, (shape.shape[0], 1))
        if shape.dtype == jnp.int32:
            return rng.integers(0, 300, shape.shape).astype(np.int32)
        return rng.integers(0, 256, shape.shape, np.uint8)

    batch = jax.tree.map(some, abstract_batch(config))
    objective = Denoising(config)
    params = {
        name: value + 0.05 * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in sorted(objective.network.init(seed=0).items())
    }

    def gradient(mesh):
        trainer = Trainer(config, objective, mesh)
        found = jax.jit(trainer.gradient, out_shardings=sharding.replicated(mesh))(
            {}, trainer.init(params), sharding.to_devices(batch, mesh)
        )
        return jax.device_get((found.grads, found.metrics))

    assert_same_gradient(gradient(sharding.make_mesh(config)), gradient(one_device_mesh()))
