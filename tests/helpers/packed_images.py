"""Images in tars and parquet files, as other people's tools leave them."""

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def image(number: int, width: int = 40, height: int = 30, kind: str = "PNG") -> bytes:
    """An encoded image that no other number has, of smooth noise."""
    levels = np.random.default_rng(number).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC).save(file, kind)
    return file.getvalue()


def write_tar(path: Path, images: Sequence[bytes], first: int = 0) -> Path:
    """As img2dataset: 000000000.jpg, .txt ("image 0") and .json ("json 0"), one after another."""
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
    """As data sets on the hub: a column "image" of {bytes, path}, and "caption"."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {
        "image": [{"bytes": image, "path": None} for image in images],
        "caption": [f"row {number}" for number in range(len(images))],
        "raw": list(images),
        "captions": [[f"row {number}", "another"] for number in range(len(images))],
    }
    pq.write_table(pa.table(columns), path, row_group_size=rows_a_group)
    return path
