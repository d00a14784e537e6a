"""Milliseconds of a train step and a forward pass, compared with a straightforward U-Net.

    python benchmarks/train_step.py

The model: 64 channels, multipliers 1 2 2, one residual block per level, attention at 16 and 8 px,
32 px images, batch 32, float32. "plain" has group norm over a grouped reshape and attention with
heads on the third axis, on one device; "ours" is the project's model on one device; "ours, one
device per core" is what train.py uses on a CPU. The three take turns, and the fastest of several
turns counts, because machines are noisy.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from glide_jax.config import (
    Config,
    DiffusionConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
    UNetConfig,
)
from glide_jax.models.attention import Attend
from glide_jax.models.glide import glide_network
from glide_jax.models.layers import EPSILON, GroupNorm
from glide_jax.models.platform import Platform
from glide_jax.parallel import sharding
from glide_jax.training.denoising import Denoising
from glide_jax.training.step import Trainer


def benchmark_config(batch: int, dtype: str) -> Config:
    """The configuration of the benchmark."""
    model = ModelConfig(
        text=TextConfig(vocab_size=512, length=32, width=128, layers=2, heads=4),
        unet=UNetConfig(
            resolution_px=32,
            channels=64,
            channel_mult=(1, 2, 2),
            res_blocks=1,
            attention_px=(16, 8),
            head_width=32,
        ),
        dtype=dtype,  # type: ignore[arg-type]
    )
    return Config(model, DiffusionConfig(), train=TrainConfig(batch_examples=batch))


def plain_group_norm(
    self: GroupNorm, x: jax.Array, scale: Any = None, shift: Any = None
) -> jax.Array:
    """Group normalization over a grouped reshape."""
    b, h, w, c = x.shape
    grouped = x.astype(jnp.float32).reshape(b, h, w, 32, c // 32)
    mean = jnp.mean(grouped, (1, 2, 4), keepdims=True)
    variance = jnp.var(grouped, (1, 2, 4), keepdims=True)
    y = ((grouped - mean) * jax.lax.rsqrt(variance + EPSILON)).reshape(b, h, w, c)
    y = y * self.scale[...] + self.bias[...]
    y = y if scale is None else y * (1 + scale[:, None, None]) + shift[:, None, None]
    return y.astype(x.dtype)


def plain_attend(
    q: jax.Array, k: jax.Array, v: jax.Array, heads: int, *, causal: bool = False
) -> jax.Array:
    """Attention with scaled logits, in the type of the matmuls."""
    assert not causal
    q, k, v = (x.reshape(*x.shape[:2], heads, -1) for x in (q, k, v))  # b l n k
    logits = jnp.einsum("bqnk,blnk->bnql", q, k) * q.shape[-1] ** -0.5
    weights = jax.nn.softmax(logits.astype(jnp.float32)).astype(v.dtype)
    return jnp.einsum("bnql,blnk->bqnk", weights, v).reshape(*q.shape[:2], -1)


@contextmanager
def plain_norms() -> Iterator[None]:
    """Replace the project's group norm while a program is traced."""
    with mock.patch.object(GroupNorm, "__call__", plain_group_norm):
        yield


def programs(
    config: Config, devices: int, attend: Attend | None = None
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """A train step and a forward pass, compiled and run once."""
    mesh = jax.make_mesh(
        (devices, 1),
        ("data", "fsdp"),
        (jax.sharding.AxisType.Auto,) * 2,
        devices=jax.devices()[:devices],
    )
    sharded = sharding.batch_sharding(mesh)
    platform = Platform.of(mesh, sharded, training=True)
    if attend is not None:
        platform = Platform(sharded, attend)
    trainer = Trainer(config, Denoising(config), mesh, platform)
    rng = np.random.default_rng(0)
    b, px = config.train.batch_examples, config.model.resolution_px
    length = config.model.text.length
    batch = sharding.to_devices(
        {
            "image": rng.integers(0, 256, (b, px, px, 3), np.uint8),
            "tokens": rng.integers(0, 512, (b, length)).astype(np.int32),
            "token_mask": rng.random((b, length)) < 0.5,
        },  # type: ignore[typeddict-item]
        mesh,
    )
    state = trainer.init()

    def step() -> Any:
        nonlocal state
        state, metrics = trainer.step(state, batch)
        return metrics

    def forward() -> Any:
        return trainer.validate(state.ema, batch, 0)

    jax.block_until_ready((step(), forward()))
    return step, forward


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--turns", type=int, default=6)
    arguments = parser.parse_args()
    sharding.use_all_cores(arguments.batch)
    config = benchmark_config(arguments.batch, arguments.dtype)
    count = glide_network(config.denoiser).parameter_count
    devices = jax.device_count()
    print(f"{count / 1e6:.1f}M parameters, {os.cpu_count()} cores, {jax.devices()[0].device_kind}")

    with plain_norms():
        runs = {"plain": programs(config, 1, plain_attend)}
    runs["ours"] = programs(config, 1)
    if devices > 1:
        runs["ours, one device per core"] = programs(config, devices)

    best = {(name, i): float("inf") for name in runs for i in (0, 1)}
    for _ in range(arguments.turns):
        for name, pair in runs.items():
            for i, run in enumerate(pair):
                start = time.perf_counter()
                jax.block_until_ready(run())
                best[name, i] = min(best[name, i], time.perf_counter() - start)

    print(f"{'':28}{'step':>10}{'forward':>10}{'images/s':>10}{'speed-up':>10}")
    for name in runs:
        step_s, forward_s = best[name, 0], best[name, 1]
        print(
            f"{name:28}{step_s * 1e3:7.0f} ms{forward_s * 1e3:7.0f} ms"
            f"{arguments.batch / step_s:10.1f}{best['plain', 0] / step_s:9.2f}x"
        )


if __name__ == "__main__":
    main()
