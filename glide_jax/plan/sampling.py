"""Forecast of sampling on TPUs or GPUs: memory, and time per denoiser call and per batch."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from glide_jax.config import Config, ModelConfig, SampleConfig
from glide_jax.diffusion.samplers import SamplerPlan
from glide_jax.errors import UserError
from glide_jax.parallel import sharding
from glide_jax.plan.compiled import timing, usage
from glide_jax.plan.forecast import Forecast, compile_for, known_chip
from glide_jax.plan.topologies import topology_devices
from glide_jax.sampling.chunks import Values, chunks
from glide_jax.sampling.programs import Inputs, Programs
from glide_jax.shapes import TextStates


@dataclass(frozen=True, kw_only=True)
class SamplingForecast(Forecast):
    """Memory of the sampling programs; time and communication of one denoiser call."""

    images: int
    """Batch size, over all chips."""
    sampler: str
    calls: int
    """Denoiser calls per batch."""
    guided: bool
    begin_s: float
    """Time of the part that runs once: text encoding and conditioning."""

    @property
    def call_s(self) -> float:
        """Time of one denoiser call on the batch."""
        return self.compute_s + self.exposed_s

    @property
    def sampling_s(self) -> float:
        """Time of a batch, from captions to images."""
        return self.begin_s + self.calls * self.call_s

    def report(self) -> str:
        """Human-readable summary."""
        sizes = {
            "parameters": self.parameter_bytes,
            "batch": self.batch_bytes,
            "code": self.code_bytes,
            "temporary": self.temporary_bytes,
        }
        guided = "guided" if self.guided else "unguided"
        program = f"{self.images} images, {self.calls} {guided} calls of {self.sampler}"
        exposed = self.exposed_s / self.call_s
        estimates = (
            f"text, once          {1e3 * self.begin_s:9.2f} ms",
            f"computation         {1e3 * self.compute_s:9.2f} ms",
            f"exposed collectives {1e3 * self.exposed_s:9.2f} ms ({exposed:.1%})",
            f"denoiser call       {1e3 * self.call_s:9.2f} ms",
            f"batch               {self.sampling_s:9.3f} s",
            f"images              {self.images / self.sampling_s:9.2f} /s",
        )
        return self._report(program, sizes, "denoiser call", estimates)


def forecast_sampling(
    config: Config,
    name: str,
    topology: str,
    fsdp: int,
    effort: str = "full",
    images: int | None = None,
) -> SamplingForecast:
    """Compiles a run's sampling programs for a topology, with its sampling settings.

    CLIP guidance, which would need a second model, is left out.

    Args:
        config: the run.
        name: of the run, for the report.
        topology: see `topology_devices`; one process drives all chips.
        fsdp: number of chips over which parameters are sharded.
        effort: a key of EFFORTS.
        images: batch size, over all chips; None: one image per chip.

    Raises:
        UserError: `fsdp` or `images` does not divide, or the model is not a denoiser.
    """
    devices = topology_devices(topology)
    chip = known_chip(devices[0])
    images = require_even(images, len(devices))
    programs = Programs(config.denoiser, config.diffusion, sharding.local_mesh(fsdp, devices))
    settings = config.sample
    plan = programs.plan(settings)
    begin, advance, compile_s = _compile(programs, images, plan, settings, topology, effort)
    once, repeated = begin.memory_analysis(), advance.memory_analysis()
    assert once is not None and repeated is not None
    parameter_bytes = sharding.bytes_a_device(*_placed_params(programs))
    arguments = max(0, repeated.argument_size_in_bytes - parameter_bytes)
    return SamplingForecast(
        config=name,
        topology=topology,
        mesh=(len(devices) // fsdp, fsdp),
        images=images,
        sampler=settings.sampler,
        calls=plan.calls,
        guided=settings.guidance_scale != 1 and config.denoiser.text.encoder != "none",
        chips=len(devices),
        hbm_bytes=chip.usable_bytes,
        parameter_bytes=parameter_bytes,
        temporary_bytes=max(once.temp_size_in_bytes, repeated.temp_size_in_bytes),
        batch_bytes=arguments + repeated.output_size_in_bytes,
        code_bytes=once.generated_code_size_in_bytes + repeated.generated_code_size_in_bytes,
        begin_s=usage(begin.as_text() or "", chip).step_s,
        **usage(advance.as_text() or "", chip).fields(),  # of a loop of any length: one call
        timing=timing(chip),
        compile_s=compile_s,
        effort=effort,
    )


def _compile(
    programs: Programs,
    images: int,
    plan: SamplerPlan,
    settings: SampleConfig,
    topology: str,
    effort: str,
) -> tuple[jax.stages.Compiled, jax.stages.Compiled, float]:
    """Compiles `Programs.begin` and `advance`, guided if it ever is; also returns the seconds."""
    model = programs.model
    params = jax.tree.map(_on, *_placed_params(programs))
    inputs = jax.tree.map(
        lambda x: _on(x, programs.placement(images)), abstract_inputs(model, images)
    )
    negative = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, *x.shape[1:]), x.dtype),
        (inputs.tokens, inputs.token_mask, inputs.states),
    )
    parts = chunks(plan, settings, captioned=model.text.encoder != "none")
    chunk = next((part for part in parts if part.recipe.guided), parts[0])
    values, table, calls = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype),
        (Values.of(settings, plan.schedule), chunk.table, np.int32(chunk.calls)),
    )
    static = {"guided": chunk.recipe.guided, "history": plan.solver.history}
    lowered = programs.begin.lower(params, inputs, negative, values, **static)
    begin, begin_s = compile_for(topology, lowered, effort)
    conditioned, state = jax.tree.map(_on, lowered.out_info, begin.output_shardings)
    lowered = programs.advance.lower(
        params,
        None,
        inputs.of_steps,
        conditioned,
        state,
        values,
        table,
        calls,
        clip=None,
        recipe=chunk.recipe,
    )
    advance, advance_s = compile_for(topology, lowered, effort)
    return begin, advance, begin_s + advance_s


def _placed_params(programs: Programs) -> tuple[Any, Any]:
    shapes = programs.storage
    return shapes, sharding.infer(shapes, programs.mesh)


def require_even(images: int | None, chips: int) -> int:
    """The batch size of a plan. Raises UserError for one that `Stage` would pad."""
    if images is None:
        return chips
    if images < 1 or (images > 1 and images % chips):
        raise UserError(f"--images {images}: give 1 or a multiple of the topology's {chips} chips")
    return images


def abstract_inputs(model: ModelConfig, images: int) -> Inputs:
    """Shapes and types of the inputs of a batch."""
    px, low_res_px, text = model.resolution_px, model.low_res_px, model.text
    width = model.image_embedding_width
    length = text.length if text.encoder == "transformer" else 1

    def states() -> TextStates:
        mask = jnp.zeros((images, text.length), jnp.bool_)
        return TextStates(
            jnp.zeros((images, width)), jnp.zeros((*mask.shape, text.clip_width)), mask
        )

    def zeros() -> Inputs:
        return Inputs(
            tokens=jnp.zeros((images, length), jnp.int32),
            token_mask=jnp.zeros((images, length), jnp.bool_),
            states=states() if text.encoder == "clip" else None,
            embedding=jnp.zeros((images, width)) if width else None,
            has_embedding=jnp.zeros(images, jnp.bool_) if width else None,
            seeds=jnp.zeros(images, jnp.uint32),
            low_res=jnp.zeros((images, low_res_px, low_res_px, 3)) if low_res_px else None,
            known=jnp.zeros((images, px, px, 3)) if model.inpaint else None,
            mask=jnp.zeros((images, px, px, 1)) if model.inpaint else None,
            start=None,
            clip_text=None,
        )

    return jax.eval_shape(zeros)


def _on(x: jax.ShapeDtypeStruct, placement: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=placement)
