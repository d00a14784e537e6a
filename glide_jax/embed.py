"""Write the CLIP image embeddings of a data set, to train priors without its images.

    python -m glide_jax.embed --clip runs/clip --to data/embeddings --data.source folder images/
    python train.py --config unclip_prior --data.source embeddings data/embeddings

The folder holds shards of embeddings with their captions, for both splits. An interrupted command
resumes when it is run again. Several machines can share the work: --part 0 --parts 8, and so on.
"""

import hashlib
import json
import math
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import fsspec
import jax
import numpy as np
from jaxtyping import Float, UInt8
from tqdm import tqdm

from glide_jax.cli import parse_flags
from glide_jax.compilation import keep_compiled_programs
from glide_jax.config import DataConfig
from glide_jax.config.bounds import Between
from glide_jax.config.serialize import flat_settings
from glide_jax.config.source_words import spell_source
from glide_jax.data.embeddings import encode_embedding
from glide_jax.data.records import Record, RecordReader, Source
from glide_jax.data.shard_folder import INDEX_FILE, Shard
from glide_jax.data.shards import shard_name, upload, upload_text, write_records, write_shard_list
from glide_jax.data.sources import open_source
from glide_jax.data.transforms import load_pixels, to_float
from glide_jax.errors import UserError, exit_on_user_error, memory_advice
from glide_jax.models.platform import Platform
from glide_jax.parallel import sharding
from glide_jax.runs.folder import Run
from glide_jax.storage import expand_home, require_folder, storage_errors
from glide_jax.training.frozen_clip import FrozenClip

SETTINGS_FILE = "embed.json"
USED = {"source", "train_split", "validation_split", "caption_pattern", "max_bad_fraction"}
"""Settings of the data that embeddings depend on."""
SPLITS = {"train": "train_split", "validation": "validation_split"}
"""Splits that are written, with the settings that name those they are made of."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Writes the CLIP image embeddings of a data set, with its captions."""

    clip: str
    """Run folder of a CLIP."""
    to: str
    """Output folder, local or a URL: gs://bucket/folder."""
    data: DataConfig = field(default_factory=DataConfig)
    images: bool = False
    """Also copy the images, which a decoder needs."""
    shard_records: Annotated[int, Between(1, 10**7)] = 10_000
    """Records in a shard."""
    batch_size: Annotated[int, Between(1, 2**16)] = 256
    """Images that are embedded together, over all devices."""
    part: Annotated[int, Between(0, 10**6)] = 0
    """Which part of the shards this process writes, from 0; any can be run again."""
    parts: Annotated[int, Between(1, 10**6)] = 1
    """Number of parts."""

    def check(self) -> None:
        """Raises UserError for settings that no embedding depends on."""
        if self.part >= self.parts:
            raise UserError(f"--part {self.part}: must be below --parts ({self.parts})")
        ours, defaults = flat_settings(self.data), flat_settings(DataConfig())
        for name, value in ours.items():
            group = name.partition(".")[0]
            if group not in USED | {"loader_threads"} and value != defaults[name]:
                raise UserError(
                    f"--data.{name.replace('_', '-')}: embeddings are of square images from the "
                    "center, with all captions: leave it out"
                )


class Embedder:
    """Embeddings of images, over all devices of this process.

    Args:
        clip: the CLIP.
        batch_size: of each call.
    """

    def __init__(self, clip: FrozenClip, batch_size: int) -> None:
        self._mesh = sharding.local_mesh()
        self._size = math.ceil(batch_size / self._mesh.size) * self._mesh.size
        self._batch = sharding.batch_sharding(self._mesh)
        platform = Platform.of(self._mesh, self._batch, training=False)
        self._frozen = jax.device_put(clip.params, sharding.infer(clip.params, self._mesh))
        self._embed = jax.jit(lambda frozen, x: clip.embed_image(frozen, to_float(x), platform))

    def __call__(self, pixels: Sequence[UInt8[np.ndarray, "h w 3"]]) -> Float[np.ndarray, "n d"]:
        """Embeddings of any number of images at the CLIP's resolution."""
        found = []
        for first in range(0, len(pixels), self._size):
            part = np.stack(pixels[first : first + self._size])
            padded = np.concatenate([part, np.repeat(part[:1], self._size - len(part), 0)])
            embeddings = self._embed(self._frozen, jax.device_put(padded, self._batch))
            found.append(np.asarray(embeddings)[: len(part)])
        return np.concatenate(found)


