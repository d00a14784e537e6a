"""`prepare --beam`: the same preparation as an Apache Beam pipeline, for several machines.

    pip install -e '.[beam]' && python -m build --sdist
    python -m glide_jax.prepare --beam --from 'gs://bucket/x/*.tar' --to gs://bucket/mine \\
        --runner DataflowRunner --project my-project --region europe-west4 \\
        --temp_location gs://bucket/tmp --extra_package dist/glide_jax-0.1.0.tar.gz

The records are the same as without --beam, but their shards and order differ. The runner handles
failed machines. An interrupted pipeline restarts from the beginning.
"""

import json
import os
import tempfile
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import apache_beam as beam
import fsspec
from apache_beam.options.pipeline_options import PipelineOptions

from glide_jax.data.shards import Shard, encode, shard_name, upload, upload_text, write_records
from glide_jax.prepare.inputs import read_unit
from glide_jax.prepare.selection import Selection, Tally, select
from glide_jax.prepare.units import Keys, Unit

TALLIES = "tallies"

Ranked = tuple[int, int, bytes]
"""Number of the unit, position in the unit, stored record. The minimum is the first record."""
ShardKey = tuple[str, int]
"""A split and the number of a shard."""


def run(
    units: Sequence[Unit],
    keys: Keys,
    selection: Selection,
    to: str,
    validation: int,
    shard_bytes: int,
    flags: Sequence[str],
) -> tuple[Tally, int, dict[str, list[Shard]]]:
    """Runs the pipeline and waits for it.

    Args:
        units: all inputs.
        keys: location of captions and images.
        selection: filters and size.
        to: the output folder, a path or a URL that workers can write to.
        validation: number of records to hold out, limited to half of all.
        shard_bytes: approximate maximum size of a shard.
        flags: flags for Beam.

    Returns:
        The total tally, the number of duplicates, and each split's shards in order.
    """
    outcome = f"outcome-{uuid.uuid4().hex}.json"
    with beam.Pipeline(options=PipelineOptions(list(flags))) as pipeline:
        _build(pipeline, units, keys, selection, to, validation, shard_bytes, outcome)
    filesystem, path = fsspec.url_to_fs(f"{to}/{outcome}")
    found = json.loads(filesystem.cat_file(path))
    filesystem.rm_file(path)
    tally = Tally()
    for _, values in found["tallies"]:
        tally += Tally(**(values | {"dropped": Counter(values["dropped"])}))
    splits: dict[str, list[Shard]] = {}
    for split, values in sorted(found["shards"], key=lambda pair: pair[1]["file"]):
        splits.setdefault(split, []).append(Shard(**values))
    kept = sum(shard.records for shards in splits.values() for shard in shards)
    return tally, tally.read - sum(tally.dropped.values()) - kept, splits


def _build(
    pipeline: Any,
    units: Sequence[Unit],
    keys: Keys,
    selection: Selection,
    to: str,
    validation: int,
    shard_bytes: int,
    outcome: str,
) -> None:
    read = (
        pipeline
        | "units" >> beam.Create(list(enumerate(units)))
        | "spread" >> beam.Reshuffle()
        | "read" >> beam.ParDo(_Read(keys, selection)).with_outputs(TALLIES, main="records")
    )
    # The first record of each digest, as (digest, record).
    unique = (
        read.records | "first of each" >> beam.CombinePerKey(min) | "drop rank" >> beam.Map(_unrank)
    )
    count = unique | "count" >> beam.combiners.Count.Globally()
    lowest = (
        unique
        | "digests" >> beam.Keys()
        | "lowest" >> beam.combiners.Top.Smallest(max(1, validation))
        | "held out" >> beam.Map(_held_out, validation, beam.pvalue.AsSingleton(count))
    )
    split = unique | "split" >> beam.Map(_split, beam.pvalue.AsSingleton(lowest))
    sizes = (
        split
        | "sizes" >> beam.MapTuple(lambda name, record: (name, len(record[1])))
        | "sum" >> beam.CombinePerKey(sum)
        | "shards" >> beam.MapTuple(lambda name, size: (name, -(-size // shard_bytes)))
    )
    counts = beam.pvalue.AsDict(sizes)
    records = split | "assign" >> beam.Map(_assign, counts)
    # TFDS expects all shards to exist, even those without a record.
    empty = sizes | "all shards" >> beam.FlatMap(_all_shards)
    shards = (
        (records, empty)
        | beam.Flatten()
        | "of a shard" >> beam.GroupByKey()
        | "write" >> beam.Map(_write, to, counts)
    )
    _ = (
        pipeline
        | beam.Create([outcome])
        | "outcome"
        >> beam.Map(
            _write_outcome, to, beam.pvalue.AsList(read[TALLIES]), beam.pvalue.AsList(shards)
        )
    )


class _Read(beam.DoFn):
    """Reads a unit: records keyed by digest, and the tally as a tagged output."""

    def __init__(self, keys: Keys, selection: Selection) -> None:
        self._keys, self._selection = keys, selection

    def process(self, numbered: tuple[int, Unit]) -> Iterator[Any]:
        number, unit = numbered
        tally = Tally()
        records = select(read_unit(unit, self._keys), self._selection, tally)
        for position, kept in enumerate(records):
            yield kept.digest, (number, position, encode(kept.image, kept.captions, kept.name))
        yield beam.pvalue.TaggedOutput(TALLIES, (number, vars(tally)))


def _unrank(pair: tuple[bytes, Ranked]) -> tuple[bytes, bytes]:
    digest, (_, _, example) = pair
    return digest, example


def _held_out(lowest: list[bytes], validation: int, count: int) -> frozenset[bytes]:
    return frozenset(lowest[: min(validation, count // 2)])


def _split(
    record: tuple[bytes, bytes], held_out: frozenset[bytes]
) -> tuple[str, tuple[bytes, bytes]]:
    return ("validation" if record[0] in held_out else "train"), record


def _assign(
    record: tuple[str, tuple[bytes, bytes]], counts: Mapping[str, int]
) -> tuple[ShardKey, bytes]:
    split, (digest, example) = record
    return (split, int.from_bytes(digest, "big") % counts[split]), example


def _all_shards(count: tuple[str, int]) -> Iterator[tuple[ShardKey, None]]:
    split, shards = count
    for number in range(shards):
        yield (split, number), None


def _write(
    shard: tuple[ShardKey, Iterable[bytes | None]], to: str, counts: Mapping[str, int]
) -> tuple[str, dict[str, Any]]:
    """Writes a shard on the worker's local disk and uploads it."""
    (split, number), records = shard
    name, written = shard_name(split, number, counts[split]), 0

    def counted() -> Iterator[bytes]:
        nonlocal written
        for record in records:
            if record is not None:
                written += 1
                yield record

    with tempfile.TemporaryDirectory() as here:
        path = Path(here) / name
        write_records(path, counted())
        upload(path, to)
        return split, asdict(Shard(name, written, os.path.getsize(path)))


def _write_outcome(
    name: str,
    to: str,
    tallies: list[tuple[int, dict[str, Any]]],
    shards: list[tuple[str, dict[str, Any]]],
) -> None:
    upload_text(json.dumps({"tallies": sorted(tallies), "shards": shards}), to, name)
