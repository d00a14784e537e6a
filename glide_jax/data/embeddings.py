"""Image embeddings of a CLIP with captions: shards that glide_jax.embed writes.

Records have the features of `shards`, of which the image may be empty, and `embedding`. shards.json
also names the CLIP: embeddings of different CLIPs have nothing in common.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from glide_jax.config import AnySource, Embeddings, Mixture
from glide_jax.data.records import BadRecordError, Record
from glide_jax.data.shard_folder import ShardFolder, shard_cache
from glide_jax.data.shards import ShardsSource, encode
from glide_jax.errors import UserError
from glide_jax.storage import expand_home

DTYPE = np.dtype("<f4")


def encode_embedding(record: Record, embedding: Float[np.ndarray, "d"], with_image: bool) -> bytes:
    """Serializes a record with its embedding, and its image if asked to."""
    image = record.image if with_image else b""
    content = embedding.astype(DTYPE).tobytes()
    return encode(image, record.captions, record.name, embedding=content)


class EmbeddingsSource(ShardsSource):
    """One split of a folder of embeddings. Random access, thread-safe.

    Args:
        folder, split, cache_dir: as of `ShardsSource`.

    Raises:
        UserError: as `ShardsSource`, or the folder has no embeddings.
    """

    command = "embed"

    def __init__(self, folder: str, split: str, cache_dir: Path) -> None:
        super().__init__(folder, split, cache_dir)
        self._width, _ = _clip(self._folder)

    def _record(self, feature: Any, name: str) -> Record:
        content = b"".join(feature["embedding"].bytes_list.value)
        if len(content) != self._width * DTYPE.itemsize:
            raise BadRecordError(
                f"{name}: its embedding has {len(content)} bytes, not {self._width} float32 numbers"
            )
        embedding = np.frombuffer(content, DTYPE).astype(np.float32)
        if not np.isfinite(embedding).all():
            raise BadRecordError(f"{name}: its embedding is not finite")
        return replace(super()._record(feature, name), embedding=embedding)


def require_clip(source: AnySource, fingerprint: str) -> None:
    """Checks that the embeddings of a data source, if it has any, are of one CLIP.

    Args:
        source: the data source, or a mixture.
        fingerprint: of the CLIP, see `Run.clip_fingerprint`.

    Raises:
        UserError: they are of another CLIP.
    """
    for path, (_, theirs) in _clips(source):
        if theirs != fingerprint:
            raise UserError(
                f"data.source.path {path}: its embeddings are of another CLIP (fingerprint "
                f"{theirs}; train.clip_run has {fingerprint}): give that CLIP as --train.clip-run, "
                "or write them again with python -m glide_jax.embed"
            )


def embeddings_clip(source: AnySource) -> tuple[int, str] | None:
    """Width of a data source's embeddings, and the fingerprint of their CLIP; None without any.

    Raises:
        UserError: they are of several CLIPs.
    """
    found = dict(_clips(source))
    if len(set(found.values())) > 1:
        raise UserError(f"data.source: embeddings of several CLIPs: {', '.join(found)}")
    return next(iter(found.values()), None)


def _clips(source: AnySource) -> Iterator[tuple[str, tuple[int, str]]]:
    """Folders of embeddings in a data source, with their width and their CLIP's fingerprint."""
    sources = [part.source for part in source.parts] if isinstance(source, Mixture) else [source]
    for one in sources:
        if isinstance(one, Embeddings):
            cache = shard_cache(one.cache_dir)
            folder = ShardFolder(expand_home(one.path), cache, EmbeddingsSource.command)
            yield one.path, _clip(folder)


def _clip(folder: ShardFolder) -> tuple[int, str]:
    """Width of the embeddings in a folder, and the fingerprint of their CLIP. Raises UserError."""
    found = folder.index.get("clip")
    found = found if isinstance(found, dict) else {}
    width, fingerprint = found.get("width"), found.get("fingerprint")
    if type(width) is not int or type(fingerprint) is not str:
        raise UserError(
            f"data.source.path {folder.url}: has no embeddings: write them with "
            "python -m glide_jax.embed"
        )
    return width, fingerprint
