"""Loader throughput, alone and compared to a training run.

    python benchmarks/loader.py --config configs/scenes_tiny.py
    python benchmarks/loader.py --config configs/scenes_tiny.py --run runs/scenes_tiny
    python benchmarks/loader.py --config configs/base64.py --data.source shards DIR
    python benchmarks/loader.py --config configs/scenes_tiny.py --data.loader-workers 2

Accepts train.py's flags, such as --data.loader-threads 8. With --data.loader-workers, measures the
threads of one process first, then the worker processes. Training overlaps with the loader's threads
but shares the cores with them, so the loader alone should be several times as fast.
"""

import json
import sys
import time
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated

import numpy as np
import psutil

from glide_jax.cli import parse_command
from glide_jax.config import Config
from glide_jax.config.bounds import Between
from glide_jax.data.loader import Loader
from glide_jax.data.sources import open_source
from glide_jax.data.tokenizers.build import make_tokenizer
from glide_jax.errors import UserError, exit_on_user_error

WARM_UP_BATCHES = 10


def measure(config: Config, seconds: float) -> tuple[float, float, float]:
    """Images per second; microseconds of CPU time per image, in all processes and in this one."""
    source = open_source(config.data, config.data.train_split)
    tokenizer = make_tokenizer(config.data, config.model.text.vocab_size, source)
    with Loader(source, tokenizer, config) as loader:
        for _ in islice(loader, WARM_UP_BATCHES + 4 * config.data.loader_workers):
            pass
        start, own, workers = time.perf_counter(), time.process_time(), worker_seconds()
        batches = 0
        while time.perf_counter() - start < seconds:
            next(loader)
            batches += 1
        elapsed = time.perf_counter() - start
        own, workers = time.process_time() - own, worker_seconds() - workers
    images = batches * config.train.batch_examples
    return images / elapsed, 1e6 * (own + workers) / images, 1e6 * own / images


def worker_seconds() -> float:
    """CPU time of the worker processes so far."""
    return sum(sum(worker.cpu_times()[:2]) for worker in psutil.Process().children())


def training_speed(run: Path) -> float:
    """The median of a run's logged images/s.

    Raises:
        UserError: the run has not logged it.
    """
    try:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_bytes().splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"--run {run}: cannot read metrics.jsonl: {error}") from None
    speeds = [row["images_per_s"] for row in rows if "images_per_s" in row]
    if not speeds:
        raise UserError(f"--run {run}: metrics.jsonl has no images_per_s: train for longer")
    return float(np.median(speeds))


@dataclass(frozen=True, kw_only=True)
class Flags:
    """The measurement."""

    run: Path | None = None
    """Run folder of a training to compare with."""
    seconds: Annotated[float, Between(0.1, 3600)] = 5.0
    """Duration of the measurement."""


def main() -> None:
    """Runs the command."""
    arguments = sys.argv[1:]
    about = "Measures the speed of the loader alone."
    _, config, flags = parse_command(arguments, "benchmarks/loader.py", about, Flags)
    print(f"{config.model.resolution_px} px, batches of {config.train.batch_examples}")
    images_per_s = 0.0
    for workers in sorted({0, config.data.loader_workers}):
        tried = replace(config, data=replace(config.data, loader_workers=workers))
        images_per_s, cpu_us, own_us = measure(tried, flags.seconds)
        made_by = f"{config.data.loader_threads} threads"
        if workers:
            made_by = f"{workers} processes of {made_by}"
        print(
            f"loader alone, {made_by}: {images_per_s:,.0f} images/s, {cpu_us:.0f} us CPU time per "
            f"image ({own_us:.0f} us in this process): {1e6 / cpu_us:,.0f} images/s per core"
        )
    if flags.run is not None:
        needed = training_speed(flags.run)
        print(f"training {flags.run}: {needed:,.1f} images/s; the loader is ", end="")
        print(f"{images_per_s / needed:,.1f} times as fast")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
