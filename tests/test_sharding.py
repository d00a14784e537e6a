"""Every kind of model on every mesh of eight devices against the gradient of one device."""

import dataclasses
import math
import re
from functools import cache, partial
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import model_set, tiny
from helpers.one_device import assert_same_gradient, one_device_mesh

from glide_jax import UserError
from glide_jax.models.placement import row_major
from glide_jax.models.platform import Platform
from glide_jax.parallel import sharding
from glide_jax.training.build import make_objective
from glide_jax.training.flops import abstract_batch
from glide_jax.training.step import Trainer

KINDS = {
    "base": tiny.get_config,
    "two levels": lambda: tiny.two_levels(tiny.get_config()),
    "inpainting": model_set.inpaint_config,
    "upsampler": lambda: model_set.upsampler_config(inpaint=False),
    "clip": model_set.clip_config,
}


def config_of(kind, **changes):
    config = KINDS[kind]()
    train = dataclasses.replace(config.train, batch_examples=16, **changes)
    # With dropout: random draws must not depend on the devices either.
    model = config.model
    if kind != "clip":
        model = dataclasses.replace(model, unet=dataclasses.replace(model.unet, dropout=0.1))
    return dataclasses.replace(config, train=train, model=model)


def gradient(config, mesh):
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
    trainer = Trainer(config, make_objective(config), mesh)
    params = {
        name: value + 0.05 * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in sorted(trainer.network.init(seed=0).items())
    }
    compute = jax.jit(
        trainer.gradient, out_shardings=None if mesh.size == 1 else sharding.replicated(mesh)
    )
    found = compute({}, trainer.init(params), sharding.to_devices(batch, mesh))
    return jax.device_get((found.grads, found.metrics, found.losses))


@cache
def on_one_device(kind):
    return gradient(config_of(kind), one_device_mesh())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fsdp", "remat"),
    [(kind, fsdp, "none") for kind in KINDS if kind != "two levels" for fsdp in (1, 2, 4, 8)]
    + [("two levels", 4, remat) for remat in ("none", "matmuls", "blocks")],
)
def test_eight_devices_compute_the_gradient_of_one(kind, fsdp, remat, monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    config = config_of(kind, fsdp=fsdp)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, remat=remat))
    mesh = sharding.make_mesh(config)
    assert dict(mesh.shape) == {"data": 8 // fsdp, "fsdp": fsdp}
    grads, metrics, losses = gradient(config, mesh)
    expected_grads, expected_metrics, expected_losses = on_one_device(kind)
    np.testing.assert_allclose(losses, expected_losses, rtol=2e-5)
    assert_same_gradient((grads, metrics), (expected_grads, expected_metrics))


@pytest.mark.parametrize(
    ("batch_examples", "fsdp", "line"),
    [
        (8, 3, r"train.fsdp \(3\) must divide the number of devices \(8\)"),
        (9, 1, r"\(9\) must be divisible by the number of devices \(8\)"),
    ],
)
def test_a_mesh_that_does_not_divide_is_refused(batch_examples, fsdp, line):
    config = tiny.get_config()
    train = dataclasses.replace(config.train, batch_examples=batch_examples, fsdp=fsdp)
    with pytest.raises(UserError, match=line):
        sharding.make_mesh(dataclasses.replace(config, train=train))


def chips(slices):
    """Stand-ins for the chips of several TPU slices of 2x2 chips, in a mixed order."""
    kind = {"platform": "tpu", "device_kind": "TPU v4", "core_on_chip": 0, "process_index": 0}
    return [
        Mock(
            spec=jax.Device,
            id=4 * index + 2 * x + y,
            slice_index=index,
            coords=(x, y, 0),
            **kind,
        )
        for y in range(2)
        for index in range(slices)
        for x in range(2)
    ]


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_parameters_are_sharded_within_a_slice_and_replicated_across_slices(fsdp):
    mesh = sharding.local_mesh(fsdp, chips(slices=3))
    assert dict(mesh.shape) == {"data": 12 // fsdp, "fsdp": fsdp}
    slices = np.vectorize(lambda chip: chip.slice_index)(mesh.devices)
    assert (slices == slices[:, :1]).all()
    assert (np.diff(slices[:, 0]) >= 0).all()  # a slice's replicas are neighbors along 'data'
    assert len(set(mesh.devices.flat)) == 12


def test_sharding_across_slices_is_refused():
    with pytest.raises(UserError, match=r"train.fsdp \(8\) must divide the 4 chips of a slice"):
        sharding.local_mesh(8, chips(slices=2))


@pytest.mark.parametrize("remat", ["none", "matmuls", "blocks"])
def test_devices_exchange_parameters_and_no_activations(remat, monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    config = tiny.get_config()
    config = dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, batch_examples=256, fsdp=4),
        model=dataclasses.replace(config.model, remat=remat),
    )
    mesh = sharding.make_mesh(config)
    batch = sharding.batch_sharding(mesh)
    platform = Platform(batch, row_major=partial(row_major, batch=batch))  # as on TPUs
    trainer = Trainer(config, make_objective(config), mesh, platform)
    # The optimizer and the EMA are left out: they only double the time of compilation.
    shardings = trainer.state_shardings
    program = jax.jit(
        lambda state, batch: trainer.gradient({}, state, batch).grads,
        in_shardings=(shardings, batch),
        out_shardings=shardings.params,
        compiler_options=sharding.compiler_options(mesh),
    )
    text = program.lower(trainer.abstract_state, abstract_batch(config)).compile().as_text()
    assert " all-gather(" in text
    assert " all-reduce(" in text
    exchanged = [
        math.prod(int(n) for n in shape.split(",") if n)
        for shapes in re.findall(r" = (.*?) all-(?:gather|reduce)\(", text)
        for shape in re.findall(r"\w+\[([\d,]*)\]", shapes)
    ]
    assert max(exchanged) <= max(math.prod(p.shape) for p in trainer.network.shapes.values())


@pytest.mark.parametrize(
    ("images", "fsdp", "devices"),
    [(1, 1, 1), (3, 1, 3), (5, 1, 4), (100, 1, 4), (3, 2, 2), (1, 2, 2)],
)
def test_no_core_samples_only_padding(monkeypatch, images, fsdp, devices):
    set_to = Mock()
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES", raising=False)
    monkeypatch.setattr(sharding, "_cores", lambda: 4)
    monkeypatch.setattr(jax.config, "update", set_to)
    sharding.use_cores_to_sample(images, fsdp)
    set_to.assert_called_once_with("jax_num_cpu_devices", devices)
