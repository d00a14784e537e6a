"""Values and gradients of layers, and the operations their backward passes recompute."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend.core import ClosedJaxpr, Jaxpr

from glide_jax.models import tpu_attention
from glide_jax.models.attention import attend_on_tpu
from glide_jax.models.layers import GroupNorm, LayerNorm, add_bias, dropout
from glide_jax.models.network import Network
from glide_jax.models.platform import ANY_PLATFORM, Platform
from glide_jax.models.remat import recomputed
from glide_jax.models.resampling import mean_pool, nearest_x2, repeat_x2, repeat_x2_by_padding
from glide_jax.models.scan_blocks import apply_blocks
from glide_jax.models.text import TransformerBlock
from glide_jax.models.unet_blocks import AttentionBlock, ResBlock, TextKV
from glide_jax.parallel.sharding import batch_sharding, local_mesh


def tpu_attention_platform():
    """The platform of a TPU's attention on one CPU: to be traced, not run."""
    batch = batch_sharding(local_mesh(given=jax.devices()[:1]))
    return Platform(batch, attend=partial(attend_on_tpu, kind="TPU v5p", batch=batch))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeros_the_given_fraction_and_keeps_the_mean(rate):
    x = jnp.ones((4, 32, 32, 64))
    out = np.asarray(dropout(x, rate, jax.random.key(0)))
    dropped = out == 0
    # Each random word serves four channels, which must be independent.
    quarters = np.split(dropped, 4, -1)
    deviation = (rate * (1 - rate) / quarters[0].size) ** 0.5
    for quarter in quarters:
        assert abs(quarter.mean() - rate) < 4 * deviation
    for one, other in itertools.combinations(quarters, 2):
        assert abs((one & other).mean() - rate**2) < 4 * deviation
    np.testing.assert_allclose(out[~dropped], 1 / (1 - rate), rtol=2e-4)
    assert abs(out.mean() - 1) < 4 * deviation / (1 - rate)


def test_dropout_and_its_gradient_depend_on_the_key_alone():
    x = jnp.arange(1.0, 65.0).reshape(1, 2, 2, 16)
    out, pull_back = jax.vjp(lambda x: dropout(x, 0.5, jax.random.key(3)), x)
    np.testing.assert_allclose(pull_back(jnp.ones_like(x))[0], out / x, rtol=1e-6)
    np.testing.assert_array_equal(dropout(x, 0.5, jax.random.key(3)), out)
    assert (dropout(x, 0.5, jax.random.key(4)) != out).any()


def test_bias_gradients_are_summed_in_float32():
    x, d_out = jnp.zeros((5000, 2), jnp.bfloat16), jnp.full((5000, 2), 1 + 2**-7, jnp.bfloat16)
    d_bias = jax.vjp(lambda bias: add_bias(x, bias), jnp.zeros(2))[1](d_out)[0]
    np.testing.assert_array_equal(d_bias, 5000 * (1 + 2**-7))  # bfloat16 has 5024 and 5056


def test_group_norm_returns_the_type_of_its_input_and_rounds_once():
    norm, x = GroupNorm(32), jnp.linspace(-3, 5, 512, dtype=jnp.bfloat16).reshape(2, 2, 4, 32)
    scale = shift = jnp.linspace(-1, 1, 64).reshape(2, 32)
    precise = norm(x.astype(jnp.float32), scale, shift)
    np.testing.assert_array_equal(norm(x, scale, shift), precise.astype(jnp.bfloat16))


@pytest.mark.parametrize("repeat", [repeat_x2, repeat_x2_by_padding])
def test_resampling_averages_and_repeats_pixels_and_gradients_are_transposes(repeat):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 6, 3)), jnp.float32)
    d_small, d_large = mean_pool(x + 1, repeat), nearest_x2(x, repeat)
    small, pull_small = jax.vjp(lambda x: mean_pool(x, repeat), x)
    large, pull_large = jax.vjp(lambda x: nearest_x2(x, repeat), x)
    by_four = np.asarray(x).reshape(2, 2, 2, 3, 2, 3)
    np.testing.assert_allclose(small, by_four.mean((2, 4)), atol=1e-6)
    np.testing.assert_array_equal(large, np.asarray(x).repeat(2, 1).repeat(2, 2))
    # The gradient of a linear map is its transpose: <d, f(x)> = <f^T(d), x>.
    for out, d_out, pull in ((small, d_small, pull_small), (large, d_large, pull_large)):
        np.testing.assert_allclose(jnp.vdot(pull(d_out)[0], x), jnp.vdot(d_out, out), rtol=1e-5)


def count(program, primitive, *arguments):
    """How often an operation occurs in a program with its output used."""

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


@pytest.mark.parametrize("remat", ["none", "matmuls", "blocks", "everything"])
def test_dropout_masks_are_drawn_once_under_every_policy(remat):
    network = Network(
        lambda rngs, platform: ResBlock(32, 32, 8, 0.1, jnp.dtype("float32"), platform, rngs)
    )

    def loss(params, x, emb, key):
        return jnp.sum(recomputed(network.bind(params).__call__, remat)(x, emb, key))

    arguments = jnp.ones((1, 4, 4, 32)), jnp.ones((1, 8)), jax.random.key(0)
    arguments = jax.device_put(network.init(seed=0)), *arguments
    assert count(jax.grad(loss), "random_bits", *arguments) == 1


