import subprocess
import sys
from pathlib import Path

import pytest
from helpers.numbered_images import write_images

from glide_jax.config import DataConfig, Embeddings, Folder, Scenes, Shards, Tfds, Unknown
from glide_jax.data.sources import SOURCES, open_source
from glide_jax.data.transforms import load_pixels
from glide_jax.errors import UserError


def test_a_folder_and_the_built_in_scenes_open_the_same_way(tmp_path: Path) -> None:
    path = str(write_images(tmp_path / "images", 3))
    folder = open_source(DataConfig(source=Folder(path)), "all")
    scenes = open_source(DataConfig(source=Scenes("mini", str(tmp_path))), "validation")
    assert len(folder) == 3
    assert len(scenes) == 64
    for source in (folder, scenes):
        assert load_pixels(source[0].image, 16).shape == (16, 16, 3)
        assert source[0].captions == source.captions(0)
    assert set(SOURCES) == {Scenes, Tfds, Folder, Shards, Embeddings, Unknown}


def test_the_home_directory_is_expanded_for_every_source(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_images(tmp_path / "images", 3)
    assert len(open_source(DataConfig(source=Folder("~/images")), "all")) == 3
    with pytest.raises(UserError, match=f"{tmp_path}/shards"):
        open_source(DataConfig(source=Shards("~/shards")), "train")

    def load(split: str, data_dir: str, subset: str) -> None:
        raise UserError(data_dir)

    def tfds(source: Tfds, split: str) -> None:
        raise UserError(source.data_dir)

    monkeypatch.setattr("glide_jax.data.scenes.builder.load", load)
    monkeypatch.setattr("glide_jax.data.sources.open_tfds", tfds)
    monkeypatch.setenv("TFDS_DATA_DIR", "~/prepared")
    for given, expanded in (("~/data", "data"), ("", "prepared")):
        for source in (Scenes(data_dir=given), Tfds("coco_captions", data_dir=given)):
            with pytest.raises(UserError, match=f"^{tmp_path}/{expanded}$"):
                open_source(DataConfig(source=source), "train")


def test_data_modules_import_neither_tfds_nor_transformers() -> None:
    program = (
        "import sys, glide_jax.data.loader, glide_jax.data.sources;"
        "sys.exit(' '.join({'tensorflow_datasets', 'transformers', 'tensorflow'} & {*sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "\n")
