"""The configured data set: an opener for each kind of source.

A source is random access to encoded images with their captions (glide_jax.data.records). The rest,
such as crops, caption dropout and batches, is the loader's and the same for every source.
"""

import logging
import os
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from glide_jax import config
from glide_jax.config import DataConfig
from glide_jax.config.source_words import spell_source
from glide_jax.data.embeddings import EmbeddingsSource
from glide_jax.data.folder import open_folder
from glide_jax.data.mixture import MixtureSource
from glide_jax.data.records import (
    BadRecordError,
    Record,
    Source,
    check_bad_fraction,
    list_problems,
)
from glide_jax.data.shard_folder import shard_cache
from glide_jax.data.shards import ShardsSource
from glide_jax.data.tfds import TfdsSource, open_tfds
from glide_jax.errors import UserError
from glide_jax.storage import expand_home

logger = logging.getLogger(__name__)


def open_source(data: DataConfig, split: str) -> Source:
    """Opens one split of the configured data set, and prepares it first if necessary.

    Args:
        data: the data set and how to read it.
        split: data.train_split, data.validation_split, or another split of the data set.

    Returns:
        At least one record.

    Raises:
        UserError: the data set, split or feature does not exist, is empty or cannot be prepared.
    """
    if isinstance(data.source, config.Mixture):
        return _open_mixture(data, data.source, split)
    source = SOURCES[type(data.source)](data.source, split, data.max_bad_fraction)
    where = f"split {split!r} of {' '.join(spell_source(data.source))}"
    if len(source) == 0:
        raise UserError(f"{where} is empty")
    if data.caption_pattern:
        source = MatchingSource(source, data.caption_pattern, data.max_bad_fraction)
    if len(source) == 0:
        raise UserError(
            f"{where}: no caption matches data.caption_pattern {data.caption_pattern!r}"
        )
    return source


def _open_mixture(data: DataConfig, mixture: config.Mixture, split: str) -> MixtureSource:
    """Opens every part, each at its own split for training or validation."""
    sources = []
    for part in mixture.parts:
        own = {data.validation_split: part.validation_split, data.train_split: part.train_split}
        sources.append(open_source(replace(data, source=part.source), own.get(split) or split))
    return MixtureSource(sources, [part.weight for part in mixture.parts])


def _open_scenes(source: config.Scenes, split: str, max_bad_fraction: float) -> Source:
    from glide_jax.data.scenes.builder import load  # here: TFDS takes half a second to import

    return TfdsSource(load(split, _data_dir(source.data_dir), source.subset), "image", "captions")


def _open_tfds(source: config.Tfds, split: str, max_bad_fraction: float) -> Source:
    return open_tfds(replace(source, data_dir=_data_dir(source.data_dir)), split)


def _data_dir(given: str) -> str:
    """The folder of prepared data sets, empty for TFDS's default. TFDS does not expand `~`."""
    return expand_home(given or os.environ.get("TFDS_DATA_DIR", ""))


def _open_folder(source: config.Folder, split: str, max_bad_fraction: float) -> Source:
    return open_folder(Path(expand_home(source.path)), split, max_bad_fraction)


def _open_shards(source: config.Shards, split: str, max_bad_fraction: float) -> Source:
    return ShardsSource(expand_home(source.path), split, shard_cache(source.cache_dir))


def _open_embeddings(source: config.Embeddings, split: str, max_bad_fraction: float) -> Source:
    return EmbeddingsSource(expand_home(source.path), split, shard_cache(source.cache_dir))


def _open_unknown(source: config.Unknown, split: str, max_bad_fraction: float) -> Source:
    raise UserError("the data set of a converted model is not known: its files do not name it")


SOURCES: dict[type, Callable[[Any, str, float], Source]] = {
    config.Scenes: _open_scenes,
    config.Tfds: _open_tfds,
    config.Folder: _open_folder,
    config.Shards: _open_shards,
    config.Embeddings: _open_embeddings,
    config.Unknown: _open_unknown,
}
"""Openers by class of `DataConfig.source`: (source, split, max_bad_fraction) -> Source."""


class MatchingSource:
    """The captions of a source that match a pattern, and their images.

    All captions are read once at the start; records with broken captions are left out.

    Args:
        source: all captions.
        pattern: a regular expression, case-sensitive.
        max_bad_fraction: largest fraction of broken records, in [0, 1].

    Raises:
        UserError: too many records are broken.
    """

    def __init__(self, source: Source, pattern: str, max_bad_fraction: float) -> None:
        self._source = source
        self._matches = re.compile(pattern).search
        indices, problems = [], []
        for index in range(len(source)):
            try:
                if any(map(self._matches, source.captions(index))):
                    indices.append(index)
            except BadRecordError as error:
                problems.append(str(error))
        if problems:
            logger.warning("skipped %d records: %s", len(problems), list_problems(problems))
            check_bad_fraction(problems, len(source), max_bad_fraction)
        self._indices = np.array(indices, np.int64)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Record:
        record = self._source[int(self._indices[index])]
        return replace(record, captions=tuple(filter(self._matches, record.captions)))

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions at `index`. Raises BadRecordError."""
        return tuple(filter(self._matches, self._source.captions(int(self._indices[index]))))
