"""What layers compute, and what of it the backward pass computes again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr, Jaxpr

from glide_jax.models import layers, tpu_attention
from glide_jax.models.layers import add_bias, dropout
from glide_jax.models.network import Network
from glide_jax.models.remat import recomputed
from glide_jax.models.unet import ResBlock


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeros_its_share_and_keeps_the_mean(rate):
    x = jnp.ones((4, 32, 32, 64))
    out = np.asarray(dropout(x, rate, jax.random.key(0)))
    dropped = out == 0
    # Both halves of a random word serve, and not the same way.
    first, second = np.split(dropped, 2, -1)
    deviation = (rate * (1 - rate) / first.size) ** 0.5
    for share in (first.mean(), second.mean()):
        assert abs(share - rate) < 4 * deviation
    assert abs((first & second).mean() - rate**2) < 4 * deviation
    np.testing.assert_allclose(out[~dropped], 1 / (1 - rate), rtol=2e-4)
    assert abs(out.mean() - 1) < 6 * deviation / (1 - rate)


def test_dropout_follows_its_key_and_so_does_its_gradient():
    x = jnp.arange(1.0, 65.0).reshape(1, 2, 2, 16)
    out, pull_back = jax.vjp(lambda x: dropout(x, 0.5, jax.random.key(3)), x)
    np.testing.assert_allclose(pull_back(jnp.ones_like(x))[0], out / x, rtol=1e-6)
    np.testing.assert_array_equal(dropout(x, 0.5, jax.random.key(3)), out)
    assert (dropout(x, 0.5, jax.random.key(4)) != out).any()


def test_a_biass_gradient_is_summed_in_float32():
    x, d_out = jnp.zeros((5000, 2), jnp.bfloat16), jnp.full((5000, 2), 1 + 2**-7, jnp.bfloat16)
    d_bias = jax.vjp(lambda bias: add_bias(x, bias), jnp.zeros(2))[1](d_out)[0]
    np.testing.assert_array_equal(d_bias, 5000 * (1 + 2**-7))  # bfloat16 has 5024 and 5056


def count(program, primitive, *arguments):
    """How often a program has an operation of which anything is used."""

    def within(jaxpr):
        used = {id(x) for equation in jaxpr.eqns for x in equation.invars}
        used |= {id(x) for x in jaxpr.outvars}
        total = 0
        for equation in jaxpr.eqns:
            if not any(id(x) in used for x in equation.outvars):
                continue
            total += equation.primitive.name == primitive
            inner = jax.tree.leaves(list(equation.params.values()), is_leaf=is_program)
            total += sum(within(getattr(x, "jaxpr", x)) for x in inner if is_program(x))
        return total

    return within(jax.make_jaxpr(program)(*arguments).jaxpr)


def is_program(x):
    return isinstance(x, Jaxpr | ClosedJaxpr)


@pytest.mark.parametrize("remat", ["none", "products", "blocks", "everything"])
def test_masks_are_drawn_once_whatever_is_recomputed(remat):
    network = Network(lambda rngs: ResBlock(32, 32, 8, 0.1, jnp.dtype("float32"), rngs))

    def loss(params, x, emb, key):
        return jnp.sum(recomputed(network.bind(params).__call__, remat)(x, emb, key))

    arguments = jnp.ones((1, 4, 4, 32)), jnp.ones((1, 8)), jax.random.key(0)
    arguments = jax.device_put(network.init(seed=0)), *arguments
    assert count(jax.grad(loss), "random_bits", *arguments) == 1


@pytest.mark.parametrize("remat", ["none", "products", "blocks", "everything"])
def test_attention_kernels_run_once_each_way_whatever_is_recomputed(remat, monkeypatch):
    monkeypatch.setattr(layers, "tpu_kind", lambda: "TPU v5p")
    monkeypatch.setattr(layers, "on_each_device", lambda function: function)
    q, k, v = jnp.ones((3, 1, 16, 128))

    def loss(q, k, v):
        attend = recomputed(lambda *qkv: layers.attend(*qkv, heads=2), remat)
        return jnp.sum(attend(q, k, v) ** 2)  # its backward pass needs what attention comes to

    assert tpu_attention.fits("TPU v5p", 16, 16, 64, 2)
    assert count(jax.grad(loss), "pallas_call", q, k, v) == 2
