"""Forecast of sampling with unCLIP's prior: its one program from text states to embeddings."""

import jax
import jax.numpy as jnp

from glide_jax.config import Config, PriorConfig
from glide_jax.models.build import build_network
from glide_jax.models.platform import Platform
from glide_jax.parallel import sharding
from glide_jax.plan.compiled import loops_usage, timing, usage
from glide_jax.plan.forecast import compile_for, known_chip
from glide_jax.plan.sampling import SamplingForecast, require_even
from glide_jax.plan.topologies import topology_devices
from glide_jax.sampling.prior_stage import PriorInputs, call_arguments, prior_program
from glide_jax.shapes import TextStates


def forecast_prior(
    config: Config,
    name: str,
    topology: str,
    fsdp: int,
    effort: str = "full",
    images: int | None = None,
) -> SamplingForecast:
    """Compiles a prior's sampling program for a topology, with its sampling settings.

    Args:
        config, name, topology, fsdp, effort: as of `forecast_sampling`.
        images: embeddings, over all chips; None: one per chip.

    Raises:
        UserError: `fsdp` or `images` does not divide, or the model is not a prior.
    """
    devices = topology_devices(topology)
    chip, images = known_chip(devices[0]), require_even(images, len(devices))
    mesh = sharding.local_mesh(fsdp, devices)
    shapes = build_network(config.prior).storage(Platform.of(mesh, None, training=False))
    placed = sharding.infer(shapes, mesh)
    params = {k: _on(x, placed[k]) for k, x in shapes.items()}
    replicated = sharding.replicated(mesh)
    shared, static = call_arguments(config, config.sample)
    # An autoregressive prior samples all codes in one loop.
    calls = int(shared[-1]) if config.prior.architecture == "diffusion" else 1
    (inputs, empty), shared = jax.tree.map(
        lambda x: _on(x, replicated), (_inputs(config.prior, images), shared)
    )
    lowered = prior_program(config.prior, config.diffusion, mesh).lower(
        params, inputs, empty, *shared, **static
    )
    compiled, compile_s = compile_for(topology, lowered, effort)
    memory = compiled.memory_analysis()
    assert memory is not None
    text = compiled.as_text() or ""
    repeated = loops_usage(text, chip)
    parameter_bytes = sharding.bytes_a_device(shapes, placed)
    arguments = max(0, memory.argument_size_in_bytes - parameter_bytes)
    return SamplingForecast(
        config=name,
        topology=topology,
        mesh=(len(devices) // fsdp, fsdp),
        images=images,
        sampler=config.sample.sampler,
        calls=calls,
        guided=static["guided"],
        chips=len(devices),
        hbm_bytes=chip.usable_bytes,
        parameter_bytes=parameter_bytes,
        temporary_bytes=memory.temp_size_in_bytes,
        batch_bytes=arguments + memory.output_size_in_bytes,
        code_bytes=memory.generated_code_size_in_bytes,
        begin_s=usage(text, chip).step_s - repeated.step_s,
        **repeated.fields(),
        timing=timing(chip),
        compile_s=compile_s,
        effort=effort,
    )


def _inputs(model: PriorConfig, images: int) -> tuple[PriorInputs, TextStates]:
    """Shapes of the captions and seeds of a batch, and of the empty caption."""

    def states(count: int) -> TextStates:
        mask = jnp.zeros((count, model.text.length), jnp.bool_)
        embedding = jnp.zeros((count, model.embedding_width))
        return TextStates(embedding, jnp.zeros((*mask.shape, model.text.width)), mask)

    def zeros() -> tuple[PriorInputs, TextStates]:
        row = jnp.zeros(images, jnp.int32)
        return PriorInputs(states(images), row.astype(jnp.uint32), row), states(1)

    return jax.eval_shape(zeros)


def _on(x: jax.ShapeDtypeStruct, placement: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement)
