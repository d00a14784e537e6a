"""Sampling with the released model sizes: seconds, FLOP/s and memory of base and upsampler.

    python benchmarks/sample.py [--dtype float32] [--batch 4] [--models base upsample]
    taskset -c 1 python benchmarks/sample.py --cpu-time [--xla]

Weights are random: time does not depend on them. Base: 64 px with classifier-free guidance, so that
one image is a batch of two. Upsampler: 256 px without guidance. One call of the denoiser is timed,
for one image and for a batch: the fastest of several calls, because machines are noisy. The cascade
takes 100 calls of the base model and 27 of the upsampler, the released settings. FLOPs are XLA's
count for the compiled program; the peak is that of a large matmul of the same type, measured here.
--xla takes XLA's own operations, for comparison with those of glide_jax.models.platform. --cpu-time
measures CPU time instead of wall time, for a busy core.
"""

import argparse
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from glide_jax.cli import load_config
from glide_jax.config import ModelConfig
from glide_jax.models.glide import glide_network
from glide_jax.models.platform import Platform
from glide_jax.parallel.host_memory import keep_freed_memory
from glide_jax.parallel.sharding import local_mesh

CONFIGS = Path(__file__).parent.parent / "configs"
Clock = Callable[[], float]


class Model(NamedTuple):
    """A released model and its sampling settings."""

    file: str
    rows: int
    """Rows of the batch per image: two with guidance."""
    calls: int
    """Calls of the denoiser per image."""


MODELS = {"base": Model("base64.py", 2, 100), "upsample": Model("upsample256.py", 1, 27)}


class Measured(NamedTuple):
    """Measurements of one compiled call."""

    compiling_s: float
    call_s: float
    flops: float
    memory_bytes: int
    """Parameters, inputs, outputs and temporary arrays."""


def fastest(call: Callable[[], Any], turns: int, clock: Clock) -> float:
    """Seconds of the fastest of several calls, after a warm-up call."""
    jax.block_until_ready(call())
    times = []
    for _ in range(turns):
        start = clock()
        jax.block_until_ready(call())
        times.append(clock() - start)
    return min(times)


def matmul_peak(dtype: str, turns: int, clock: Clock) -> float:
    """FLOP/s of a large square matmul."""
    size = 2048 if jax.default_backend() == "cpu" else 8192
    a = jnp.ones((size, size), dtype)
    # Of a float32 result, for which alone XLA has a CPU's bfloat16 instructions.
    matmul = jax.jit(lambda a: jnp.matmul(a, a, preferred_element_type=jnp.float32))
    return 2 * size**3 / fastest(lambda: matmul(a), turns, clock)


def measure(config: ModelConfig, rows: int, turns: int, clock: Clock, xla: bool) -> Measured:
    """Compile and time one call of a model's denoiser on a batch of `rows`."""
    network = glide_network(config)
    rng = np.random.default_rng(0)
    params = {
        name: jnp.asarray(rng.standard_normal(shape.shape, np.float32) * 0.02)
        for name, shape in network.shapes.items()
    }
    px, length = config.unet.resolution_px, config.text.length
    tokens = jnp.zeros((rows, length), jnp.int32)
    text = jax.jit(lambda params: network.bind(params).encode_text(tokens, tokens == 0))(params)
    low_res = None
    if config.low_res_px:
        low_res = jnp.zeros((rows, config.low_res_px, config.low_res_px, 3))
    x_t = jnp.asarray(rng.standard_normal((rows, px, px, 3), np.float32))
    t = jnp.full(rows, 500)
    one_device = local_mesh(given=jax.devices()[:1])
    xlas = Platform(training=False)
    platform = xlas if xla else Platform.of(one_device, None, training=False)
    params = network.stored(params, platform)

    def call(params, text, x_t):
        model = network.bind(params, platform)
        return model(x_t, t, text, model.condition(low_res=low_res))

    start = clock()
    compiled = jax.jit(call).lower(params, text, x_t).compile()
    compiling_s = clock() - start
    memory = compiled.memory_analysis()
    used = memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes
    flops = (compiled.cost_analysis() or {}).get("flops", float("nan"))
    call_s = fastest(lambda: compiled(params, text, x_t), turns, clock)
    return Measured(compiling_s, call_s, flops, used)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16"])
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--batch", type=int, default=2, help="images per call, measured beside one")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--xla", action="store_true", help="take XLA's own operations")
    parser.add_argument("--cpu-time", action="store_true", help="measure CPU time, not wall time")
    arguments = parser.parse_args()
    keep_freed_memory()  # as commands do
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    peak = matmul_peak(arguments.dtype, arguments.turns, clock)
    print(
        f"{os.cpu_count()} cores, {jax.devices()[0].device_kind}, {arguments.dtype}, "
        f"matmuls at {peak / 1e9:,.0f} GFLOP/s"
    )
    sizes = sorted({1, arguments.batch})
    seconds = {}
    for name in arguments.models:
        model = MODELS[name]
        config = load_config(CONFIGS / model.file).denoiser
        config = dataclasses.replace(config, dtype=arguments.dtype)
        for images in sizes:
            rows = model.rows * images
            m = measure(config, rows, arguments.turns, clock, xla=arguments.xla)
            seconds[name, images] = model.calls * m.call_s
            print(
                f"{name:9}{images:4} image(s): call {m.call_s:6.2f} s, "
                f"{model.calls} calls {seconds[name, images]:6.1f} s, "
                f"{images / seconds[name, images]:.4f} images/s, "
                f"{m.flops / m.call_s / 1e9:6,.0f} GFLOP/s ({m.flops / m.call_s / peak:.0%} of "
                f"the peak), {m.memory_bytes / 1e9:.1f} GB, compiled in {m.compiling_s:.0f} s"
            )
    if len(arguments.models) == len(MODELS):
        for images in sizes:
            total = sum(seconds[name, images] for name in MODELS)
            print(f"cascade  {images:4} image(s): {total:6.1f} s")


if __name__ == "__main__":
    main()
