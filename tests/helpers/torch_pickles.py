"""PyTorch's files, written operation by operation: also wrong ones."""

import pickle
import zipfile

import pytest

from glide_jax.errors import UserError
from glide_jax.pretrained.torch_files import _LEGACY_MAGIC, _LEGACY_VERSION
from glide_jax.pretrained.torch_writer import _integer, _name, _text
from glide_jax.pretrained.weight_files import read_tensors


def refused(path):
    with pytest.raises(UserError) as error:
        read_tensors(path)
    line = str(error.value)
    assert "\n" not in line
    assert line.startswith(str(path))
    return line.removeprefix(str(path)).strip()


def saved(path, data_pkl, compression=zipfile.ZIP_STORED, **storages):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", data_pkl)
        for key, content in storages.items():
            archive.writestr(f"archive/data/{key}", content)
    return path


def tensor(key="a", size=3, offset=0, shape=(3,), strides=(1,), storage="FloatStorage"):
    """The opcodes of a tensor."""
    pid = _text("storage") + _name("torch", storage) + _text(key) + _text("cpu") + _integer(size)
    numbers = _integer(offset)
    for values in (shape, strides):
        numbers += b"(" + b"".join(map(_integer, values)) + b"t"
    return _name("torch._utils", "_rebuild_tensor_v2") + b"((" + pid + b"tQ" + numbers + b"\x89}tR"


def pickled(**values):
    return b"\x80\x02}(" + b"".join(_text(k) + v for k, v in values.items()) + b"u."


def legacy(data_pkl, keys, storages):
    head = b"".join(pickle.dumps(value, 2) for value in (_LEGACY_MAGIC, _LEGACY_VERSION, {}))
    return head + data_pkl + pickle.dumps(keys, 2) + storages
