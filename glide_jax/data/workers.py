"""Worker processes of the loader: Python code runs on one core per process.

A worker makes whole batches: of n workers, the i-th makes batches i, i + n, ... and Grain returns
them in order, so that batches do not depend on the number of workers. With each batch, a worker
sends what it has counted since the last one: records read, broken ones and truncated captions.
Arrays are passed in shared memory: for 256 px images, at half the cost of a pipe.
"""

import logging
import multiprocessing
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import grain
from absl.flags import FLAGS

from glide_jax.data.records import RecordReader
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.errors import UserError
from glide_jax.shapes import Batch


class Counts(NamedTuple):
    """What a worker has counted since its last batch."""

    records: list[tuple[int, dict[int, str]]]
    """By part of the source: records read, and the problems of broken ones by index."""
    truncated: int
    """Truncated captions."""


def in_workers(
    batches: Any, workers: int, readers: Sequence[RecordReader], tokenizer: Tokenizer
) -> Any:
    """Batches that are made in worker processes, as a grain.IterDataset.

    Args:
        batches: a grain.IterDataset of batches, which can be pickled.
        workers: number of processes; 0: none.
        readers, tokenizer: which make the batches, and in this process keep the counts.
    """
    if not workers:
        return batches
    FLAGS.mark_as_parsed()  # Grain reads flags of its own, which are not ours
    options = grain.MultiprocessingOptions(num_workers=workers)
    batches = batches.map(_Counter(readers, tokenizer)).mp_prefetch(options, _start)
    return batches.map(partial(_counted, readers, tokenizer))


@contextmanager
def worker_errors() -> Iterator[None]:
    """Raises UserError if a worker process has ended, mostly for lack of memory."""
    try:
        yield
    except RuntimeError as error:
        code = re.match("Worker process was terminated .*(exit code -?[0-9]+)", str(error))
        if code is None:
            raise
        raise UserError(
            f"a worker process of the loader ended with {code[1]}; if memory (-9) or the shared "
            "memory of a container (-7; docker run --shm-size 8g) is full, give more of it, or "
            "fewer --data.loader-workers"
        ) from error


class _Counter:
    """Adds to each batch of a worker what was counted since the last one."""

    def __init__(self, readers: Sequence[RecordReader], tokenizer: Tokenizer) -> None:
        self._readers, self._tokenizer = readers, tokenizer
        self._sent = [(0, 0)] * len(readers)
        self._sent_truncated = 0

    def __call__(self, batch: Batch) -> tuple[Batch, Counts]:
        truncated = self._tokenizer.truncated
        records = []
        for part, (reader, (reads, broken)) in enumerate(
            zip(self._readers, self._sent, strict=True)
        ):
            all_reads, problems = reader.counted()
            records.append((all_reads - reads, dict(problems[broken:])))
            self._sent[part] = all_reads, len(problems)
        counts = Counts(records, truncated - self._sent_truncated)
        self._sent_truncated = truncated
        return batch, counts


def _counted(
    readers: Sequence[RecordReader], tokenizer: Tokenizer, made: tuple[Batch, Counts]
) -> Batch:
    batch, counts = made
    for reader, (reads, problems) in zip(readers, counts.records, strict=True):
        reader.add(reads, problems)
    tokenizer.truncated += counts.truncated
    return batch


def start(batches: Any) -> Any:
    """The iterator of batches of `in_workers`, whose processes start now and get no signal to stop.

    A terminal or a cluster signals all processes; the training still needs batches to stop.

    Args:
        batches: a grain.IterDataset that prefetches in a thread; without one, processes start later
            and get signals.
    """
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        # Python's process that removes shared memory after an error, of which it would warn.
        sys.warnoptions.append("ignore:resource_tracker")
        resource_tracker.ensure_running()
        sys.warnoptions.pop()
        signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # its start unblocks some
        iterator = iter(batches)
        iterator.start_prefetch()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return iterator


def _start(index: int, count: int) -> None:
    """Prepares a worker process."""
    # The training logs broken records once for all workers.
    logging.getLogger("glide_jax").setLevel(logging.ERROR)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Ends this process once the training has ended, even if it was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(0)
