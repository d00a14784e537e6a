"""The denoisers against golden values of the original code, and their own invariants."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.golden_models import UNETS, load_golden
from helpers.one_device import one_device_mesh

from glide_jax.models import cpu_convolution, matmul
from glide_jax.models.attention import attend, attend_on_cpu
from glide_jax.models.convolution import convolve
from glide_jax.models.cpu_convolution import convolve_on_cpu
from glide_jax.models.glide import glide_network
from glide_jax.models.layers import gelu
from glide_jax.models.platform import ANY_PLATFORM, Platform


def close(ours, theirs, tolerance=1e-4):
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=tolerance * np.abs(theirs).max())


@pytest.fixture(scope="module")
def golden():
    config, params, arrays = load_golden("unet_base.npz")
    return config, params, {name: jnp.asarray(array) for name, array in arrays.items()}


def run(config, params, g, key=None, platform=ANY_PLATFORM):
    model = glide_network(config).bind(params, platform)
    return model(g["x"], g["t"], model.encode_text(g["tokens"], g["mask"]), key=key)


@pytest.mark.parametrize("file", [f"unet_{name}.npz" for name in UNETS])
def test_every_model_agrees_with_the_original(file):
    config, params, arrays = load_golden(file)
    g = {name: jnp.asarray(array) for name, array in arrays.items()}
    model = glide_network(config).bind(params)

    def forward(g):
        condition = model.condition(g.get("low_res"), g.get("inpaint_image"), g.get("inpaint_mask"))
        return model(g["x"], g["t"], model.encode_text(g["tokens"], g["mask"]), condition)

    close(jax.jit(forward)(g), g["out"])


def test_a_model_refuses_conditions_that_it_does_not_take_or_lacks():
    base, params, g = load_golden("unet_base.npz")
    model = glide_network(base).bind(params)
    assert model.condition() is None
    with pytest.raises(ValueError, match="does not take low_res"):
        model.condition(low_res=jnp.zeros((3, 4, 4, 3)))
    config, params, g = load_golden("unet_upsample_inpaint.npz")
    model = glide_network(config).bind(params)
    with pytest.raises(ValueError, match="needs known"):
        model.condition(low_res=jnp.asarray(g["low_res"]))
    assert model.condition(
        *(jnp.asarray(g[name]) for name in ("low_res", "inpaint_image", "inpaint_mask"))
    ).shape == (3, 16, 16, config.condition_channels)


def test_text_features_agree_with_the_original(golden):
    config, params, g = golden
    model = glide_network(config).bind(params)
    text = jax.jit(model.text)(g["tokens"], g["mask"])
    close(text, g["text_out"])
    close(model.text_emb(text[:, -1]), g["text_proj"])


def test_initial_text_features_differ_between_positions(golden):
    config, _, g = golden
    network = glide_network(config)
    params = jax.device_put(network.init(seed=0))
    text = jax.jit(lambda p: network.bind(p).text(g["tokens"], g["mask"]))(params)
    # 0.1 with embeddings as small as CLIP's: little more than a bag of words.
    assert jnp.std(text - text.mean(1, keepdims=True)) > 0.8 * jnp.std(text)


def test_bfloat16_stays_near_float32(golden):
    config, params, g = golden
    config = dataclasses.replace(config, dtype="bfloat16")
    out = jax.jit(lambda params: run(config, params, g))(params)
    assert out.dtype == jnp.float32
    close(out, g["out"], 0.03)  # bfloat16 keeps 8 bits: 0.4% per operation


def test_gelu_matches_pytorch_in_float32_and_bfloat16():
    x = jnp.linspace(-4, 4, 257, dtype=jnp.bfloat16)
    exact = jax.nn.gelu(x.astype(jnp.float32), approximate=False)
    np.testing.assert_allclose(gelu(x.astype(jnp.float32)), exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(gelu(x), gelu(x.astype(jnp.float32)).astype(jnp.bfloat16))


def values_and_gradients(function, *inputs):
    """The value of a function, and gradients of a sum with other weights for every number."""

    def weighted(*inputs):
        out = function(*inputs).astype(jnp.float32)
        return jnp.sum(out * (jnp.arange(out.size) % 5 - 2.0).reshape(out.shape)), out

    gradient = jax.value_and_grad(weighted, range(len(inputs)), has_aux=True)
    (_, out), gradients = jax.jit(gradient)(*inputs)
    return out, *gradients


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(("size", "height"), [(1, 6), (3, 6), (3, 5)])
def test_convolutions_on_a_cpu_equal_xlas_with_their_gradients(size, height, dtype, monkeypatch):
    monkeypatch.setattr(cpu_convolution, "MIN_CHANNELS", 4)
    for module in (cpu_convolution, matmul):
        monkeypatch.setattr(module, "MIN_PRODUCTS", 0)
    rng = np.random.default_rng(0)  # small integers: products and their sums are exact
    shapes = (2, height, 4, 4), (size, size, 4, 8), (8,)
    inputs = [jnp.asarray(rng.integers(-2, 3, shape), dtype) for shape in shapes]
    ours = values_and_gradients(convolve_on_cpu, *inputs)
    expected = values_and_gradients(convolve, *(x.astype(jnp.float32) for x in inputs))
    for a, b in zip(ours, expected, strict=True):
        np.testing.assert_array_equal(a.astype(dtype), b.astype(dtype))


@pytest.mark.parametrize("causal", [False, True])
def test_attention_on_a_cpu_equals_attention(causal):
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(2, n, 16)), jnp.float32) for n in (5, 7, 7))
    k *= 100  # logits whose exponentials overflow
    ours = attend_on_cpu(q, k, v, 4, causal=causal)
    np.testing.assert_allclose(ours, attend(q, k, v, 4, causal=causal), atol=1e-6)


def test_a_cpu_samples_by_matmuls_near_float32(golden, monkeypatch):
    monkeypatch.setattr(cpu_convolution, "MIN_CHANNELS", 64)  # the lower level
    for module in (cpu_convolution, matmul):
        monkeypatch.setattr(module, "MIN_PRODUCTS", 0)
    config, params, g = golden
    config = dataclasses.replace(config, dtype="bfloat16")

    def traced(platform):
        return jax.jit(lambda params: run(config, params, g, platform=platform)).trace(params)

    def convolutions(program):
        return str(program.jaxpr).count("conv_general_dilated")

    sampling = traced(Platform.of(one_device_mesh(), None, training=False))
    close(sampling.lower().compile()(params), g["out"], 0.03)
    assert convolutions(sampling) < convolutions(traced(ANY_PLATFORM))


def test_tokens_under_the_padding_mask_change_nothing(golden):
    config, params, g = golden
    encode = jax.jit(glide_network(config).bind(params).encode_text)
    other = jnp.where(g["mask"], g["tokens"], (g["tokens"] + 7) % 101)
    assert not np.array_equal(g["tokens"], other)
    text, same = encode(g["tokens"], g["mask"]), encode(other, g["mask"])
    for a, b in zip(jax.tree.leaves(text), jax.tree.leaves(same), strict=True):
        np.testing.assert_array_equal(a, b)


def test_the_initial_prediction_is_zero_and_parameters_are_float32(golden):
    config, _, g = golden
    config = dataclasses.replace(config, dtype="bfloat16")
    network = glide_network(config)
    params = jax.device_put(network.init(seed=0))
    assert {name: (p.shape, p.dtype) for name, p in params.items()} == {
        name: (s.shape, jnp.dtype("float32")) for name, s in network.shapes.items()
    }
    np.testing.assert_array_equal(jax.jit(lambda params: run(config, params, g))(params), 0)


@pytest.fixture(scope="module")
def with_dropout(golden):
    """Loss, differentiated, of a model with dropout and one level, and parameters for it.

    One block of its transformer, and attention in the middle: rematerialization is by block.
    """
    config, _, g = golden
    changes = {"channel_mult": (1,), "attention_px": (), "res_blocks": 1, "dropout": 0.5}
    unet = dataclasses.replace(config.unet, **changes)
    config = dataclasses.replace(config, unet=unet, text=dataclasses.replace(config.text, layers=1))
    rng = np.random.default_rng(0)
    params = {
        name: value + 0.05 * rng.standard_normal(value.shape).astype(np.float32)
        for name, value in glide_network(config).init(seed=0).items()
    }

    def loss(params, remat, key):
        return jnp.mean(run(dataclasses.replace(config, remat=remat), params, g, key) ** 2)

    return jax.jit(jax.value_and_grad(loss), static_argnums=1), params


@pytest.fixture(scope="module")
def plain_gradients(with_dropout):
    """Loss and gradient without rematerialization, for two dropout keys."""
    gradient, params = with_dropout
    return [gradient(params, "none", jax.random.key(seed)) for seed in (3, 4)]


@pytest.mark.parametrize("policy", ["matmuls", "blocks", "everything", "offload"])
def test_rematerialization_changes_nothing_and_dropout_depends_on_its_key(
    with_dropout, plain_gradients, policy
):
    plain, other_key = plain_gradients
    gradient, params = with_dropout
    remat = gradient(params, policy, jax.random.key(3))
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(remat), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * max(np.abs(a).max(), 1e-3))
    assert other_key[0] != plain[0]
