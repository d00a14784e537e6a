"""Several weighted sources as one.

Training reads each part in proportion to its weight, without end: an exhausted part starts its next
epoch while others are in their first. As a source of held-out images, a mixture has every record at
most once, in the same proportions, and ends with its first exhausted part.
"""

from collections.abc import Sequence
from typing import Any

import grain

from glide_jax.data.records import Record, Source, random_captions

WEIGHT_RESOLUTION = 100
"""Weights are rounded to this fraction of the smallest one."""


class MixtureSource:
    """Records of several sources in proportion. Random access, thread-safe.

    Args:
        parts: non-empty sources.
        weights: of the parts, above 0; only their ratios matter.
    """

    def __init__(self, parts: Sequence[Source], weights: Sequence[float]) -> None:
        self.parts = tuple(parts)
        self.weights = tuple(weights)
        self._order = in_proportion([grain.MapDataset.range(len(part)) for part in parts], weights)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, index: int) -> Record:
        part, place = self._order[index]
        return self.parts[part][place]

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions at `index`. Raises BadRecordError."""
        part, place = self._order[index]
        return self.parts[part].captions(place)


def parts_of(source: Source) -> tuple[Source, ...]:
    """The parts of a mixture; a single source is its own only part."""
    return source.parts if isinstance(source, MixtureSource) else (source,)


def in_proportion(orders: Sequence[Any], weights: Sequence[float]) -> Any:
    """Several grain.MapDatasets as one of pairs (number of the dataset, its next element).

    Args:
        orders: datasets of any elements; the result ends with the first that ends.
        weights: their frequencies.
    """
    # Grain rounds weights down, to hundredths of the smallest: 299.99 would become 299.
    counts = [round(WEIGHT_RESOLUTION * weight / min(weights)) for weight in weights]
    pairs = [
        order.map(lambda element, part=part: (part, element)) for part, order in enumerate(orders)
    ]
    return grain.MapDataset.mix(pairs, counts)


def training_captions(source: Source, limit: int) -> list[str]:
    """About `limit` captions spread over a source, of a mixture in proportion; deterministic.

    A part with fewer captions gives all of them.
    """
    weights = source.weights if isinstance(source, MixtureSource) else (1.0,)
    return [
        caption
        for part, weight in zip(parts_of(source), weights, strict=True)
        for caption in random_captions(part, round(limit * weight / sum(weights)))
    ]
