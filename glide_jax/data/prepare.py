"""Turns captioned pictures in folders, tars or parquet files into shards for training.

    python -m glide_jax.data.prepare --from my_pictures 'cc12m/*.tar' --to data/mine --px 256
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
from pathlib import Path
from typing import Annotated, Any

import filelock
import tyro

from glide_jax.data.inputs import Keys, Unit, find_units
from glide_jax.data.records import listed
from glide_jax.data.selection import REASONS, Selection, Tally
from glide_jax.data.shards import Shard, write_index
from glide_jax.data.staging import plan, stage_all, total_tally, write_all
from glide_jax.errors import UserError, exit_on_user_error

WORK = ".unfinished"
REPORT_FILE = "report.json"
BROKEN_FILE = "broken.txt"
SETTINGS_FILE = "settings.json"
MEGABYTE = 1_000_000


@dataclass(frozen=True)
class Arguments:
    """Turns captioned pictures in folders, tars or parquet files into shards for training."""

    inputs: Annotated[tuple[str, ...], tyro.conf.arg(name="from")]
    """Folders of pictures with captions, of tars or of parquet files; or such files."""
    to: str
    """The folder to write."""
    keys: tyro.conf.OmitArgPrefixes[Keys] = field(default_factory=Keys)
    selection: tyro.conf.OmitArgPrefixes[Selection] = field(default_factory=Selection)
    validation: int = 1000
    """Pictures to hold out, picked by their digests; at most half."""
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
    """By the keys of glide_jax.data.selection.REASONS."""
    bytes_read: int
    """Of pictures."""
    bytes_written: int
    shards: int
    cpu_ms_a_picture: float
    """Processor time of reading, judging and making smaller."""
    pictures_per_s: float | None
    """Read since the last start; none if it had nothing left to read."""
    problems: list[str]
    """The first of them; broken.txt has all."""

    def table(self) -> str:
        """For people."""
        rows = [("read", self.read, f"{self.bytes_read / MEGABYTE:,.1f} MB of pictures")]
        rows += [("dropped", self.dropped[reason], REASONS[reason]) for reason in REASONS]
        rows += [("kept", count, split) for split, count in self.kept.items()]
        rows += [("shards", self.shards, f"{self.bytes_written / MEGABYTE:,.1f} MB")]
        lines = [f"{what:8} {count:12,}  {note}".rstrip() for what, count, note in rows]
        speed = f"{self.cpu_ms_a_picture:.1f} ms of processor time a picture"
        if self.pictures_per_s is not None:
            speed += f", {self.pictures_per_s:,.0f} pictures/s"
        lines.append(speed)
        if self.problems:
            lines.append(f"broken: {listed(self.problems)}")
        return "\n".join(lines)


def report(
    settings: dict[str, Any],
    tally: Tally,
    duplicates: int,
    splits: Mapping[str, Sequence[Shard]],
    pictures_per_s: float | None,
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
        cpu_ms_a_picture=1000 * tally.seconds / max(1, tally.read),
        pictures_per_s=pictures_per_s,
        problems=tally.problems[:100],
    )


def prepare(arguments: Arguments) -> Report:
    """Does all that is left to do, with worker processes.

    Raises:
        UserError: something of the input cannot be used as a whole, the settings have changed in
            between, no picture is left, or the folder cannot be written.
    """
    if "://" in arguments.to:
        raise UserError(f"--to {arguments.to}: name a local folder and copy it there, or --beam")
    folder, units = Path(arguments.to).expanduser(), find_units(arguments.inputs, arguments.keys)
    asked, work = arguments.fingerprint(units), folder / WORK
    try:
        if (folder / REPORT_FILE).exists():
            done = Report(**_read(folder / REPORT_FILE))
            _refuse_changes(asked, done.settings, folder)
        else:
            if folder.exists() and not work.exists() and any(folder.iterdir()):
                raise UserError(f"--to {folder}: is not empty, and not of an earlier start")
            work.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(work / "lock", timeout=0):
                if (work / SETTINGS_FILE).exists():
                    _refuse_changes(asked, _read(work / SETTINGS_FILE), folder)
                _write(work / SETTINGS_FILE, asked)
                done = _prepared(arguments, units, asked, folder)
        shutil.rmtree(work, ignore_errors=True)
    except filelock.Timeout:
        raise UserError(f"--to {folder}: another process is at work on it") from None
    except OSError as error:
        raise UserError(f"--to {folder}: {error.strerror or error}") from None
    return done


def _prepared(
    arguments: Arguments, units: Sequence[Unit], asked: dict[str, Any], folder: Path
) -> Report:
    work, start = folder / WORK, time.perf_counter()
    before = total_tally(work).read
    stage_all(units, arguments.keys, arguments.selection, work, arguments.workers)
    tally, seconds = total_tally(work), time.perf_counter() - start
    jobs, duplicates = plan(work, len(units), arguments.validation, arguments.shard_mb * MEGABYTE)
    if not jobs:
        raise UserError(nothing_left(tally))
    splits = write_all(jobs, work, folder, arguments.workers)
    write_index(str(folder), splits, identity(asked))
    read = tally.read - before
    done = report(asked, tally, duplicates, splits, read / seconds if read else None)
    (folder / BROKEN_FILE).write_text("".join(f"{line}\n" for line in tally.problems))
    _write(folder / REPORT_FILE, dataclasses.asdict(done))
    return done


def identity(asked: dict[str, Any]) -> str:
    """Tells apart what was prepared from other inputs or otherwise."""
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()


def nothing_left(tally: Tally) -> str:
    """What to say when no picture is kept."""
    why = ", ".join(f"{count:,} {reason}" for reason, count in tally.dropped.items())
    return f"of {tally.read:,} pictures none is kept ({why}): {listed(tally.problems)}"


def _refuse_changes(asked: dict[str, Any], begun: dict[str, Any], folder: Path) -> None:
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


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from None


def _write(path: Path, values: dict[str, Any]) -> None:
    """All of the file or nothing."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(values, indent=1))
    unfinished.replace(path)


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    arguments, others = tyro.cli(
        Arguments,
        prog="python -m glide_jax.data.prepare",
        description=__doc__,
        args=argv,
        return_unknown_args=True,
    )
    if others and not arguments.beam:
        raise UserError(f"unknown flag {others[0]}: --help lists them; --beam takes Beam's as well")
    try:
        print(prepare(arguments).table())
    except KeyboardInterrupt:
        raise UserError("stopped; the same command goes on from here") from None


if __name__ == "__main__":
    with exit_on_user_error():
        main()
