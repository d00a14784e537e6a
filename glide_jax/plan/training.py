"""Forecast of training on TPUs or GPUs: memory, step time, MFU; a search for what fits best."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from glide_jax.config import Config, Remat
from glide_jax.errors import UserError
from glide_jax.models.build import build_network
from glide_jax.models.platform import Platform
from glide_jax.parallel import sharding
from glide_jax.parallel.chips import GIB
from glide_jax.plan.clip import with_planned_clip
from glide_jax.plan.compiled import timing, usage
from glide_jax.plan.forecast import Forecast, compile_for, known_chip
from glide_jax.plan.topologies import topology_devices
from glide_jax.shapes import Batch, Params
from glide_jax.training.build import make_objective
from glide_jax.training.flops import abstract_batch, step_flops
from glide_jax.training.objective import Objective
from glide_jax.training.step import Trainer

SEARCHED: tuple[tuple[Remat, int], ...] = (
    ("none", 1),
    ("matmuls", 1),
    ("blocks", 1),
    ("blocks", 2),
    ("blocks", 4),
    ("everything", 4),
)
"""Rematerialization and micro-batches that `--search` tries, from the fastest to the smallest."""


@dataclass(frozen=True, kw_only=True)
class TrainForecast(Forecast):
    """Memory, time and communication of a train step."""

    remat: str
    micro_batches: int
    batch_examples: int
    steps: int
    """Steps of the whole run."""
    ema_bytes: int
    optimizer_bytes: int
    clip_bytes: int = 0
    """The frozen CLIP of a prior or a decoder."""
    activation_bytes: int
    """Activations saved for the backward pass of a micro-batch, as traced; the compiler may save
    fewer. Part of `temporary_bytes`."""
    model_flops: float
    """FLOPs of a step, over all chips: see `flops.step_flops`."""
    compiled_flops: float | None
    """The compiler's count for one chip, with every loop counted once; TPUs only."""
    accessed_bytes: float | None
    """The compiler's count of HBM traffic of one chip, with every loop counted once; TPUs only."""
    peak_flops: float

    @property
    def used_bytes(self) -> int:
        """HBM in use."""
        return super().used_bytes + self.ema_bytes + self.optimizer_bytes + self.clip_bytes

    @property
    def step_s(self) -> float:
        """Estimated time of a step."""
        return self.compute_s + self.exposed_s

    @property
    def mfu(self) -> float:
        """Model FLOPs utilization: `model_flops` as a fraction of the chips' peak."""
        return self.model_flops / (self.step_s * self.chips * self.peak_flops)

    def report(self) -> str:
        """Human-readable summary."""
        total_h = self.steps * self.step_s / 3600
        sizes = {
            "parameters": self.parameter_bytes,
            "EMA": self.ema_bytes,
            "optimizer": self.optimizer_bytes,
            **({"frozen CLIP": self.clip_bytes} if self.clip_bytes else {}),
            "batch": self.batch_bytes,
            "code": self.code_bytes,
            "temporary": self.temporary_bytes,
            "  saved, as traced": self.activation_bytes,
        }
        program = (
            f"remat {self.remat}, batch {self.batch_examples} in {self.micro_batches} "
            "micro-batch(es)"
        )
        exposed = self.exposed_s / self.step_s
        estimates = [
            f"computation         {self.compute_s:9.3f} s",
            f"exposed collectives {self.exposed_s:9.3f} s ({exposed:.1%})",
            f"step                {self.step_s:9.3f} s",
            f"images              {self.batch_examples / self.step_s:9.0f} /s",
            f"model FLOPs         {self.model_flops / 1e12:9.1f} T/step",
            f"MFU                 {self.mfu:9.1%}",
            f"{self.steps:,} steps: {total_h:,.0f} h, {total_h * self.chips:,.0f} chip-hours",
        ]
        if self.compiled_flops is not None and self.accessed_bytes is not None:
            estimates.append(
                f"compiler FLOPs      {self.compiled_flops / 1e12:9.1f} T/chip, "
                f"{self.accessed_bytes / 1e9:.0f} GB of HBM traffic (loops counted once)"
            )
        return self._report(program, sizes, "step", estimates)


