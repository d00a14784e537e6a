"""The two halves of `prepare`: each unit becomes a staged file, and all of these become shards.

Only when everything is read is it known which images are duplicates, which are held out and how
many shards there are. The second half copies encoded records and takes a fraction of the time. What
is done is a file in the working folder under its final name, so whoever goes on knows where.
"""

import itertools
import json
import multiprocessing
import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Int, Shaped
from tqdm import tqdm

from glide_jax.data.shards import Shard, encode, shard_name, write_records
from glide_jax.errors import UserError
from glide_jax.prepare.inputs import Keys, Unit, read_unit
from glide_jax.prepare.selection import DIGEST_BYTES, Selection, Tally, select


def do_all(jobs: Sequence[Callable[[], None]], workers: int, label: str) -> None:
    """Does independent jobs in worker processes; with one worker, in this one.

    Args:
        jobs: can be pickled.
        workers: processes.
        label: of the progress bar.

    Raises:
        UserError: a worker died, or cannot write.
    """
    workers = min(workers, len(jobs))
    try:
        if workers <= 1:
            for job in tqdm(jobs, label):
                job()
            return
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(workers, spawn, initializer=_end_with_parent) as pool:
            futures = [pool.submit(job) for job in jobs]
            try:
                for future in tqdm(as_completed(futures), label, len(futures)):
                    future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
    except BrokenProcessPool:
        raise UserError(
            "a worker process died, perhaps for lack of memory: the same command goes on from "
            "here; --workers gives another number of them"
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: array_record's, of a full disk
        raise UserError(
            f"{label}: {str(error).splitlines()[0]}; the same command goes on from here"
        ) from error


def _end_with_parent() -> None:
    """Makes a worker end at once with the process that started it, or by Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Reading --------------------------------------------------------------------------------------


def stage_all(
    units: Sequence[Unit], keys: Keys, selection: Selection, work: Path, workers: int
) -> None:
    """Stages every unit that is not staged yet.

    Args:
        units: all that there is to read.
        keys: where captions and images are.
        selection: which are kept.
        work: the folder for staged files.
        workers: processes.
    """
    jobs = [
        partial(_stage, unit, keys, selection, _staged(work, number))
        for number, unit in enumerate(units)
        if not _staged(work, number).with_suffix(".json").exists()
    ]
    do_all(jobs, workers, "reading")


def _staged(work: Path, number: int) -> Path:
    return work / f"unit-{number:06}"


def _stage(unit: Unit, keys: Keys, selection: Selection, path: Path) -> None:
    """Writes the records of a unit, then their digests and sizes, then the tally."""
    tally = Tally()
    digests, sizes = [], []

    def examples() -> Iterator[bytes]:
        for kept in select(read_unit(unit, keys), selection, tally):
            example = encode(kept.image, kept.captions, kept.name)
            digests.append(kept.digest)
            sizes.append(len(example))
            yield example

    write_records(path.with_suffix(".array_record"), examples())
    np.savez(
        path.with_suffix(".npz"),
        digests=np.array(digests, f"S{DIGEST_BYTES}"),
        sizes=np.array(sizes, np.int64),
    )
    unfinished = path.with_suffix(".tally")
    unfinished.write_text(json.dumps(vars(tally)))
    unfinished.replace(path.with_suffix(".json"))


def total_tally(work: Path) -> Tally:
    """What became of all records of the units that are staged; duplicates are not known yet."""
    total = Tally()
    for path in sorted(work.glob("unit-*.json")):
        values = json.loads(path.read_text())
        total += Tally(**(values | {"dropped": Counter(values["dropped"])}))
    return total


# Writing --------------------------------------------------------------------------------------


class Job(NamedTuple):
    """One shard to write: its place among those of its split, and the records that it takes."""

    split: str
    name: str
    parts: list[tuple[int, Int[np.ndarray, "n"]]]
    """Units, and places in their staged files."""


def plan(work: Path, units: int, validation: int, shard_bytes: int) -> tuple[list[Job], int]:
    """Decides which staged records make which shard.

    Of records with the same digest the first stays. Held out are those with the lowest digests.

    Args:
        work: the folder of staged files.
        units: how many there are.
        validation: records to hold out; at most half of all.
        shard_bytes: of records in a shard, about, at most.

    Returns:
        All shards, none if no record is left; and the number of duplicates.
    """
    staged = [np.load(_staged(work, number).with_suffix(".npz")) for number in range(units)]
    digests, sizes = (
        np.concatenate([file[key] for file in staged]) for key in ("digests", "sizes")
    )
    counts = [len(file["sizes"]) for file in staged]
    starts = np.cumsum([0, *counts])
    first = first_of_each(digests)
    held_out = min(validation, len(first) // 2)
    jobs = []
    for split, chosen in (("train", first[held_out:]), ("validation", first[:held_out])):
        chosen = np.sort(chosen)
        shards = cut(sizes[chosen], shard_bytes)
        for number, (start, stop) in enumerate(shards):
            part = chosen[start:stop]
            unit = np.searchsorted(starts, part, side="right") - 1
            parts = [(int(u), part[unit == u] - starts[u]) for u in np.unique(unit)]
            jobs.append(Job(split, shard_name(split, number, len(shards)), parts))
    return jobs, len(digests) - len(first)


def first_of_each(digests: Shaped[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Where each digest comes first, from the lowest digest to the highest."""
    return np.unique(digests, return_index=True)[1]


def cut(sizes: Int[np.ndarray, "n"], shard_bytes: int) -> list[tuple[int, int]]:
    """Cuts records into even shards of about `shard_bytes` at most: their starts and stops."""
    if not len(sizes):
        return []
    ends = np.cumsum(sizes)
    count = -(-int(ends[-1]) // shard_bytes)
    bounds = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count)
    edges = np.unique([0, *bounds, len(sizes)]).tolist()
    return list(itertools.pairwise(edges))


def write_all(
    jobs: Sequence[Job], work: Path, folder: Path, workers: int
) -> dict[str, list[Shard]]:
    """Writes every shard that is not there yet.

    Args:
        jobs: of `plan`.
        work: the folder of staged files.
        folder: of the shards.
        workers: processes.

    Returns:
        Each split's shards in order.
    """
    missing = [job for job in jobs if not (folder / job.name).exists()]
    do_all([partial(_write, job, work, folder) for job in missing], workers, "writing")
    splits: dict[str, list[Shard]] = {}
    for job in jobs:
        records = sum(len(positions) for _, positions in job.parts)
        size = (folder / job.name).stat().st_size
        splits.setdefault(job.split, []).append(Shard(job.name, records, size))
    return splits


def _write(job: Job, work: Path, folder: Path) -> None:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    def records() -> Iterator[bytes]:
        for unit, positions in job.parts:
            source = ArrayRecordDataSource(str(_staged(work, unit).with_suffix(".array_record")))
            for position in positions:
                yield source[int(position)]

    write_records(work / job.name, records())
    (work / job.name).replace(folder / job.name)
