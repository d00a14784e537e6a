"""The Pallas attention kernel of TPUs, interpreted, against plain attention."""

import importlib.util
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

from glide_jax.models import tpu_attention
from glide_jax.models.attention import attend, attend_on_tpu
from glide_jax.models.platform import ANY_PLATFORM, Platform
from glide_jax.models.text import SelfAttention
from glide_jax.parallel.sharding import batch_sharding
from glide_jax.plan.topologies import topology_devices


def normal(key, *shape):
    return jax.random.normal(jax.random.key(key), shape)


def with_gradients(attend, b, q_length, k_length, heads, width):
    q, d_out = (normal(i, b, q_length, heads * width) for i in (0, 1))
    k, v = (normal(i, b, k_length, heads * width) for i in (2, 3))

    @jax.jit
    def run(q, k, v):
        out, pull_back = jax.vjp(attend, q, k, v)
        return out, *pull_back(d_out)

    return run(q, k, v)


@pytest.mark.parametrize(
    ("b", "q_length", "k_length", "heads", "width", "causal"),
    [
        (2, 64, 80, 4, 64, False),  # a level of the U-Net, with text before the pixels
        (1, 512, 4096, 2, 64, False),  # queries in more than one block
        (1, 1536, 1536, 2, 64, True),
        (1, 33, 33, 4, 32, True),  # lengths that fill no register
        (1, 16, 16, 1, 128, False),
    ],
)
def test_the_kernel_computes_attention_and_gradients(b, q_length, k_length, heads, width, causal):
    sizes = (b, q_length, k_length, heads, width)
    assert tpu_attention.fits("TPU v5p", q_length, k_length, width, heads)
    plain = with_gradients(partial(attend, heads=heads, causal=causal), *sizes)
    fused = with_gradients(
        lambda q, k, v: tpu_attention.attend(q, k, v, heads, causal, True), *sizes
    )
    for of_plain, of_fused in zip(plain, fused, strict=True):
        np.testing.assert_allclose(of_fused, of_plain, rtol=5e-6, atol=5e-6)


@pytest.mark.parametrize(
    ("tpu", "sizes", "why"),
    [
        ("TPU v5p", (64, 80, 48, 8), "heads across registers"),
        ("TPU v5p", (64, 80, 32, 3), "half a register"),
        ("TPU v5p", (4096 + 8, 4096, 64, 2), "no block divides the queries"),
        ("TPU v5p", (2**14, 2**14, 64, 2), "keys that vector memory cannot hold"),
        ("TPU v4", (64, 80, 64, 2), "too little vector memory"),
        ("", (64, 80, 64, 2), "not a TPU"),
    ],
)
def test_the_kernel_refuses_shapes_that_do_not_fill_lanes_or_fit_memory(tpu, sizes, why):
    assert not tpu_attention.fits(tpu, *sizes), why


def test_each_device_runs_the_kernel_on_its_own_examples(monkeypatch):
    x = normal(0, 8, 16, 128)

    def gradient(platform):
        attention = SelfAttention(128, 2, jnp.dtype("float32"), platform, nnx.Rngs(0))
        graphdef, params = nnx.split(attention)

        def loss(params, x):
            return jnp.mean(nnx.merge(graphdef, params)(x) ** 2)

        return jax.jit(jax.value_and_grad(loss, (0, 1))), params

    program, params = gradient(ANY_PLATFORM)
    expected = program(params, x)

    kernel, seen = tpu_attention.attend, set()

    def interpreted(q, k, v, heads, causal):
        seen.add(q.shape)
        return kernel(q, k, v, heads, causal, True)

    monkeypatch.setattr(tpu_attention, "attend", interpreted)
    sharding = batch_sharding(Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "fsdp")))
    program, params = gradient(
        Platform(sharding, attend=partial(attend_on_tpu, kind="TPU v5p", batch=sharding))
    )
    found = program(params, jax.device_put(x, sharding))
    assert seen == {(1, 16, 128)}  # one example
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-7), found, expected)
    assert found[1][1].sharding == sharding


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="needs the TPU compiler: make test-tpu"
)
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
@pytest.mark.parametrize(
    ("q_length", "k_length", "heads", "causal"),
    [(1024, 1280, 16, False), (64, 320, 32, False), (77, 77, 8, True), (257, 257, 16, False)],
)
def test_tpus_use_the_kernel(topology, q_length, k_length, heads, causal):
    mesh = Mesh(np.array(topology_devices(topology)).reshape(2, 2), ("data", "fsdp"))
    sharding = batch_sharding(mesh)
    platform = Platform.of(mesh, sharding, training=True)
    gradient = jax.grad(lambda *x: platform.attend(*x, heads, causal=causal).sum(), (0, 1, 2))

    q, k = (
        jax.ShapeDtypeStruct((8, length, heads * 64), jnp.bfloat16, sharding=sharding)
        for length in (q_length, k_length)
    )
    text = jax.jit(gradient).lower(q, k, k).compile().as_text()
    assert text.count('custom_call_target="tpu_custom_call"') == 2  # forward and backward
    assert "all-gather" not in text
