"""Data sets of TensorFlow Datasets (TFDS), read without TensorFlow."""

import difflib
import importlib.util
import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies

import numpy as np
from etils import epath

from glide_jax.config import Tfds
from glide_jax.data.records import BadRecordError, Record, clean_captions
from glide_jax.errors import UserError
from glide_jax.storage import AnyPath, plain_name, storage_errors

PORTS = {"http": 80, "https": 443, "ftp": 21}
CONNECT_S = 5.0
"""Time to connect to a server of a download."""


def parse_example(content: bytes) -> Any:
    """A stored tf.Example. Raises many kinds of errors on damaged bytes."""
    from tensorflow_datasets.proto import tf_example_pb2  # here: it takes half a second

    return tf_example_pb2.Example.FromString(content)


class TfdsSource:
    """One split of a TFDS data set in the array_record format.

    Args:
        records: the result of `builder.as_data_source(split)`.
        image_key: the feature with the image.
        caption_key: the feature with the caption or captions: "captions/text".

    Raises:
        UserError: such a feature does not exist, or has another type.
    """

    def __init__(self, records: Any, image_key: str, caption_key: str) -> None:
        info = records.dataset_info
        require_features(info, image_key, caption_key)
        self._name = f"{info.full_name} {records.split}"
        self._image_key, self._caption_key = image_key, caption_key
        # TFDS decodes every feature of a record in Python, which takes ten times as long as reading
        # it. The stored tf.Example holds the two needed, still encoded, under their paths.
        self._stored = records.data_source

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, index: int) -> Record:
        images, captions, name = self._read(index)
        return Record(images[0] if images else b"", clean_captions(captions, name), name)

    def captions(self, index: int) -> tuple[str, ...]:
        """The captions at `index`. Raises BadRecordError."""
        _, captions, name = self._read(index)
        return clean_captions(captions, name)

    def _read(self, index: int) -> tuple[Sequence[bytes], Sequence[bytes], str]:
        name = f"{self._name} record {index}"
        try:
            feature = parse_example(self._stored[index]).features.feature
        except Exception as error:  # array_record and protobuf raise many types for damaged files
            raise BadRecordError(f"{name}: {_first_line(error)}") from error
        images, captions = feature[self._image_key], feature[self._caption_key]
        return images.bytes_list.value, captions.bytes_list.value, name


def open_tfds(source: Tfds, split: str) -> TfdsSource:
    """One split of a data set, downloaded and prepared as array_record first if necessary.

    Args:
        source: its name, as coco_captions, coco_captions/2014, my_dataset:1.0.0; its features and
            folder.
        split: as TFDS spells it: train, train[:98%].

    Raises:
        UserError: no such data set, feature or split, or the data set cannot be prepared.
    """
    builder = _prepared(source)
    try:
        records = builder.as_data_source(split)
        return TfdsSource(records, source.image_key, source.caption_key)
    except ValueError as error:
        raise UserError(
            f"{builder.info.full_name} has no split {split!r} ({_first_line(error)}); its splits "
            f"are {', '.join(builder.info.splits)}, and slices such as train[:98%]"
        ) from None
    except NotImplementedError:
        raise UserError(
            f"{builder.data_dir} holds {builder.info.full_name} in another format than "
            "array_record: delete it, or set data.source.data_dir to prepare it elsewhere"
        ) from None


def _prepared(source: Tfds) -> Any:
    import tensorflow_datasets as tfds

    name, data_dir = source.name, source.data_dir
    check_metadata(name, data_dir)
    provide_tensorflow_types()
    # With a version, even a wildcard, TFDS reads a prepared data set before its program runs.
    wanted = name if ":" in name else f"{name}:*.*.*"
    # Data sets are third-party programs, which raise errors of any type.
    try:
        builder = tfds.builder(wanted, data_dir=data_dir or None, file_format="array_record")
        require_features(builder.info, source.image_key, source.caption_key)
        _require_connection(builder, name)
        builder.download_and_prepare()
    except UserError:
        raise
    except tfds.core.DatasetNotFoundError:
        known = tfds.list_builders(with_community_datasets=False)
        near = difflib.get_close_matches(name.split("/")[0].split(":")[0], known, n=5, cutoff=0.5)
        raise UserError(
            f"TFDS has no data set {name!r}, and none is prepared under "
            f"{data_dir or 'its default folder'}"
            + (f"; similar names: {', '.join(near)}" if near else "; see tfds.list_builders()")
        ) from None
    except ImportError as error:
        raise UserError(
            f"TFDS cannot prepare {name!r} here: {_first_line(error)}. Install what is missing, or "
            f"prepare it where it is installed (tfds build {name} --file_format=array_record) "
            "and set data.source.data_dir to the result"
        ) from error
    except Exception as error:
        raise UserError(f"TFDS cannot prepare {name!r}: {_first_line(error)}") from error
    return builder


