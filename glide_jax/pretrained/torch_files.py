"""PyTorch's files of tensors, read and written without PyTorch.

There are three kinds: zip archives of torch.save (.pt, .pth, .bin), its files before PyTorch 1.6,
and TorchScript archives. In all of them a pickle describes the tensors as strided views of
storages, and the storages' numbers lie beside it.
"""

import collections
import io
import math
import pickle
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

from glide_jax.errors import UserError
from glide_jax.pretrained.pickles import RestrictedUnpickler, require_small_memo

STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
"""Types of numbers by PyTorch's class of storage."""

NESTED = ("state_dict", "model")
"""Entries of a training checkpoint that hold its tensors."""

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001


class Storage(NamedTuple):
    """Numbers in a file."""

    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
class View:
    """A tensor: a strided view of a storage."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def __post_init__(self) -> None:
        numbers = (self.offset, *self.shape, *self.strides)
        plain = isinstance(self.storage, Storage) and len(self.shape) == len(self.strides)
        if not plain or not all(type(x) is int and x >= 0 for x in numbers):
            raise UserError("a tensor is not as PyTorch writes it")

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    def of(self, numbers: np.ndarray) -> np.ndarray:
        """The view of the storage's numbers."""
        strides = [stride * numbers.itemsize for stride in self.strides]
        return np.lib.stride_tricks.as_strided(
            numbers[self.offset :], self.shape, strides, writeable=False
        )

    def fits(self) -> bool:
        """Whether it lies in its storage, and has no more elements."""
        last = sum(s * (n - 1) for s, n in zip(self.strides, self.shape, strict=True))
        inside = self.size == 0 or self.offset + last < self.storage.size
        return inside and self.size <= self.storage.size


def _tensor(storage: Any, offset: Any, shape: Any, strides: Any, *_: Any) -> View:
    """torch._utils._rebuild_tensor_v2; the rest are hooks and whether it has a gradient."""
    return View(storage, offset, tuple(shape), tuple(strides))


def _parameter(tensor: Any, *_: Any) -> Any:
    """torch._utils._rebuild_parameter."""
    return tensor


class _Module:
    """A module of TorchScript: its attributes."""


class _Names(dict):
    """What a pickle of PyTorch may name; the classes of TorchScript modules differ by file."""

    def __contains__(self, key: object) -> bool:
        module = key[0] if isinstance(key, tuple) else ""
        return super().__contains__(key) or module.partition(".")[0] == "__torch__"

    def __missing__(self, key: tuple[str, str]) -> type:
        return _Module


KNOWN = _Names(
    {
        ("collections", "OrderedDict"): collections.OrderedDict,
        ("torch._utils", "_rebuild_tensor_v2"): _tensor,
        ("torch._utils", "_rebuild_parameter"): _parameter,
        **{("torch", name): dtype for name, dtype in STORAGES.items()},
    }
)


def _storage(pid: Any) -> Storage:
    """The storage of a persistent id: ("storage", type, key, device, size, ...)."""
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == "storage"):
        raise UserError("a storage is not as PyTorch writes it")
    _, dtype, key, _, size, *_ = pid
    if not (isinstance(dtype, np.dtype) and isinstance(key, str) and type(size) is int):
        raise UserError("a storage is not as PyTorch writes it")
    return Storage(key, dtype, size)


def read_torch(path: Path, check: Callable[[int], None]) -> dict[str, np.ndarray]:
    """All tensors of a file by name.

    Tensors may be in a dict under one of NESTED, or in modules of TorchScript, whose attributes'
    names are joined with dots.

    Args:
        path: the file.
        check: called with the number of elements of all tensors before any is allocated.

    Raises:
        UserError: it contains anything else, or declares more than it holds.
        Exception: it is truncated or corrupt; of many types.
    """
    if zipfile.is_zipfile(path):
        return _read_zip(path, check)
    return _read_legacy(path, check)


