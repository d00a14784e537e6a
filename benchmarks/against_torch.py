"""This project's speed against PyTorch's, side by side in one run, in at most 5 minutes.

    make bench                                  on a CPU
    python -m benchmarks.against_torch          on a GPU, with the extras `bench` and `cuda`

Both take turns, the fastest turn counts, and the ratio is PyTorch's time divided by ours: above 1,
this project is faster. The train step is of benchmarks/train_step.py's model with a batch of 32;
the forward pass is a call of the released base model with a batch of 2, one image with guidance.
Weights are random: time does not depend on them. On a CPU, everything runs on one core, and CPU
time is measured, which other programs disturb less. On a GPU, wall time is measured, and
torch.compile too, with a batch of 16. Before anything is timed, the PyTorch twin's outputs, loss
and gradient are compared with ours.
"""

import argparse
import os
import time

if hasattr(os, "sched_setaffinity"):  # before JAX and PyTorch start their threads
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs memory too

import jax
import torch

from benchmarks import pairs
from benchmarks.programs import fastest
from benchmarks.train_step import benchmark_config
from glide_jax.config import ModelConfig
from glide_jax.parallel.host_memory import keep_freed_memory


def compare(work: str, dtype: str, device: str, turns: int) -> None:
    """Measure and print one line per batch size."""
    for rows in (2, 16) if (work, device) == ("forward", "cuda") else (2,):
        if work == "step":
            calls = pairs.steps(benchmark_config(32, dtype), device)
        else:
            calls = pairs.calls(ModelConfig(dtype=dtype), rows, device, compiled=rows == 16)  # type: ignore[arg-type]
        times = fastest(calls, turns, time.process_time if device == "cpu" else time.perf_counter)
        name = f"{work}, batch {32 if work == 'step' else rows}, {dtype}"
        columns = (f"{framework} {s:.4g} s" for framework, s in times.items())
        ratios = (
            f"{s / times['ours']:.2f}" for framework, s in times.items() if framework != "ours"
        )
        print(f"{name}: {', '.join(columns)}, ratio {', '.join(ratios)}", flush=True)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    dtypes = ("float32", "bfloat16")
    parser.add_argument(
        "--work", nargs="+", default=["step", "forward"], choices=["step", "forward"]
    )
    parser.add_argument("--dtypes", nargs="+", default=dtypes, choices=dtypes)
    parser.add_argument("--turns", type=int, default=3)
    given = parser.parse_args()
    keep_freed_memory()  # as commands do; PyTorch has it too
    device = pairs.torch_device()
    where = torch.cuda.get_device_name() if device == "cuda" else "one CPU core, CPU seconds"
    print(f"{where}; jax {jax.__version__}, torch {torch.__version__}")
    for name, difference in pairs.check(device).items():
        print(f"difference of {name}: {difference:.1e}")
    for work in given.work:
        for dtype in given.dtypes:
            compare(work, dtype, device, given.turns)


if __name__ == "__main__":
    main()
