"""Attention on NVIDIA GPUs: parity with plain attention, and which heads cuDNN's kernel takes."""

from functools import partial
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from glide_jax.models.attention import attend, attend_fused, cudnn_takes, has_cudnn_attention


@pytest.mark.parametrize(
    ("q_length", "k_length", "causal"), [(16, 24, False), (9, 9, True)], ids=["text", "causal"]
)
def test_fused_attention_and_its_gradients_match_plain_attention(q_length, k_length, causal):
    rng = np.random.default_rng(0)
    lengths = q_length, k_length, k_length, q_length
    q, k, v, d_out = (jnp.asarray(rng.normal(size=(2, n, 64)), jnp.bfloat16) for n in lengths)
    fused = partial(attend_fused, heads=2, causal=causal, implementation="xla")

    @jax.jit
    def both(*qkv):
        passes = (jax.vjp(f, *qkv) for f in (fused, partial(attend, heads=2, causal=causal)))
        return [(out, *pull(d_out)) for out, pull in passes]

    for ours, plain in zip(*both(q, k, v), strict=True):
        assert ours.dtype == jnp.bfloat16
        ours, plain = np.float32(ours), np.float32(plain)
        np.testing.assert_allclose(ours, plain, rtol=0, atol=2**-6 * np.abs(plain).max())


@pytest.mark.parametrize(
    ("dtype", "width", "takes"),
    [
        ("bfloat16", 64, True),
        ("float16", 32, True),
        ("bfloat16", 128, True),
        ("float32", 64, False),
        ("bfloat16", 136, False),
        ("bfloat16", 60, False),
    ],
)
def test_cudnn_takes_half_precision_and_narrow_heads(dtype, width, takes):
    assert cudnn_takes(jnp.dtype(dtype), width) == takes


@pytest.mark.parametrize(
    ("capability", "has"), [("7.5", False), ("8.0", True), ("12.0", True), ("gfx942", False)]
)
def test_gpus_from_ampere_on_have_fused_attention(capability, has):
    assert has_cudnn_attention(Mock(spec=jax.Device, compute_capability=capability)) == has
