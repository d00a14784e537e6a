"""Held-out records of a model's own data set."""

from glide_jax.config import Config
from glide_jax.data.records import Record
from glide_jax.data.sources import open_source


def held_out_records(config: Config, split: str, n: int) -> list[Record]:
    """The first n records of a split, or all if there are fewer.

    Args:
        config: of the run.
        split: of its data set; empty for its validation split.
        n: number of records.

    Raises:
        UserError: the data set cannot be opened.
    """
    source = open_source(config.data, split or config.data.validation_split)
    return [source[i] for i in range(min(n, len(source)))]
