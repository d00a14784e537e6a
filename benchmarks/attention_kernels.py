"""FLOP/s of the TPU attention kernel, from the compiler's schedule of its instructions.

    pip install -e ".[tpu]"
    python benchmarks/attention_kernels.py v5p:2x2x1

The compiler estimates cycles only when it profiles the schedule, which takes hours for a train
step. Plans therefore use the rate in the last line, `Chip.kernel_flops`: the matmuls of all
attention in a train step of the paper's 3.5B base model, as the matrix unit executes them. A
program of the kernel covers one image and some heads, so one image and a few channels are compiled
and the table is scaled to 32 images and all channels.
"""

import argparse
import os
import re
import tempfile
from collections.abc import Callable
from functools import partial
from typing import Any

PROFILED = tempfile.TemporaryDirectory()
os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_static_llo_profile_to={PROFILED.name}"

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jax.sharding import SingleDeviceSharding  # noqa: E402

from glide_jax.models import tpu_attention  # noqa: E402
from glide_jax.plan.forecast import known_chip  # noqa: E402
from glide_jax.plan.topologies import topology_devices  # noqa: E402

IMAGES = 32
WIDTH = 64

SHAPES = (
    ("U-Net at 32 px", 1024, 1280, 1024, 7, 512),
    ("U-Net at 16 px", 256, 512, 1536, 7, 2048),
    ("text", 256, 256, 2048, 24, 4096),
)
"""Queries, keys, channels, layers, and the channels that are compiled. Attention at 8 px takes too
little time to matter."""


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topology", help="v5p:2x2x1, v5e:2x2 or v6e:2x2, for example")
    device = topology_devices(parser.parse_args().topology)[0]
    clock_hz = known_chip(device).clock_hz
    jax.config.update("jax_platforms", "cpu")

    all_flops = all_s = 0.0
    print("attention | forward, ms | T/s | backward, ms | T/s")
    for name, q_length, k_length, d, layers, compiled_d in SHAPES:
        q, k = (
            jax.ShapeDtypeStruct(
                (1, length, compiled_d), jnp.bfloat16, sharding=SingleDeviceSharding(device)
            )
            for length in (q_length, k_length)
        )
        attend = partial(tpu_attention.attend, heads=compiled_d // WIDTH)
        times = IMAGES * d / compiled_d / clock_hz
        forward_s, backward_s = (times * n for n in cycles(gradient(attend), [q, k, k]))
        matmul = 2 * IMAGES * q_length * k_length * d // WIDTH * tpu_attention.LANES
        forward, backward = 2 * matmul, 5 * matmul
        print(
            f"{name} | {1e3 * forward_s:.2f} | {forward / forward_s / 1e12:.0f} | "
            f"{1e3 * backward_s:.2f} | {backward / backward_s / 1e12:.0f}",
            flush=True,
        )
        all_flops += layers * (forward + backward)
        all_s += layers * (forward_s + backward_s)
    print(f"train step: {all_flops / all_s / 1e12:.0f} T/s")


def gradient(attend: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Forward and backward pass."""
    return jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v).astype(jnp.float32)), (0, 1, 2))


def cycles(program: Callable[..., Any], arrays: list[jax.ShapeDtypeStruct]) -> list[int]:
    """Estimated cycles of each kernel in a program, in order of execution."""
    text = jax.jit(program).lower(*arrays).compile().as_text() or ""
    kernels = [line for line in text.splitlines() if "tpu_custom_call" in line]
    found = [re.search(r'"estimated_cycles":"(\d+)"', line) for line in kernels]
    if not all(found):
        raise SystemExit("this compiler estimates no cycles for kernels: use another libtpu")
    return [int(cycles[1]) for cycles in found if cycles]


if __name__ == "__main__":
    main()
