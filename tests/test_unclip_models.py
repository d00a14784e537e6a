"""unCLIP's networks against Karlo's code and OpenAI's CLIP, from weights under released names."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.unclip_golden import unclip_golden
from helpers.unclip_models import clip_config, converted, decoder_config, prior_config, sr_config

from glide_jax.diffusion.process import q_sample
from glide_jax.diffusion.schedule import Schedule
from glide_jax.models.build import build_network
from glide_jax.models.layers import timestep_embedding
from glide_jax.pretrained.names import original_names, tower
from glide_jax.pretrained.unclip_names import KARLO_PRIOR
from glide_jax.shapes import TextStates

SINGLE_PASS = 1e-4
"""Tolerance, as a fraction of the largest magnitude."""


def assert_close(found, expected, name=""):
    atol = SINGLE_PASS * np.abs(expected).max()
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=atol, err_msg=name)


@pytest.fixture(autouse=True)
def _exact_matmuls():
    with jax.default_matmul_precision("highest"):
        yield


def golden(name, config):
    """A function that binds the network to parameters, the golden parameters, and other arrays."""
    _, weights, arrays = unclip_golden(name)
    arrays = {key: jnp.asarray(x) for key, x in arrays.items() if x.dtype != np.int64} | {
        key: jnp.asarray(x, jnp.int32) for key, x in arrays.items() if x.dtype == np.int64
    }
    return build_network(config).bind, jax.device_put(converted(config, weights)), arrays


def test_clip():
    bind, params, g = golden("clip", clip_config())

    @jax.jit
    def run(params):
        clip = bind(params)
        photo = clip.encode_image(g["photo_karlo"][None])[0]
        text = clip.embed_text(g["tokens"], g["mask"])
        return text, clip.encode_image(g["image"]), photo

    text, image, photo = run(params)
    assert_close(text.embedding, g["text_feat"], "text_feat")
    assert_close(text.states, g["text_seq"], "text_seq")
    assert_close(image, g["image_feat"], "image_feat")
    assert_close(photo, g["photo_karlo_feat"], "photo_karlo_feat")


@pytest.fixture(scope="module")
def prior():
    bind, params, g = golden("prior", prior_config())
    return bind, params, g, TextStates(g["text_emb"], g["text_enc"], g["mask"])


def test_prior(prior):
    bind, params, g, text = prior
    assert_close(jax.jit(lambda params: bind(params)(g["x"], g["t"], text))(params), g["out"])
    module = bind(params)
    np.testing.assert_array_equal(module.normalize(g["clip_mean"][None]), 0)
    assert_close(module.denormalize(g["x"]), g["x"] * g["clip_std"] + g["clip_mean"])


def test_loss_of_the_prior_and_its_gradients(prior):
    bind, params, g, text = prior
    t = g["loss/t"]
    x_t = q_sample(Schedule.create("squaredcos_cap_v2"), g["loss/x0"], t, g["loss/noise"])
    assert_close(x_t, g["loss/x_t"])

    def loss(params):
        pred = bind(params)(x_t, t, text)
        per_example = jnp.mean((pred - g["loss/x0"]) ** 2, -1)
        return per_example.mean(), (pred, per_example)

    gradients, (pred, per_example) = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert_close(pred, g["loss/pred"])
    assert_close(per_example, g["loss/loss"])
    names = original_names(params, KARLO_PRIOR)
    norms = {f"grad_norm/{names[k]}": np.linalg.norm(np.asarray(x)) for k, x in gradients.items()}
    expected = {name: value for name, value in g.items() if name.startswith("grad_norm/")}
    assert expected.keys() <= norms.keys()
    for name, value in expected.items():
        assert norms[name] == pytest.approx(float(value), rel=SINGLE_PASS), name


def test_decoder():
    bind, params, g = golden("decoder", decoder_config())
    b = len(g["x"])
    with_caption, empty = (
        [g[f"{half}{name}"] for name in ("text_emb", "text_enc", "mask")]
        for half in ("", "uncond/")
    )
    text = TextStates(
        *(jnp.concatenate(halves) for halves in zip(with_caption, empty, strict=True))
    )
    given, no_tokens = jnp.arange(2 * b) < b, jnp.zeros(text.mask.shape, jnp.int32)
    x, t, image = (jnp.concatenate([g[name]] * 2) for name in ("x", "t", "image_emb"))

    @jax.jit
    def run(params):
        model = bind(params)
        captions = model.encode_text(no_tokens, text.mask, states=text)
        time = timestep_embedding(t, model.time_width)
        first = model.image_tokens(image)  # token j's channel c is at tokens * c + j
        first = first.reshape(2 * b, -1, model.config.image_tokens).swapaxes(1, 2)
        inside = {
            "time_emb": model.time_emb2(jax.nn.silu(model.time_emb1(time))),
            "image_proj": model.image_emb(image),
            "text_proj": captions.embedding,
            "context": jnp.concatenate([first, model.text_norm(model.text_states(text.states))], 1),
        }
        return model(x, t, model.add_image(captions, image, given)), inside

    out, inside = run(params)
    assert_close(out[:b], g["out"], "out")
    assert_close(out[b:], g["uncond/out"], "uncond/out")
    inside = {name: value[:b] for name, value in inside.items()}
    for name, value in inside.items():
        assert_close(value, g[name], name)
    emb = sum(inside[name] for name in ("time_emb", "image_proj", "text_proj"))
    assert_close(emb, g["emb"], "emb")


def test_upsampler():
    _, params, g = golden("sr", sr_config())
    network = build_network(replace(sr_config(), last_step_network=False))
    tokens = jnp.zeros((len(g["t"]), 1), jnp.int32)

    @jax.jit
    def run(params):
        model = network.bind(params)
        return model(g["x"], g["t"], model.encode_text(tokens, tokens == 1), g["low_res"])

    for name in ("first", "last"):
        assert_close(run(tower(params, name))[..., :3], g[f"{name}_out"], name)
