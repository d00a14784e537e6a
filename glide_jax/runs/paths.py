"""Layout of a run folder, and how a folder is found.

    runs/base64/
      config.json          the resolved configuration
      tokenizer/           the tokenizer of its captions
      checkpoints/STEP/    see glide_jax.runs.checkpoint
      samples/STEP.png     grids of the prompts and seeds of every preview
      metrics.jsonl  tensorboard/  profile/
      .lock                see glide_jax.runs.lock

Sampling and fine-tuning need no checkpoints: exported EMA parameters do, as glide_jax.export writes
them and as the models shipped with the package have them.

    demo/base/
      config.json  tokenizer/
      weights.safetensors
      MODEL_CARD.md        what the model is, its data and license
"""

from pathlib import Path

from glide_jax.config import Config
from glide_jax.errors import UserError
from glide_jax.storage import AnyPath, path_of, storage_errors

CONFIG = "config.json"
TOKENIZER = "tokenizer"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"
MODEL_CARD = "MODEL_CARD.md"
METRICS = "metrics.jsonl"
TENSORBOARD = "tensorboard"
SAMPLES = "samples"
PROFILE = "profile"

COMMITTED = "commit_success.txt"
"""Last file that orbax writes into a checkpoint in a bucket, where a checkpoint has its final name
from the start: without it, the checkpoint is incomplete."""

DEMO = Path(__file__).parent.parent / "demo"
"""The models shipped with the package, a folder each."""


def resolve_run(run: str | AnyPath) -> AnyPath:
    """The path of a run folder given by path or by the name of a shipped model.

    Args:
        run: a folder; or "demo", the folder of all shipped models, or one of them, as "demo/base".
            A folder of this name in the current directory takes precedence.

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
            f"{run}: no models are shipped with this installation, and no such folder exists; give "
            "the folder of a run of your own"
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


def saved_steps(run_dir: AnyPath) -> list[int]:
    """Steps of the complete checkpoints, newest first.

    Interrupted writes and damaged checkpoints have other names.

    Raises:
        UserError: the bucket cannot be read.
    """
    with storage_errors("read", run_dir):
        found = [path for path in (run_dir / CHECKPOINTS).glob("*") if path.name.isdigit()]
        if not isinstance(run_dir, Path):
            found = [path for path in found if (path / COMMITTED).exists()]
    return sorted((int(path.name) for path in found), reverse=True)


def last_step(run_dir: AnyPath) -> int | None:
    """Step of the newest complete checkpoint, None if there is none. Raises as `saved_steps`."""
    return next(iter(saved_steps(run_dir)), None)


def run_dir_of(name: str, config: Config) -> AnyPath:
    """The run folder of a configuration of this name."""
    return path_of(config.train.run_dir or f"runs/{name}")
