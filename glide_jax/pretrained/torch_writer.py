"""PyTorch's files of tensors, written without PyTorch."""

import math
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from glide_jax.errors import UserError
from glide_jax.pretrained.torch_files import STORAGES


def write_torch(path: Path, tensors: Mapping[str, np.ndarray], under: str = "") -> None:
    """Writes tensors by name as torch.save does, readable with weights_only=True.

    Args:
        path: of the file.
        tensors: of a type in STORAGES. If their names are 0, 1, ..., they are written as a tuple.
        under: write a dict with the tensors under this name, as a training checkpoint has them.

    Raises:
        UserError: a tensor is of another type.
    """
    storages = {dtype: name for name, dtype in STORAGES.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        entries: list[bytes] = []
        numbered = bool(tensors) and list(tensors) == [str(i) for i in range(len(tensors))]
        for key, (name, tensor) in enumerate(tensors.items()):
            if tensor.dtype not in storages:
                raise UserError(f"{name} is of type {tensor.dtype}, which .pt files do not have")
            pickled = _pickled_tensor(str(key), tensor, storages[tensor.dtype])
            entries.append(pickled if numbered else _text(name) + pickled)
        root = (b"(%bt" if numbered else b"}(%bu") % b"".join(entries)
        if under:
            root = b"}(" + _text(under) + root + b"u"
        archive.writestr("archive/data.pkl", b"\x80\x02" + root + b".")
        archive.writestr("archive/byteorder", b"little")
        for key, tensor in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{key}", np.ascontiguousarray(tensor).tobytes())
        archive.writestr("archive/version", b"3\n")


def _pickled_tensor(key: str, tensor: np.ndarray, storage: str) -> bytes:
    """The opcodes of torch._utils._rebuild_tensor_v2(storage, 0, shape, strides, False, {})."""
    strides = [math.prod(tensor.shape[i + 1 :]) for i in range(tensor.ndim)]
    pid = _text("storage") + _name("torch", storage) + _text(key) + _text("cpu")
    return (
        _name("torch._utils", "_rebuild_tensor_v2")
        + b"(("
        + (pid + _integer(tensor.size) + b"tQ")
        + _integer(0)
        + (b"(" + b"".join(map(_integer, tensor.shape)) + b"t")
        + (b"(" + b"".join(map(_integer, strides)) + b"t")
        + b"\x89"
        + (_name("collections", "OrderedDict") + b")R")
        + b"tR"
    )


def _name(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    encoded = text.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]