class Output:
    """The folder that is written: shards, each with a file that says it is complete."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._filesystem, self._root = fsspec.url_to_fs(folder)
        self._filesystem.makedirs(self._root, exist_ok=True)

    def read(self, name: str) -> Any:
        """A JSON file's values; None if there is no such file."""
        path = f"{self._root}/{name}"
        return json.loads(self._filesystem.cat_file(path)) if self.has(name) else None

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return bool(self._filesystem.exists(f"{self._root}/{name}"))

    def write(self, name: str, values: Any) -> None:
        """Writes a JSON file."""
        upload_text(json.dumps(values, indent=1), self.folder, name)

    def write_shard(self, file: str, records: Sequence[bytes]) -> None:
        """Writes a shard, then the file that says it is complete."""
        with tempfile.TemporaryDirectory() as here:
            path = Path(here) / file
            write_records(path, records)
            with path.open("rb") as opened:
                digest = hashlib.file_digest(opened, "sha256").hexdigest()
            shard = Shard(file, len(records), path.stat().st_size)
            upload(path, self.folder)
        self.write(f"{file}.json", asdict(shard) | {"sha256": digest})

    def finish(self, files: dict[str, list[str]], clip: dict[str, Any]) -> bool:
        """Writes shards.json once all shards are complete; returns whether they are.

        Args:
            files: names of the shards, by split.
            clip: width and fingerprint of the CLIP.
        """
        found = {split: [self.read(f"{name}.json") for name in files[split]] for split in files}
        if not all(all(shards) for shards in found.values()):
            return False
        digests = [shard.pop("sha256") for shards in found.values() for shard in shards]
        fingerprint = hashlib.sha256(json.dumps([clip, digests]).encode()).hexdigest()
        splits = {split: [Shard(**shard) for shard in shards] for split, shards in found.items()}
        write_shard_list(self.folder, splits, fingerprint=fingerprint, clip=clip)
        return True


def embed(arguments: Arguments) -> bool:
    """Writes this process's part of the shards. Returns whether all are complete now.

    Raises:
        UserError: the CLIP or the data cannot be read, the folder cannot be written, or it holds
            embeddings with other settings.
    """
    data = arguments.data
    run = Run.open(arguments.clip)
    clip = FrozenClip.load(run)
    sources = {split: open_source(data, getattr(data, name)) for split, name in SPLITS.items()}
    about = {"width": clip.config.embedding_width, "fingerprint": run.clip_fingerprint}
    with storage_errors("write", arguments.to):
        output = Output(expand_home(arguments.to))
        _require_same(output, _settings(arguments, run.clip_fingerprint, sources))
        embedder = Embedder(clip, arguments.batch_size)
        files = {}
        for split, source in sources.items():
            count = math.ceil(len(source) / arguments.shard_records)
            files[split] = [shard_name(split, number, count) for number in range(count)]
            _embed_split(
                arguments, source, files[split], output, embedder, clip.config.resolution_px
            )
        return output.finish(files, about)


def _settings(arguments: Arguments, fingerprint: str, sources: dict[str, Source]) -> dict[str, Any]:
    """All that the output depends on."""
    data = {name: getattr(arguments.data, name) for name in sorted(USED)}
    return {
        "clip": fingerprint,
        "data": data | {"source": list(spell_source(arguments.data.source))},
        "records": {split: len(source) for split, source in sources.items()},
        "images": arguments.images,
        "shard_records": arguments.shard_records,
    }


def _require_same(output: Output, settings: dict[str, Any]) -> None:
    """Notes the settings of the output, or raises UserError if it was begun with others."""
    before = output.read(SETTINGS_FILE)
    if before is None:
        if output.has(INDEX_FILE):
            raise UserError(f"--to {output.folder}: holds other data: give another folder")
        output.write(SETTINGS_FILE, settings)
        return
    for name, value in settings.items():
        if before.get(name) != value:
            raise UserError(
                f"--to {output.folder}: was begun with other settings ({name} was "
                f"{before.get(name)}, not {value}): give another folder"
            )


def _embed_split(
    arguments: Arguments,
    source: Source,
    files: Sequence[str],
    output: Output,
    embedder: Embedder,
    px: int,
) -> None:
    """Writes those shards of a split that are missing, and are this process's."""
    reader = RecordReader(source, arguments.data.max_bad_fraction)
    load = partial(_loaded, px)
    with ThreadPoolExecutor(arguments.data.loader_threads) as threads:
        for number in tqdm(range(arguments.part, len(files), arguments.parts), unit="shard"):
            if output.has(f"{files[number]}.json"):
                continue
            first = number * arguments.shard_records
            indices = range(first, min(first + arguments.shard_records, len(source)))
            records: list[bytes] = []
            for start in indices[:: arguments.batch_size]:
                batch = range(start, min(start + arguments.batch_size, indices.stop))
                found = [x for x in threads.map(lambda i: reader.attempt(i, load), batch) if x]
                if found:
                    read, pixels = zip(*found, strict=True)
                    pairs = zip(read, embedder(pixels), strict=True)
                    records += [encode_embedding(*pair, arguments.images) for pair in pairs]
            output.write_shard(files[number], records)


def _loaded(px: int, record: Record) -> tuple[Record, UInt8[np.ndarray, "h w 3"]]:
    """A record, and its image at a resolution."""
    return record, load_pixels(record.image, px, name=record.name)


@memory_advice("give a smaller --batch-size")
def main(argv: Sequence[str] | None = None) -> None:
    """The command. Raises UserError."""
    arguments: Arguments = parse_flags(Arguments, "python -m glide_jax.embed", argv)
    arguments.check()
    if "://" not in arguments.to:
        require_folder("--to", Path(expand_home(arguments.to)))
    keep_compiled_programs()
    sharding.use_all_cores(arguments.batch_size)
    try:
        done = embed(arguments)
    except KeyboardInterrupt:
        raise KeyboardInterrupt("run the same command again to resume") from None
    left = f"this part is done; {INDEX_FILE} follows with the last part"
    print(f"{arguments.to}: {'complete' if done else left}")


if __name__ == "__main__":
    with exit_on_user_error():
        main()
