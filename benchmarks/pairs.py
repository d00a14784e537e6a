"""The same work in this project and in PyTorch, checked equal."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch

from benchmarks.programs import (
    Arrays,
    Call,
    our_call,
    our_step,
    random_batch,
    random_params,
    small_model,
)
from benchmarks.torch_training import TorchTrainer
from benchmarks.torch_twin import Twin
from glide_jax.config import Config, ModelConfig
from glide_jax.data.transforms import to_float
from glide_jax.diffusion.loss import hybrid_loss
from glide_jax.diffusion.parameterization import Noise
from glide_jax.diffusion.process import q_sample
from glide_jax.diffusion.schedule import Schedule
from glide_jax.models.glide import glide_network


def torch_device() -> str:
    """PyTorch's device for JAX's, prepared for speed: one thread, or tuned and TF32 allowed."""
    if jax.default_backend() != "gpu":
        torch.set_num_threads(1)
        return "cpu"
    torch.backends.cudnn.benchmark = True
    torch.set_float32_matmul_precision("high")  # as JAX's default
    return "cuda"


def to_torch(batch: Mapping[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    """The batch as tensors."""
    return {name: torch.tensor(value, device=device) for name, value in batch.items()}


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
    require_close(config, found["ours"], *found.values())
    return found


def require_close(config: ModelConfig, ours: Call, *others: Call) -> None:
    """Run calls and compare their outputs.

    Raises:
        SystemExit: they differ by more than the matmuls' type explains; TF32 has 10 bits.
    """
    on_gpu = jax.default_backend() == "gpu"
    limit = 0.1 if config.dtype == "bfloat16" else 1e-2 if on_gpu else 1e-4
    out = ours.run()
    for call in others:
        if not (found := difference(out, call.run())) < limit:
            raise SystemExit(f"PyTorch's output differs from this project's by {found:.1e}")


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


# Checks


def check(device: str = "cpu") -> dict[str, float]:
    """Compare both implementations in float32 on a base model and an upsampler.

    Returns:
        The largest difference of the outputs, relative to the largest output, and the relative
        differences of loss and gradient norm.

    Raises:
        SystemExit: outputs differ by more than 1e-5, or loss or gradient norm by more than 1e-4.
    """
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # not TF32, both frameworks' default on GPUs
    flags = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    with jax.default_matmul_precision("highest"), flags:
        found = {
            "base": _output_difference(small_model(), device),
            "upsampler": _output_difference(small_model(low_res_px=8), device),
        } | _gradient_difference(small_model(), device)
    torch.set_float32_matmul_precision(before)
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
        x_0, t, eps = to_float(batch["image"]), jnp.asarray(batch["t"]), jnp.asarray(batch["eps"])
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
