import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import model_set, tiny
from helpers.tiny_prior import prior_config

from glide_jax.models.clip import clip_network
from glide_jax.parallel.chips import chip_of
from glide_jax.training.build import make_objective
from glide_jax.training.denoising import Denoising
from glide_jax.training.flops import abstract_batch, matmul_flops, step_flops
from glide_jax.training.frozen_clip import FrozenClip
from glide_jax.training.prior import DiffusionPrior


def array(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def test_matmuls_count_all_their_axes():
    assert matmul_flops(lambda a, b: a @ b, array(3, 5), array(5, 7)) == 2 * 3 * 5 * 7
    attention = matmul_flops(
        lambda q, k: jnp.einsum("bnqk,bnlk->bnql", q, k), array(2, 4, 6, 8), array(2, 4, 9, 8)
    )
    assert attention == 2 * 2 * 4 * 6 * 9 * 8


def test_convolutions_do_not_count_padding():
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    assert matmul_flops(convolve, array(2, 8, 8, 5), array(3, 3, 5, 7)) == 2 * 2 * 22**2 * 5 * 7


def test_loops_count_every_iteration_and_calls_are_followed():
    @jax.jit
    def inner(x):
        return x @ x

    def looped(x):
        return jax.lax.scan(lambda x, _: (jax.checkpoint(inner)(x), None), x, None, length=6)[0]

    assert matmul_flops(looped, array(4, 4)) == 6 * 2 * 4**3


def test_a_gradient_counts_the_operands_that_depend_on_the_parameters():
    def loss(params, frozen, x):
        x = x @ frozen  # once: it has no backward pass
        x = x @ params  # twice: x does not depend on the parameters
        return jax.lax.scan(lambda x, _: (x @ params, None), x, None, length=6)[0]  # three times

    arrays = array(4, 4), array(4, 4), array(4, 4)
    assert matmul_flops(loss, *arrays, gradient=True) == (1 + 2 + 6 * 3) * 2 * 4**3
    assert matmul_flops(loss, *arrays) == (1 + 1 + 6) * 2 * 4**3


def test_the_carry_of_a_loop_depends_on_what_its_iterations_add():
    def loss(params, x, xs):
        def body(carry, x):
            return (carry[1], carry[0] @ params), x @ x

        return jax.lax.scan(body, (x, x), xs, length=5)

    arrays = array(4, 4), array(4, 4), array(5, 4, 4)
    # The second carry depends after one iteration, the first after two; no slice does.
    assert matmul_flops(loss, *arrays, gradient=True) == 5 * (3 + 1) * 2 * 4**3


def test_a_step_counts_three_forward_passes():
    config = tiny.get_config()
    objective = make_objective(config)
    found = step_flops(objective, abstract_batch(config))
    # The compiler's count also has additions and norms: slightly more.
    key = jax.random.key(0)
    forward = jax.jit(objective.validate).lower(
        objective.network.shapes, {}, abstract_batch(config), key
    )
    counted = forward.cost_analysis()["flops"]
    assert 0.7 * counted < found / 3 < counted


def test_an_auxiliary_clip_counts_too():
    config = tiny.get_config()
    train = dataclasses.replace(config.train, clip_run="clip", clip_loss_weight=0.1)
    config = dataclasses.replace(config, train=train)
    clip = model_set.clip_config().clip
    with_clip = Denoising(config, FrozenClip(clip, clip_network(clip).shapes))
    batch = abstract_batch(config, clip)
    assert step_flops(with_clip, batch) > step_flops(Denoising(config), abstract_batch(config))


def test_a_frozen_clip_has_no_backward_pass():
    clip_config = model_set.clip_config().clip
    clip = FrozenClip(clip_config, clip_network(clip_config).shapes)
    config = prior_config()
    objective, batch = DiffusionPrior(config, clip), abstract_batch(config, clip_config)

    def embed(frozen, image, batch):
        text = clip.embed_text(frozen, batch["tokens"], batch["token_mask"])
        return clip.embed_image(frozen, image), text

    embedding = matmul_flops(embed, clip.params, array(*batch["image"].shape), batch)
    key = jax.random.key(0)
    forward = matmul_flops(objective.validate, objective.network.shapes, clip.params, batch, key)
    trained = forward - embedding
    # The matmuls of the prior's own inputs are counted twice, all others three times.
    assert embedding + 2 * trained < step_flops(objective, batch) < embedding + 3 * trained


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("TPU v5p", "v5p"),
        ("TPU v6e", "v6e"),
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA A100-SXM4-40GB", "A100 40 GB"),
        ("NVIDIA A100 80GB PCIe", "A100"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_chips_are_known_by_their_kind(kind, name):
    assert chip_of(kind).name == name


def test_unknown_devices_have_no_peak_flops():
    laptop, slower, part = "GeForce RTX 4090 Laptop GPU", "H100 PCIe", "H100 80GB HBM3 MIG 1g.10gb"
    for kind in ("cpu", *(f"NVIDIA {gpu}" for gpu in (laptop, slower, part))):
        assert chip_of(kind) is None
    # Multiply-adds a cycle, from the sizes and numbers of the matrix units.
    macs = {"v5e": 65_536, "v5p": 131_072, "v6e": 262_144, "v4": 131_072}
    for kind in ("TPU v4", "TPU v5 lite", "TPU v5", "TPU v6 lite"):
        chip = chip_of(kind)
        np.testing.assert_allclose(chip.flops / 2 / chip.clock_hz, macs[chip.name], rtol=0.01)
