r"""Plan a training or sampling run on TPUs or GPUs, without them: memory, speed, cost.

    python -m glide_jax.plan --config base64_3b5 --topology v5p:4x4x4 --mesh 8x8
    python -m glide_jax.plan --config scenes_base64 --topology rtx4090

Compiles the real train step with the compiler of TPUs (pip install -e ".[tpu]") or of NVIDIA GPUs
(pip install -e ".[cuda]") and reports its memory, operations and collectives. `--search` ranks
meshes, rematerialization and micro-batches. `--sampler` plans sampling instead, with the
configuration's sampling settings, on all chips.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax

from glide_jax.cli import parse_command
from glide_jax.config import Config, PriorConfig
from glide_jax.config.bounds import Between
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.plan.forecast import Forecast
from glide_jax.plan.prior import forecast_prior
from glide_jax.plan.sampling import forecast_sampling
from glide_jax.plan.topologies import GPUS, fsdp_of, topology_devices
from glide_jax.plan.training import forecast_training, search, table
from glide_jax.storage import require_file


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The TPUs or GPUs, and what to plan on them."""

    topology: str = "v5e:4x4"
    """TPU slice: v5e:4x4, v5p:4x4x4. GPUs of a machine: rtx3090, rtx4090, a100-40, a100-80, l40s,
    h100, h200, and their number, as h100:8."""
    mesh: str = ""
    """Mesh, as DATAxFSDP; the product is the number of chips. Empty: by train.fsdp."""
    effort: Literal["full", "quick"] = "full"
    """Compiler effort: full, as in training, or quick, for a faster but less accurate plan of
    TPUs."""
    search: bool = False
    """Search for plans that fit and rank them."""
    sampler: bool = False
    """Plan sampling instead of training."""
    images: Annotated[int | None, Between(1, 2**20)] = None
    """Images sampled at a time, with --sampler. Default: one per chip."""
    max_plans: Annotated[int, Between(1, 1000)] = 6
    """Most plans that --search compiles."""
    json: Path | None = None
    """File to which each plan is appended, as one line of JSON."""

    def __post_init__(self) -> None:
        if self.search and self.sampler:
            raise UserError("--search is for training: give --sampler a --mesh")
        if self.effort == "quick" and self.topology.partition(":")[0] in GPUS:
            raise UserError("--effort quick is for TPUs; a plan of GPUs takes minutes without it")
        if self.images is not None and not self.sampler:
            raise UserError("--images is for --sampler; for training, --train.batch-examples")


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    arguments = sys.argv[1:] if argv is None else argv
    name, config, flags = parse_command(arguments, "python -m glide_jax.plan", str(__doc__), Flags)
    require_file("--json", flags.json)
    jax.config.update("jax_platforms", "cpu")  # tracing needs no accelerator
    chips = len(topology_devices(flags.topology))

    def report(plan: Forecast) -> None:
        print(plan.report(), flush=True)
        if flags.json:
            with flags.json.open("a", encoding="utf-8") as out:
                out.write(json.dumps(dataclasses.asdict(plan), allow_nan=False) + "\n")

    if flags.search:
        _search(config, name, flags, report)
        return
    fsdp = fsdp_of(flags.mesh, chips) if flags.mesh else config.train.fsdp
    on_slice = (config, name, flags.topology, fsdp, flags.effort)
    if flags.sampler:
        forecast = forecast_prior if isinstance(config.model, PriorConfig) else forecast_sampling
        report(forecast(*on_slice, flags.images))
    else:
        report(forecast_training(*on_slice))


def _search(config: Config, name: str, flags: Flags, report: Callable[[Forecast], None]) -> None:
    plans = []
    for found in search(config, name, flags.topology, flags.effort, flags.max_plans):
        if isinstance(found, UserError):
            print(found, file=sys.stderr)
        else:
            plans.append(found)
            report(found)
    print("\n" + table(plans))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
