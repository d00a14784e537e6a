"""The tables of docs/scaling.md: the paper's models on TPU slices of three generations and on GPUs.

    pip install -e ".[tpu,cuda]"
    python benchmarks/plans.py --json out/plans.jsonl            # every plan: many hours
    python benchmarks/plans.py --json out/plans.jsonl --only base64_3b5 --effort quick

Plans already in the file are not made again; the tables show all plans of the file.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from glide_jax.plan.forecast import EFFORTS
from glide_jax.plan.topologies import GPUS
from glide_jax.plan.training import TrainForecast, table

ROOT = Path(__file__).parent.parent

SPARSE_CORES = " ".join(
    (ROOT / "configs" / "sparse_core_flags.txt").read_text(encoding="utf-8").split()
)
LARGE_TILES = f"{SPARSE_CORES} --xla_tpu_scoped_vmem_limit_kib=40960"
"""Compiler flags, for LIBTPU_INIT_ARGS."""

BLOCKS = ("--model.remat", "blocks")


def batch(examples: int) -> tuple[str, str]:
    """Flags of another batch size than the configuration's."""
    return "--train.batch-examples", str(examples)


def micro_batches(number: int) -> tuple[str, str]:
    """Flags of a step in this many parts."""
    return "--train.micro-batches", str(number)


PLANS = (
    ("base64_3b5", "v5p:4x4x4", "8x8", SPARSE_CORES, ()),
    ("base64_3b5", "v6e:8x8", "4x16", LARGE_TILES, ()),
    ("base64_3b5", "v5p:2x2x2", "1x8", "", (*batch(256), *BLOCKS)),
    ("base64_3b5", "v5p:8x8x4", "32x8", "", (*batch(8192), *BLOCKS)),
    ("base64_3b5", "v6e:16x16", "16x16", SPARSE_CORES, batch(8192)),
    ("base64_3b5", "v6e:4x2", "1x8", SPARSE_CORES, batch(256)),
    ("base64_3b5", "v5e:16x16", "16x16", "", BLOCKS),
    ("base64", "v5e:4x2", "8x1", "", batch(256)),
    ("base64", "v5e:8x8", "64x1", "", ()),
    ("base64", "v5e:16x16", "256x1", "", batch(8192)),
    ("base64", "v5p:8x8x4", "256x1", "", batch(8192)),
    ("base64", "v6e:8x8", "64x1", SPARSE_CORES, ()),
    ("upsample256_1b5", "v5p:4x4x4", "16x4", "", ()),
    ("upsample256_1b5", "v6e:8x8", "16x4", "", ()),
    ("upsample256_1b5", "v5e:16x16", "64x4", "", ()),
    ("upsample256_1b5", "v5p:8x8x4", "64x4", "", batch(2048)),
    ("upsample256_1b5", "v5e:16x16", "64x4", "", batch(2048)),
    ("noised_clip_vit_l", "v5p:4x4x4", "64x1", "", BLOCKS),
    ("noised_clip_vit_l", "v6e:8x8", "64x1", "", BLOCKS),
    ("noised_clip_vit_l", "v6e:16x16", "256x1", "", BLOCKS),
    ("noised_clip_vit_l", "v5e:16x16", "256x1", "", BLOCKS),
    ("noised_clip_vit_l", "v5e:16x16", "128x2", "", BLOCKS),
    ("unclip_prior", "v5p:4x4x4", "64x1", "", ()),
    ("unclip_prior_ar", "v5p:4x4x4", "64x1", "", ()),
    ("unclip_decoder64", "v5p:4x4x4", "8x8", "", BLOCKS),
    ("unclip_upsample256", "v5p:4x4x4", "64x1", "", ()),
    ("unclip_upsample1024", "v5p:4x4x4", "64x1", "", ()),
    ("scenes_base64", "rtx4090", "1x1", "", ()),
    ("scenes_base64", "rtx4090", "1x1", "", BLOCKS),
    ("base64", "rtx4090", "1x1", "", micro_batches(64)),
    ("base64", "h100:8", "8x1", "", ()),
    ("base64_3b5", "h100:8", "1x8", "", micro_batches(8)),
    ("upsample256", "rtx4090", "1x1", "", micro_batches(64)),
    ("upsample256", "h100:8", "8x1", "", ()),
    ("upsample256_1b5", "h100:8", "1x8", "", micro_batches(4)),
    ("noised_clip", "h100:8", "8x1", "", BLOCKS),
    ("noised_clip_vit_l", "h100:8", "8x1", "", BLOCKS),
)
"""Configuration, topology, data x fsdp, compiler flags, and changed settings."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--only", help="only plans of this configuration")
    parser.add_argument("--effort", choices=EFFORTS, default="full")
    given = parser.parse_args()
    for config, topology, mesh, flags, changes in PLANS:
        if given.only in (None, config):
            command = ("--config", f"configs/{config}.py", "--topology", topology, "--mesh", mesh)
            effort = "full" if topology.partition(":")[0] in GPUS else given.effort
            command = (*command, "--effort", effort, *changes)
            if not any(row["command"] == list(command) for row in rows(given.json)):
                make(command, flags, given.json)
    for config in dict.fromkeys(row["plan"]["config"] for row in rows(given.json)):
        for effort in EFFORTS:
            plans = [
                TrainForecast(**row["plan"] | {"mesh": tuple(row["plan"]["mesh"])})
                for row in rows(given.json)
                if (row["plan"]["config"], row["plan"]["effort"]) == (config, effort)
            ]
            if plans:
                print(f"\n{config}, effort {effort}\n\n{table(plans)}")


def rows(file: Path) -> list[dict]:
    """Plans in the file."""
    return [json.loads(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def make(command: tuple[str, ...], flags: str, file: Path) -> None:
    """Makes a plan, in a process of its own, whose memory is then freed."""
    print(f'LIBTPU_INIT_ARGS="{flags}" python -m glide_jax.plan', *command, flush=True)
    made = file.with_suffix(".new")
    file.parent.mkdir(parents=True, exist_ok=True)
    plan = (sys.executable, "-m", "glide_jax.plan", *command, "--json", str(made))
    environment = os.environ | {"LIBTPU_INIT_ARGS": flags}
    if subprocess.run(plan, cwd=ROOT, env=environment).returncode == 0:
        row = {"command": command, "plan": json.loads(made.read_bytes())}
        with file.open("a", encoding="utf-8") as out:
            out.write(json.dumps(row) + "\n")
    made.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
