"""Batches in which no image occurs twice: to a CLIP, it would be its own negative pair."""

from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from itertools import islice
from typing import Any, NamedTuple

from glide_jax.errors import UserError

Place = tuple[int, int]
"""Number of the part of a mixture (0 for a single source), and index in that part."""


class Choice(NamedTuple):
    """The place of an example, and places to use instead if its record is broken."""

    place: Place
    spares: Callable[[], Iterator[Place]]
    """Never in the batch, nor spares of another of its examples."""

    def places(self) -> Iterator[Place]:
        """The place, then the spares."""
        yield self.place
        yield from self.spares()


def distinct_in_batches(places: Any, first: int, batch_examples: int, images: int) -> Any:
    """Replaces what would repeat an image in a batch, as a grain.MapDataset of `Choice`.

    A batch may end in the next epoch of its source, or of a small part of a mixture. Its second
    occurrence of a place becomes the next place of the later batches that this batch does not have.

    Args:
        places: endless grain.MapDataset of `Place`.
        first: place at which the first batch starts; the result is valid from there on.
        batch_examples: size of a batch, over all processes.
        images: number of different places, at least batch_examples.
    """
    return places.map_with_index(_Distinct(places, first, batch_examples, images).choice)


class _Distinct:
    """The choices of `distinct_in_batches`; it can be pickled, for worker processes."""

    def __init__(self, places: Any, first: int, batch_examples: int, images: int) -> None:
        self._places, self._first = places, first
        self._batch_examples, self._images = batch_examples, images

    def choice(self, number: int, _: Place) -> Choice:
        """The choice for example `number`."""
        slot = (number - self._first) % self._batch_examples
        start = number - slot
        return Choice(self._batch(start)[0][slot], partial(self._spares, start, slot))

    @lru_cache(maxsize=16)  # noqa: B019  (threads may make different batches)
    def _batch(self, start: int) -> tuple[tuple[Place, ...], frozenset[Place]]:
        end = start + self._batch_examples
        planned = [self._places[number] for number in range(start, end)]
        replacements = self._others(end, set(planned))
        chosen: dict[Place, None] = {}  # in order
        for place in planned:
            unused = next(replacements, None) if place in chosen else place
            if unused is None:
                raise UserError(
                    f"train.batch_examples ({self._batch_examples}) must be at most the number of "
                    f"images ({self._images}) in a CLIP's batch"
                )
            chosen[unused] = None
        return tuple(chosen), frozenset(chosen)

    def _spares(self, start: int, slot: int) -> Iterator[Place]:
        size = self._batch_examples
        return islice(self._others(start + size, self._batch(start)[1]), slot, None, size)

    def _others(self, start: int, taken: frozenset[Place] | set[Place]) -> Iterator[Place]:
        """Different places from `start` on, without those taken."""
        seen = set(taken)
        for number in range(start, start + 2 * self._images):  # a complete epoch, at least
            if self._places[number] not in seen:
                seen.add(self._places[number])
                yield self._places[number]
