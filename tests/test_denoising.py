"""Options of the denoising objective; test_step tests the step itself."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import model_set, tiny

from glide_jax.config import ClipImageConfig, LowResConfig
from glide_jax.diffusion import timestep_sampling
from glide_jax.models.clip import clip_network
from glide_jax.training.denoising import Denoising
from glide_jax.training.frozen_clip import FrozenClip
from glide_jax.training.step import Trainer

B = 4


def with_changes(config, **parts):
    """`config` with settings of its parts changed: diffusion={...}, train={...}."""
    changed = {n: dataclasses.replace(getattr(config, n), **c) for n, c in parts.items()}
    return dataclasses.replace(config, **changed)


def a_batch(config, px=None):
    rng = np.random.default_rng(0)
    px = px or config.model.resolution_px
    length = config.model.text.length
    batch = {
        "image": rng.integers(0, 256, (B, px, px, 3), np.uint8),
        "tokens": rng.integers(0, 300, (B, length)).astype(np.int32),
        "token_mask": rng.random((B, length)) < 0.7,
    }
    if config.model.inpaint:
        batch["mask"] = rng.random((B, px, px, 1)) < 0.5
    return jax.tree.map(jnp.asarray, batch)


def moved(network):
    """Parameters away from the initial zeros."""
    rng = np.random.default_rng(1)
    return {
        name: (value + 0.05 * rng.standard_normal(value.shape)).astype(np.float32)
        for name, value in network.init(seed=0).items()
    }


def gradient(config, batch, objective=None):
    objective = objective or Denoising(config)
    return jax.jit(objective.gradient)(
        moved(objective.network), objective.frozen, batch, jax.random.key(0), None
    )


def gradient_of(name, config, batch):
    """The gradient of one parameter: a smaller program."""
    objective = Denoising(config)

    @jax.jit
    def one(params):
        return objective.gradient(params, {}, batch, jax.random.key(0), None).grads[name]

    return one(moved(objective.network))


def test_an_upsampler_has_a_gradient_for_its_low_resolution_image():
    config = model_set.upsampler_config(inpaint=False)
    batch = a_batch(config)
    low_res_kernel = gradient_of("unet.conv_in.kernel", config, batch)[:, :, 3:]
    assert np.abs(low_res_kernel).max() > 1e-4
    # A crop has the same upscale_factor.
    crop = a_batch(config, px=8)
    objective = Denoising(config)
    found = jax.jit(objective.validate)(moved(objective.network), {}, crop, jax.random.key(0))
    assert np.isfinite(found.values["loss"]).all()


def test_an_upsampler_that_corrects_starts_from_the_low_resolution_image():
    config = with_changes(
        model_set.upsampler_config(inpaint=False),
        diffusion={"prediction": "v", "low_res_std": 0.3},
    )
    objective = Denoising(config)
    batch = a_batch(config)
    px = config.model.resolution_px
    small = jax.image.resize(batch["image"].astype(jnp.float32), (B, px // 2, px // 2, 3), "linear")
    large = jax.image.resize(small, (B, px, px, 3), "bilinear")
    smooth = batch | {"image": jnp.round(large).astype(jnp.uint8)}
    params = objective.network.init(seed=0)
    validate = jax.jit(objective.validate)
    rough, smooth = (validate(params, {}, b, jax.random.key(0)) for b in (batch, smooth))
    # Its initial correction is 0, so its squared error is that of a correction of 0: 1 at every t,
    # for images at distance low_res_std from the guess.
    assert (smooth.values["loss"] < rough.values["loss"]).all()
    assert 0.1 < float(smooth.values["loss"].mean()) < 1 < float(rough.values["loss"].mean())


def test_an_upsampler_is_conditioned_on_the_augmentation_level():
    config = model_set.upsampler_config(inpaint=False)
    model = dataclasses.replace(config.model, low_res_noise=True)
    data = dataclasses.replace(config.data, low_res=LowResConfig(noise_steps=300, blur_px=0.6))
    config = dataclasses.replace(config, model=model, data=data)
    assert np.abs(gradient_of("low_res_emb1.kernel", config, a_batch(config))).max() > 0

    network = Denoising(config).network
    params, batch = moved(network), a_batch(config)

    @jax.jit
    def embedding(params, *low_res_t):
        model = network.bind(params)
        return model.encode_text(batch["tokens"], batch["token_mask"], *low_res_t).embedding

    texts = [embedding(params, np.full(B, t)) for t in (0, 200)]
    assert np.abs(texts[0] - texts[1]).max() > 1e-3
    with pytest.raises(ValueError, match="needs low_res_t"):
        embedding(params)


def test_an_inpainting_model_sees_known_pixels_only():
    config = model_set.inpaint_config()
    batch = a_batch(config)
    objective = Denoising(config)
    params = moved(objective.network)
    key = jax.random.key(0)

    @jax.jit
    def loss_of(params, batch):
        return objective.gradient(params, {}, batch, key, None).metrics["loss"]

    def loss(batch, weight_of_known):
        kernel = params["unet.conv_in.kernel"].copy()
        kernel[:, :, 3:6] *= weight_of_known
        changed = params | {"unet.conv_in.kernel": kernel}
        return loss_of(changed, batch)

    assert loss(batch, 1.0) != loss(batch, 0.0)
    nothing_known = batch | {"mask": jnp.zeros_like(batch["mask"])}
    assert loss(nothing_known, 1.0) == loss(nothing_known, 0.0)


def test_min_snr_weights_the_error_of_each_step():
    config = with_changes(
        tiny.get_config(),
        diffusion={"weighting": "min-snr", "timesteps": "uniform"},
    )
    objective = Denoising(config)
    batch = a_batch(config)
    params = moved(objective.network)
    found = jax.jit(objective.validate)(params, {}, batch, jax.random.key(3))
    alpha_bar = objective.schedule.alpha_bar[np.asarray(found.t)]
    snr = alpha_bar / (1 - alpha_bar)
    # In eps: |x_0 error|^2 = |eps error|^2 / SNR.
    expected = np.minimum(snr, 5) / snr * found.values["mse"] + found.values["vb"]
    np.testing.assert_allclose(found.values["loss"], expected, rtol=1e-4)


@pytest.mark.slow
def test_importance_sampled_losses_are_reweighted_and_stored():
    config = with_changes(
        tiny.get_config(),
        diffusion={"timesteps": "loss-second-moment", "steps": 4},
        train={"batch_examples": B},
    )
    mesh = jax.make_mesh(
        (1, 1),
        ("data", "fsdp"),
        (jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:1],
    )
    trainer = Trainer(config, Denoising(config), mesh)
    state = trainer.init()
    batch = a_batch(config)
    for _ in range(25):
        state, _ = trainer.step(state, batch)
    assert int(state.history.counts.sum()) == 25 * B
    assert (np.asarray(state.history.values) > 0).all()
    found = jax.jit(trainer.gradient)({}, state, batch)
    shares = timestep_sampling.probabilities(state.history)
    assert np.ptp(shares) > 0.01  # each t has its ten losses, and they differ
    weights = 1 / (4 * np.asarray(shares)[np.asarray(found.t)])
    np.testing.assert_allclose(
        found.metrics["loss"], np.mean(weights * np.asarray(found.losses)), rtol=1e-5
    )


@pytest.mark.slow
def test_clip_loss_compares_the_predicted_image_with_kept_captions():
    config = with_changes(
        tiny.get_config(), train={"clip_run": "somewhere", "clip_loss_weight": 0.5}
    )
    clip_config = model_set.clip_config().model
    image = ClipImageConfig(resolution_px=4, patch_px=2, width=32, layers=1, heads=2)
    clip_config = dataclasses.replace(clip_config, image=image)
    clip = FrozenClip(clip_config, jax.device_put(moved(clip_network(clip_config))))
    objective = Denoising(config, clip)
    batch = a_batch(config)
    rng = np.random.default_rng(2)
    batch["token_mask"] = batch["token_mask"].at[0].set(False)  # a dropped caption
    batch["clip_tokens"] = jnp.asarray(rng.integers(0, 500, (B, 8)), jnp.int32)
    batch["clip_token_mask"] = jnp.arange(8)[None] < rng.integers(2, 8, (B, 1))
    params, key = moved(objective.network), jax.random.key(0)
    found = jax.jit(objective.validate)(params, objective.frozen, batch, key)
    clip_loss = np.asarray(found.values["clip_loss"])
    assert clip_loss[0] == 0 and (clip_loss[1:] > 0).all() and (clip_loss[1:] < 2).all()
    plain = Denoising(tiny.get_config())
    without = jax.jit(plain.validate)(moved(plain.network), {}, batch, key).values["loss"]
    alpha_bar = objective.schedule.alpha_bar[np.asarray(found.t)]
    np.testing.assert_allclose(
        found.values["loss"], without + 0.5 * alpha_bar * clip_loss, rtol=1e-5
    )

    ours = gradient(config, batch, objective=objective).grads
    theirs = gradient(tiny.get_config(), batch).grads
    assert any(np.abs(ours[name] - theirs[name]).max() > 1e-6 for name in theirs)


@pytest.mark.slow
def test_a_frozen_text_transformer_keeps_its_parameters():
    config = with_changes(
        tiny.get_config(),
        train={"trainable": "unet", "batch_examples": B},
        optim={"weight_decay": 0.1},
    )
    mesh = jax.make_mesh(
        (1, 1),
        ("data", "fsdp"),
        (jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:1],
    )
    trainer = Trainer(config, Denoising(config), mesh)
    start = jax.device_get(moved(trainer.network))
    state = trainer.init(start)
    for _ in range(3):
        state, _ = trainer.step(state, a_batch(config))
    for name, value in state.params.items():
        at_rest = name.startswith("text.")
        assert np.array_equal(value, start[name]) == at_rest, name
