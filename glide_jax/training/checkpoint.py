"""A run folder: its configuration, tokenizer and checkpoints.

    runs/base64/
      config.json          the resolved configuration
      tokenizer/           what turned captions into tokens
      checkpoints/STEP/    orbax: params, ema, optimizer, progress (counters), host (loader, log)
      samples/  metrics.jsonl  tensorboard/

Checkpoints are written in the background to a temporary name and renamed when whole, so an
interrupted write never harms the last good one.
"""

import contextlib
import dataclasses
import logging
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
from glide_jax.shapes import Params
from glide_jax.training.step import TrainState

CONFIG = "config.json"
TOKENIZER = "tokenizer"
CHECKPOINTS = "checkpoints"

# Orbax tells of every thread and file at the level of warnings; its errors still come through.
logging.getLogger("absl").setLevel(logging.ERROR)


def load_run_config(run_dir: Path) -> Config:
    """The configuration of a run folder.

    Raises:
        UserError: `run_dir` is not a run folder.
    """
    if not run_dir.is_dir():
        raise UserError(f"{run_dir} is not a folder")
    if not (run_dir / CONFIG).is_file() or not (run_dir / CHECKPOINTS).is_dir():
        raise UserError(
            f"{run_dir} is not a run folder: it needs {CONFIG} and {CHECKPOINTS}/ "
            "(give the folder that train.py wrote)"
        )
    return Config.load(run_dir / CONFIG)


def open_run_folder(run_dir: Path, config: Config) -> None:
    """Makes a run folder, or checks that an existing one fits and notes the new configuration.

    A run may go on with other settings of the loop, the optimiser, the data or sampling, but its
    model and noise process are what its parameters mean.

    Raises:
        UserError: the folder is of a run with another model or diffusion, or cannot be written.
    """
    if (run_dir / CONFIG).exists():
        before = Config.load(run_dir / CONFIG)
        for name in ("model", "diffusion"):
            difference = _first_difference(getattr(before, name), getattr(config, name), name)
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
        progress = {
            "step": state.step,
            "skipped": state.skipped,
            "skipped_in_a_row": state.skipped_in_a_row,
        }
        self._require_space(
            sum(shard.data.nbytes for x in jax.tree.leaves(state) for shard in x.addressable_shards)
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
        progress = {
            "step": target.step,
            "skipped": target.skipped,
            "skipped_in_a_row": target.skipped_in_a_row,
        }
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
        state = TrainState(
            params=found.params, ema=found.ema, opt_state=found.optimizer, **found.progress
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
        for name in sorted(set(shapes) | set(stored)):
            ours = tuple(shapes[name].shape) if name in shapes else "absent"
            theirs = tuple(stored[name].shape) if name in stored else "absent"
            if ours != theirs:
                raise UserError(
                    f"the config does not match the checkpoint {self._folder / str(step)}: "
                    f"{name} is {theirs} there and {ours} in the config"
                )
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


def _cause(error: Exception) -> str:
    """What went wrong, from orbax's many lines: the system's own words, where it has any."""
    text = str(error)
    system = re.search(r"([^:\"]+: [^:\"]+) \[os_error_code", text)
    if system is not None:
        return system[1].strip()
    return next(iter(text.strip().splitlines()), type(error).__name__)[:300]
