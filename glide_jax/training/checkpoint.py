"""A run folder: its configuration, tokenizer and checkpoints.

    runs/base64/
      config.json          the resolved configuration
      tokenizer/           what turned captions into tokens
      checkpoints/STEP/    orbax: params, ema, optimizer, progress (counters), host (loader, log)
      samples/  metrics.jsonl  tensorboard/

Where only the model matters, its weights alone do as well, as glide_jax.training.export writes them
and as models are shipped with the package:

    demo/base/
      config.json  tokenizer/
      weights.safetensors  averaged parameters

Checkpoints are written in the background to a temporary name and renamed when whole, so an
interrupted write never harms the last good one.
"""

import contextlib
import dataclasses
import errno
import logging
import operator
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from glide_jax.config import Config
from glide_jax.errors import UserError
from glide_jax.models.weight_files import read_tensors
from glide_jax.shapes import Params
from glide_jax.training.step import TrainState

CONFIG = "config.json"
TOKENIZER = "tokenizer"
CHECKPOINTS = "checkpoints"
WEIGHTS = "weights.safetensors"
DEMO = Path(__file__).parent.parent / "demo"
"""The models shipped with the package, a folder each."""

CHANGEABLE = {
    "model.dtype",
    "model.remat",
    "model.unet.dropout",
    "diffusion.weighting",
    "diffusion.min_snr_gamma",
}
"""Settings of model and noise that may change between two starts: no parameter depends on them."""

# Orbax tells of every thread and file at the level of warnings; its errors still come through.
logging.getLogger("absl").setLevel(logging.ERROR)


def resolve_run(run: str | Path) -> Path:
    """The folder that is meant, where a run folder is asked for.

    Args:
        run: a folder; or "demo", the folder of all shipped models, or one of them, as "demo/base".
            What is there under this name in the current directory comes first.

    Raises:
        UserError: there is no shipped model of this name.
    """
    path = Path(run)
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


def load_run_config(run_dir: str | Path) -> Config:
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
            "(give a folder that train.py or glide_jax.training.export wrote)"
        )
    return Config.load(run_dir / CONFIG)


