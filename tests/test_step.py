import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers import tiny
from helpers.one_device import assert_same_gradient, one_device_mesh
from jax.sharding import PartitionSpec

from glide_jax.config import DiffusionConfig
from glide_jax.errors import UserError
from glide_jax.parallel import sharding
from glide_jax.training.denoising import Denoising
from glide_jax.training.step import Trainer


def with_train(**changes):
    config = tiny.get_config()
    train = dataclasses.replace(config.train, **changes)
    return dataclasses.replace(config, train=train, diffusion=DiffusionConfig(prediction="eps"))


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (8, 8, 8, 3), np.uint8),
        "tokens": rng.integers(0, 300, (8, 8)).astype(np.int32),
        "token_mask": rng.random((8, 8)) < 0.7,
    }


@pytest.fixture(scope="module")
def params():
    """Parameters away from the initial zeros, where most gradients vanish."""
    rng = np.random.default_rng(1)
    return {
        name: value + 0.02 * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in Denoising(with_train()).network.init(seed=0).items()
    }


@pytest.fixture(scope="module")
def trainer():
    config = with_train()
    return Trainer(config, Denoising(config), one_device_mesh())


def gradient(config, mesh, params, batch):
    trainer = Trainer(config, Denoising(config), mesh)
    state = dataclasses.replace(trainer.init(params), step=jnp.int32(3))
    found = jax.jit(trainer.gradient)({}, state, sharding.to_devices(batch, mesh))
    return jax.device_get((found.grads, found.metrics))


@pytest.fixture(scope="module")
def single(params, batch):
    return gradient(with_train(), one_device_mesh(), params, batch)


@pytest.mark.parametrize("fsdp", [1, 4])
def test_eight_devices_give_the_gradient_of_one(params, batch, single, fsdp, monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    config = with_train(fsdp=fsdp)
    mesh = sharding.make_mesh(config)
    assert dict(mesh.shape) == {"data": 8 // fsdp, "fsdp": fsdp}
    assert_same_gradient(gradient(config, mesh, params, batch), single)


def test_micro_batches_change_nothing(params, batch, single):
    assert_same_gradient(
        gradient(with_train(micro_batches=4), one_device_mesh(), params, batch), single
    )


def test_a_bfloat16_step_has_the_float32_gradient_up_to_its_rounding(params, batch, single):
    config = with_train()
    half = dataclasses.replace(config.model, dtype="bfloat16")
    config = dataclasses.replace(config, model=half)
    grads, metrics = gradient(config, one_device_mesh(), params, batch)
    expected, expected_metrics = single
    for name in ("loss", "mse", "vb"):
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=0.02)
        assert metrics[name] != expected_metrics[name]
    assert {x.dtype for x in (*grads.values(), *metrics.values())} == {np.dtype("float32")}
    ours, theirs = (np.concatenate([g[n].ravel() for n in sorted(g)]) for g in (grads, expected))
    assert 1e-4 < np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 0.05
    trained = Trainer(config, Denoising(config), one_device_mesh()).abstract_state
    for tree in (trained.params, trained.ema, optax.tree_utils.tree_get(trained.opt_state, "nu")):
        assert {x.dtype for x in tree.values()} == {np.dtype("float32")}


def test_a_step_that_is_not_finite_changes_only_its_counters(trainer, batch):
    state = trainer.init()
    name, kernel = next((n, x) for n, x in state.params.items() if n.endswith(".kernel"))
    bad = dataclasses.replace(state, params=state.params | {name: jnp.full_like(kernel, jnp.nan)})
    before = jax.device_get(bad)
    state, metrics = trainer.step(bad, batch)
    assert not np.isfinite(metrics["loss"])
    for name in ("params", "ema", "opt_state"):
        after = jax.device_get(getattr(state, name))
        jax.tree.map(np.testing.assert_array_equal, getattr(before, name), after)
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (1, 1, 1)
    state = dataclasses.replace(state, params=trainer.init().params)
    state, metrics = trainer.step(state, batch)
    assert np.isfinite(metrics["loss"])
    assert (int(state.step), int(state.skipped), int(state.skipped_in_a_row)) == (2, 1, 0)
    assert metrics["learning_rate"] == 0  # still the first step of the warm-up


def test_training_lowers_the_loss_and_validation_is_repeatable(trainer, batch):
    state = trainer.init()
    first, again, other = (trainer.validate(state.ema, batch, k) for k in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert (first.t != other.t).any()
    np.testing.assert_array_equal(np.sort(first.t) // 125, np.arange(8))  # one of each eighth
    mse = first.values["mse"].mean()
    np.testing.assert_allclose(mse, 1, atol=0.1)  # it predicts zeros for unit noise
    for _ in range(60):
        state, _ = trainer.step(state, batch)
    assert trainer.validate(state.ema, batch, 0).values["mse"].mean() < 0.7 * mse


def test_every_parameter_has_a_rule_and_large_ones_are_sharded():
    config = dataclasses.replace(tiny.get_config(), train=with_train(fsdp=4).train)
    mesh = sharding.make_mesh(config)
    shapes = {
        "unet.down.0.res.conv1.kernel": jax.ShapeDtypeStruct((3, 3, 256, 512), jnp.float32),
        "unet.down.0.res.conv1.bias": jax.ShapeDtypeStruct((512,), jnp.float32),
        "text.token_embedding": jax.ShapeDtypeStruct((50_257, 512), jnp.float32),
        "small.kernel": jax.ShapeDtypeStruct((8, 8), jnp.float32),
    }
    specs = {name: s.spec for name, s in sharding.infer(shapes, mesh).items()}
    assert specs == {
        "unet.down.0.res.conv1.kernel": PartitionSpec(None, None, None, "fsdp"),
        "unet.down.0.res.conv1.bias": PartitionSpec(),
        "text.token_embedding": PartitionSpec(None, "fsdp"),  # 50,257 does not divide
        "small.kernel": PartitionSpec(),
    }
    with pytest.raises(ValueError, match="no sharding rule matches the parameter strange"):
        sharding.infer({"strange": jax.ShapeDtypeStruct((8,), jnp.float32)}, mesh)
    rules = ((r".*kernel", PartitionSpec("data")), *sharding.RULES)
    first = sharding.infer({"a.kernel": jax.ShapeDtypeStruct((8,), jnp.float32)}, mesh, rules)
    assert first["a.kernel"].spec == PartitionSpec("data")


def test_optimizer_state_is_sharded_as_its_parameter(monkeypatch):
    monkeypatch.setattr(sharding, "FSDP_MIN_SIZE", 64)
    config = with_train(fsdp=8)
    trainer = Trainer(config, Denoising(config), sharding.make_mesh(config))
    moments = optax.tree_utils.tree_get(trainer.state_shardings.opt_state, "mu")
    assert moments == trainer.state_shardings.params == trainer.state_shardings.ema
    assert any(s.spec != PartitionSpec() for s in moments.values())


@pytest.mark.parametrize(
    ("changes", "line"),
    [({"fsdp": 3}, "train.fsdp"), ({"batch_examples": 12}, "train.batch_examples")],
)
def test_a_mesh_that_cannot_work_is_refused(changes, line):
    with pytest.raises(UserError, match=line):
        sharding.make_mesh(with_train(**changes))
