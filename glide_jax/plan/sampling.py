"""Whether drawing fits a TPU slice and how long it would take: for `plan.py`'s `--sampler`."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from glide_jax.config import Config, ModelConfig
from glide_jax.diffusion.loop import denoiser_calls
from glide_jax.diffusion.schedule import Schedule
from glide_jax.errors import UserError
from glide_jax.parallel import sharding
from glide_jax.plan.compiled import usage
from glide_jax.plan.slices import SlicePlan, compile_for, known_chip, topology_devices
from glide_jax.sampling.programs import Inputs, Programs, chunk_size, constants


@dataclass(frozen=True, kw_only=True)
class SamplerPlan(SlicePlan):
    """What drawing takes: memory of both programs, seconds and collectives of one call."""

    images: int
    """Drawn at a time, over all chips."""
    sampler: str
    calls: int
    """Of the denoiser, for a drawing."""
    guided: bool
    begin_s: float
    """Encoding the text, and what else is done once."""

    @property
    def call_s(self) -> float:
        """One call of the denoiser, for all images."""
        return self.compute_s + self.waiting_s

    @property
    def drawing_s(self) -> float:
        """All images, from captions to the last step."""
        return self.begin_s + self.calls * self.call_s

    def report(self) -> str:
        """For people."""
        sizes = {
            "parameters": self.parameter_bytes,
            "batch": self.batch_bytes,
            "programs": self.code_bytes,
            "temporary": self.temporary_bytes,
        }
        guided = "guided" if self.guided else "not guided"
        what = f"{self.images} images by {self.calls} calls of {self.sampler}, {guided}"
        waiting = self.waiting_s / self.call_s
        estimated = (
            f"text, once          {1e3 * self.begin_s:9.2f} ms",
            f"computation         {1e3 * self.compute_s:9.2f} ms",
            f"waiting for others  {1e3 * self.waiting_s:9.2f} ms ({waiting:.1%})",
            f"call                {1e3 * self.call_s:9.2f} ms",
            f"drawing             {self.drawing_s:9.3f} s",
            f"images            {self.images / self.drawing_s:9.2f} /s",
        )
        return self.tell(what, sizes, "call", estimated)


def plan_sampler(
    config: Config,
    name: str,
    topology: str,
    fsdp: int,
    effort: str = "full",
    images: int | None = None,
) -> SamplerPlan:
    """Compiles the programs that draw with a run's model, by its sample settings, for a slice.

    Guidance by CLIP is left out: it would need one.

    Args:
        config: the run.
        name: what to call it.
        topology: see `topology_devices`; all its chips are one process's.
        fsdp: chips over which parameters are shared out; the others repeat them.
        effort: a key of EFFORTS.
        images: drawn at a time, over all chips; one each unless given.

    Raises:
        UserError: the slice, or the images, do not divide, or the model is one that draws
            nothing.
    """
    devices = topology_devices(topology)
    chip = known_chip(devices[0])
    images = require_even(images, len(devices))
    programs = Programs(config, sharding.local_mesh(fsdp, devices))
    shapes = programs.network.shapes
    placed = sharding.infer(shapes, programs.mesh)
    params = jax.tree.map(_on, shapes, placed)
    inputs = jax.tree.map(
        lambda x: _on(x, programs.placement(images)), abstract_inputs(config.denoiser, images)
    )
    length = config.denoiser.text.length
    negative = tuple(jax.ShapeDtypeStruct((1, length), kind) for kind in (jnp.int32, jnp.bool_))
    settings = config.sample
    schedule = Schedule.of(config.diffusion, settings.steps)
    options = constants(settings, schedule.steps)
    begin = programs.begin.lower(params, inputs, negative, **options)
    begun, begin_compile_s = compile_for(topology, begin, effort)
    conditioned, state = jax.tree.map(_on, begin.out_info, begun.output_shardings)

    calls = denoiser_calls(schedule, sampler=settings.sampler, eta=settings.eta)
    at_a_time = chunk_size(calls)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    advance = programs.advance.lower(
        params,
        None,
        inputs,
        conditioned,
        state,
        (number, number),
        jax.ShapeDtypeStruct((), jnp.int32),
        clip=None,
        calls=at_a_time,
        **options,
    )
    advanced, advance_compile_s = compile_for(topology, advance, effort)
    once, memory = begun.memory_analysis(), advanced.memory_analysis()
    assert once is not None and memory is not None  # of TPUs there always are
    spent = usage(advanced.as_text() or "", chip)
    parameter_bytes = sharding.bytes_a_device(shapes, placed)
    arguments = max(0, memory.argument_size_in_bytes - parameter_bytes)
    return SamplerPlan(
        config=name,
        topology=topology,
        mesh=(len(devices) // fsdp, fsdp),
        images=images,
        sampler=settings.sampler,
        calls=calls,
        guided=options["guided"],
        chips=len(devices),
        hbm_bytes=chip.hbm_bytes,
        parameter_bytes=parameter_bytes,
        temporary_bytes=max(once.temp_size_in_bytes, memory.temp_size_in_bytes),
        batch_bytes=arguments + memory.output_size_in_bytes,
        code_bytes=once.generated_code_size_in_bytes + memory.generated_code_size_in_bytes,
        begin_s=usage(begun.as_text() or "", chip).step_s,
        operation_s={name: s / at_a_time for name, s in spent.operation_s.items()},
        waiting_s=spent.waiting_s / at_a_time,
        collective_s={kind: s / at_a_time for kind, s in spent.collective_s.items()},
        collective_bytes={kind: b / at_a_time for kind, b in spent.collective_bytes.items()},
        compile_s=begin_compile_s + advance_compile_s,
        effort=effort,
    )


def require_even(images: int | None, chips: int) -> int:
    """How many images are drawn at a time. Raises UserError where `Stage` would draw more."""
    if images is None:
        return chips
    if images < 1 or (images > 1 and images % chips):
        raise UserError(f"--images {images}: give 1, or a multiple of the slice's {chips} chips")
    return images


def abstract_inputs(model: ModelConfig, images: int) -> Inputs:
    """Shapes and types of what a batch of images is drawn from."""
    px, small, length = model.resolution_px, model.low_res_px, model.text.length

    def zeros() -> Inputs:
        return Inputs(
            tokens=jnp.zeros((images, length), jnp.int32),
            token_mask=jnp.zeros((images, length), jnp.bool_),
            keys=jax.vmap(jax.random.key)(jnp.zeros(images, jnp.uint32)),
            low_res=jnp.zeros((images, small, small, 3)) if small else None,
            known=jnp.zeros((images, px, px, 3)) if model.inpaint else None,
            mask=jnp.zeros((images, px, px, 1)) if model.inpaint else None,
            start=None,
            clip_text=None,
        )

    return jax.eval_shape(zeros)


def _on(x: jax.ShapeDtypeStruct, where: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)