@pytest.mark.parametrize("remat", ["none", "matmuls", "blocks", "everything"])
def test_attention_kernels_run_once_in_each_pass_under_every_policy(remat):
    platform = tpu_attention_platform()
    q, k, v = jnp.ones((3, 1, 16, 128))

    def loss(q, k, v):
        attend = recomputed(lambda *qkv: platform.attend(*qkv, heads=2), remat)
        return jnp.sum(attend(q, k, v) ** 2)  # its backward pass needs attention's output

    assert tpu_attention.fits("TPU v5p", 16, 16, 64, 2)
    assert count(jax.grad(loss), "pallas_call", q, k, v) == 2


@pytest.mark.parametrize("norm", [GroupNorm, LayerNorm])
@pytest.mark.parametrize("remat", ["matmuls", "blocks", "everything"])
def test_norms_sum_over_their_input_once_under_every_policy(norm, remat):
    network = Network(lambda rngs, platform: norm(32))
    params, x = jax.device_put(network.init(seed=0)), jnp.ones((1, 4, 4, 32))

    def sums(remat):
        call = recomputed(lambda params, x: jnp.sin(network.bind(params)(x)), remat)
        return count(
            jax.grad(lambda *given: jnp.sum(call(*given)), (0, 1)), "reduce_sum", params, x
        )

    assert sums(remat) == sums("none")


def test_layer_norm_and_its_gradient_match_the_formula():
    norm, x = LayerNorm(32), jnp.asarray(np.random.default_rng(0).normal(3, 2, (4, 32)))

    def written(x):
        return (x - x.mean(-1, keepdims=True)) / (x.var(-1, keepdims=True) + 1e-5) ** 0.5

    d_out = jnp.linspace(-1, 1, 128).reshape(4, 32)
    (out, pull), (expected, pull_expected) = jax.vjp(norm, x), jax.vjp(written, x)
    np.testing.assert_allclose(out, expected, atol=1e-6)
    np.testing.assert_allclose(pull(d_out)[0], pull_expected(d_out)[0], atol=1e-6)


@pytest.mark.parametrize("primitive", ["dot_general", "conv_general_dilated", "concatenate"])
def test_matmuls_are_kept_as_the_next_layer_reads_them(primitive):
    common = jnp.dtype("float32"), tpu_attention_platform()
    res = Network(lambda rngs, _: ResBlock(128, 128, 8, 0.0, *common, rngs))
    transformer = Network(lambda rngs, _: TransformerBlock(128, 2, *common, rngs))
    attention = Network(lambda rngs, _: AttentionBlock(128, 64, 8, *common, rngs))
    x, emb, text = jnp.ones((1, 4, 4, 128)), jnp.ones((1, 8)), TextKV(*jnp.ones((2, 1, 16, 128)))

    def times(remat, network, *arguments):
        def loss(params, *arguments):
            return jnp.sum(recomputed(network.bind(params).__call__, remat)(*arguments) ** 2)

        return count(jax.grad(loss), primitive, jax.device_put(network.init(seed=0)), *arguments)

    for arguments in ((res, x, emb), (attention, x, text), (transformer, x[:, 0])):
        assert times("matmuls", *arguments) == times("none", *arguments)


def test_matmuls_keeps_input_and_output_of_gelu_and_one_barrier_is_enough():
    network = Network(
        lambda rngs, platform: TransformerBlock(32, 2, jnp.dtype("float32"), platform, rngs)
    )
    params, x = jax.device_put(network.init(seed=0)), jnp.ones((1, 4, 32))

    def wide(remat):
        call = recomputed(lambda params, x: network.bind(params)(x), remat)
        held = jax.eval_shape(lambda *given: jax.vjp(call, *given)[1], params, x)
        return sum(kept.shape == (1, 4, 128) for kept in jax.tree.leaves(held))

    assert (wide("matmuls"), wide("blocks")) == (2, 0)

    def loss(params):
        return jnp.sum(network.bind(params)(x) ** 2)

    assert count(jax.grad(loss), "optimization_barrier", params) == 1


@pytest.mark.parametrize(("remat", "loops"), [("matmuls", 0), ("blocks", 1), ("none", 1)])
def test_blocks_are_a_loop_unless_their_matmuls_are_kept(remat, loops):
    rngs, float32 = nnx.Rngs(0), jnp.dtype("float32")
    blocks = [TransformerBlock(32, 2, float32, ANY_PLATFORM, rngs) for _ in range(2)]
    blocks = jax.tree.map(jnp.asarray, blocks)

    def run(x):
        return apply_blocks(blocks, x, remat, ANY_PLATFORM)

    assert count(run, "scan", jnp.ones((1, 4, 32))) == loops
