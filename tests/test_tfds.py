import io
import json
import os
import pickle
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers.numbered_images import numbers
from PIL import Image
from tensorflow_datasets.core.utils.lazy_imports_utils import tensorflow as tf

from glide_jax.config import DataConfig, Tfds
from glide_jax.data.records import BadRecordError, Source
from glide_jax.data.sources import open_source
from glide_jax.data.tfds import feature_kind, features_of, provide_tensorflow_types
from glide_jax.data.transforms import load_pixels
from glide_jax.errors import UserError

COUNTS = {"train": 12, "test": 3}


class NumberedCaptions(tfds.core.GeneratorBasedBuilder):
    """Every form of captions in TFDS; the builder registers itself under its name."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict(
            {
                "image": tfds.features.Image(encoding_format="png"),
                "single": tfds.features.Text(),
                "several": tfds.features.Sequence(tfds.features.Text()),
                "captions": tfds.features.Sequence({"id": np.int64, "text": tfds.features.Text()}),
                "nested": {"caption": np.str_},
                "label": tf.int64,  # as in COCO
            }
        )
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(count) for split, count in COUNTS.items()}

    def _generate_examples(self, count: int) -> Iterator[tuple[int, dict[str, Any]]]:
        for number in range(count):
            file = io.BytesIO()
            Image.new("RGB", (12, 10), (number, number, number)).save(file, "PNG")
            yield (
                number,
                {
                    "image": file.getvalue(),
                    "single": f"number {number}",
                    "several": [f"{word} {number}" for word in ("one", "two")][: number % 3],
                    "captions": [{"id": 0, "text": f"café {number}"}, {"id": 1, "text": ""}],
                    "nested": {"caption": f"deep {number}"},
                    "label": 0,
                },
            )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("tfds"))


def test_coco_builds_without_tensorflow(data_dir: str) -> None:
    """The most common data set of this kind, up to its download."""
    provide_tensorflow_types()
    features = tfds.builder("coco_captions", data_dir=data_dir).info.features
    kinds = {path: feature_kind(feature) for path, feature in features_of(features)}
    assert kinds["image"] == "image"
    assert kinds["captions/text"] == "text"


def open_tfds(
    data_dir: str,
    split: str = "train",
    name: str = "numbered_captions",
    image_key: str = "image",
    caption_key: str = "single",
    **settings: Any,
) -> Source:
    tfds_source = Tfds(name, image_key, caption_key, data_dir)
    return open_source(DataConfig(source=tfds_source, **settings), split)


def test_a_tfds_data_set_is_prepared_and_read(data_dir: str) -> None:
    source = open_tfds(data_dir)
    assert len(source) == COUNTS["train"]
    record = source[5]
    assert record.captions == source.captions(5) == ("number 5",)
    assert record.name == "numbered_captions/1.0.0 train record 5"
    assert numbers(load_pixels(record.image, 8)[None]) == [5]
    assert pickle.loads(pickle.dumps(source))[5] == record  # for worker processes
    assert len(open_tfds(data_dir, "test")) == COUNTS["test"]
    assert open_tfds(data_dir, "train[50%:]")[0].captions == ("number 6",)
    assert "tensorflow" not in sys.modules


@pytest.mark.parametrize(
    ("caption_key", "captions"),
    [
        ("several", ("one 5", "two 5")),
        ("captions/text", ("café 5",)),
        ("nested/caption", ("deep 5",)),
    ],
)
def test_captions_are_read_by_feature_path(
    data_dir: str, caption_key: str, captions: tuple[str, ...]
) -> None:
    source = open_tfds(data_dir, caption_key=caption_key)
    assert source[5].captions == source.captions(5) == captions


def test_a_pattern_selects_captions_and_their_images(data_dir: str) -> None:
    # number 3 k has no caption, 3 k + 1 has "one", 3 k + 2 "two" as well.
    pattern = {"caption_key": "several", "caption_pattern": "^two .$"}
    source = open_tfds(data_dir, **pattern, max_bad_fraction=0.5)
    assert len(source) == 3
    assert source[1].captions == source.captions(1) == ("two 5",)
    assert numbers(load_pixels(source[1].image, 8)[None]) == [5]
    with pytest.raises(UserError, match="4 of 12 records cannot be used"):
        open_tfds(data_dir, **pattern, max_bad_fraction=0.1)
    with pytest.raises(UserError, match=r"no caption matches data.caption_pattern 'seven'"):
        open_tfds(data_dir, "test", caption_pattern="seven")


def test_a_record_without_a_caption_is_bad(data_dir: str) -> None:
    source = open_tfds(data_dir, caption_key="several")
    for read in (source.__getitem__, source.captions):
        with pytest.raises(BadRecordError, match="train record 3: the caption is empty"):
            read(3)


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("caption_key", "nothing"),
        ("caption_key", "label"),
        ("caption_key", "captions"),
        ("image_key", "single"),
    ],
)
def test_unusable_features_are_refused_with_a_list_of_features(
    data_dir: str, setting: str, key: str
) -> None:
    with pytest.raises(
        UserError, match=rf"^data.source.{setting} = '{key}' is not .*captions/text \(text"
    ):
        open_tfds(data_dir, **{setting: key})


@pytest.mark.parametrize("split", ["validation", "train[", "train[:1%]"])
def test_unknown_and_empty_splits_are_refused_with_a_list_of_splits(
    data_dir: str, split: str
) -> None:
    with pytest.raises(UserError, match=r"numbered_captions/1.0.0 has no split .* train, test,"):
        open_tfds(data_dir, split)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("numbered_caption", "similar names: numbered_captions"),
        ("qqqqqqqq", r"see tfds.list_builders\(\)"),
        ("numbered_captions/other", "BuilderConfig other not found"),
        ("numbered_captions:7.0.0", "cannot be loaded at version 7.0.0"),
        ("not a name", "failed"),
    ],
)
def test_unknown_data_sets_are_refused(data_dir: str, name: str, why: str) -> None:
    with pytest.raises(UserError, match=rf"^TFDS .*'{name}'.*{why}") as error:
        open_tfds(data_dir, name=name)
    assert "\n" not in str(error.value)


def test_features_are_checked_before_downloading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(builder: object) -> None:
        raise AssertionError("downloaded")

    monkeypatch.setattr(NumberedCaptions, "download_and_prepare", download)
    with pytest.raises(UserError, match=r"^data.source.caption_key = 'nothing' is not"):
        open_tfds(str(tmp_path), caption_key="nothing")


def test_a_download_without_a_connection_fails_at_once(
    data_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TFDS itself repeats its attempts for minutes."""
    open_tfds(data_dir)
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    urls = {f"http://127.0.0.1:{port}/images.zip": None}
    monkeypatch.setattr(NumberedCaptions, "url_infos", urls)
    monkeypatch.setattr("glide_jax.data.tfds.getproxies", dict)
    with pytest.raises(
        UserError, match=r"^TFDS cannot download .* \(Connection refused\)"
    ) as error:
        open_tfds(str(tmp_path / "new"))
    assert "\n" not in str(error.value)
    open_tfds(data_dir)  # prepared before
    with socket.create_server(("127.0.0.1", port)):
        open_tfds(str(tmp_path / "new"))