def _read_zip(path: Path, check: Callable[[int], None]) -> dict[str, np.ndarray]:
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("it has two members of one name")
        pickles = [name for name in members if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("it has no data.pkl")
        folder = pickles[0].removesuffix("data.pkl")
        read = [m for name, m in members.items() if name.startswith((pickles[0], f"{folder}data/"))]
        if any(member.compress_type != zipfile.ZIP_STORED for member in read):
            raise ValueError("it is compressed")
        if f"{folder}byteorder" in members and archive.read(f"{folder}byteorder") != b"little":
            raise UserError("its numbers are big-endian")
        views = _views(io.BytesIO(archive.read(pickles[0])), check)

        def numbers(storage: Storage) -> np.ndarray:
            name = f"{folder}data/{storage.key}"
            if members[name].file_size != storage.size * storage.dtype.itemsize:
                raise UserError(
                    f"it declares {storage.size:,} numbers in {members[name].file_size:,} bytes"
                )
            return np.frombuffer(archive.read(name), storage.dtype)

        return _tensors(views, numbers)


def _read_legacy(path: Path, check: Callable[[int], None]) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        for expected in (_LEGACY_MAGIC, _LEGACY_VERSION):
            if _load(file) != expected:
                raise ValueError("it is not a file of torch.save")
        _load(file)  # sizes of C types where it was written
        views = _views(file, check)
        keys = _load(file)
        declared = {view.storage.key: view.storage for view in views.values()}
        found = {}
        for key in keys:
            (size,) = struct.unpack("<q", file.read(8))
            storage = declared.get(key)
            if storage is None or storage.size != size:
                raise ValueError(f"storage {key} is not as declared")
            content = file.read(size * storage.dtype.itemsize)
            found[key] = np.frombuffer(content, storage.dtype, size)
        return _tensors(views, lambda storage: found[storage.key])


def _load(file: Any) -> Any:
    require_small_memo(file)
    return RestrictedUnpickler(file, {}).load()


def _views(file: Any, check: Callable[[int], None]) -> dict[str, View]:
    """The tensors of a pickle by name, checked against the storages that they declare."""
    require_small_memo(file)
    root = RestrictedUnpickler(file, KNOWN, _storage).load()
    if isinstance(root, View):
        raise UserError("it contains one Tensor, not tensors by name")
    if isinstance(root, dict):
        nested = [root[name] for name in NESTED if isinstance(root.get(name), dict)]
        views = dict(nested[0] if nested else root)
    else:
        views = dict(_attributes(root))
    for name, view in views.items():
        if not isinstance(view, View):
            raise UserError(
                f"it must contain only tensors, but {name!r} is of type {type(view).__name__}"
            )
        if not view.fits():
            raise UserError(f"{name} has more numbers than the file holds")
    check(sum(view.size for view in views.values()))
    return {str(name): view for name, view in views.items()}


def _attributes(root: Any) -> list[tuple[str, View]]:
    """The tensors among the attributes of a TorchScript module and of those in it."""
    found: list[tuple[str, View]] = []
    waiting, seen = [("", root)], set()
    while waiting:
        prefix, module = waiting.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        for name, value in vars(module).items() if isinstance(module, _Module) else ():
            if isinstance(value, View):
                found.append((f"{prefix}{name}", value))
            elif isinstance(value, _Module):
                waiting.append((f"{prefix}{name}.", value))
    if not found:
        raise UserError(f"it contains one {type(root).__name__}, not tensors by name")
    return found


def _tensors(
    views: Mapping[str, View], numbers: Callable[[Storage], np.ndarray]
) -> dict[str, np.ndarray]:
    """The tensors, contiguous. Each storage is read once, and dropped after its last view."""
    by_storage = collections.defaultdict(list)
    for name, view in views.items():
        by_storage[view.storage].append(name)
    tensors = {}
    for storage, names in by_storage.items():
        whole = numbers(storage)
        if (whole.dtype, len(whole)) != (storage.dtype, storage.size):
            raise ValueError(f"storage {storage.key} is not as declared")
        for name in names:
            tensors[name] = np.ascontiguousarray(views[name].of(whole)).reshape(views[name].shape)
    return {name: tensors[name] for name in views}


def write_torch(path: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Writes tensors by name as torch.save does, readable with weights_only=True.

    Args:
        path: of the file.
        tensors: of a type in STORAGES.

    Raises:
        UserError: a tensor is of another type.
    """
    storages = {dtype: name for name, dtype in STORAGES.items()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        entries = []
        for key, (name, tensor) in enumerate(tensors.items()):
            if tensor.dtype not in storages:
                raise UserError(f"{name} is of type {tensor.dtype}, which .pt files do not have")
            entries.append(_text(name) + _pickled_tensor(str(key), tensor, storages[tensor.dtype]))
        root = b"\x80\x02" + b"}(" + b"".join(entries) + b"u."
        archive.writestr("archive/data.pkl", root)
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
