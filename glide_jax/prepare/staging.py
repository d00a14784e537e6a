"""The two passes of `prepare`: units to staged files, staged files to shards.

Duplicates, held-out images and the number of shards are known only after the first pass. The second
pass copies encoded records and takes a fraction of the time. Finished work is a file under its
final name in the working folder, so a restarted command resumes there.
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
from glide_jax.prepare.inputs import read_unit
from glide_jax.prepare.selection import DIGEST_BYTES, Selection, Tally, select
from glide_jax.prepare.units import Keys, Unit


def run_jobs(jobs: Sequence[Callable[[], None]], workers: int, label: str) -> None:
    """Runs independent jobs in worker processes, or in this process for one worker.

    Args:
        jobs: picklable functions.
        workers: number of processes.
        label: label of the progress bar.

    Raises:
        UserError: a worker died or cannot write.
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
            "a worker process died, possibly out of memory: run the same command again to resume, "
            "with fewer --workers if necessary"
        ) from None
    except (OSError, RuntimeError) as error:  # RuntimeError: array_record, on a full disk
        raise UserError(
            f"{label}: {str(error).splitlines()[0]}: run the same command again to resume"
        ) from error


def _end_with_parent() -> None:
    """Makes a worker exit immediately when its parent process exits, and on Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


# Reading --------------------------------------------------------------------------------------


def stage_units(
    units: Sequence[Unit], keys: Keys, selection: Selection, work: Path, workers: int
) -> None:
    """Stages all units that are not staged yet.

    Args:
        units: all inputs.
        keys: location of captions and images.
        selection: filters and size.
        work: the folder for staged files.
        workers: number of processes.
    """
    jobs = [
        partial(_stage, unit, keys, selection, _staged(work, number))
        for number, unit in enumerate(units)
        if not _staged(work, number).with_suffix(".json").exists()
    ]
    run_jobs(jobs, workers, "reading")


def _staged(work: Path, number: int) -> Path:
    return work / f"unit-{number:06}"


def _stage(unit: Unit, keys: Keys, selection: Selection, path: Path) -> None:
    """Writes the records of a unit, then their digests and sizes, then its tally."""
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
    unfinished.write_text(json.dumps(vars(tally)), encoding="utf-8")
    unfinished.replace(path.with_suffix(".json"))


def total_tally(work: Path) -> Tally:
    """The sum of the tallies of all staged units. Duplicates are not known yet."""
    total = Tally()
    for path in sorted(work.glob("unit-*.json")):
        values = json.loads(path.read_bytes())
        total += Tally(**(values | {"dropped": Counter(values["dropped"])}))
    return total


# Writing --------------------------------------------------------------------------------------


class ShardPlan(NamedTuple):
    """One shard to write."""

    split: str
    name: str
    parts: list[tuple[int, Int[np.ndarray, "n"]]]
    """Numbers of units, and positions in their staged files."""


def plan_shards(
    work: Path, units: int, validation: int, shard_bytes: int
) -> tuple[list[ShardPlan], int]:
    """Assigns the staged records to shards.

    The first record of each digest is kept. Those with the lowest digests are held out.

    Args:
        work: the folder of staged files.
        units: number of units.
        validation: number of records to hold out, limited to half of all.
        shard_bytes: approximate maximum size of a shard.

    Returns:
        The shards, empty if there are no records, and the number of duplicates.
    """
    staged = [np.load(_staged(work, number).with_suffix(".npz")) for number in range(units)]
    digests, sizes = (
        np.concatenate([file[key] for file in staged]) for key in ("digests", "sizes")
    )
    counts = [len(file["sizes"]) for file in staged]
    starts = np.cumsum([0, *counts])
    first = first_occurrences(digests)
    held_out = min(validation, len(first) // 2)
    plans = []
    for split, chosen in (("train", first[held_out:]), ("validation", first[:held_out])):
        chosen = np.sort(chosen)
        shards = shard_bounds(sizes[chosen], shard_bytes)
        for number, (start, stop) in enumerate(shards):
            part = chosen[start:stop]
            unit = np.searchsorted(starts, part, side="right") - 1
            parts = [(int(u), part[unit == u] - starts[u]) for u in np.unique(unit)]
            plans.append(ShardPlan(split, shard_name(split, number, len(shards)), parts))
    return plans, len(digests) - len(first)


def first_occurrences(digests: Shaped[np.ndarray, "n"]) -> Int[np.ndarray, "m"]:
    """Index of the first occurrence of each digest, in the order of digests."""
    return np.unique(digests, return_index=True)[1]


def shard_bounds(sizes: Int[np.ndarray, "n"], shard_bytes: int) -> list[tuple[int, int]]:
    """Start and stop of shards of equal size, each of about `shard_bytes` at most."""
    if not len(sizes):
        return []
    ends = np.cumsum(sizes)
    count = -(-int(ends[-1]) // shard_bytes)
    bounds = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count)
    edges = np.unique([0, *bounds, len(sizes)]).tolist()
    return list(itertools.pairwise(edges))


def write_shards(
    plans: Sequence[ShardPlan], work: Path, folder: Path, workers: int
) -> dict[str, list[Shard]]:
    """Writes all shards that do not exist yet.

    Args:
        plans: output of `plan_shards`.
        work: the folder of staged files.
        folder: the folder for shards.
        workers: number of processes.

    Returns:
        Each split's shards in order.
    """
    missing = [plan for plan in plans if not (folder / plan.name).exists()]
    run_jobs([partial(_write, plan, work, folder) for plan in missing], workers, "writing")
    splits: dict[str, list[Shard]] = {}
    for plan in plans:
        records = sum(len(positions) for _, positions in plan.parts)
        size = (folder / plan.name).stat().st_size
        splits.setdefault(plan.split, []).append(Shard(plan.name, records, size))
    return splits


def _write(plan: ShardPlan, work: Path, folder: Path) -> None:
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    def records() -> Iterator[bytes]:
        for unit, positions in plan.parts:
            source = ArrayRecordDataSource(str(_staged(work, unit).with_suffix(".array_record")))
            for position in positions:
                yield source[int(position)]

    write_records(work / plan.name, records())
    (work / plan.name).replace(folder / plan.name)
