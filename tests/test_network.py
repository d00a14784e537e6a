"""How networks store parameters for sampling, and that no step of the loop casts or copies them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tiny
from helpers.model_set import clip_config
from helpers.one_device import one_device_mesh
from jax.extend.core import Literal

from glide_jax.models.clip import clip_network
from glide_jax.models.glide import glide_network
from glide_jax.models.platform import ANY_PLATFORM, Platform
from glide_jax.plan.sampling import abstract_inputs
from glide_jax.sampling.chunks import Values, chunks
from glide_jax.sampling.programs import Programs

CASTS_AND_COPIES = "convert_element_type concatenate stack slice dynamic_slice gather split"
FORBIDDEN = set(CASTS_AND_COPIES.split())
SAMPLING = Platform(training=False)


def spoiled(jaxpr, from_parameters, in_loop=False):
    """Primitives of FORBIDDEN on parameters, or on what is computed from them alone, in a loop.

    Args:
        jaxpr: a program.
        from_parameters: for each of its arguments, whether it is a parameter.
        in_loop: whether the program is the body of a loop.
    """
    known = dict(zip(jaxpr.invars, from_parameters, strict=True))
    for eqn in jaxpr.eqns:
        # A literal is None: neither a parameter nor anything else.
        given = [None if isinstance(x, Literal) else known.get(x, False) for x in eqn.invars]
        only_parameters = any(given) and False not in given
        if in_loop and only_parameters and eqn.primitive.name in FORBIDDEN:
            yield eqn.primitive.name
        known |= dict.fromkeys(eqn.outvars, only_parameters)
        inner, loops = inner_program(eqn)
        if inner is None:
            continue
        passed = list(zip(eqn.invars, given, strict=True))[-len(inner.invars) :]
        yield from spoiled(inner, [flag for _, flag in passed], in_loop or loops)
        for (outer, flag), x in zip(passed, inner.invars, strict=True):
            if in_loop and flag and outer.aval.shape != x.aval.shape:
                yield eqn.primitive.name  # a scan slices its inputs in every turn


def inner_program(eqn):
    """The program that an equation calls, if any, and whether it is a loop's body."""
    names = ("body_jaxpr", "jaxpr", "call_jaxpr", "fun_jaxpr")
    inner = next((eqn.params[name] for name in names if name in eqn.params), None)
    return getattr(inner, "jaxpr", inner), eqn.primitive.name in ("while", "scan")


def test_the_check_finds_a_cast_a_stack_and_a_slice():
    def program(cast, sliced, stacked, x):
        def body(i, x):
            kernel = cast.astype(jnp.float32) + sliced.reshape(2, 4)[:, :2]
            return jax.lax.scan(
                lambda x, w: (x + w, None),
                x @ kernel,
                jnp.concatenate([stacked] * 2).reshape(2, 2, 2),
            )[0]

        return jax.lax.fori_loop(0, jnp.int32(x[0, 0]), body, x)

    square, half = jnp.zeros((2, 2)), jnp.zeros((2, 2), jnp.bfloat16)
    traced = jax.make_jaxpr(program)(half, jnp.zeros((4, 2)), square, square).jaxpr
    found = set(spoiled(traced, [True, True, True, False]))
    assert found == {"convert_element_type", "slice", "concatenate", "scan"}


@pytest.fixture(scope="module")
def bfloat16():
    """Configurations of a denoiser and a CLIP with several blocks."""
    model, clip = tiny.get_config().denoiser, clip_config().clip
    image = dataclasses.replace(clip.image, layers=2)
    clip = dataclasses.replace(clip, image=image, dtype="bfloat16", remat="blocks")
    return dataclasses.replace(model, dtype="bfloat16"), clip


def test_no_step_casts_stacks_or_slices_a_parameter(bfloat16):
    """With classifier-free and CLIP guidance, whose gradient runs through the image tower."""
    (model, clip), config = bfloat16, tiny.get_config()
    settings = dataclasses.replace(config.sample, guidance_scale=3.0, dynamic_threshold=0.9)
    programs = Programs(model, config.diffusion, one_device_mesh())
    guide = clip_network(clip)
    plan = programs.plan(settings)
    recipe, table, calls = chunks(plan, settings)[0]
    values, count = Values.of(settings, plan.schedule), np.int32(calls)
    inputs = abstract_inputs(model, 2)
    text = jax.ShapeDtypeStruct((2, clip.embedding_width), jnp.float32)
    negative = (inputs.tokens.update(shape=(1, 8)), inputs.token_mask.update(shape=(1, 8)))
    params, clip_params = programs.storage, guide.storage(SAMPLING)
    begun = programs.begin.eval_shape(params, inputs, negative, values, guided=True, history=0)
    inputs = inputs.of_steps._replace(clip_text=text)
    given = (params, clip_params, inputs, *begun, values, table, count)
    traced = programs.advance.trace(*given, clip=guide, recipe=recipe).jaxpr.jaxpr
    parameters = len(params) + len(clip_params)
    flags = [i < parameters for i in range(len(traced.invars))]
    assert any(eqn.primitive.name == "while" for eqn in traced.eqns)
    assert not list(spoiled(traced, flags))


def test_sampling_keeps_in_float32_what_the_original_does(bfloat16):
    network = glide_network(bfloat16[0])
    kept = {name for name, x in network.storage(SAMPLING).items() if x.dtype == jnp.float32}
    vectors = {name for name, x in network.shapes.items() if len(x.shape) < 2}
    kernels = {
        name
        for name in network.shapes
        if name.endswith(".kernel") and (".emb." in name or name.startswith("time_emb"))
    }
    assert kept == vectors | kernels | {"unet.conv_out.kernel"}
    assert {str(x.dtype) for x in network.storage(SAMPLING).values()} == {"float32", "bfloat16"}
    assert {str(x.dtype) for x in network.storage(ANY_PLATFORM).values()} == {"float32"}


def test_a_stage_stores_parameters_once(bfloat16):
    programs = Programs(bfloat16[0], tiny.get_config().diffusion, one_device_mesh())
    network, name = programs.network, "unet.down.0.res.conv1.kernel"
    host = {name: np.full(network.shapes[name].shape, 1 / 3, np.float32)}
    for given in (host, jax.device_put(host)):
        stored = programs.place(given)[name]
        assert stored.dtype == jnp.bfloat16 and stored[0, 0, 0, 0] == jnp.bfloat16(1 / 3)
