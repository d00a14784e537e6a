"""Several sources with weights, as one.

Training draws on each part in proportion to its weight, for ever: a part that is used up starts
its next epoch while others are still in their first. Read as a source, for held-out images, a
mixture has no record twice: the same proportions, until the first part is used up.
"""

from collections.abc import Sequence
from typing import Any

import grain

from glide_jax.data.records import Record, Source, random_captions

FINENESS = 100
"""Weights are kept to so many parts of the smallest one."""


class Mixture:
    """Records of several sources in proportion. Random access, safe for threads.

    Args:
        parts: none of them empty.
        weights: above 0; what matters is how they compare.
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
    """The sources of a mixture; of any other source, itself."""
    return source.parts if isinstance(source, Mixture) else (source,)


def in_proportion(orders: Sequence[Any], weights: Sequence[float]) -> Any:
    """Several grain.MapDatasets as one of pairs: which of them, and its next element.

    Args:
        orders: of elements of any kind; the first that ends ends the whole.
        weights: how often each comes.
    """
    # Grain rounds weights down, to hundredths of the smallest: 299.99 would become 299.
    counts = [round(FINENESS * weight / min(weights)) for weight in weights]
    pairs = [
        order.map(lambda element, part=part: (part, element)) for part, order in enumerate(orders)
    ]
    return grain.MapDataset.mix(pairs, counts)


def captions_to_learn_from(source: Source, limit: int) -> list[str]:
    """About `limit` captions from all over a source, of a mixture in proportion, always the same.

    A part with fewer gives what it has.
    """
    weights = source.weights if isinstance(source, Mixture) else (1.0,)
    return [
        caption
        for part, weight in zip(parts_of(source), weights, strict=True)
        for caption in random_captions(part, round(limit * weight / sum(weights)))
    ]
