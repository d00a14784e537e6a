"""The same work in this project and in PyTorch: denoiser calls and train steps, checked equal.

A program runs its work once and waits for it. Weights are random with the variance of a network at
initialization, so that outputs are neither zero nor infinite.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.torch_training import TorchTrainer
from benchmarks.torch_twin import Twin
from glide_jax.config import Config, ModelConfig, TextConfig, UNetConfig
from glide_jax.diffusion.loss import hybrid_loss
from glide_jax.diffusion.parameterization import Noise
from glide_jax.diffusion.process import q_sample
from glide_jax.diffusion.schedule import Schedule
from glide_jax.models.glide import glide_network
from glide_jax.models.platform import Platform
from glide_jax.parallel import sharding
from glide_jax.training.denoising import Denoising
from glide_jax.training.step import Trainer

Program = Callable[[], Any]
Arrays = dict[str, np.ndarray]


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
        "image": rng.uniform(-1, 1, (examples, px, px, 3)).astype(np.float32),
        "tokens": rng.integers(0, config.text.vocab_size, (examples, length)).astype(np.int32),
        "token_mask": np.arange(length) < rng.integers(0, length, examples)[:, None],
        "t": rng.integers(0, 1000, examples).astype(np.int32),
        "eps": rng.standard_normal((examples, px, px, 3), np.float32),
    }
    if low:
        batch["low_res"] = rng.uniform(-1, 1, (examples, low, low, 3)).astype(np.float32)
    return batch


def to_torch(batch: Mapping[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    """The batch as tensors."""
    return {name: torch.tensor(value, device=device) for name, value in batch.items()}


# One call of the denoiser, without gradients


class Call(NamedTuple):
    """A denoiser's calls, whose text was encoded before."""

    run: Program
    """Returns the output (b, h, w, 6), float32."""
    compiled: Any = None
    """Our compiled program."""


def our_call(config: ModelConfig, params: Arrays, batch: Arrays) -> Call:
    """A call as this project's samplers make it."""
    network = glide_network(config)
    platform = Platform.of(sharding.local_mesh(given=jax.devices()[:1]), None, training=False)
    placed, arrays = jax.device_put(params), jax.device_put(batch)

    @jax.jit
    def prepare(params: Any, batch: Any) -> Any:
        model = network.bind(params, platform)
        text = model.encode_text(batch["tokens"], batch["token_mask"])
        return text, model.condition(batch.get("low_res"))

    text, condition = prepare(placed, arrays)
    call = jax.jit(lambda params, x, t, *given: network.bind(params, platform)(x, t, *given))
    given = placed, arrays["eps"], arrays["t"], text, condition
    compiled = call.lower(*given).compile()
    return Call(lambda: jax.block_until_ready(compiled(*given)), compiled)


def torch_call(
    config: ModelConfig, params: Arrays, batch: Arrays, device: str, compiled: bool = False
) -> Call:
    """The same call by PyTorch, eager or by torch.compile."""
    twin = Twin.of(config, params, device).store_in_compute_dtype()
    x = to_torch(batch, device)
    with torch.inference_mode():
        text = twin.encode_text(x["tokens"], x["token_mask"])
        condition = twin.condition(x["low_res"]) if config.low_res_px else None
    network = torch.compile(twin) if compiled else twin

    @torch.inference_mode()
    def run() -> torch.Tensor:
        return waited(network(x["eps"], x["t"], text, condition), device)

    return Call(run)


def waited(out: Any, device: str) -> Any:
    """`out`, once the device has computed it."""
    if device == "cuda":
        torch.cuda.synchronize()
    return out


# A train step


def our_step(config: Config, params: Arrays, batch: Arrays) -> Call:
    """A train step of this project on one device; returns the metrics."""
    mesh = sharding.make_mesh(config, jax.devices()[:1])
    trainer = Trainer(config, Denoising(config), mesh)
    state = trainer.init(params)
    names = ("image", "tokens", "token_mask")
    arrays: Any = sharding.to_devices({name: batch[name] for name in names}, mesh)  # type: ignore[typeddict-item]

    def run() -> Any:
        nonlocal state
        state, metrics = trainer.step(state, arrays)
        return jax.block_until_ready((state, metrics))[1]

    return Call(run)


def torch_step(
    config: Config, params: Arrays, batch: Arrays, device: str, compiled: bool = False
) -> Call:
    """The same step by PyTorch; returns loss and gradient norm."""
    trainer = TorchTrainer(config, params, device, compiled)
    x = to_torch(batch, device)
    return Call(lambda: waited(trainer.step(x["image"], x["tokens"], x["token_mask"]), device))


