"""The rows of benchmarks/gpu.py, in order of value. Each yields results as it has them.

Times are those of the fastest of several calls, in seconds; MFU is relative to the bfloat16 matmul
measured in the first row; a ratio is PyTorch's time divided by ours.
"""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

ROOT = Path(__file__).parent.parent
REFERENCE = "cpu.npz"
"""Results of the CPU, in the folder of the results."""
SAMPLES = ("a red circle", "a small blue star above a green square")
TRAIN_STEPS = 3
REFERENCE_WAIT_S = 30.0
Results = Iterator[dict[str, Any]]


@dataclass(frozen=True)
class Setup:
    """The settings of a run."""

    to: Path
    """Folder of the results."""
    tiny: bool
    """Tiny sizes, for a dry run on a CPU."""

    @property
    def turns(self) -> int:
        """Calls of which the fastest counts."""
        return 2 if self.tiny else 10


class Row(NamedTuple):
    """A row of the results."""

    measure: Callable[[Setup], Results]
    limit_s: float


# Correctness


def machine(setup: Setup) -> Results:
    """Device, versions, and the rate of a large matmul."""
    import jax

    device = jax.devices()[0]
    yield {
        "device": device.device_kind,
        "backend": jax.default_backend(),
        "devices": jax.device_count(),
        "jax": jax.__version__,
    }
    yield {f"matmul_{dtype}_flops": peak(dtype, setup.tiny) for dtype in ("bfloat16", "float32")}


@cache
def peak(dtype: str, tiny: bool) -> float:
    """FLOP/s of a large square matmul."""
    import jax

    size = 512 if tiny else 8192
    a = jax.random.normal(jax.random.key(0), (size, size), dtype)  # ones are faster than data
    matmul = jax.jit(lambda a: a @ a)
    return 2 * size**3 / _fastest_s(lambda: jax.block_until_ready(matmul(a)), turns=10)


def golden(setup: Setup, dtype: str, precision: str | None) -> Results:
    """Largest difference from the original's outputs, relative to the largest output."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from glide_jax.models.glide import glide_network
    from glide_jax.models.platform import Platform
    from glide_jax.parallel import sharding

    sys.path.insert(0, str(ROOT / "tests"))
    from helpers.golden_models import UNETS, load_golden

    mesh = sharding.local_mesh(given=jax.devices()[:1])
    platform = Platform.of(mesh, sharding.batch_sharding(mesh), training=False)
    for name in UNETS[:1] if setup.tiny else UNETS:
        config, params, arrays = load_golden(f"unet_{name}.npz")
        network = glide_network(replace(config, dtype=dtype))

        def forward(params: Any, g: Any, network: Any = network) -> jax.Array:
            model = network.bind(params, platform)
            keys = ("low_res", "inpaint_image", "inpaint_mask")
            condition = model.condition(*(g.get(key) for key in keys))
            return model(g["x"], g["t"], model.encode_text(g["tokens"], g["mask"]), condition)

        g = {name: jnp.asarray(array) for name, array in arrays.items()}
        with jax.default_matmul_precision(precision):
            out = np.asarray(jax.jit(forward)(params, g), np.float64)
        difference = np.abs(out - arrays["out"]).max() / np.abs(arrays["out"]).max()
        yield {"model": name, "dtype": dtype, "precision": precision, "difference": difference}


def against_cpu(setup: Setup, precision: str | None) -> Results:
    """Samples of the demo models and the losses of some train steps, against the CPU's."""
    import jax
    import numpy as np

    until = time.monotonic() + REFERENCE_WAIT_S * (10 if setup.tiny else 1)
    file = setup.to / REFERENCE
    while not file.exists():
        if time.monotonic() > until:
            raise TimeoutError("the CPU's results are not there yet")
        time.sleep(0.5)
    cpu = np.load(file)
    with jax.default_matmul_precision(precision):
        ours = _compared(setup)
    levels = np.abs(ours["images"].astype(int) - cpu["images"])
    yield {
        "precision": precision,
        "trajectory_mean_levels": levels.mean(),
        "trajectory_within_one_level": (levels <= 1).mean(),
        "loss_difference": np.abs(ours["loss"] / cpu["loss"] - 1).max(),
        "gradient_norm_difference": np.abs(ours["norm"] / cpu["norm"] - 1).max(),
    }