def require_features(info: Any, image_key: str, caption_key: str) -> None:
    """Checks that a data set has an image and a text under these names. Raises UserError."""
    kinds = {path: feature_kind(feature) for path, feature in features_of(info.features)}
    for setting, key, kind in (
        ("image_key", image_key, "image"),
        ("caption_key", caption_key, "text"),
    ):
        if kinds.get(key) != kind:
            known = ", ".join(f"{path} ({kind})" for path, kind in kinds.items())
            raise UserError(
                f"data.source.{setting} = {key!r} is not a feature of {info.full_name} of type "
                f"{kind}; its features are {known}"
            )


def _require_connection(builder: Any, name: str) -> None:
    """Raises UserError if a data set must be downloaded and no server of it can be reached.

    TFDS would repeat its attempts for minutes.
    """
    urls = [urlsplit(url) for url in builder.url_infos or ()]
    servers = dict.fromkeys(
        (url.hostname, url.port or PORTS[url.scheme]) for url in urls if url.scheme in PORTS
    )
    downloads = epath.Path(builder.data_dir_root) / "downloads"
    is_downloaded = downloads.exists() and any(downloads.glob("*.INFO"))
    if builder.is_prepared() or not servers or is_downloaded or getproxies():
        return
    for server in [*servers][:3]:
        try:
            socket.create_connection(server, CONNECT_S).close()
            return
        except OSError as error:
            problem = f"no connection to {server[0]} ({error.strerror or error})"
    raise UserError(
        f"TFDS cannot download {name!r}: {problem}: connect this machine, or prepare the data set "
        f"on another (tfds build {name} --file_format=array_record) and set data.source.data_dir "
        "to the result"
    )


def check_metadata(name: str, data_dir: str) -> None:
    """Checks the metadata of prepared versions of a data set before TFDS reads them.

    TFDS imports the modules that features.json names, and reads the files of dataset_info.json.

    Args:
        name: of the data set, with or without a configuration and version.
        data_dir: folder of prepared data sets; empty: TFDS's default.

    Raises:
        UserError: a name is not of TFDS, or a file would be outside the folder.
    """
    from tensorflow_datasets.core.utils import file_utils

    for folder in file_utils.list_data_dirs(data_dir or None):
        prepared = epath.Path(folder) / name.split(":")[0].split("/")[0]
        for file in _metadata_files(prepared):
            with storage_errors("read", file):
                # TFDS would wait for a pipe, which epath's is_file takes for a file.
                if "://" not in os.fspath(file) and not os.path.isfile(file):
                    raise OSError("not a regular file")
                content = json.loads(file.read_bytes())
                if file.name == "features.json":
                    for class_name in _feature_classes(content):
                        _require_known_class(class_name)
                    continue
                plain_name(content["name"])
                for split in content.get("splits", ()):
                    plain_name(split["name"])
                    plain_name(split.get("filepathTemplate", "default"))


def _metadata_files(prepared: AnyPath) -> list[AnyPath]:
    """The metadata of all configurations and versions of a data set."""
    files = ("features.json", "dataset_info.json")
    with storage_errors("read", prepared):
        return [
            path
            for folder in ("*", "*/*")
            for file in files
            for path in prepared.glob(f"{folder}/{file}")
        ]


def _feature_classes(feature: Any) -> Iterator[Any]:
    """The names of the Python classes in a features.json."""
    if isinstance(feature, dict):
        for key, value in feature.items():
            name = key.replace("_", "").lower()  # protobuf accepts both spellings of a field
            if name in ("pythonclassname", "type") and isinstance(value, str):
                yield value
            else:
                yield from _feature_classes(value)
    elif isinstance(feature, list):
        for value in feature:
            yield from _feature_classes(value)


def _require_known_class(name: str) -> None:
    module = name.rpartition(".")[0]
    if module not in sys.modules and module.partition(".")[0] != "tensorflow_datasets":
        raise ValueError(f"a feature is of the class {name}, which is not of TFDS")


def provide_tensorflow_types() -> None:
    """Lets data sets spell the type of a feature `tf.int64`, as COCO does, without TensorFlow.

    TFDS accepts NumPy types too, and looks names up in its stand-in for the module first.
    """
    from tensorflow_datasets.core.utils import lazy_imports_utils

    if importlib.util.find_spec("tensorflow") is None:
        names = ("bool", "uint8", "int32", "int64", "float32", "float64")
        types = {name: np.dtype(name).type for name in names} | {"string": np.object_}
        vars(lazy_imports_utils.tensorflow).update(types)


def features_of(feature: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf feature with its path in a stored record; lists have the paths of their items."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.FeaturesDict):
        for key, child in feature.items():
            yield from features_of(child, f"{path}/{key}" if path else key)
    elif isinstance(feature, tfds.features.Sequence):
        yield from features_of(feature.feature, path)
    else:
        yield path, feature


def feature_kind(feature: Any) -> str:
    """ "image", "text", or the class name of another feature."""
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Image):
        return "image"
    return "text" if np.dtype(feature.np_dtype).kind in "OSU" else type(feature).__name__


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
