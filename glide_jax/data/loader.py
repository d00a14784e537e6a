"""Batches for training and validation: shuffled, prefetched, and resumable from one number.

Batch k is a function of the seed and k alone. Grain shuffles every epoch anew and gives each
example, counted from the start of training, its own random generator; batch k is the examples
k b .. (k+1) b - 1, and each process makes its own part of them. So the number of batches seen is
the whole position, and the batches stay the same when the number of processes changes.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, NamedTuple, cast

import grain
import numpy as np
from jaxtyping import Bool, Int32, UInt8

from glide_jax.config import Config, ModelConfig
from glide_jax.data.masks import draw_mask, with_place
from glide_jax.data.mixture import Mixture, in_proportion, parts_of
from glide_jax.data.records import Record, RecordReader, Source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.transforms import load_pixels, to_float
from glide_jax.errors import UserError
from glide_jax.shapes import Batch

FEW_RECORDS = 5000
"""Below this, an order is drawn and kept for each epoch. Grain's own shuffle keeps nothing, but is
slow where records are few: a millisecond an example for twenty of them."""

ClipCaptions = Callable[[Sequence[str]], tuple[Int32[np.ndarray, "b l"], Bool[np.ndarray, "b l"]]]
"""Captions to a CLIP's tokens and their mask."""


class Example(NamedTuple):
    """What a record gives a batch."""

    pixels: UInt8[np.ndarray, "h w 3"]
    caption: str
    """The one chosen for it, or the empty one."""
    mask: Bool[np.ndarray, "h w 1"] | None
    """For inpainting: True where the model sees the image."""


