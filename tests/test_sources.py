import subprocess
import sys
from pathlib import Path

from helpers.numbered_images import write_images

from glide_jax.config import DataConfig, Folder, Scenes, Shards, Tfds
from glide_jax.data.sources import SOURCES, open_source
from glide_jax.data.transforms import load_pixels


def test_a_folder_and_the_built_in_scenes_open_the_same_way(tmp_path: Path) -> None:
    path = str(write_images(tmp_path / "images", 3))
    folder = open_source(DataConfig(source=Folder(path)), "all")
    scenes = open_source(DataConfig(source=Scenes("mini", str(tmp_path))), "validation")
    assert len(folder) == 3
    assert len(scenes) == 64
    for source in (folder, scenes):
        assert load_pixels(source[0].image, 16).shape == (16, 16, 3)
        assert source[0].captions == source.captions(0)
    assert set(SOURCES) == {Scenes, Tfds, Folder, Shards}


def test_data_modules_import_neither_tfds_nor_transformers() -> None:
    program = (
        "import sys, glide_jax.data.loader, glide_jax.data.sources;"
        "sys.exit(' '.join({'tensorflow_datasets', 'transformers', 'tensorflow'} & {*sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (1, "\n")