def write_reference(setup: Setup) -> None:
    """Write the results of this process's device, for `against_cpu`."""
    import numpy as np

    unfinished = setup.to / f".{REFERENCE}"
    np.savez(unfinished, **_compared(setup))
    unfinished.rename(setup.to / REFERENCE)


def _compared(setup: Setup) -> dict[str, Any]:
    import numpy as np

    from benchmarks.programs import our_step, random_batch, random_params, small_model
    from glide_jax import Glide
    from glide_jax.config import Config, TrainConfig

    glide = Glide.load("demo/base")
    samples = glide.generate(list(SAMPLES), steps="5" if setup.tiny else "25", sampler="ddim")
    model = replace(small_model(), dtype="float32")
    config = Config(model, train=TrainConfig(batch_examples=8))
    step = our_step(config, random_params(model), random_batch(model, 8))
    loss, norm = np.transpose([step.run() for _ in range(TRAIN_STEPS)])
    return {"images": np.asarray(samples.images), "loss": loss, "norm": norm}


# Speed


Released = Literal["base", "upsampler"]


def model_of(name: Released, setup: Setup) -> Any:
    """The configuration of a released model in bfloat16."""
    from benchmarks.programs import small_model
    from glide_jax.cli import load_config

    if setup.tiny:
        return replace(small_model(8 if name == "upsampler" else 0), dtype="bfloat16")
    file = {"base": "base64", "upsampler": "upsample256"}[name]
    return load_config(ROOT / "configs" / f"{file}.py").denoiser


def call(setup: Setup, name: Released, images: int) -> Results:
    """A denoiser call by this project, then both in turns; and its fused attention."""
    from benchmarks.programs import fastest, our_call, random_batch, random_params

    config, rows = model_of(name, setup), min(images, 2) if setup.tiny else images
    given = config, random_params(config), random_batch(config, rows)
    started = time.monotonic()
    ours = our_call(*given)
    compiled_s = time.monotonic() - started
    ours.run()
    about = {"model": name, "batch": rows, "dtype": config.dtype}
    ours_s = fastest({"ours": ours}, setup.turns)["ours"]
    yield about | {
        "ours_s": ours_s,
        "mfu": ours.flops / ours_s / peak("bfloat16", setup.tiny),
        "compiled_s": compiled_s,
        "fused_attention_calls": ours.text.count('custom_call_target="__cudnn$fmha'),
    }
    from benchmarks import pairs

    device = pairs.torch_device()
    eager = pairs.torch_call(*given, device)
    pairs.require_close(config, ours, eager)
    yield about | _ratio(fastest({"ours": ours, "eager": eager}, setup.turns))


def compiled_call(setup: Setup, name: Released) -> Results:
    """torch.compile's time of the call with a batch of 16, to compare with the row of `call`."""
    from benchmarks import pairs
    from benchmarks.programs import fastest, random_batch, random_params

    config, rows = model_of(name, setup), 2 if setup.tiny else 16
    given = config, random_params(config), random_batch(config, rows)
    started = time.monotonic()
    theirs = pairs.torch_call(*given, pairs.torch_device(), compiled=True)
    theirs.run()
    about = {"model": name, "batch": rows, "torch_compiled_in_s": time.monotonic() - started}
    yield about | {"torch_compile_s": fastest({"t": theirs}, setup.turns)["t"]}


def train_step(setup: Setup, name: str, examples: int) -> Results:
    """A train step by this project, then both in turns."""
    from benchmarks.programs import fastest, our_step

    given = config, _, _ = _step_inputs(setup, name, examples)
    model = config.denoiser
    started = time.monotonic()
    ours = our_step(*given)
    ours.run()
    about = {
        "config": name,
        "batch": config.train.batch_examples,
        "dtype": model.dtype,
        "remat": model.remat,
    }
    compiled_s = time.monotonic() - started
    ours_s = fastest({"ours": ours}, setup.turns)["ours"]
    mfu = ours.flops / ours_s / peak("bfloat16", setup.tiny)
    yield about | {"ours_s": ours_s, "mfu": mfu, "compiled_s": compiled_s}
    from benchmarks import pairs

    eager = pairs.torch_step(*given, pairs.torch_device())
    eager.run()
    yield about | _ratio(fastest({"ours": ours, "eager": eager}, setup.turns))


