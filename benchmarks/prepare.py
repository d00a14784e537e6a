"""Speed of glide_jax.prepare with one worker process and with one per core.

    python benchmarks/prepare.py --to out/prepare

Generates tars of 640 x 480 px images with the detail of photographs, and prepares them. The shards
are kept for benchmarks/loader.py: out/prepare/shards-1, 256 px.
"""

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (640, 480)
TARS = 8


def photograph(rng: np.random.Generator) -> bytes:
    """A JPEG of noise octaves with the falling spectrum of natural images."""
    levels = np.zeros((SIZE[1], SIZE[0], 3))
    for cells in (4, 8, 16, 32, 64, 128, 256):
        noise = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        octave = Image.fromarray(noise).resize(SIZE, Image.Resampling.BICUBIC)
        levels += (np.asarray(octave) - 127.5) * (2 / cells) ** 0.75
    file = io.BytesIO()
    pixels = (levels + 127.5).clip(0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", quality=90)
    return file.getvalue()


def write_tars(folder: Path, images: int) -> None:
    """Writes tars in img2dataset's format, unless they already exist."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(TARS):
        path = folder / f"{number:05}.tar"
        if path.exists():
            continue
        rng = np.random.default_rng(number)
        with tarfile.open(path.with_suffix(".unfinished"), "w") as tar:
            for i in range(images // TARS):
                caption = f"image {i} of tar {number}".encode()
                for suffix, content in (("jpg", photograph(rng)), ("txt", caption)):
                    info = tarfile.TarInfo(f"{number:05}{i:04}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        path.with_suffix(".unfinished").rename(path)


def main() -> None:
    """Runs the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--to", type=Path, required=True, help="folder for tars and shards")
    parser.add_argument("--images", type=int, default=4000, help="number of images (default 4000)")
    arguments = parser.parse_args()
    write_tars(arguments.to / "tars", arguments.images)
    for workers in sorted({1, os.cpu_count() or 1}):
        to = arguments.to / f"shards-{workers}"
        shutil.rmtree(to, ignore_errors=True)
        command = [sys.executable, "-m", "glide_jax.prepare", "--px", "256"]
        command += ["--from", str(arguments.to / "tars"), "--to", str(to)]
        print(f"{workers} worker(s):", flush=True)
        subprocess.run([*command, "--workers", str(workers)], check=True)


if __name__ == "__main__":
    main()