def load_weights(run_dir: str | Path, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
    """A run folder's averaged parameters, as float32 on this process's first device.

    Args:
        run_dir: see `resolve_run`. Its exported weights are read where there are some, else its
            newest whole checkpoint.
        shapes: of all parameters, by name.

    Raises:
        UserError: there are none, they cannot be read, or they have other names or shapes.
    """
    run_dir = resolve_run(run_dir)
    weights = run_dir / WEIGHTS
    if not weights.exists():
        with contextlib.closing(Checkpoints(run_dir)) as checkpoints:
            return checkpoints.restore_ema(shapes)
    found = read_tensors(weights)
    require_same_shapes(shapes, found, f"the weights {weights}")
    return jax.device_put(found, jax.local_devices()[0])


def has_checkpoints(run_dir: Path) -> bool:
    """Whether there is anything saved in this folder."""
    return bool(_whole_checkpoints(run_dir))


def _whole_checkpoints(run_dir: Path) -> list[Path]:
    """Of every step, in any order; what an interrupted write leaves behind has other names."""
    return [path for path in (run_dir / CHECKPOINTS).glob("*") if path.name.isdigit()]


def open_run_folder(run_dir: Path, config: Config) -> None:
    """Makes a run folder, or checks that an existing one fits and notes the new configuration.

    A run may go on with other settings of the loop, the optimiser, the data or sampling, but its
    model and noise process are what its parameters mean, and train.trainable what its optimiser
    holds.

    Raises:
        UserError: the folder is of a run with other such settings, or holds weights alone, or
            cannot be written.
    """
    if (run_dir / WEIGHTS).exists() and not (run_dir / CHECKPOINTS).exists():
        raise UserError(
            f"{run_dir} holds exported weights, not a training that could go on: give another "
            f"--train.run-dir, and --train.init-from {run_dir} to start from these weights"
        )
    saved = _whole_checkpoints(run_dir)
    if saved and not any((path / "optimizer").exists() for path in saved):
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
    try:
        (run_dir / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        (run_dir / CONFIG).write_text(config.to_json() + "\n")
    except OSError as error:
        raise UserError(f"cannot write the run folder {run_dir}: {error}") from error


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


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        run_dir: the run folder.
        kept: how many checkpoints stay; the oldest go first. None: for reading only.
    """

    def __init__(self, run_dir: Path, kept: int | None = None) -> None:
        self._folder = run_dir.absolute() / CHECKPOINTS
        options = ocp.CheckpointManagerOptions(
            max_to_keep=kept, read_only=kept is None, create=kept is not None
        )
        with self._errors_named("open"):
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=options,
                item_handlers={
                    "params": ocp.StandardCheckpointHandler(),
                    "ema": ocp.StandardCheckpointHandler(),
                    "optimizer": ocp.StandardCheckpointHandler(),
                    "progress": ocp.StandardCheckpointHandler(),
                    "host": ocp.JsonCheckpointHandler(),
                },
            )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest whole checkpoint, None if there is none."""
        return self._manager.latest_step()

    def save(self, state: TrainState, host_state: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns when the state has been copied.

        Args:
            state: of the step just taken.
            host_state: what else the run needs to go on, as JSON: the loader's position, the log.

        Raises:
            UserError: this or the previous write failed, for example because the disk is full.
        """
        progress = _progress(state)
        self._require_space(
            sum(
                shard.data.nbytes
                for x in jax.tree.leaves(state)
                for shard in x.addressable_shards
                if shard.replica_id == 0  # copies on other devices are not written
            )
        )
        with self._errors_named("save"):
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(state.params),
                    ema=ocp.args.StandardSave(state.ema),
                    optimizer=ocp.args.StandardSave(state.opt_state),
                    progress=ocp.args.StandardSave(progress),
                    host=ocp.args.JsonSave(host_state),
                ),
            )

    def restore(
        self, abstract: TrainState, shardings: TrainState
    ) -> tuple[TrainState, dict[str, Any]]:
        """The newest checkpoint's train state and host state.

        Args:
            abstract: shapes and types of the state.
            shardings: where each array goes.

        Raises:
            UserError: there is none, or its parameters have other names or shapes.
        """
        step = self._checked_step(abstract.params)
        if self._manager.item_metadata(step).get("optimizer") is None:
            raise UserError(
                f"{self._folder / str(step)} holds weights alone, without the state of a training "
                "that could go on"
            )
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            shardings,
        )
        progress = _progress(target)
        with self._errors_named("read"):
            found = self._manager.restore(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardRestore(target.params),
                    ema=ocp.args.StandardRestore(target.ema),
                    optimizer=ocp.args.StandardRestore(target.opt_state),
                    progress=ocp.args.StandardRestore(progress),
                    host=ocp.args.JsonRestore(),
                ),
            )
        progress = {"history": None} | found.progress
        state = TrainState(
            params=found.params, ema=found.ema, opt_state=found.optimizer, **progress
        )
        return state, found.host

    def restore_ema(self, shapes: Mapping[str, jax.ShapeDtypeStruct]) -> Params:
        """The newest checkpoint's averaged parameters alone, on this process's first device.

        Raises:
            UserError: as `restore`.
        """
        step = self._checked_step(shapes)
        sharding = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {
            name: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)
            for name, s in shapes.items()
        }
        with self._errors_named("read"):
            return self._manager.restore(
                step, args=ocp.args.Composite(ema=ocp.args.StandardRestore(target))
            ).ema

    def save_ema(self, params: Mapping[str, np.ndarray | jax.Array]) -> None:
        """Starts to write a checkpoint of weights alone, step 0, which `restore_ema` reads.

        Raises:
            UserError: the write failed, for example because the disk is full.
        """
        self._require_space(sum(x.nbytes for x in params.values()))
        with self._errors_named("save"):
            self._manager.save(0, args=ocp.args.Composite(ema=ocp.args.StandardSave(dict(params))))

    def close(self) -> None:
        """Waits until everything is written. Raises UserError as `save` does."""
        with self._errors_named("save"):
            self._manager.wait_until_finished()
            self._manager.close()

    def _require_space(self, needed: int) -> None:
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise UserError(
                f"cannot save checkpoints in {self._folder}: {needed / 1e6:,.0f} MB are needed and "
                f"{free / 1e6:,.0f} MB are free; make room and start again, or set "
                "train.checkpoints_kept lower"
            )

    def _checked_step(self, shapes: Mapping[str, Any]) -> int:
        step = self.latest_step
        if step is None:
            raise UserError(f"{self._folder} has no whole checkpoint yet")
        with self._errors_named("read"):
            stored = self._manager.item_metadata(step)["ema"].tree
        require_same_shapes(shapes, stored, f"the checkpoint {self._folder / str(step)}")
        return step

    @contextlib.contextmanager
    def _errors_named(self, verb: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise UserError(
                f"cannot {verb} checkpoints in {self._folder}: {_cause(error)}"
            ) from error


def require_same_shapes(shapes: Mapping[str, Any], stored: Mapping[str, Any], where: str) -> None:
    """Raises UserError if the arrays `stored` at `where` are not of these names and shapes."""
    for name in sorted(set(shapes) | set(stored)):
        ours = tuple(shapes[name].shape) if name in shapes else "absent"
        theirs = tuple(stored[name].shape) if name in stored else "absent"
        if ours != theirs:
            raise UserError(
                f"the config does not match {where}: {name} is {theirs} there and {ours} in the "
                "config"
            )


def _progress(state: TrainState) -> dict[str, Any]:
    """All of the state but parameters, their average and the optimizer's; None is left out."""
    names = ("step", "skipped", "skipped_in_a_row", "history")
    values = {name: getattr(state, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}


def _cause(error: Exception) -> str:
    """What went wrong, from orbax's many lines: the system's own words, where it has any."""
    text = str(error)
    system = re.search(r"([^:\"]+: [^:\"]+) \[os_error_code", text)
    if system is not None:
        return system[1].strip()
    for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EIO):
        if os.strerror(number) in text:  # far into it, behind paths
            return os.strerror(number)
    return next(iter(text.strip().splitlines()), type(error).__name__)[:300]
