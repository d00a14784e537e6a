"""What a TPU's attention kernel reaches, by the compiler's schedule of its instructions.

    pip install -e ".[tpu]"
    python benchmarks/attention_kernels.py v5p:2x2x1

The estimate in cycles is only made together with a profile of the schedule, which takes the
compiler hours for a train step. Plans therefore take the rate of the last
line, `Chip.kernel_flops`: products, as the matrix unit does them, of all attention in a train step
of the paper's 3.5B base model. A program of the kernel has one image and some heads, so few
images and channels are measured, and the table tells of 32 and of all.
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
from glide_jax.plan.slices import known_chip, topology_devices  # noqa: E402

IMAGES = 32
WIDTH = 64

SHAPES = (
    ("U-Net at 32 px", 1024, 1280, 1024, 7, 512),
    ("U-Net at 16 px", 256, 512, 1536, 7, 2048),
    ("text", 256, 256, 2048, 24, 4096),
)
"""Queries, keys, channels, and how many there are; of how many channels a few programs are made.
Those at 8 px are too few to matter."""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("topology", help="as v5p:2x2x1, v5e:2x2, v6e:2x2")
    device = topology_devices(parser.parse_args().topology)[0]
    clock_hz = known_chip(device).clock_hz
    jax.config.update("jax_platforms", "cpu")

    all_flops = all_s = 0.0
    print("attention | forwards, ms | T/s | backwards, ms | T/s")
    for name, q_length, k_length, d, count, few in SHAPES:
        q, k = (
            jax.ShapeDtypeStruct(
                (1, length, few), jnp.bfloat16, sharding=SingleDeviceSharding(device)
            )
            for length in (q_length, k_length)
        )
        attend = partial(tpu_attention.attend, heads=few // WIDTH)
        times = IMAGES * d / few / clock_hz
        forward_s, backward_s = (times * n for n in cycles(gradient(attend), [q, k, k]))
        product = 2 * IMAGES * q_length * k_length * d // WIDTH * tpu_attention.LANES
        forward, backward = 2 * product, 5 * product
        print(
            f"{name} | {1e3 * forward_s:.2f} | {forward / forward_s / 1e12:.0f} | "
            f"{1e3 * backward_s:.2f} | {backward / backward_s / 1e12:.0f}",
            flush=True,
        )
        all_flops += count * (forward + backward)
        all_s += count * (forward_s + backward_s)
    print(f"all of a step: {all_flops / all_s / 1e12:.0f} T/s")


def gradient(attend: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Forwards and backwards."""
    return jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v).astype(jnp.float32)), (0, 1, 2))


def cycles(program: Callable[..., Any], arrays: list[jax.ShapeDtypeStruct]) -> list[int]:
    """Of each kernel in a program, in the order in which they run."""
    text = jax.jit(program).lower(*arrays).compile().as_text() or ""
    kernels = [line for line in text.splitlines() if "tpu_custom_call" in line]
    found = [re.search(r'"estimated_cycles":"(\d+)"', line) for line in kernels]
    if not all(found):
        raise SystemExit("this compiler gives no estimate for kernels")
    return [int(cycles[1]) for cycles in found if cycles]


if __name__ == "__main__":
    main()
