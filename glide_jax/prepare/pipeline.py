"""The preparation of training data: inputs to shards, an index and a report."""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import filelock
import fsspec
import tyro

from glide_jax.config.bounds import Between
from glide_jax.data.records import list_problems
from glide_jax.data.shards import Shard, upload_text, write_index
from glide_jax.errors import UserError
from glide_jax.prepare.inputs import find_units
from glide_jax.prepare.selection import REASONS, Selection, Tally
from glide_jax.prepare.staging import plan_shards, stage_units, total_tally, write_shards
from glide_jax.prepare.units import Keys, Unit
from glide_jax.storage import expand_home, require_folder

WORK_FOLDER = ".unfinished"
REPORT_FILE = "report.json"
BROKEN_FILE = "broken.txt"
SETTINGS_FILE = "settings.json"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class PrepareConfig:
    """Flags of the command."""

    inputs: Annotated[tuple[str, ...], tyro.conf.arg(name="from")]
    """Inputs: tars, parquet files, patterns such as '*.tar', or folders of tars, parquet files or
    captioned images."""
    to: str
    """Output folder."""
    keys: tyro.conf.OmitArgPrefixes[Keys] = field(default_factory=Keys)
    selection: tyro.conf.OmitArgPrefixes[Selection] = field(default_factory=Selection)
    validation: Annotated[int, Between(0, 10**9)] = 1000
    """Number of images to hold out, chosen by their digests and limited to half of all."""
    shard_mb: Annotated[int, Between(1, 10**6)] = 500
    """Approximate maximum size of a shard in megabytes."""
    workers: Annotated[int, Between(1, 1024)] = field(default_factory=lambda: os.cpu_count() or 1)
    """Number of worker processes."""
    beam: bool = False
    """Run as an Apache Beam pipeline. Flags that are not listed here are passed to Beam."""

    def __post_init__(self) -> None:
        for ok, flag, requirement in (
            (len(self.inputs) > 0, "from", "needs at least one input"),
            (self.validation >= 0, "validation", "must be at least 0"),
            (self.shard_mb >= 1, "shard-mb", "must be at least 1"),
            (self.workers >= 1, "workers", "must be at least 1"),
        ):
            if not ok:
                raise UserError(f"--{flag} {requirement}")

    @property
    def shard_bytes(self) -> int:
        """Approximate maximum size of a shard in bytes."""
        return self.shard_mb * MEGABYTE

    def output_settings(self, units: Sequence[Unit]) -> dict[str, Any]:
        """All values that determine the output: flags, and a hash of the inputs."""
        values = {"from": list(self.inputs), "validation": self.validation}
        values |= {"shard_mb": self.shard_mb}
        values |= dataclasses.asdict(self.keys) | dataclasses.asdict(self.selection)
        contents = json.dumps([dataclasses.asdict(unit) for unit in units])
        return values | {"contents": hashlib.sha256(contents.encode()).hexdigest()}


@dataclass(frozen=True)
class Report:
    """Results of the preparation, stored as report.json."""

    settings: dict[str, Any]
    read: int
    kept: dict[str, int]
    """Number of records in each split."""
    dropped: dict[str, int]
    """Counts by the keys of glide_jax.prepare.selection.REASONS."""
    bytes_read: int
    """Bytes of encoded images."""
    bytes_written: int
    shards: int
    cpu_ms_per_image: float
    """CPU time for reading, filtering and resizing."""
    images_per_s: float | None
    """Reading speed since the last start, None if all units were already read."""
    problems: list[str]
    """The first problems. broken.txt has all of them."""

    def table(self) -> str:
        """Human-readable summary."""
        rows = [("read", self.read, f"{self.bytes_read / MEGABYTE:,.1f} MB of images")]
        rows += [("dropped", self.dropped[reason], REASONS[reason]) for reason in REASONS]
        rows += [("kept", count, split) for split, count in self.kept.items()]
        asked, held_out = self.settings["validation"], self.kept.get("validation", 0)
        if held_out < asked:
            note = f"of them held out: at most half of all, fewer than --validation {asked:,}"
            rows.append(("", held_out, note))
        rows += [("shards", self.shards, f"{self.bytes_written / MEGABYTE:,.1f} MB")]
        lines = [f"{label:8} {count:12,}  {note}".rstrip() for label, count, note in rows]
        speed = f"{self.cpu_ms_per_image:.1f} ms CPU time per image"
        if self.images_per_s is not None:
            speed += f", {self.images_per_s:,.0f} images/s"
        lines.append(speed)
        if self.problems:
            lines.append(f"broken: {list_problems(self.problems)}")
        return "\n".join(lines)


