"""Held-out examples, the same every time and none of them twice."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from glide_jax.config import Config
from glide_jax.data.examples import (
    NO_PIXELS,
    Example,
    finished,
    needs_no_pixels,
    random_crop,
    sizes_px,
)
from glide_jax.data.loader import ClipCaptions, collated, part_of_batch
from glide_jax.data.records import Record, RecordReader, Source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.transforms import load_sizes
from glide_jax.shapes import Batch


def validation_examples(
    source: Source, config: Config, count: int, *, full_size: bool = False
) -> list[Example]:
    """The first records that can be used, in order; fewer if the source has fewer.

    Center crop, first caption without dropout, one fixed mask per record.

    Args:
        source: the validation split.
        config: of the run.
        count: of examples.
        full_size: without data.low_res.crop_px.

    Raises:
        UserError: too many records are broken, or all of them.
    """
    reader = RecordReader(source, config.data.max_bad_fraction)
    examples: list[Example] = []
    read = 0

    def example(index: int) -> Example | None:
        return reader.attempt(index, partial(_prepared, config, index, full_size))

    with ThreadPoolExecutor(config.data.loader_threads) as threads:
        while len(examples) < count and read < len(source):
            indices = range(read, min(read + count - len(examples), len(source)))
            read = indices.stop
            examples += [found for found in threads.map(example, indices) if found is not None]
    if not examples:
        raise reader.nothing_usable()
    return examples


def validation_batches(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    config: Config,
    *,
    process_index: int = 0,
    process_count: int = 1,
    clip_tokenizer: ClipCaptions | None = None,
) -> Iterator[Batch]:
    """This process's part of the full batches of some examples, in order.

    A remainder is left out: a smaller batch would need another compiled step. Fewer examples than
    train.batch_examples give one batch, which repeats them.

    Args:
        examples: from `validation_examples`.
        tokenizer, config, process_index, process_count, clip_tokenizer: see `Loader`.

    Raises:
        UserError: see `Loader`.
    """
    size = part_of_batch(config, process_count)
    batch_examples = config.train.batch_examples
    for batch in range(max(len(examples) // batch_examples, 1)):
        first = batch * batch_examples + process_index * size
        own = [examples[number % len(examples)] for number in range(first, first + size)]
        yield collated(own, tokenizer, config, clip_tokenizer)


def with_other_captions(examples: Sequence[Example]) -> list[Example]:
    """The same images, each with the caption of another: a fixed random cycle through all."""
    order = np.random.default_rng(0).permutation(len(examples))
    found = list(examples)
    for place, other in zip(order, np.roll(order, 1), strict=True):
        found[place] = examples[place]._replace(caption=examples[other].caption)
    return found


def without_captions(examples: Sequence[Example]) -> list[Example]:
    """The same images, with empty captions."""
    return [example._replace(caption="") for example in examples]


def _prepared(config: Config, index: int, full_size: bool, record: Record) -> Example:
    if needs_no_pixels(config, record):
        return Example(NO_PIXELS, record.captions[0], None, record.embedding)
    pixels, *of_clip = load_sizes(record.image, sizes_px(config), name=record.name)
    rng = np.random.default_rng(index)
    if not full_size:
        pixels = random_crop(pixels, config, rng)
    return finished(pixels, of_clip, record.captions[0], record, config, rng)