def forecast_training(
    config: Config, name: str, topology: str, fsdp: int, effort: str = "full"
) -> TrainForecast:
    """Compiles a run's train step for a topology.

    Args:
        config: the run.
        name: of the run, for the report.
        topology: see `topology_devices`.
        fsdp: number of chips over which parameters are sharded.
        effort: a key of EFFORTS.

    Raises:
        UserError: the topology or the batch does not divide, or train.clip_loss_weight is set.
    """
    if config.train.clip_loss_weight:
        raise UserError("plans do not support train.clip_loss_weight: set it to 0")
    config = replace(config, train=replace(config.train, fsdp=fsdp))
    config, clip = with_planned_clip(config)
    devices = topology_devices(topology)
    chip = known_chip(devices[0])
    mesh = sharding.make_mesh(config, devices)
    objective = make_objective(config, clip)
    trainer = Trainer(config, objective, mesh)
    batch = abstract_batch(config, clip.config if clip else None)
    lowered = trainer.lower(batch)
    compiled, compile_s = compile_for(topology, lowered, effort)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis() or {}
    assert memory is not None
    part = _bytes_by_part(trainer, objective)
    return TrainForecast(
        config=name,
        topology=topology,
        mesh=(len(devices) // fsdp, fsdp),
        remat=config.model.remat,
        micro_batches=config.train.micro_batches,
        batch_examples=config.train.batch_examples,
        steps=config.train.steps,
        chips=len(devices),
        hbm_bytes=chip.usable_bytes,
        parameter_bytes=part["params"],
        ema_bytes=part["ema"],
        optimizer_bytes=part["opt_state"],
        clip_bytes=part["clip"],
        activation_bytes=saved_activations(config, devices),
        temporary_bytes=memory.temp_size_in_bytes,
        batch_bytes=max(0, memory.argument_size_in_bytes - sum(part.values())),
        code_bytes=memory.generated_code_size_in_bytes,
        model_flops=step_flops(objective, batch),
        compiled_flops=cost.get("flops"),
        accessed_bytes=cost.get("bytes accessed"),
        **usage(compiled.as_text() or "", chip).fields(),
        peak_flops=chip.flops,
        timing=timing(chip),
        compile_s=compile_s,
        effort=effort,
    )


def _bytes_by_part(trainer: Trainer, objective: Objective) -> dict[str, int]:
    """Bytes on each device of what lasts from step to step."""
    state, shardings = trainer.abstract_state, trainer.state_shardings
    parts = {
        field: sharding.bytes_a_device(getattr(state, field), getattr(shardings, field))
        for field in ("params", "ema", "opt_state")
    }
    mesh = shardings.step.mesh
    frozen = sharding.infer(objective.frozen, mesh)
    return parts | {"clip": sharding.bytes_a_device(objective.frozen, frozen)}


def saved_activations(config: Config, devices: Sequence[jax.Device]) -> int:
    """Bytes of activations that each device saves for the backward pass of a micro-batch.

    Traced for two images and for three; the difference is the size per image. CLIP's loss needs at
    least two.
    """

    def residual_bytes(images: int) -> int:
        train = replace(config.train, batch_examples=images, micro_batches=1, fsdp=1)
        few = replace(config, train=train)
        few, clip = with_planned_clip(few)
        objective = make_objective(few, clip)
        mesh = sharding.make_mesh(few, devices[:1])
        platform = Platform.of(mesh, sharding.batch_sharding(mesh), training=True)

        def backward(params: Params, frozen: Params, batch: Batch) -> Any:
            def loss(params: Params) -> jax.Array:
                key = jax.random.key(0)
                found = objective.validate(params, frozen, batch, key, platform)
                return jnp.sum(found.values["loss"])

            return jax.vjp(loss, params)[1]

        batch = abstract_batch(few, clip.config if clip else None)
        kept = jax.eval_shape(backward, objective.network.shapes, objective.frozen, batch)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))

    per_image = residual_bytes(3) - residual_bytes(2)
    images = config.train.batch_examples // config.train.micro_batches // len(devices)
    return per_image * images


def search(
    config: Config, name: str, topology: str, effort: str, max_plans: int
) -> Iterator[TrainForecast | UserError]:
    """Forecasts of meshes, rematerialization and micro-batches that may fit, best guess first.

    Args:
        config, name, topology, effort: see `forecast_training`.
        max_plans: most forecasts to make.
    """
    devices = topology_devices(topology)
    chips, chip = len(devices), known_chip(devices[0])
    # Parameters, EMA, a gradient and the second moment in float32, and the first moment.
    each = 16 + jnp.dtype(config.optim.first_moment_dtype).itemsize
    state_bytes = each * build_network(config.model).parameter_count
    meshes = [2**i for i in range(chips.bit_length()) if chips % 2**i == 0]
    made = 0
    for remat, micro_batches in SEARCHED:
        model, train = config.model, config.train
        tried = replace(
            config,
            model=replace(model, remat=remat),
            train=replace(train, micro_batches=train.micro_batches * micro_batches),
        )
        if tried.train.batch_examples % (tried.train.micro_batches * chips):
            continue
        # The compiler keeps results of matmuls, but fuses what follows them with its uses.
        kept: Remat = "matmuls" if remat == "none" else remat
        traced = replace(tried, model=replace(model, remat=kept))
        activations = saved_activations(traced, devices)
        for fsdp in meshes:
            if made == max_plans:
                return
            if state_bytes // fsdp + activations > chip.usable_bytes:
                continue
            made += 1
            try:
                forecast = forecast_training(tried, name, topology, fsdp, effort)
            except UserError as error:
                yield error
                continue
            yield forecast
            if forecast.fits:
                break  # more sharding would only add communication


def table(plans: Sequence[TrainForecast]) -> str:
    """Forecasts as a Markdown table, the fastest that fits first."""
    ranked = sorted(plans, key=lambda plan: (not plan.fits, plan.step_s))
    rows = [
        "| topology | mesh | remat | micro-batches | images/chip | HBM, GiB | fits | step, s | MFU "
        "| exposed comm. | images/s | hours | chip-hours |",
        "| --- " * 13 + "|",
    ]
    for plan in ranked:
        hours = plan.steps * plan.step_s / 3600
        cells = (
            plan.topology,
            f"{plan.mesh[0]}x{plan.mesh[1]}",
            plan.remat,
            plan.micro_batches,
            f"{plan.batch_examples / plan.chips:g}",
            f"{plan.used_bytes / GIB:.1f} of {plan.hbm_bytes / GIB:.0f}",
            "yes" if plan.fits else "no",
            f"{plan.step_s:.3f}",
            f"{plan.mfu:.0%}",
            f"{plan.exposed_s / plan.step_s:.0%}",
            f"{plan.batch_examples / plan.step_s:,.0f}",
            f"{hours:,.0f}",
            f"{hours * plan.chips:,.0f}",
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)
