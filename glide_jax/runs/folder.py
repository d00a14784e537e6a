"""A run folder: its configuration, tokenizer and checkpoints.

    runs/base64/
      config.json          the resolved configuration
      tokenizer/           what turned captions into tokens
      checkpoints/STEP/    see glide_jax.runs.checkpoint
      samples/  metrics.jsonl  tensorboard/

Where only the model matters, its weights alone do as well, as glide_jax.export writes them
and as models are shipped with the package:

    demo/base/
      config.json  tokenizer/
      weights.safetensors  averaged parameters
"""

import dataclasses
import operator
import time
from pathlib import Path
from typing import Any

from glide_jax.config import Config
from glide_jax.errors import UserError
from glide_jax.storage import AnyPath, path_of, storage_errors

CONFIG = "config.json"
TOKENIZER = "tokenizer"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"

COMMITTED = "commit_success.txt"
"""What orbax writes into a checkpoint last: in a bucket, where a checkpoint has its name from the
beginning, a whole one is known by it."""

DEMO = Path(__file__).parent.parent / "demo"
"""The models shipped with the package, a folder each."""

SEEN_S = 60
"""Network file systems may show a new file to other machines only so much later."""

CHANGEABLE = {
    "model.dtype",
    "model.remat",
    "model.unet.dropout",
    "diffusion.weighting",
    "diffusion.min_snr_gamma",
}
"""Settings of model and noise that may change between two starts: no parameter depends on them."""


def resolve_run(run: str | AnyPath) -> AnyPath:
    """The folder that is meant, where a run folder is asked for.

    Args:
        run: a folder; or "demo", the folder of all shipped models, or one of them, as "demo/base".
            What is there under this name in the current directory comes first.

    Raises:
        UserError: there is no shipped model of this name, or the bucket cannot be read.
    """
    path = path_of(run)
    with storage_errors("read", path):
        if path.exists() or path.parts[:1] != (DEMO.name,):
            return path
    shipped = sorted(config.parent.name for config in DEMO.glob(f"*/{CONFIG}"))
    if not shipped:
        raise UserError(
            f"{run}: no models are shipped with this installation, and there is no such folder "
            "here; give the folder of a run of your own"
        )
    if len(path.parts) == 1:
        return DEMO
    if str(Path(*path.parts[1:])) not in shipped:
        names = ", ".join(f"{DEMO.name}/{name}" for name in shipped)
        raise UserError(f"{run}: no such folder, and no shipped model; those are {names}")
    return DEMO.joinpath(*path.parts[1:])


def name_of(run_dir: AnyPath) -> str:
    """A run folder's own name."""
    return run_dir.resolve().name if isinstance(run_dir, Path) else run_dir.name


def load_run_config(run_dir: str | AnyPath) -> Config:
    """The configuration of a run folder, see `resolve_run`.

    Raises:
        UserError: `run_dir` is not a run folder.
    """
    run_dir = resolve_run(run_dir)
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a folder")
    has_model = (run_dir / CHECKPOINTS).is_dir() or (run_dir / WEIGHTS).is_file()
    if not (run_dir / CONFIG).is_file() or not has_model:
        raise UserError(
            f"{run_dir} is not a run folder: it needs {CONFIG} and {CHECKPOINTS}/ or {WEIGHTS} "
            "(give a folder that train.py or glide_jax.export wrote)"
        )
    return Config.load(run_dir / CONFIG)


def saved_steps(run_dir: AnyPath) -> list[int]:
    """Steps of the whole checkpoints, the newest first.

    What an interrupted write leaves behind has other names, and what was found damaged too.

    Raises:
        UserError: the bucket cannot be read.
    """
    with storage_errors("read", run_dir):
        found = [path for path in (run_dir / CHECKPOINTS).glob("*") if path.name.isdigit()]
        if not isinstance(run_dir, Path):
            found = [path for path in found if (path / COMMITTED).exists()]
    return sorted((int(path.name) for path in found), reverse=True)


def last_step(run_dir: AnyPath) -> int | None:
    """Step of the newest whole checkpoint, None if there is none. Raises as `saved_steps`."""
    return next(iter(saved_steps(run_dir)), None)


def open_run_folder(run_dir: AnyPath, config: Config) -> None:
    """Makes a run folder, or checks that an existing one fits and notes the new configuration.

    A run may go on with other settings of the loop, the optimizer, the data or sampling, but its
    model and noise process are what its parameters mean, and train.trainable what its optimizer
    holds.

    Raises:
        UserError: the folder is of a run with other such settings, or holds weights alone, or
            cannot be written.
    """
    with storage_errors("read", run_dir):
        exported = (run_dir / WEIGHTS).exists() and not (run_dir / CHECKPOINTS).exists()
        saved = [run_dir / CHECKPOINTS / str(step) for step in saved_steps(run_dir)]
        goes_on = any((path / "optimizer").exists() for path in saved)
    if exported:
        raise UserError(
            f"{run_dir} holds exported weights, not a training that could go on: give another "
            f"--train.run-dir, and --train.init-from {run_dir} to start from these weights"
        )
    if saved and not goes_on:
        raise UserError(
            f"{run_dir} holds weights alone, without the state of a training that could go on: "
            f"give another --train.run-dir, and --train.init-from {run_dir} to start from them"
        )
    if saved:
        before = Config.load(run_dir / CONFIG)
        for part in ("model", "diffusion", "train.trainable"):
            old, new = (operator.attrgetter(part)(c) for c in (before, config))
            difference = _first_difference(old, new, part)
            if difference is not None:
                setting, old, new = difference
                raise UserError(
                    f"{setting} is {new}, but the run in {run_dir} was started with {old}: "
                    "give another --train.run-dir, or the same setting"
                )
    with storage_errors("write the run folder", run_dir):
        (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        (run_dir / CONFIG).write_text(config.to_json() + "\n")


def require_shared(run_dir: AnyPath, config: Config) -> None:
    """Checks, in another process than the one that opened it, that this is the same run folder.

    Raises:
        UserError: it is not.
    """
    deadline = time.monotonic() + SEEN_S
    while not (run_dir / CONFIG).is_file() or Config.load(run_dir / CONFIG) != config:
        if time.monotonic() < deadline:
            time.sleep(0.2)
            continue
        raise UserError(
            f"{run_dir} is not what process 0 has just written there: give a --train.run-dir on "
            "storage that all processes share"
        )


def _first_difference(old: Any, new: Any, name: str) -> tuple[str, Any, Any] | None:
    if name in CHANGEABLE:
        return None
    if not dataclasses.is_dataclass(old):
        return None if old == new else (name, old, new)
    for field in dataclasses.fields(old):
        found = _first_difference(
            getattr(old, field.name), getattr(new, field.name), f"{name}.{field.name}"
        )
        if found is not None:
            return found
    return None