def make_report(
    settings: dict[str, Any],
    tally: Tally,
    duplicates: int,
    splits: Mapping[str, Sequence[Shard]],
    images_per_s: float | None,
) -> Report:
    """Computes the totals."""
    shards = [shard for split in splits.values() for shard in split]
    dropped = tally.dropped | {"duplicate": duplicates}
    return Report(
        settings=settings,
        read=tally.read,
        kept={split: sum(shard.records for shard in splits[split]) for split in splits},
        dropped={reason: dropped.get(reason, 0) for reason in REASONS},
        bytes_read=tally.bytes_read,
        bytes_written=sum(shard.bytes for shard in shards),
        shards=len(shards),
        cpu_ms_per_image=1000 * tally.seconds / max(1, tally.read),
        images_per_s=images_per_s,
        problems=tally.problems[:100],
    )


def prepare(arguments: PrepareConfig, beam_flags: Sequence[str] = ()) -> Report:
    """Writes the shards, or finishes an interrupted preparation.

    Args:
        arguments: the command's flags.
        beam_flags: further flags for Apache Beam.

    Raises:
        UserError: an input cannot be read, settings or inputs differ from those of an earlier
            start, no image passes the filters, or the folder cannot be written.
    """
    folder = arguments.to.rstrip("/")
    if "://" in folder and not arguments.beam:
        raise UserError(f"--to {folder}: use a local folder and copy it afterwards, or add --beam")
    if "://" not in folder:
        require_folder("--to", Path(expand_home(folder)))
    units = find_units(arguments.inputs, arguments.keys)
    settings = arguments.output_settings(units)
    filesystem, root = _filesystem(folder)
    try:
        if filesystem.exists(f"{root}/{REPORT_FILE}"):
            stored = _read(f"{folder}/{REPORT_FILE}")
            _require_same_settings(settings, stored["settings"], folder)
            _require_same_names(stored, {one.name for one in dataclasses.fields(Report)}, folder)
            report = Report(**stored)
        else:
            resuming = filesystem.exists(f"{root}/{WORK_FOLDER}") and not arguments.beam
            if not resuming and filesystem.exists(root) and filesystem.ls(root):
                raise UserError(
                    f"--to {folder}: the folder is not empty: delete it, or use another --to"
                )
            created = root if arguments.beam else f"{root}/{WORK_FOLDER}"
            filesystem.makedirs(created, exist_ok=True)
            run = partial(_run_beam, beam_flags) if arguments.beam else _run_workers
            report = run(arguments, units, settings, folder)
        if not arguments.beam:
            shutil.rmtree(f"{root}/{WORK_FOLDER}", ignore_errors=True)
    except filelock.Timeout:
        raise UserError(f"--to {folder}: in use by another process: wait for it") from None
    except OSError as error:
        raise UserError(f"--to {folder}: {error.strerror or error}") from None
    return report


def _filesystem(folder: str) -> tuple[Any, str]:
    try:
        return fsspec.url_to_fs(folder)
    except (ImportError, ValueError) as error:  # names the missing library
        raise UserError(f"--to {folder}: {error}") from None


