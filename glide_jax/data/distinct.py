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

    def others(start: int, taken: frozenset[Place] | set[Place]) -> Iterator[Place]:
        """Different places from `start` on, without those taken."""
        seen = set(taken)
        for number in range(start, start + 2 * images):  # a complete epoch, at least
            if places[number] not in seen:
                seen.add(places[number])
                yield places[number]

    @lru_cache(maxsize=16)  # threads may make different batches
    def batch(start: int) -> tuple[tuple[Place, ...], frozenset[Place]]:
        end = start + batch_examples
        planned = [places[number] for number in range(start, end)]
        replacements = others(end, set(planned))
        chosen: dict[Place, None] = {}  # in order
        for place in planned:
            unused = next(replacements, None) if place in chosen else place
            if unused is None:
                raise UserError(
                    f"train.batch_examples ({batch_examples}) must be at most the number of images "
                    f"({images}) in a CLIP's batch"
                )
            chosen[unused] = None
        return tuple(chosen), frozenset(chosen)

    def spares(start: int, slot: int) -> Iterator[Place]:
        return islice(others(start + batch_examples, batch(start)[1]), slot, None, batch_examples)

    def choice(number: int, _: Place) -> Choice:
        slot = (number - first) % batch_examples
        start = number - slot
        return Choice(batch(start)[0][slot], partial(spares, start, slot))

    return places.map_with_index(choice)