# Both, taking turns


def calls(config: ModelConfig, rows: int, device: str, compiled: bool = False) -> dict[str, Call]:
    """A denoiser's calls with a batch of `rows`, by framework; with torch.compile if `compiled`.

    Raises:
        SystemExit: outputs differ.
    """
    given = config, random_params(config), random_batch(config, rows)
    found = {"ours": our_call(*given), "PyTorch": torch_call(*given, device)}
    if compiled:
        found["torch.compile"] = torch_call(*given, device, compiled=True)
    ours = found["ours"].run()
    limit = 1e-4 if config.dtype == "float32" else 0.1
    for name, call in found.items():
        if not difference(ours, call.run()) < limit:
            raise SystemExit(f"{name}'s output differs from this project's")
    return found


def steps(config: Config, device: str, compiled: bool = False) -> dict[str, Call]:
    """Train steps by framework, each run once; with torch.compile if `compiled`."""
    model, examples = config.denoiser, config.train.batch_examples
    given = config, random_params(model), random_batch(model, examples)
    found = {"ours": our_step(*given), "PyTorch": torch_step(*given, device)}
    if compiled:
        found["torch.compile"] = torch_step(*given, device, compiled=True)
    for call in found.values():
        call.run()
    return found


def fastest(calls: Mapping[str, Call], turns: int, device: str) -> dict[str, float]:
    """Seconds of each call's fastest turn: CPU time on a CPU, else wall time."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(turns):
        for name, call in calls.items():
            start = clock()
            call.run()
            best[name] = min(best[name], clock() - start)
    return best


# Checks


def small_model(low_res_px: int = 0) -> ModelConfig:
    """A small model with every kind of layer."""
    text = TextConfig(vocab_size=50, length=8, width=64, layers=2, heads=2)
    unet = UNetConfig(
        resolution_px=16, channels=32, channel_mult=(1, 2), res_blocks=1, attention_px=(8,),
        head_width=32,
    )  # fmt: skip
    return ModelConfig(text, unet, low_res_px=low_res_px, dtype="float32")


def check(device: str = "cpu") -> dict[str, float]:
    """Compare both implementations in float32 on a base model and an upsampler.

    Returns:
        The largest difference of the outputs, relative to the largest output, and the relative
        differences of loss and gradient norm.

    Raises:
        SystemExit: outputs differ by more than 1e-5, or loss or gradient norm by more than 1e-4.
    """
    found = {
        "base": _output_difference(small_model(), device),
        "upsampler": _output_difference(small_model(low_res_px=8), device),
    } | _gradient_difference(small_model(), device)
    for name, difference in found.items():
        limit = 1e-5 if name in {"base", "upsampler"} else 1e-4
        if not difference <= limit:
            raise SystemExit(f"the PyTorch twin differs from this project: {name} {difference:.1e}")
    return found


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference relative to the largest value."""
    a, b = (np.asarray(x.cpu() if isinstance(x, torch.Tensor) else x) for x in (ours, theirs))
    return float(np.abs(a - b).max() / np.abs(a).max())


def _output_difference(config: ModelConfig, device: str) -> float:
    given = config, random_params(config), random_batch(config, 3)
    return difference(our_call(*given).run(), torch_call(*given, device).run())


def _gradient_difference(model: ModelConfig, device: str) -> dict[str, float]:
    config = Config(model)
    params, batch = random_params(model), random_batch(model, 3)
    batch["t"][0] = 0  # whose bound is another
    parameterization = Noise(Schedule.of(config.diffusion))

    def our_loss(params: Any) -> jax.Array:
        bound = glide_network(model).bind(params)
        text = bound.encode_text(batch["tokens"], batch["token_mask"])
        x_0, t, eps = (jnp.asarray(batch[name]) for name in ("image", "t", "eps"))
        x_t = q_sample(parameterization.schedule, x_0, t, eps)
        out = bound(x_t, t, text)
        return jnp.mean(hybrid_loss(parameterization, x_0, t, eps, x_t, out).loss)

    loss, grads = jax.jit(jax.value_and_grad(our_loss))(params)
    norm = np.sqrt(sum(float(jnp.sum(g * g)) for g in grads.values()))
    x = to_torch(batch, device)
    trainer = TorchTrainer(config, params, device)
    names = ("image", "tokens", "token_mask", "t", "eps")
    their_loss, their_norm = trainer.gradient(*(x[name] for name in names))
    return {
        "loss": abs(float(their_loss) / float(loss) - 1),
        "gradient norm": abs(float(their_norm) / float(norm) - 1),
    }