def _run_workers(
    arguments: PrepareConfig, units: Sequence[Unit], settings: dict[str, Any], to: str
) -> Report:
    """Runs, or resumes, in worker processes of this machine."""
    folder = Path(expand_home(to))
    work, start = folder / WORK_FOLDER, time.perf_counter()
    with filelock.FileLock(work / "lock", timeout=0):
        if (work / SETTINGS_FILE).exists():
            _require_same_settings(settings, _read(str(work / SETTINGS_FILE)), to)
        upload_text(json.dumps(settings), str(work), SETTINGS_FILE)
        before = total_tally(work).read
        stage_units(units, arguments.keys, arguments.selection, work, arguments.workers)
        tally, seconds = total_tally(work), time.perf_counter() - start
        plans, duplicates = plan_shards(
            work, len(units), arguments.validation, arguments.shard_bytes
        )
        splits = write_shards(plans, work, folder, arguments.workers)
        read = tally.read - before
        speed = read / seconds if read else None
        return _finish(to, settings, tally, duplicates, splits, speed)


def _run_beam(
    flags: Sequence[str],
    arguments: PrepareConfig,
    units: Sequence[Unit],
    settings: dict[str, Any],
    to: str,
) -> Report:
    try:
        from glide_jax.prepare import beam
    except ImportError:
        raise UserError("--beam needs Apache Beam: pip install -e '.[beam]'") from None

    start = time.perf_counter()
    tally, duplicates, splits = beam.run(
        units,
        arguments.keys,
        arguments.selection,
        to,
        arguments.validation,
        arguments.shard_bytes,
        flags,
    )
    speed = tally.read / (time.perf_counter() - start)
    return _finish(to, settings, tally, duplicates, splits, speed)


def _finish(
    folder: str,
    settings: dict[str, Any],
    tally: Tally,
    duplicates: int,
    splits: Mapping[str, Sequence[Shard]],
    images_per_s: float | None,
) -> Report:
    """Writes the index, broken.txt and the report. The report is last: it marks completion."""
    if not splits:
        raise UserError(_why_none(tally, settings))
    fingerprint = hashlib.sha256(json.dumps(settings).encode()).hexdigest()
    write_index(folder, splits, fingerprint)
    report = make_report(settings, tally, duplicates, splits, images_per_s)
    upload_text("".join(f"{line}\n" for line in tally.problems), folder, BROKEN_FILE)
    upload_text(json.dumps(dataclasses.asdict(report), indent=1), folder, REPORT_FILE)
    return report


def _why_none(tally: Tally, settings: Mapping[str, Any]) -> str:
    """Why no image is kept, with the flags to change."""
    if not tally.read:
        return "--from: the inputs have no images"
    min_px = settings["px"] if settings["min_px"] is None else settings["min_px"]
    values = {
        "captions": f"--min-caption-chars {settings['min_caption_chars']}, "
        f"--max-caption-chars {settings['max_caption_chars']}",
        "too_small": f"--min-px {min_px}",
        "too_long": f"--max-aspect {settings['max_aspect']:g}",
    }
    reasons = "; ".join(
        f"{count:,} {REASONS[reason]}" + (f" ({values[reason]})" if reason in values else "")
        for reason, count in tally.dropped.items()
    )
    broken = f"; unreadable: {list_problems(tally.problems)}" if tally.problems else ""
    return (
        f"none of {tally.read:,} images is kept: {reasons}{broken}: change these flags or the "
        "inputs, and delete the folder or use another --to"
    )


def _require_same_names(stored: Iterable[str], names: Iterable[str], folder: str) -> None:
    if set(stored) != set(names):
        raise UserError(
            f"{folder} was prepared by an earlier version: delete that folder, or use another --to"
        )


def _require_same_settings(new: dict[str, Any], stored: dict[str, Any], folder: str) -> None:
    _require_same_names(stored, new, folder)
    for name, value in new.items():
        if stored[name] == value:
            continue
        if name == "contents":
            raise UserError(
                f"--from: files have changed since {folder} was started: "
                "delete that folder, or use another --to"
            )
        raise UserError(
            f"{folder} was started with --{name.replace('_', '-')} {_flag(stored[name])}, not "
            f"{_flag(value)}: use the same value, delete that folder, or use another --to"
        )


def _flag(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else repr(value)


def _read(path: str) -> dict[str, Any]:
    with fsspec.open(path) as file:
        return json.loads(file.read())
