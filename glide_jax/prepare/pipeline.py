"""Turns captioned images in folders, tars or parquet files into shards for training.

    python -m glide_jax.prepare --from my_images 'cc12m/*.tar' --to data/mine --px 256
    python train.py --config configs/base64.py --data.source shards --data.path data/mine

Stopped at any moment, the same command goes on. docs/big-data.md says more.
"""

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import filelock
import fsspec
import tyro

from glide_jax.data.records import list_problems
from glide_jax.data.shards import Shard, put_text, write_index
from glide_jax.errors import UserError
from glide_jax.prepare.inputs import Keys, Unit, find_units
from glide_jax.prepare.selection import REASONS, Selection, Tally
from glide_jax.prepare.staging import plan, stage_all, total_tally, write_all

WORK = ".unfinished"
REPORT_FILE = "report.json"
BROKEN_FILE = "broken.txt"
SETTINGS_FILE = "settings.json"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class PrepareConfig:
    """Turns captioned images in folders, tars or parquet files into shards for training."""

    inputs: Annotated[tuple[str, ...], tyro.conf.arg(name="from")]
    """Folders of images with captions, of tars or of parquet files; or such files."""
    to: str
    """The folder to write."""
    keys: tyro.conf.OmitArgPrefixes[Keys] = field(default_factory=Keys)
    selection: tyro.conf.OmitArgPrefixes[Selection] = field(default_factory=Selection)
    validation: int = 1000
    """Images to hold out, picked by their digests; at most half."""
    shard_mb: int = 500
    """Megabytes of one shard, about, at most."""
    workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Processes."""
    beam: bool = False
    """Run as an Apache Beam pipeline; flags that are not named here are Beam's."""

    def __post_init__(self) -> None:
        for ok, flag, why in (
            (len(self.inputs) > 0, "from", "must name something to read"),
            (self.validation >= 0, "validation", "must be at least 0"),
            (self.shard_mb >= 1, "shard-mb", "must be at least 1"),
            (self.workers >= 1, "workers", "must be at least 1"),
        ):
            if not ok:
                raise UserError(f"--{flag} {why}")

    @property
    def shard_bytes(self) -> int:
        """Bytes of one shard, about, at most."""
        return self.shard_mb * MEGABYTE

    def fingerprint(self, units: Sequence[Unit]) -> dict[str, Any]:
        """What must be the same for the work to go on: flags, and what there is to read."""
        values = {"from": list(self.inputs), "validation": self.validation}
        values |= {"shard_mb": self.shard_mb}
        values |= dataclasses.asdict(self.keys) | dataclasses.asdict(self.selection)
        contents = json.dumps([dataclasses.asdict(unit) for unit in units])
        return values | {"contents": hashlib.sha256(contents.encode()).hexdigest()}


@dataclass(frozen=True)
class Report:
    """What was done: report.json."""

    settings: dict[str, Any]
    read: int
    kept: dict[str, int]
    """Records of each split."""
    dropped: dict[str, int]
    """By the keys of glide_jax.prepare.selection.REASONS."""
    bytes_read: int
    """Of images."""
    bytes_written: int
    shards: int
    cpu_ms_a_image: float
    """Processor time of reading, judging and making smaller."""
    images_per_s: float | None
    """Read since the last start; none if it had nothing left to read."""
    problems: list[str]
    """The first of them; broken.txt has all."""

    def table(self) -> str:
        """For people."""
        rows = [("read", self.read, f"{self.bytes_read / MEGABYTE:,.1f} MB of images")]
        rows += [("dropped", self.dropped[reason], REASONS[reason]) for reason in REASONS]
        rows += [("kept", count, split) for split, count in self.kept.items()]
        rows += [("shards", self.shards, f"{self.bytes_written / MEGABYTE:,.1f} MB")]
        lines = [f"{what:8} {count:12,}  {note}".rstrip() for what, count, note in rows]
        speed = f"{self.cpu_ms_a_image:.1f} ms of processor time an image"
        if self.images_per_s is not None:
            speed += f", {self.images_per_s:,.0f} images/s"
        lines.append(speed)
        if self.problems:
            lines.append(f"broken: {list_problems(self.problems)}")
        return "\n".join(lines)


def report(
    settings: dict[str, Any],
    tally: Tally,
    duplicates: int,
    splits: Mapping[str, Sequence[Shard]],
    images_per_s: float | None,
) -> Report:
    """Sums it all up."""
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
        cpu_ms_a_image=1000 * tally.seconds / max(1, tally.read),
        images_per_s=images_per_s,
        problems=tally.problems[:100],
    )


