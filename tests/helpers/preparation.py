"""The `prepare` command and its inputs. Import the fixture `inputs` by name."""

import json
from pathlib import Path

import pytest
from helpers.numbered_images import write_images
from helpers.packed_images import image, open_shards, write_parquet, write_tar

from glide_jax.prepare.__main__ import main
from glide_jax.prepare.pipeline import Report

Contents = dict[str, list[tuple[bytes, tuple[str, ...]]]]


def prepare(to: Path, *arguments: object) -> Report:
    """Runs the command in process and returns its report."""
    main([*map(str, arguments), "--to", str(to), "--workers", "1"])
    return Report(**json.loads((to / "report.json").read_text()))


def contents(folder: Path) -> Contents:
    """Images and captions of every split, in order."""
    splits = json.loads((folder / "shards.json").read_text())["splits"]
    sources = {split: open_shards(folder, folder, split) for split in splits}
    return {
        split: [
            (record.image, record.captions)
            for record in map(source.__getitem__, range(len(source)))
        ]
        for split, source in sources.items()
    }


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A folder, tars and a parquet file: 200 images, with duplicates and broken records."""
    base = tmp_path_factory.mktemp("inputs")
    folder = write_images(base / "folder", 5)  # too small
    (folder / "01.png").write_bytes(b"no image")
    for number in range(4):
        images = [image(i) for i in range(40 * number, 40 * number + 45)]  # the last 5 overlap
        write_tar(base / "tars" / f"{number:05}.tar", images, first=40 * number)
    truncated = base / "tars" / "00003.tar"
    truncated.write_bytes(truncated.read_bytes()[:-12_000])
    write_parquet(base / "x.parquet", [image(i) for i in range(160, 200)])
    return [folder, base / "tars", base / "x.parquet"]


FLAGS = ("--px", 30, "--validation", 20)
