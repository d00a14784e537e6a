"""Batches for training: shuffled, prefetched, and resumable from one number.

Example n, counted from the start of training, depends on the seed and n alone: Grain shuffles each
epoch and gives every example its own random generator. A batch has the next b examples, and each
process makes its own part of them. The number of past examples is therefore the complete state,
whatever the batch sizes were, and batches do not depend on the number of processes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, cast

import grain
import numpy as np
from grain.experimental import ThreadPrefetchIterDataset
from jaxtyping import Bool, Int32

from glide_jax.config import ClipConfig, Config, ModelConfig
from glide_jax.data.distinct import distinct_in_batches
from glide_jax.data.examples import Example, ExampleReader
from glide_jax.data.mixture import MixtureSource, in_proportion, parts_of
from glide_jax.data.records import RecordReader, Source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.workers import in_workers, start, worker_errors
from glide_jax.errors import UserError
from glide_jax.shapes import Batch

INDEX_SHUFFLE_RECORDS = 5000
"""Smaller sources use a stored permutation per epoch. Grain's index shuffle stores nothing but is
slow for few records: 1 ms per example for 20 records."""

DEVICE_BATCHES = 1
"""Batches on the devices that wait for their step, beside the one that is being copied."""

ClipCaptions = Callable[[Sequence[str]], tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]]
"""Maps captions to a CLIP model's tokens and their mask."""


class Loader(Iterator[Batch]):
    """An endless iterator over this process's part of the training batches, as NumPy arrays.

    An example has one of its record's captions, or the empty caption with probability
    data.caption_dropout. An epoch has each record once, except for replacements of broken records.
    For a CLIP, no batch has a record twice: see `distinct_in_batches`.
    Batches are placed on devices while the steps before them compute. Call `close` or use the
    loader as a context manager to stop its threads and processes.

    Args:
        source: at least one record. Batches larger than the source repeat records; a CLIP's must
            not be larger.
        tokenizer: encodes the captions.
        config: the run's config.
        process_index: index of this process.
        process_count: number of processes that share a batch.
        clip_tokenizer: tokenizer of an auxiliary CLIP loss, see `Batch`.
        state: state of an earlier loader to continue from.
        place: converts NumPy batches to arrays on devices, in a thread. None: none.

    Raises:
        UserError: the batch size is not divisible by process_count. During iteration: too many
            broken records, or a lost worker process.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        config: Config,
        *,
        process_index: int = 0,
        process_count: int = 1,
        clip_tokenizer: ClipCaptions | None = None,
        state: dict[str, int] | None = None,
        place: Callable[[Batch], Batch] | None = None,
    ) -> None:
        self._config = config
        self._readers = [
            RecordReader(part, config.data.max_bad_fraction) for part in parts_of(source)
        ]
        if state is not None and "examples" not in state:
            raise UserError(
                "the checkpoint is of an earlier version, which counted batches instead of "
                "examples: give another --train.run-dir, and --train.init-from to start from it"
            )
        self._past = 0 if state is None else state["examples"]
        own_examples = part_of_batch(config, process_count)
        collate = partial(
            collated, tokenizer=tokenizer, config=config, clip_tokenizer=clip_tokenizer
        )
        batches = self._examples(source, config.train.seed)[self._past :].batch(
            own_examples, drop_remainder=True, batch_fn=collate
        )[process_index::process_count]
        # Each thread makes a complete batch: passing single examples costs as much as making them.
        threads, workers = config.data.loader_threads, config.data.loader_workers
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        batches = in_workers(batches.to_iter_dataset(options), workers, self._readers, tokenizer)
        if place is not None:
            batches = ThreadPrefetchIterDataset(
                batches.map(place), prefetch_buffer_size=DEVICE_BATCHES
            )
        self._iterator = start(batches) if workers else iter(batches)

    def __next__(self) -> Batch:
        with worker_errors():
            batch = next(self._iterator)
        self._past += self._config.train.batch_examples
        return batch

    def state(self) -> dict[str, int]:
        """The number of examples since the start of training, as JSON values."""
        return {"examples": self._past}

    @property
    def bad_records(self) -> int:
        """Number of distinct broken records that this loader has skipped."""
        return sum(reader.bad_records for reader in self._readers)

    def close(self) -> None:
        """Stops the threads and processes, and discards unfinished batches."""
        self._iterator.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _examples(self, source: Source, seed: int) -> Any:
        """Endless examples as a grain.MapDataset."""
        if isinstance(source, MixtureSource):
            orders = [_shuffled(len(part), seed + i) for i, part in enumerate(source.parts)]
            places = in_proportion(orders, source.weights).seed(seed)
        else:
            places = _shuffled(len(source), seed).map(lambda index: (0, index))
        reader = ExampleReader(self._config, self._readers)
        if not isinstance(self._config.model, ClipConfig):
            return places.random_map(reader.read)
        images = sum(map(len, parts_of(source)))
        batch_examples = self._config.train.batch_examples
        choices = distinct_in_batches(places, self._past, batch_examples, images)
        return choices.random_map(reader.read_distinct)


def _shuffled(records: int, seed: int) -> Any:
    """Endless indices as a grain.MapDataset: a new permutation of all indices per epoch."""
    indices = grain.MapDataset.range(records).seed(seed)
    if records >= INDEX_SHUFFLE_RECORDS:
        return indices.shuffle().repeat()

    return indices.repeat().map_with_index(
        lambda place, _: _permutation(records, seed, place // records)[place % records]
    )


@lru_cache(maxsize=16)  # threads may be in different epochs
def _permutation(records: int, seed: int, epoch: int) -> list[int]:
    return np.random.default_rng((seed, epoch)).permutation(records).tolist()


def part_of_batch(config: Config, process_count: int) -> int:
    """Examples of each process in a batch. Raises UserError if the batch does not divide."""
    batch_examples = config.train.batch_examples
    if batch_examples % process_count:
        raise UserError(
            f"train.batch_examples ({batch_examples}) must be divisible by the number of "
            f"processes ({process_count})"
        )
    return batch_examples // process_count


def collated(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    config: Config,
    clip_tokenizer: ClipCaptions | None,
) -> Batch:
    """A process's part of a batch."""
    captions = [example.caption for example in examples]
    model = config.model
    if isinstance(model, ModelConfig) and model.text.encoder == "none":
        captions = [""] * len(examples)
    tokens, token_mask = tokenizer.encode(captions, model.text.length)
    batch = {"tokens": tokens, "token_mask": token_mask}
    if examples[0].pixels.size:
        batch["image"] = np.stack([example.pixels for example in examples])
    for name, arrays in {
        "mask": [example.mask for example in examples if example.mask is not None],
        "image_embedding": [e.embedding for e in examples if e.embedding is not None],
        "clip_image": [e.clip_pixels for e in examples if e.clip_pixels is not None],
        "low_res": [e.low_res for e in examples if e.low_res is not None],
    }.items():
        if arrays:
            batch[name] = np.stack(arrays)
    if clip_tokenizer is not None:
        tokens, token_mask = clip_tokenizer(captions)
        batch |= {"clip_tokens": tokens, "clip_token_mask": token_mask}
    # NumPy arrays here; sharding.to_devices converts them to the jax.Arrays of Batch.
    return cast(Batch, batch)
