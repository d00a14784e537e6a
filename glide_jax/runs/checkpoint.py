"""Checkpoints of a run: written in the background, verified when read.

    checkpoints/STEP/           orbax: params, ema, optimizer, progress (counters), host
    checkpoints/STEP.damaged/   a checkpoint that failed verification

`host` is JSON: the state of loader and log, a fingerprint of every array, and a digest of itself.

Checkpoint integrity: a checkpoint is written under a temporary name and renamed when complete (in a
bucket, marked when complete), so an interrupted write never harms the previous one. If an array
differs from the saved one, the checkpoint is set aside and the previous one is restored.
"""

import contextlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from glide_jax.errors import UserError, system_cause
from glide_jax.parallel.process_group import ProcessGroup
from glide_jax.runs.fingerprint import descriptions, digest, fingerprints, named
from glide_jax.runs.kept import Kept
from glide_jax.runs.paths import CHECKPOINTS, COMMITTED, saved_steps
from glide_jax.runs.state import TrainState, require_same_shapes
from glide_jax.shapes import Params
from glide_jax.storage import AnyPath, move_folder, unused

# Orbax logs every thread and file as a warning. Errors are still logged.
logging.getLogger("absl").setLevel(logging.ERROR)


class Checkpoints:
    """The checkpoints of one run folder.

    Args:
        run_dir: the run folder.
        max_checkpoints: checkpoints to keep: so many of the newest, or see `Kept`. None: read only.
        group: the processes of the run, each of which saves and restores its shards.
        step: the only checkpoint to read.
    """

    def __init__(
        self,
        run_dir: AnyPath,
        max_checkpoints: int | Kept | None = None,
        group: ProcessGroup | None = None,
        step: int | None = None,
    ) -> None:
        absolute = run_dir.absolute() if isinstance(run_dir, Path) else run_dir
        self._folder: AnyPath = absolute / CHECKPOINTS
        self._writes, self._step = max_checkpoints is not None, step
        kept = max_checkpoints
        self._kept = kept if isinstance(kept, Kept) else Kept(kept or 1)
        self._group = group or ProcessGroup()
        self.restored_step: int | None = None
        """Step of the last restored checkpoint."""
        # Each process reads independently: if one fails, the others must not wait for it.
        index = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(
            primary_host=index, active_processes={index}, barrier_sync_key_prefix=f"reader{index}"
        )
        with self._errors("open"):
            self._manager = ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._kept,
                    read_only=not self._writes,
                    create=self._writes,
                    multiprocessing_options=(
                        ocp.options.MultiprocessingOptions() if self._writes else alone
                    ),
                ),
                item_handlers=_handlers(),
            )
            self._reader = ocp.Checkpointer(
                ocp.CompositeCheckpointHandler(
                    composite_options=ocp.CompositeOptions(multiprocessing_options=alone),
                    **_handlers(alone),
                ),
                multiprocessing_options=alone,
            )

    @property
    def latest_step(self) -> int | None:
        """Step of the newest complete checkpoint, None if there is none."""
        return self._manager.latest_step()

    def is_best(self, step: int, values: Mapping[str, float]) -> bool:
        """Whether to save this step for its metrics, see `Best.improves`."""
        best = self._kept.best
        return best is not None and best.improves(step, values, self._manager.all_steps())

    def save(self, state: TrainState, host_state: dict[str, Any]) -> None:
        """Starts to write a checkpoint; returns as soon as the state is copied.

        Args:
            state: of the step just taken.
            host_state: state of the loader and the log, as JSON.

        Raises:
            UserError: this or the previous write failed, for example because the disk is full.
        """
        self._require_space(
            sum(
                shard.data.nbytes
                for x in jax.tree.leaves(state)
                for shard in x.addressable_shards
                if shard.replica_id == 0  # copies on other devices are not written
            )
        )
        self._save(int(state.step), _items(state), host_state)

    def save_ema(self, params: Mapping[str, np.ndarray | jax.Array]) -> None:
        """Starts to write a checkpoint of EMA parameters only, as step 0; see `restore_ema`.

        Raises:
            UserError: the write failed, for example because the disk is full.
        """
        self._require_space(sum(x.nbytes for x in params.values()))
        self._save(0, {"ema": dict(params)}, {})

    def _save(self, step: int, items: dict[str, Any], host_state: dict[str, Any]) -> None:
        record = {"state": host_state, "arrays": {k: descriptions(v) for k, v in items.items()}}
        host = ocp.args.JsonSave(record | {"sha256": digest(record)})
        arrays = {name: ocp.args.StandardSave(tree) for name, tree in items.items()}
        with self._errors("save"):
            self._manager.save(step, args=ocp.args.Composite(**arrays, host=host))

    def restore(
        self, abstract: TrainState, shardings: TrainState
    ) -> tuple[TrainState, dict[str, Any]]:
        """Restores the newest undamaged checkpoint, and moves damaged ones aside.

        Args:
            abstract: shapes and types of the state.
            shardings: of the state.

        Returns:
            The train state and the host state.

        Raises:
            UserError: there is none, or its arrays have other names or shapes.
        """
        target = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            abstract,
            shardings,
        )
        found, host_state = self._newest(_items(target))
        progress = {"history": None} | found["progress"]
        state = TrainState(
            params=found["params"], ema=found["ema"], opt_state=found["optimizer"], **progress
        )
        return state, host_state

    def restore_ema(
        self,
        shapes: Mapping[str, jax.ShapeDtypeStruct],
        shardings: Mapping[str, jax.sharding.Sharding] | None = None,
    ) -> Params:
        """Restores only the EMA parameters of the newest undamaged checkpoint.

        Args:
            shapes: by parameter name.
            shardings: by parameter name; this process's first device unless given.

        Raises:
            UserError: as `restore`.
        """
        first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        target = {
            name: jax.ShapeDtypeStruct(
                s.shape, s.dtype, sharding=first if shardings is None else shardings[name]
            )
            for name, s in shapes.items()
        }
        return self._newest({"ema": target})[0]["ema"]

    def ema_fingerprint(self) -> str:
        """A digest of the restored EMA parameters, else of the newest. Raises UserError."""
        restored = self.restored_step
        for step in self._steps() if restored is None else [restored]:
            with contextlib.suppress(Exception):  # orbax and tensorstore raise many kinds
                return digest(self._record(step)["arrays"]["ema"])
        raise UserError(f"{self._folder} has no complete checkpoint yet")

    def _steps(self) -> list[int]:
        """Steps to read, the first undamaged one of them."""
        return saved_steps(self._folder.parent) if self._step is None else [self._step]

    def _newest(self, items: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """The items, with these shapes and shardings, and the host state."""
        steps = self._group.gather(self._steps())[0]
        if not steps:
            raise UserError(f"{self._folder} has no complete checkpoint yet")
        damaged: dict[int, str] = {}
        for step in steps:
            found, host_state, why = self._read(step, items)
            if not why:
                self._set_aside(damaged, step)
                self.restored_step = step
                return found, host_state
            del found  # as large as the model
            damaged[step] = why
        raise UserError(
            f"every checkpoint in {self._folder} is damaged, the newest one because "
            f"{damaged[steps[0]]}; no file was changed: restore one from a backup, or give another "
            "--train.run-dir"
        )

    def _read(self, step: int, items: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], str]:
        """Items, host state, and the reason if they are damaged: the same in all processes."""
        folder = self._folder / str(step)
        found: Any = {}
        record, why = {}, ""
        try:
            record = self._record(step)
            for name, tree in items.items():
                if name not in record["arrays"]:
                    raise UserError(
                        f"{folder} holds only weights, without a train state to resume from"
                    )
                stored = {k: SimpleNamespace(**v) for k, v in record["arrays"][name].items()}
                require_same_shapes(named(tree), stored, f"the checkpoint {folder}")
            if "progress" in items and not {"loader", "log"} <= record["state"].keys():
                raise ValueError("its host metadata lack the state of the loader or the log")
            arrays = {name: ocp.args.StandardRestore(tree) for name, tree in items.items()}
            found = dict(self._reader.restore(folder, ocp.args.Composite(**arrays)).items())
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds
            why = system_cause(error)
        why = next(filter(None, self._group.gather(why)), "")
        for name in items if not why else ():
            for path, fingerprint in fingerprints(found[name]).items():
                if fingerprint != record["arrays"][name][path]["fingerprint"]:
                    why = why or f"{name} {path} differs from the saved array"
        return found, record.get("state", {}), why

    def _record(self, step: int) -> dict[str, Any]:
        """The checkpoint's `host`, verified by its own digest. Raises many kinds of errors."""
        host = ocp.args.Composite(host=ocp.args.JsonRestore())
        record = dict(self._reader.restore(self._folder / str(step), host).host)
        if "sha256" not in record:
            raise ValueError("it has no fingerprints: an earlier version wrote it")
        if record.pop("sha256") != digest(record):
            raise ValueError("its list of contents differs from the saved one")
        if not all(isinstance(record.get(name), dict) for name in ("state", "arrays")):
            raise ValueError("its host metadata lack the state or the arrays")
        return record

    def _set_aside(self, damaged: dict[int, str], good: int) -> None:
        """Warns of damaged checkpoints, and renames them."""
        for step, why in damaged.items() if self._group.lead else ():
            folder = self._folder / str(step)
            action = "skipped"
            if self._writes:
                aside = unused(folder.with_name(f"{step}.damaged"))
                action = f"moved to {aside.name}"
                with self._errors("move damaged"):
                    move_folder(folder, aside, marker=COMMITTED)
            line = f"warning: the checkpoint {folder} is damaged ({why}): {action}, using"
            sys.stderr.write(f"{line} step {good}\n")
        self._group.barrier()
        if damaged:
            self._manager.reload()

    def kept(self) -> str:
        """What the run folder keeps, as a part of a message; waits for unfinished checkpoints."""
        with contextlib.suppress(Exception):  # a failed write is not kept
            self._manager.wait_until_finished()
        steps = saved_steps(self._folder.parent)
        return f"keeps its last checkpoint (step {steps[0]:,})" if steps else "has no checkpoint"

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Closes; after an error, which must stay the last line, a failed write is a warning."""
        if error is None:
            self.close()
            return
        try:
            self.close()
        except UserError as failed:
            sys.stderr.write(f"warning: {failed}\n")

    def close(self) -> None:
        """Waits until all checkpoints are written. Raises UserError as `save` does."""
        with self._errors("save"):
            self._manager.wait_until_finished()
            self._manager.close()

    def _require_space(self, needed: int) -> None:
        if not isinstance(self._folder, Path):
            return  # buckets have no limit
        if not os.access(self._folder, os.W_OK | os.X_OK):  # orbax would fail after minutes
            raise UserError(f"cannot save checkpoints in {self._folder}: no permission to write")
        free = shutil.disk_usage(self._folder).free
        if free < needed:
            raise UserError(
                f"cannot save checkpoints in {self._folder}: {needed / 1e6:,.0f} MB are needed and "
                f"{free / 1e6:,.0f} MB are free; free some space and start again, "
                "or reduce train.max_checkpoints"
            )

    @contextlib.contextmanager
    def _errors(self, verb: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # orbax and tensorstore raise many kinds
            raise UserError(
                f"cannot {verb} checkpoints in {self._folder}: {system_cause(error)}"
            ) from error


def _handlers(alone: Any = None) -> dict[str, Any]:
    """Orbax's handlers of a checkpoint's items, for all processes or for one alone."""
    options = {} if alone is None else {"multiprocessing_options": alone}
    arrays = ("params", "ema", "optimizer", "progress")
    return {name: ocp.StandardCheckpointHandler(**options) for name in arrays} | {
        "host": ocp.JsonCheckpointHandler(**options)
    }


def _items(state: TrainState) -> dict[str, Any]:
    """The state as a checkpoint's items, without those that are None."""
    names = ("step", "skipped", "skipped_in_a_row", "history")
    progress = {name: getattr(state, name) for name in names}
    return {
        "params": state.params,
        "ema": state.ema,
        "optimizer": state.opt_state,
        "progress": {name: value for name, value in progress.items() if value is not None},
    }
