"""This project's denoiser calls and train steps as work to be timed, with random weights.

The weights have the variance of a network at initialization, so that outputs are neither zero nor
infinite. Time does not depend on them.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import numpy as np

from glide_jax.config import Config, ModelConfig, TextConfig, UNetConfig
from glide_jax.models.glide import glide_network
from glide_jax.models.platform import Platform
from glide_jax.parallel import sharding
from glide_jax.training.denoising import Denoising
from glide_jax.training.flops import abstract_batch, matmul_flops, step_flops
from glide_jax.training.step import Trainer

Program = Callable[[], Any]
"""Runs once and waits for the result."""
Arrays = dict[str, np.ndarray]


class Call(NamedTuple):
    """Work to be timed."""

    run: Program
    """Returns a call's output (b, h, w, 6), float32, or a step's loss and gradient norm."""
    flops: float = 0.0
    """Of the matmuls; 0 if not counted."""
    text: str = ""
    """The compiled program, of our calls."""


def random_params(config: ModelConfig) -> Arrays:
    """Parameters of which none is zero, the same for every dtype."""
    return _random_params(replace(config, dtype="float32"))


@cache
def _random_params(config: ModelConfig) -> Arrays:
    rng = np.random.default_rng(0)

    def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
        normal = rng.standard_normal(shape, np.float32)
        if name.endswith(".kernel"):
            return normal / np.sqrt(np.prod(shape[:-1]), dtype=np.float32)
        if name.endswith("_embedding"):
            return normal
        return 0.1 * normal + (1 if name.endswith(".scale") else 0)

    return {name: draw(name, x.shape) for name, x in glide_network(config).shapes.items()}


def random_batch(config: ModelConfig, examples: int) -> Arrays:
    """Images, captions, timesteps and noise."""
    rng = np.random.default_rng(1)
    px, low, length = config.resolution_px, config.low_res_px, config.text.length
    batch = {
        "image": rng.integers(0, 256, (examples, px, px, 3), np.uint8),
        "tokens": rng.integers(0, config.text.vocab_size, (examples, length)).astype(np.int32),
        "token_mask": np.arange(length) < rng.integers(0, length, examples)[:, None],
        "t": rng.integers(0, 1000, examples).astype(np.int32),
        "eps": rng.standard_normal((examples, px, px, 3), np.float32),
    }
    if low:
        batch["low_res"] = rng.uniform(-1, 1, (examples, low, low, 3)).astype(np.float32)
    return batch


def our_call(config: ModelConfig, params: Arrays, batch: Arrays) -> Call:
    """A call as this project's samplers make it, on one device."""
    network = glide_network(config)
    mesh = sharding.local_mesh(given=jax.devices()[:1])
    platform = Platform.of(mesh, sharding.batch_sharding(mesh), training=False)
    placed, arrays = jax.device_put((network.stored(params, platform), batch))

    @jax.jit
    def prepare(params: Any, batch: Any) -> Any:
        model = network.bind(params, platform)
        text = model.encode_text(batch["tokens"], batch["token_mask"])
        return text, model.condition(batch.get("low_res"))

    def call(params: Any, x_t: Any, t: Any, text: Any, condition: Any) -> jax.Array:
        return network.bind(params, platform)(x_t, t, text, condition)

    text, condition = prepare(placed, arrays)
    given = placed, arrays["eps"], arrays["t"], text, condition
    compiled = jax.jit(call).lower(*given).compile()
    program, flops = compiled.as_text() or "", matmul_flops(call, *given)
    return Call(lambda: jax.block_until_ready(compiled(*given)), flops, program)


def our_step(config: Config, params: Arrays, batch: Arrays) -> Call:
    """A train step of this project on one device; returns loss and gradient norm."""
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    objective = Denoising(config)
    trainer = Trainer(config, objective, mesh)
    state = trainer.init(params)
    names = ("image", "tokens", "token_mask")
    arrays: Any = sharding.to_devices({name: batch[name] for name in names}, mesh)  # type: ignore[typeddict-item]

    def run() -> Any:
        nonlocal state
        state, metrics = trainer.step(state, arrays)
        _, metrics = jax.block_until_ready((state, metrics))
        return metrics["loss"], metrics["grad_norm"]

    return Call(run, step_flops(objective, abstract_batch(config)))


def small_model(low_res_px: int = 0) -> ModelConfig:
    """A small model with every kind of layer."""
    text = TextConfig(vocab_size=50, length=8, width=64, layers=2, heads=2)
    unet = UNetConfig(
        resolution_px=16, channels=32, channel_mult=(1, 2), res_blocks=1, attention_px=(8,),
        head_width=32,
    )  # fmt: skip
    return ModelConfig(text, unet, low_res_px=low_res_px, dtype="float32")


def fastest(
    calls: Mapping[str, Call], turns: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds of each call's fastest turn, by `clock`; the calls take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(turns):
        for name, call in calls.items():
            start = clock()
            call.run()
            best[name] = min(best[name], clock() - start)
    return best
