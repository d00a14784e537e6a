r"""Whether a training fits a TPU slice and how fast it would be, before there is one.

    python -m glide_jax.plan --config configs/base64_3b5.py --topology v5p:4x4x4 \
        --mesh 8x8

compiles the real train step with the real compiler, for TPUs that need not be there
(pip install -e ".[tpu]"), and says what the compiler makes of it. `--search` tries meshes,
recomputation and micro-batches. `--sampler` plans drawing instead, by the configuration's sample
settings, on all chips of the slice. Flags for the configuration's settings are train.py's.
"""

import argparse
import dataclasses
import json
import sys

import jax

from glide_jax.cli import parse_config
from glide_jax.errors import UserError, exit_on_user_error
from glide_jax.plan.sampling import plan_sampler
from glide_jax.plan.slices import (
    EFFORTS,
    SlicePlan,
    fsdp_of,
    topology_devices,
)
from glide_jax.plan.training import make_plan, search, table


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--topology", default="v5e:4x4", help="the slice: v5e:4x4, v5p:4x4x4")
    parser.add_argument("--mesh", help="data x fsdp; the product is the slice's chips")
    parser.add_argument("--effort", choices=EFFORTS, default="full", help="of the compiler")
    parser.add_argument("--search", action="store_true", help="try what may fit, and rank it")
    parser.add_argument("--sampler", action="store_true", help="plan drawing, not training")
    parser.add_argument("--images", type=int, help="drawn at a time; else one a chip")
    parser.add_argument("--most", type=int, default=6, help="plans that --search makes")
    parser.add_argument("--json", help="a file to which each plan is added, as a line")
    given, rest = parser.parse_known_args()
    if {"-h", "--help"} & set(rest):
        parser.print_help()
    file, config = parse_config(rest, "python -m glide_jax.plan", str(__doc__))
    jax.config.update("jax_platforms", "cpu")  # what is traced needs no accelerator
    if given.search and given.sampler:
        raise UserError("--search is for training: give --sampler a --mesh")
    if given.images is not None and not given.sampler:
        raise UserError("--images is of --sampler; a training's are --train.batch-examples")
    chips = len(topology_devices(given.topology))

    def keep(plan: SlicePlan) -> None:
        print(plan.report(), flush=True)
        if given.json:
            with open(given.json, "a") as out:
                out.write(json.dumps(dataclasses.asdict(plan)) + "\n")

    if given.search:
        made = []
        for found in search(config, file.stem, given.topology, given.effort, given.most):
            if isinstance(found, UserError):
                print(found, file=sys.stderr)
            else:
                made.append(found)
                keep(found)
        print("\n" + table(made))
        return
    fsdp = fsdp_of(given.mesh, chips) if given.mesh else config.train.fsdp
    slice_of = (config, file.stem, given.topology, fsdp, given.effort)
    keep(plan_sampler(*slice_of, given.images) if given.sampler else make_plan(*slice_of))


if __name__ == "__main__":
    with exit_on_user_error():
        main()