class Loader(Iterator[Batch]):
    """An endless iterator over training batches: NumPy arrays, this process's part of each.

    Each example has one of its record's captions, or the empty one with probability
    data.caption_dropout. Within an epoch no record comes twice, other than in the place of a broken
    one. `close` it, or use it as a context manager, so that its threads end at once.

    Args:
        source: at least one record; a larger batch repeats some.
        tokenizer: of the captions.
        config: data, model sizes, batch size and seed of the run.
        process_index: of this process.
        process_count: how many share a batch.
        clip_tokenizer: of the CLIP of an auxiliary loss, see `Batch`.
        state: of an earlier loader, whose next batch is this one's first.

    Raises:
        UserError: the batch cannot be shared out; in iteration: too many broken records.
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
    ) -> None:
        self._config = config
        self._readers = [
            RecordReader(part, config.data.max_bad_fraction) for part in parts_of(source)
        ]
        self._batch = 0 if state is None else state["batch"]
        examples = self._examples(source, config.train.seed)
        batches = _batched(
            examples, tokenizer, config, process_index, process_count, clip_tokenizer
        )
        self._iterator = _prefetched(batches[self._batch :], config)

    def __next__(self) -> Batch:
        batch = next(self._iterator)
        self._batch += 1
        return batch

    def state(self) -> dict[str, int]:
        """The position, for JSON: the number of batches handed out since the start of training."""
        return {"batch": self._batch}

    @property
    def bad_records(self) -> int:
        """Different broken records skipped since this loader was made."""
        return sum(reader.bad_records for reader in self._readers)

    def close(self) -> None:
        """Ends the threads; batches being made are dropped."""
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
        if not isinstance(source, Mixture):
            return _shuffled(len(source), seed).random_map(partial(self._read, 0))
        orders = [_shuffled(len(part), seed + number) for number, part in enumerate(source.parts)]
        places = in_proportion(orders, source.weights).seed(seed)
        return places.random_map(lambda place, rng: self._read(place[0], place[1], rng))

    def _read(self, part: int, index: int, rng: np.random.Generator) -> Example:
        return self._readers[part].read(index, partial(self._prepare, rng))

    def _prepare(self, rng: np.random.Generator, record: Record) -> Example:
        data, model = self._config.data, self._config.model
        caption = record.captions[rng.integers(len(record.captions))]
        if rng.random() < data.caption_dropout and isinstance(model, ModelConfig):
            caption = ""
        pixels = load_pixels(
            record.image,
            model.resolution_px,
            rng,
            crop=data.crop,
            horizontal_flip=data.horizontal_flip,
            name=record.name,
        )
        return _masked(_cut(pixels, self._config, rng), caption, self._config, rng)


def validation_batches(
    source: Source,
    tokenizer: Tokenizer,
    config: Config,
    *,
    process_index: int = 0,
    process_count: int = 1,
    clip_tokenizer: ClipCaptions | None = None,
) -> Iterator[Batch]:
    """The first train.validation_examples records in order, the same every time.

    Middle crop, first caption, none dropped, always the same mask. All batches are whole, so that
    one compiled step serves them: the last one is filled up from the beginning.

    Args:
        source, tokenizer, config, process_index, process_count, clip_tokenizer: as of Loader.

    Raises:
        UserError: as Loader.
    """
    reader = RecordReader(source, config.data.max_bad_fraction)
    count = min(config.train.validation_examples, len(source))
    examples = (
        grain.MapDataset.range(count)
        .repeat()
        .map(lambda index: reader.read(index, partial(_prepare_for_validation, config, index)))
    )
    batches = _batched(examples, tokenizer, config, process_index, process_count, clip_tokenizer)
    iterator = _prefetched(batches[: -(-count // config.train.batch_examples)], config)
    try:
        yield from iterator
    finally:
        iterator.close()


def validation_examples(source: Source, config: Config, count: int) -> list[Example]:
    """The first examples of `validation_batches`, of whole images."""
    reader = RecordReader(source, config.data.max_bad_fraction)
    return [
        reader.read(index, partial(_prepare_for_validation, config, index, whole=True))
        for index in range(min(count, len(source)))
    ]


def _prepare_for_validation(
    config: Config, index: int, record: Record, *, whole: bool = False
) -> Example:
    pixels = load_pixels(record.image, config.model.resolution_px, name=record.name)
    rng = np.random.default_rng(index)
    if not whole:
        pixels = _cut(pixels, config, rng)
    return _masked(pixels, record.captions[0], config, rng)


def _cut(
    pixels: UInt8[np.ndarray, "h w 3"], config: Config, rng: np.random.Generator
) -> UInt8[np.ndarray, "h2 w2 3"]:
    """A square of data.low_res.crop_px from anywhere in the image, if that is asked for."""
    px = config.data.low_res.crop_px
    if not px:
        return pixels
    y, x = rng.integers(0, len(pixels) - px + 1, 2)
    return pixels[y : y + px, x : x + px]


def _masked(
    pixels: UInt8[np.ndarray, "h w 3"], caption: str, config: Config, rng: np.random.Generator
) -> Example:
    """An example, with a mask if the model is made for inpainting."""
    if not (isinstance(config.model, ModelConfig) and config.model.inpaint):
        return Example(pixels, caption, None)
    mask = draw_mask(rng, len(pixels), config.data.masks)
    if rng.random() < config.data.masks.place_caption:
        caption = with_place(caption, mask)
    return Example(pixels, caption, mask)


def _shuffled(records: int, seed: int) -> Any:
    """Endless indices as a grain.MapDataset: all of them, in a new order every epoch."""
    indices = grain.MapDataset.range(records).seed(seed)
    if records >= FEW_RECORDS:
        return indices.shuffle().repeat()

    @lru_cache(maxsize=16)  # threads may be in several epochs at once
    def order(epoch: int) -> list[int]:
        return np.random.default_rng((seed, epoch)).permutation(records).tolist()

    return indices.repeat().map_with_index(
        lambda place, _: order(place // records)[place % records]
    )


def _batched(
    examples: Any,
    tokenizer: Tokenizer,
    config: Config,
    process_index: int,
    process_count: int,
    clip_tokenizer: ClipCaptions | None,
) -> Any:
    """One process's part of every batch, as a grain.MapDataset."""
    batch_examples = config.train.batch_examples
    if batch_examples % process_count:
        raise UserError(
            f"train.batch_examples ({batch_examples}) must be divisible by the number of "
            f"processes ({process_count})"
        )

    def collate(part: Sequence[Example]) -> Batch:
        captions = [example.caption for example in part]
        tokens, token_mask = tokenizer.encode(captions, config.model.text.length)
        image = to_float(np.stack([example.pixels for example in part]))
        batch = {"image": image, "tokens": tokens, "token_mask": token_mask}
        masks = [example.mask for example in part if example.mask is not None]
        if masks:
            batch["mask"] = np.stack(masks).astype(np.float32)
        if clip_tokenizer is not None:
            tokens, token_mask = clip_tokenizer(captions)
            batch |= {"clip_tokens": tokens, "clip_token_mask": token_mask}
        # On the host, so NumPy's; sharding.to_devices makes them the arrays that Batch promises.
        return cast(Batch, batch)

    parts = examples.batch(batch_examples // process_count, drop_remainder=True, batch_fn=collate)
    return parts[process_index::process_count]


def _prefetched(batches: Any, config: Config) -> Any:
    """A grain iterator whose threads work ahead; the errors they meet are raised by `next`."""
    # A thread makes a whole batch: handing over single examples would cost as much as making them.
    threads = config.data.loader_threads
    return iter(
        batches.to_iter_dataset(
            grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads + 1)
        )
    )
