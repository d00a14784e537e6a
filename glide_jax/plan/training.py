r"""Whether a training fits a TPU slice and how fast it would be, before there is one.

    python -m glide_jax.plan --config configs/base64_3b5.py --topology v5p:4x4x4 \
        --mesh 8x8

compiles the real train step with the real compiler, for TPUs that need not be there
(pip install -e ".[tpu]"), and says what the compiler makes of it. `--search` tries meshes,
recomputation and micro-batches. `--sampler` plans drawing instead, by the configuration's sample
settings, on all chips of the slice. Flags for the configuration's settings are train.py's.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp

from glide_jax.config import Config, Remat
from glide_jax.errors import UserError
from glide_jax.models.platform import Platform
from glide_jax.parallel import sharding
from glide_jax.parallel.chips import GIB
from glide_jax.plan.compiled import usage
from glide_jax.plan.slices import (
    SlicePlan,
    compile_for,
    known_chip,
    topology_devices,
)
from glide_jax.shapes import Batch, Params
from glide_jax.training.build import make_objective
from glide_jax.training.flops import abstract_batch, step_flops
from glide_jax.training.step import Trainer

SEARCHED: tuple[tuple[Remat, int], ...] = (
    ("none", 1),
    ("matmuls", 1),
    ("blocks", 1),
    ("blocks", 2),
    ("blocks", 4),
    ("everything", 4),
)
"""Recomputation and micro-batches that `--search` tries, from the quickest to the smallest."""


@dataclass(frozen=True, kw_only=True)
class Plan(SlicePlan):
    """What a step of training takes."""

    remat: str
    micro_batches: int
    batch_examples: int
    steps: int
    """Of the whole training."""
    ema_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    """Kept from the forward to the backward pass of a micro-batch, as traced; the compiler may
    keep less. Part of `temporary_bytes`."""
    model_flops: float
    """Of the step, over all chips: see `flops.step_flops`."""
    compiled_flops: float
    """By the compiler, of one chip; loops counted once."""
    accessed_bytes: float
    """Likewise, from and to HBM."""
    peak_flops: float

    @property
    def used_bytes(self) -> int:
        """Of HBM."""
        return super().used_bytes + self.ema_bytes + self.optimizer_bytes

    @property
    def step_s(self) -> float:
        """Estimated."""
        return self.compute_s + self.waiting_s

    @property
    def mfu(self) -> float:
        """Model FLOPs utilisation: the share of the chips' peak that the model's products take."""
        return self.model_flops / (self.step_s * self.chips * self.peak_flops)

    def report(self) -> str:
        """For people."""
        total_h = self.steps * self.step_s / 3600
        sizes = {
            "parameters": self.parameter_bytes,
            "moving average": self.ema_bytes,
            "optimizer": self.optimizer_bytes,
            "batch": self.batch_bytes,
            "program": self.code_bytes,
            "temporary": self.temporary_bytes,
            "  kept activations": self.activation_bytes,
        }
        what = f"remat {self.remat}, batch {self.batch_examples} in {self.micro_batches}"
        waiting = self.waiting_s / self.step_s
        estimated = (
            f"computation         {self.compute_s:9.3f} s",
            f"waiting for others  {self.waiting_s:9.3f} s ({waiting:.1%})",
            f"step                {self.step_s:9.3f} s",
            f"images            {self.batch_examples / self.step_s:9.0f} /s",
            f"model FLOPs         {self.model_flops / 1e12:9.1f} T/step",
            f"MFU                 {self.mfu:9.1%}",
            f"compiler's FLOPs    {self.compiled_flops / 1e12:9.1f} T/chip, "
            f"{self.accessed_bytes / 1e9:.0f} GB of HBM traffic (loops counted once)",
            f"{self.steps:,} steps: {total_h:,.0f} h, {total_h * self.chips:,.0f} chip-hours",
        )
        return self.tell(what, sizes, "step", estimated)


def make_plan(config: Config, name: str, topology: str, fsdp: int, effort: str = "full") -> Plan:
    """Compiles a run's train step for a slice.

    Args:
        config: the run.
        name: what to call it.
        topology: see `topology_devices`.
        fsdp: chips over which parameters are shared out; the others repeat them.
        effort: a key of EFFORTS.

    Raises:
        UserError: the slice, or the batch, does not divide; or a loss is asked for that another
            model computes.
    """
    if config.train.clip_loss_weight:
        raise UserError("plans are of training without train.clip_loss_weight: set it to 0")
    config = replace(config, train=replace(config.train, fsdp=fsdp))
    devices = topology_devices(topology)
    chip = known_chip(devices[0])
    mesh = sharding.make_mesh(config, devices)
    objective = make_objective(config)
    trainer = Trainer(config, objective, mesh)
    batch = abstract_batch(config)
    lowered = trainer.lower(batch)
    compiled, compile_s = compile_for(topology, lowered, effort)
    memory, cost = compiled.memory_analysis(), compiled.cost_analysis()
    assert memory is not None and cost is not None  # of TPUs there always are
    spent = usage(compiled.as_text() or "", chip)
    state, shardings = trainer.abstract_state, trainer.state_shardings
    part = {
        field: sharding.bytes_a_device(getattr(state, field), getattr(shardings, field))
        for field in ("params", "ema", "opt_state")
    }
    return Plan(
        config=name,
        topology=topology,
        mesh=(len(devices) // fsdp, fsdp),
        remat=config.model.remat,
        micro_batches=config.train.micro_batches,
        batch_examples=config.train.batch_examples,
        steps=config.train.steps,
        chips=len(devices),
        hbm_bytes=chip.hbm_bytes,
        parameter_bytes=part["params"],
        ema_bytes=part["ema"],
        optimizer_bytes=part["opt_state"],
        activation_bytes=saved_activations(config, devices),
        temporary_bytes=memory.temp_size_in_bytes,
        batch_bytes=max(0, memory.argument_size_in_bytes - sum(part.values())),
        code_bytes=memory.generated_code_size_in_bytes,
        model_flops=step_flops(objective, batch),
        compiled_flops=cost["flops"],
        accessed_bytes=cost["bytes accessed"],
        operation_s=dict(spent.operation_s),
        waiting_s=spent.waiting_s,
        collective_s=dict(spent.collective_s),
        collective_bytes=dict(spent.collective_bytes),
        peak_flops=chip.flops,
        compile_s=compile_s,
        effort=effort,
    )


def saved_activations(config: Config, devices: Sequence[jax.Device]) -> int:
    """Bytes of activations that each device keeps for the backward pass of a micro-batch.

    Traced for two images and for three: what is more is each image's. One would not do for a
    CLIP, which tells images apart.
    """

    def residual_bytes(images: int) -> int:
        train = replace(config.train, batch_examples=images, micro_batches=1, fsdp=1)
        few = replace(config, train=train)
        objective = make_objective(few)
        mesh = sharding.make_mesh(few, devices[:1])
        platform = Platform.of(mesh, sharding.batch_sharding(mesh), training=True)

        def backward(params: Params, batch: Batch) -> Any:
            def loss(params: Params) -> jax.Array:
                key = jax.random.key(0)
                found = objective.validate(params, objective.frozen, batch, key, platform)
                return jnp.sum(found.values["loss"])

            return jax.vjp(loss, params)[1]

        kept = jax.eval_shape(backward, objective.network.shapes, abstract_batch(few))
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(kept))

    per_image = residual_bytes(3) - residual_bytes(2)
    images = config.train.batch_examples // config.train.micro_batches // len(devices)
    return per_image * images


def search(
    config: Config, name: str, topology: str, effort: str, most: int
) -> Iterator[Plan | UserError]:
    """Plans of meshes, recomputation and micro-batches that may fit, the most promising first.

    Args:
        config, name, topology, effort: as `make_plan`'s.
        most: plans to make.
    """
    devices = topology_devices(topology)
    chips, chip = len(devices), known_chip(devices[0])
    # Parameters, average, two moments and a gradient, in float32.
    state_bytes = 20 * make_objective(config).network.parameter_count
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
        activations = saved_activations(tried, devices)
        for fsdp in meshes:
            if made == most or state_bytes // fsdp + activations > chip.hbm_bytes:
                continue
            made += 1
            try:
                plan = make_plan(tried, name, topology, fsdp, effort)
            except UserError as error:
                yield error
                continue
            yield plan
            if plan.fits:
                break  # more sharding of the same only communicates more


def table(plans: Sequence[Plan]) -> str:
    """Plans as a Markdown table, the quickest that fits first."""
    ranked = sorted(plans, key=lambda plan: (not plan.fits, plan.step_s))
    rows = [
        "| slice | mesh | remat | micro-batches | images/chip | HBM, GiB | fits | step, s | MFU "
        "| waiting | images/s | hours | chip-hours |",
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
            f"{plan.waiting_s / plan.step_s:.0%}",
            f"{plan.batch_examples / plan.step_s:,.0f}",
            f"{hours:,.0f}",
            f"{hours * plan.chips:,.0f}",
        )
        rows.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(rows)