def _step_inputs(setup: Setup, name: str, examples: int) -> Any:
    """Configuration, parameters and batch of a train step."""
    from benchmarks.programs import random_batch, random_params, small_model
    from glide_jax.cli import load_config

    config = load_config(ROOT / "configs" / f"{name}.py")
    examples = 2 if setup.tiny else examples
    config = replace(config, train=replace(config.train, batch_examples=examples))
    if setup.tiny:
        config = replace(config, model=replace(small_model(), dtype="bfloat16"))
    model = config.denoiser
    return config, random_params(model), random_batch(model, examples)


def sampling(setup: Setup) -> Results:
    """16 guided images by the base model: seconds of a step, beside those of its denoiser call."""
    from benchmarks.programs import Call, fastest, our_call, random_batch, random_params
    from glide_jax.config import Config
    from glide_jax.runs.folder import Run
    from glide_jax.sampling.stage import Stage

    model, images, steps = model_of("base", setup), 2 if setup.tiny else 16, 20
    stage = Stage(Config(model), random_params(model), Run.open("demo/base").tokenizer)
    settings = replace(stage.config.sample, sampler="ddim", steps=str(steps), guidance_scale=3.0)
    prompts, seeds = ["a red circle"] * images, range(images)
    started = time.monotonic()
    stage.sample(prompts, seeds, settings)
    compiled_s = time.monotonic() - started
    rows = 2 * images
    call = our_call(model, random_params(model), random_batch(model, rows))
    calls = {"sampling": Call(lambda: stage.sample(prompts, seeds, settings)), "call": call}
    call.run()
    best = fastest(calls, 2 if setup.tiny else 3)
    step_s = best["sampling"] / steps
    yield {
        "images": images,
        "steps": steps,
        "step_s": step_s,
        "call_s": best["call"],
        "step_over_call": step_s / best["call"],
        "compiled_s": compiled_s,
    }


def profile_call(setup: Setup) -> Results:
    """Device time of a call of the base model, by operation."""
    from benchmarks.programs import our_call, random_batch, random_params
    from benchmarks.traces import profile

    config, rows = model_of("base", setup), 2 if setup.tiny else 16
    given = config, random_params(config), random_batch(config, rows)
    yield from profile("base", our_call(*given).run, setup.to)


def profile_step(setup: Setup) -> Results:
    """Device time of a train step of scenes_base64, by operation."""
    from benchmarks.programs import our_step
    from benchmarks.traces import profile

    given = _step_inputs(setup, "scenes_base64", 128)
    yield from profile("scenes_base64", our_step(*given).run, setup.to)


def _ratio(times: dict[str, float]) -> dict[str, float]:
    ours, eager = times["ours"], times["eager"]
    return {"ours_s": ours, "torch_eager_s": eager, "ratio_eager": eager / ours}


def _fastest_s(run: Callable[[], Any], turns: int) -> float:
    from benchmarks.programs import Call, fastest

    run()
    return fastest({"run": Call(run)}, turns)["run"]


def free_memory() -> None:
    """Drop what a row has left on the device."""
    import jax

    gc.collect()
    jax.clear_caches()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


ROWS = {
    "machine": Row(machine, 40),
    "golden float32": Row(lambda setup: golden(setup, "float32", "highest"), 40),
    "golden bfloat16": Row(lambda setup: golden(setup, "bfloat16", None), 40),
    "base 16": Row(lambda setup: call(setup, "base", 16), 70),
    "CPU": Row(lambda setup: against_cpu(setup, "highest"), 70),
    "upsampler 16": Row(lambda setup: call(setup, "upsampler", 16), 70),
    "train scenes_base64": Row(lambda setup: train_step(setup, "scenes_base64", 128), 150),
    "base 1": Row(lambda setup: call(setup, "base", 1), 60),
    "upsampler 1": Row(lambda setup: call(setup, "upsampler", 1), 60),
    "train base64": Row(lambda setup: train_step(setup, "base64", 32), 200),
    "sampling": Row(sampling, 60),
    "profile call": Row(profile_call, 50),
    "profile step": Row(profile_step, 150),
    "torch.compile base": Row(lambda setup: compiled_call(setup, "base"), 90),
    "torch.compile upsampler": Row(lambda setup: compiled_call(setup, "upsampler"), 90),
    "golden TF32": Row(lambda setup: golden(setup, "float32", None), 30),
    "CPU TF32": Row(lambda setup: against_cpu(setup, None), 40),
}
"""By name, in order of value."""
