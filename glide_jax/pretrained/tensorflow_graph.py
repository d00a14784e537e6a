"""Tensors of a frozen TensorFlow graph (.pb), read without TensorFlow.

A GraphDef in protobuf's wire format: nodes, of which those of type Const hold a tensor. Field
numbers are those of graph.proto, node_def.proto, attr_value.proto and tensor.proto in
tensorflow/core/framework.
"""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from glide_jax.errors import UserError

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""
DT_FLOAT = 1
EMPTY = memoryview(b"")
MAX_REPEATED = 2**16
"""Most numbers of a tensor that stores fewer than it has, and repeats the last."""

Value = int | memoryview
"""An integer; or the bytes of a message, a text or float32 numbers."""


def read_graph(path: Path) -> dict[str, np.ndarray]:
    """All float32 constants of at least one dimension, by node name.

    Raises:
        UserError: the file is missing, or not a GraphDef.
    """
    try:
        content = memoryview(path.read_bytes())
        nodes = [node for number, node in _fields(content) if number == 1]
        tensors = dict(tensor for node in nodes for tensor in _constants(node))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(f"{path} is not a frozen TensorFlow graph, or damaged: {error}") from None
    if not tensors:
        raise UserError(f"{path} is not a frozen TensorFlow graph: it has no float32 constants")
    return tensors


def _constants(node: Value) -> Iterator[tuple[str, np.ndarray]]:
    """The node's name and tensor, if it is a constant that `read_graph` returns."""
    fields = list(_fields(node))
    texts = {number: bytes(_bytes(value)) for number, value in fields if number in (1, 2)}
    if texts.get(2) != b"Const":
        return
    for attribute in (dict(_fields(value)) for number, value in fields if number == 5):
        if bytes(_bytes(attribute.get(1, EMPTY))) == b"value":
            array = _tensor(dict(_fields(attribute.get(2, EMPTY))).get(8, EMPTY))
            if array is not None:
                yield texts.get(1, b"").decode(), array


def _tensor(message: Value) -> np.ndarray | None:
    """A TensorProto of float32 numbers and at least one dimension; None for others."""
    fields = list(_fields(message))
    last = dict(fields)
    dims = [dict(_fields(x)) for number, x in _fields(last.get(2, EMPTY)) if number == 2]
    shape = tuple(n for dim in dims if isinstance(n := dim.get(1, 0), int))
    if last.get(1) != DT_FLOAT or not shape:
        return None
    numbers = b"".join(bytes(_bytes(value)) for number, value in fields if number in (4, 5))
    values, count = np.frombuffer(numbers, "<f4"), math.prod(shape)
    if len(values) != count:
        if not 0 < len(values) < count <= MAX_REPEATED:
            raise ValueError(f"a tensor of shape {shape} has {len(values)} numbers")
        values = np.pad(values, (0, count - len(values)), mode="edge")
    return values.reshape(shape)


def _bytes(value: Value) -> memoryview:
    if isinstance(value, int):
        raise ValueError("a number where a message is expected")
    return value


def _fields(message: Value) -> Iterator[tuple[int, Value]]:
    """(number, value) of each field of a message."""
    message, at = _bytes(message), 0
    while at < len(message):
        key, at = _varint(message, at)
        number, kind = key >> 3, key & 7
        if kind == VARINT:
            value, at = _varint(message, at)
            yield number, value
            continue
        if kind == BYTES:
            size, at = _varint(message, at)
        elif kind in (FIXED64, FIXED32):
            size = 8 if kind == FIXED64 else 4
        else:
            raise ValueError(f"unknown wire type {kind}")
        if at + size > len(message):
            raise ValueError("it ends too early")
        yield number, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer of 7 bits per byte, the lowest first, and the place behind it."""
    value = 0
    for i in range(10):
        if at + i == len(message):
            raise ValueError("it ends too early")
        byte = message[at + i]
        value |= (byte & 0x7F) << 7 * i
        if byte < 0x80:
            return value, at + i + 1
    raise ValueError("an integer of more than 64 bits")
