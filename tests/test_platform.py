"""The table of implementations by platform."""

from dataclasses import replace
from unittest.mock import Mock

import jax
import numpy as np
import pytest
from flax import nnx
from helpers import tiny
from helpers.one_device import one_device_mesh
from jax.sharding import Mesh

from glide_jax.models.attention import attend, attend_on_cpu, attend_on_gpu, attend_on_tpu
from glide_jax.models.convolution import convolve
from glide_jax.models.cpu_convolution import convolve_often_on_cpu, convolve_on_cpu
from glide_jax.models.glide import glide_network
from glide_jax.models.matmul import matmul_on_cpu
from glide_jax.models.platform import ANY_PLATFORM, Platform
from glide_jax.models.resampling import repeat_x2_by_padding
from glide_jax.parallel.sharding import batch_sharding


def mesh_of(platform, kind="", compute_capability="7.5"):
    device = Mock(spec=jax.Device, platform=platform, device_kind=kind)
    device.compute_capability = compute_capability
    return Mock(spec=Mesh, devices=np.array([[device]], object))


@pytest.mark.parametrize("platform", ["cpu", "gpu"])
@pytest.mark.parametrize("training", [True, False])
def test_gpus_of_before_take_xlas_implementations_and_cpus_their_matmuls(platform, training):
    batch = batch_sharding(one_device_mesh())
    expected = Platform(batch, training=training)
    if platform == "cpu":
        attention = attend if training else attend_on_cpu
        expected = replace(
            expected,
            attend=attention,
            convolve=convolve_on_cpu,
            convolve_often=convolve_often_on_cpu,
            matmul=matmul_on_cpu,
        )
    assert Platform.of(mesh_of(platform), batch, training=training) == expected


def test_tpus_take_their_own_implementations_of_sharded_batches():
    mesh, batch = mesh_of("tpu", "TPU v5p"), batch_sharding(one_device_mesh())
    platform = Platform.of(mesh, batch, training=True)
    assert platform.attend.func is attend_on_tpu
    assert platform.attend.keywords == {"kind": "TPU v5p", "batch": batch}
    assert platform.repeat_x2 is repeat_x2_by_padding
    assert platform.row_major != ANY_PLATFORM.row_major
    assert platform.convolve is convolve
    assert Platform.of(mesh, None, training=True) == ANY_PLATFORM


@pytest.mark.parametrize("training", [True, False])
def test_gpus_from_ampere_on_take_cudnns_attention_of_sharded_batches(training):
    mesh, batch = mesh_of("gpu", "NVIDIA H100 80GB HBM3", "9.0"), batch_sharding(one_device_mesh())
    platform = Platform.of(mesh, batch, training=training)
    assert platform.attend.func is attend_on_gpu and platform.attend.keywords == {"batch": batch}
    assert replace(platform, attend=attend) == Platform(batch, training=training)
    assert Platform.of(mesh, None, training=training) == Platform(training=training)


def test_parameters_do_not_depend_on_the_platform():
    network = glide_network(tiny.get_config().denoiser)
    mesh, batch = mesh_of("tpu", "TPU v5p"), batch_sharding(one_device_mesh())
    params = jax.device_put(network.init(seed=0))
    bound = network.bind(params, Platform.of(mesh, batch, training=True))
    state = {".".join(map(str, path)): x for path, x in nnx.to_flat_state(nnx.state(bound))}
    assert state.keys() == params.keys() == network.shapes.keys()
    jax.tree.map(np.testing.assert_array_equal, {k: v[...] for k, v in state.items()}, params)
