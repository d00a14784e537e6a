"""Attention on NVIDIA GPUs: parity with plain attention, and where programs use cuDNN's kernel."""

import re
from dataclasses import replace
from functools import partial
from unittest.mock import Mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.cuda import with_cuda
from jax.sharding import Mesh

from glide_jax.models.attention import attend, attend_fused, cudnn_takes, has_cudnn_attention
from glide_jax.models.platform import Platform
from glide_jax.parallel.sharding import batch_sharding, make_mesh
from glide_jax.plan import sampling
from glide_jax.plan.topologies import topology_devices
from glide_jax.training.build import make_objective
from glide_jax.training.flops import abstract_batch
from glide_jax.training.step import Trainer


@pytest.mark.parametrize(("q_length", "k_length", "causal"), [(16, 24, False), (9, 9, True)])
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


@with_cuda
@pytest.mark.parametrize(
    ("q_length", "k_length", "causal"), [(64, 320, False), (77, 77, True), (257, 257, False)]
)
def test_each_gpu_runs_the_kernel_on_its_own_examples(q_length, k_length, causal):
    mesh = Mesh(np.array(topology_devices("h100:8")).reshape(4, 2), ("data", "fsdp"))
    sharding = batch_sharding(mesh)
    platform = Platform.of(mesh, sharding, training=True)
    gradient = jax.grad(lambda *x: platform.attend(*x, 4, causal=causal).sum(), (0, 1, 2))
    q, k = (
        jax.ShapeDtypeStruct((16, length, 256), jnp.bfloat16, sharding=sharding)
        for length in (q_length, k_length)
    )
    text = jax.jit(gradient).lower(q, k, k).compile().as_text()
    assert (text.count('"__cudnn$fmhaSoftmax"'), text.count("$fmhaSoftmaxBackward")) == (1, 1)
    padded = q_length + q_length % 2
    assert f"bf16[2,4,{padded},64]" in text  # two examples on each GPU
    assert "all-gather" not in text


def half_precision(remat="none"):
    config = tiny.get_config()
    return replace(config, model=replace(config.model, dtype="bfloat16", remat=remat))


def logits(text):
    """Float32 tensors of the logits of the U-Net's or of the text transformer's attention."""
    return re.findall(r"tensor<\d+x(?:1x64x72|2x8x8)xf32>", text)


@with_cuda
@pytest.mark.parametrize("remat", ["none", "matmuls", "blocks", "everything", "offload"])
def test_a_train_step_on_gpus_runs_the_kernel_once_in_each_pass(remat):
    config = half_precision(remat)
    mesh = make_mesh(config, topology_devices("rtx4090"))
    text = Trainer(config, make_objective(config), mesh).lower(abstract_batch(config)).as_text()
    forward, backward = (text.count(f"@__cudnn$fmhaSoftmax{end}(") for end in ("", "Backward"))
    assert forward == backward > 0 and not logits(text)


@with_cuda
def test_sampling_on_gpus_runs_the_kernel(monkeypatch):
    compile_for, texts = sampling.compile_for, []

    def spy(topology, lowered, effort):
        texts.append(lowered.as_text())
        return compile_for(topology, lowered, effort)

    monkeypatch.setattr(sampling, "compile_for", spy)
    found = sampling.forecast_sampling(half_precision(), "tiny", "rtx4090", fsdp=1, images=4)
    assert len(texts) == 2  # the text, once, and a chunk of denoiser calls
    for text in texts:
        assert "@__cudnn$fmhaSoftmax(" in text and not logits(text)
    assert found.operation_s["dot_product_attention_fwd"] > 0