@pytest.mark.parametrize("key", ["pythonClassName", "python_class_name", "type"])
def test_metadata_do_not_choose_the_code_to_import(data_dir: str, tmp_path: Path, key: str) -> None:
    open_tfds(data_dir)
    shutil.copytree(data_dir, tmp_path / "data")
    (file,) = (tmp_path / "data").glob("*/*/features.json")
    (tmp_path / "import_me.py").write_text("raise SystemExit('imported')")
    file.write_text(json.dumps({"featuresDict": {"features": {"x": {key: "import_me.Feature"}}}}))
    with pytest.raises(UserError, match=r"features.json: a feature is of the class import_me.Feat"):
        open_tfds(str(tmp_path / "data"))


@pytest.mark.parametrize("key", ["name", "filepathTemplate"])
def test_metadata_name_files_of_their_folder(data_dir: str, tmp_path: Path, key: str) -> None:
    open_tfds(data_dir)
    shutil.copytree(data_dir, tmp_path / "data")
    (file,) = (tmp_path / "data").glob("*/*/dataset_info.json")
    info = json.loads(file.read_text())
    info["splits"][0][key] = "../../x"
    file.write_text(json.dumps(info))
    with pytest.raises(UserError, match=r"dataset_info.json: '../../x' is not a path inside"):
        open_tfds(str(tmp_path / "data"))


def test_metadata_are_regular_files(data_dir: str, tmp_path: Path) -> None:
    open_tfds(data_dir)
    shutil.copytree(data_dir, tmp_path / "data")
    (file,) = (tmp_path / "data").glob("*/*/features.json")
    file.unlink()
    os.mkfifo(file)
    with pytest.raises(UserError, match=r"cannot read .*features.json: not a regular file"):
        open_tfds(str(tmp_path / "data"))


def test_a_missing_file_makes_bad_records(tmp_path: Path) -> None:
    open_tfds(str(tmp_path))
    (file,) = tmp_path.glob("numbered_captions/1.0.0/*-train*")
    file.unlink()
    source = open_tfds(str(tmp_path))
    with pytest.raises(BadRecordError, match="train record 0: "):
        source[0]