def prepare(arguments: PrepareConfig, beam_flags: Sequence[str] = ()) -> Report:
    """Does all that is left to do.

    Args:
        arguments: of the command.
        beam_flags: for Apache Beam, if it is to do the work.

    Raises:
        UserError: something of the input cannot be used as a whole, the settings have changed in
            between, no image is left, or the folder cannot be written.
    """
    folder = arguments.to.rstrip("/")
    if "://" in folder and not arguments.beam:
        raise UserError(f"--to {folder}: name a local folder and copy it there, or --beam")
    units = find_units(arguments.inputs, arguments.keys)
    asked = arguments.fingerprint(units)
    filesystem, root = _filesystem(folder)
    try:
        if filesystem.exists(f"{root}/{REPORT_FILE}"):
            done = Report(**_read(f"{folder}/{REPORT_FILE}"))
            _refuse_changes(asked, done.settings, folder)
        else:
            begun = filesystem.exists(f"{root}/{WORK}") and not arguments.beam
            if not begun and filesystem.exists(root) and filesystem.ls(root):
                raise UserError(
                    f"--to {folder}: is not empty, and nothing that can be gone on with"
                )
            filesystem.makedirs(f"{root}/{WORK}" if not arguments.beam else root, exist_ok=True)
            do = partial(_by_beam, beam_flags) if arguments.beam else _by_processes
            done = do(arguments, units, asked, folder)
        if not arguments.beam:
            shutil.rmtree(f"{root}/{WORK}", ignore_errors=True)
    except filelock.Timeout:
        raise UserError(f"--to {folder}: another process is at work on it") from None
    except OSError as error:
        raise UserError(f"--to {folder}: {error.strerror or error}") from None
    return done


def _filesystem(folder: str) -> tuple[Any, str]:
    try:
        return fsspec.url_to_fs(folder)
    except (ImportError, ValueError) as error:  # a library is missing: it says which
        raise UserError(f"--to {folder}: {error}") from None


def _by_processes(
    arguments: PrepareConfig, units: Sequence[Unit], asked: dict[str, Any], to: str
) -> Report:
    """With worker processes of this machine, going on from where an earlier start came to."""
    folder = Path(to).expanduser()
    work, start = folder / WORK, time.perf_counter()
    with filelock.FileLock(work / "lock", timeout=0):
        if (work / SETTINGS_FILE).exists():
            _refuse_changes(asked, _read(str(work / SETTINGS_FILE)), to)
        put_text(json.dumps(asked), str(work), SETTINGS_FILE)
        before = total_tally(work).read
        stage_all(units, arguments.keys, arguments.selection, work, arguments.workers)
        tally, seconds = total_tally(work), time.perf_counter() - start
        jobs, duplicates = plan(work, len(units), arguments.validation, arguments.shard_bytes)
        splits = write_all(jobs, work, folder, arguments.workers)
        read = tally.read - before
        speed = read / seconds if read else None
        return _finish(to, asked, tally, duplicates, splits, speed)


def _by_beam(
    flags: Sequence[str],
    arguments: PrepareConfig,
    units: Sequence[Unit],
    asked: dict[str, Any],
    to: str,
) -> Report:
    try:
        from glide_jax.prepare import beam
    except ImportError:
        raise UserError("--beam needs Apache Beam: pip install 'glide_jax[beam]'") from None

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
    return _finish(to, asked, tally, duplicates, splits, speed)


def _finish(
    folder: str,
    asked: dict[str, Any],
    tally: Tally,
    duplicates: int,
    splits: Mapping[str, Sequence[Shard]],
    images_per_s: float | None,
) -> Report:
    """Writes what belongs beside the shards; the report last, since it says that all is done."""
    if not splits:
        raise UserError(nothing_left(tally))
    write_index(folder, splits, identity(asked))
    done = report(asked, tally, duplicates, splits, images_per_s)
    put_text("".join(f"{line}\n" for line in tally.problems), folder, BROKEN_FILE)
    put_text(json.dumps(dataclasses.asdict(done), indent=1), folder, REPORT_FILE)
    return done


def identity(asked: dict[str, Any]) -> str:
    """Tells apart what was prepared from other inputs or otherwise."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def nothing_left(tally: Tally) -> str:
    """What to say when no image is kept."""
    why = ", ".join(f"{count:,} {reason}" for reason, count in tally.dropped.items())
    return f"of {tally.read:,} images none is kept ({why}): {list_problems(tally.problems)}"


def _refuse_changes(asked: dict[str, Any], begun: dict[str, Any], folder: str) -> None:
    for name, value in asked.items():
        if begun.get(name) != value and name == "contents":
            raise UserError(
                f"--from: files in it have changed since {folder} was begun: "
                "delete that folder, or give another --to"
            )
        if begun.get(name) != value:
            raise UserError(
                f"{folder} was begun with --{name.replace('_', '-')} {_flag(begun.get(name))}, not "
                f"{_flag(value)}: give the same, delete that folder, or give another --to"
            )


def _flag(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else repr(value)


def _read(path: str) -> dict[str, Any]:
    with fsspec.open(path) as file:
        return json.loads(file.read())
