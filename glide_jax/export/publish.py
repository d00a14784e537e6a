"""Publishing: a run's EMA parameters, tokenizer and configuration as a folder."""

import contextlib
import dataclasses
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from glide_jax.config import ClipConfig, Config, Folder, Mixture, Shards, Unknown
from glide_jax.errors import UserError
from glide_jax.export.card import model_card
from glide_jax.pretrained.weight_files import require_finite
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.folder import Run
from glide_jax.runs.paths import CHECKPOINTS, CONFIG, MODEL_CARD, TOKENIZER, WEIGHTS, name_of
from glide_jax.storage import GCS_PREFIX, AnyPath, storage_errors, write_atomically

Dtype = Literal["bfloat16", "float16", "float32"]


def export(
    run_dir: AnyPath, to: AnyPath, dtype: Dtype = "bfloat16", license_name: str = ""
) -> None:
    """Writes the EMA parameters of the newest checkpoint as a run folder, atomically.

    Args:
        run_dir: a run folder with checkpoints.
        to: the new folder.
        dtype: of the stored parameters.
        license_name: of the weights, for the model card; empty: not stated.

    Raises:
        UserError: `run_dir` has no checkpoint or cannot be read, `to` already exists or cannot be
            written, or a parameter exceeds the range of `dtype`.
    """
    with storage_errors("read", to):
        exists = to.exists()
    if exists:
        raise UserError(f"{to} already exists: remove it, or give another --to")
    run = Run.open(run_dir)
    run_dir, config = run.path, run.config
    for name in (CHECKPOINTS, TOKENIZER):
        if not (run_dir / name).is_dir():
            raise UserError(f"{run_dir} has no {name}/: give the folder that train.py wrote")
    with contextlib.closing(Checkpoints(run_dir, step=run.step)) as checkpoints:
        params = checkpoints.restore_ema(run.network.shapes)
        step = checkpoints.restored_step
        assert step is not None
    weights = _cast(params, dtype)

    with storage_errors("read", run_dir / TOKENIZER):
        files = {
            f"{TOKENIZER}/{file.name}": file.read_bytes()
            for file in (run_dir / TOKENIZER).iterdir()
            if not file.name.startswith(".")  # of interrupted writes or file browsers
        }
    # Not save_file, which makes a file that only its owner can read.
    files[WEIGHTS] = safetensors.numpy.save(weights, {"step": str(step), "dtype": dtype})
    count = sum(value.size for value in weights.values())
    portable = _portable(config)
    if isinstance(config.model, ClipConfig):  # models trained with it know it by this
        named = dataclasses.replace(portable.train, clip_fingerprint=run.clip_fingerprint)
        portable = dataclasses.replace(portable, train=named)
    card = model_card(name_of(to), portable, step, count, dtype, license_name)
    files[MODEL_CARD] = card.encode()
    # Last: an interrupted upload to a bucket has no config.json, and is not a run folder.
    files[CONFIG] = (portable.to_json() + "\n").encode()
    with storage_errors("write", to):
        _write_folder(to, files)
    size = sum(value.nbytes for value in weights.values())
    print(f"{to}: {count:,} parameters of step {step:,}, {size / 1e6:,.1f} MB in {dtype}")


def _write_folder(to: AnyPath, files: Mapping[str, bytes]) -> None:
    unfinished = to
    if isinstance(to, Path):
        unfinished = to.absolute().with_name(f".{to.absolute().name}.{os.getpid()}")
        shutil.rmtree(unfinished, ignore_errors=True)
    try:
        for name, content in files.items():
            write_atomically(unfinished / name, content)
        if isinstance(to, Path):
            unfinished.rename(to)
    finally:
        if isinstance(to, Path):
            shutil.rmtree(unfinished, ignore_errors=True)


def _cast(params: Mapping[str, jax.Array], dtype: Dtype) -> dict[str, np.ndarray]:
    weights = {}
    for name, value in params.items():
        require_finite(np.asarray(value), name)
        with np.errstate(over="ignore"):
            weights[name] = np.asarray(value, order="C").astype(jnp.dtype(dtype))
        if not np.isfinite(weights[name].astype(np.float32)).all():
            raise UserError(
                f"{name} has values beyond the range of {dtype}: give --dtype bfloat16 or float32"
            )
    return weights


def _portable(config: Config) -> Config:
    """The configuration with absolute paths and buckets reduced to their last part."""
    data, train = config.data, config.train
    return dataclasses.replace(
        config,
        data=dataclasses.replace(
            data, source=_portable_source(data.source), tokenizer=_name(data.tokenizer)
        ),
        train=dataclasses.replace(
            train, run_dir="", init_from=_name(train.init_from), clip_run=_name(train.clip_run)
        ),
    )


def _portable_source(source: Any) -> Any:
    match source:
        case Mixture():
            parts = [
                dataclasses.replace(part, source=_portable_source(part.source))
                for part in source.parts
            ]
            return Mixture(tuple(parts))
        case Shards():
            return Shards(_name(source.path))
        case Folder():
            return Folder(_name(source.path))
        case Unknown():
            return source
        case _:
            return dataclasses.replace(source, data_dir="")


def _name(path: str) -> str:
    private = Path(path).is_absolute() or path.startswith(GCS_PREFIX)
    return (Path(path).name if private else "") or path  # "/" has no name, and reveals nothing
