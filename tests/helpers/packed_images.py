"""Images in tars and parquet files in the formats of common tools, and the shards made of them."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from glide_jax.config import DataConfig, Shards
from glide_jax.data.records import Source
from glide_jax.data.sources import open_source


def image(number: int, width: int = 40, height: int = 30, kind: str = "PNG") -> bytes:
    """An encoded image of smooth noise, unique for its number."""
    levels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, images: Sequence[bytes], first: int = 0) -> Path:
    """A tar in img2dataset's format: 000000000.jpg, .txt ("image 0"), .json ("json 0"), ..."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, image in enumerate(images, start=first):
            about = {"caption": f"json {number}", "all": [f"json {number}", "another"]}
            files = {"jpg": image, "txt": f"image {number}".encode()}
            for suffix, content in (files | {"json": json.dumps(about).encode()}).items():
                info = tarfile.TarInfo(f"{number:09}.{suffix}")
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
    return path


def write_parquet(path: Path, images: Sequence[bytes], rows_a_group: int = 1000) -> Path:
    """A parquet file in the hub's format: a column "image" of {bytes, path}, and "caption"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": [{"bytes": image, "path": None} for image in images],
        "caption": [f"row {number}" for number in range(len(images))],
        "raw": list(images),
        "captions": [[f"row {number}", "another"] for number in range(len(images))],
    }
    pq.write_table(pa.table(columns), path, row_group_size=rows_a_group)
    return path


def open_shards(path: Path | str, cache: Path, split: str = "train") -> Source:
    """Opens a folder of shards as training does."""
    return open_source(DataConfig(source=Shards(str(path), str(cache))), split)
