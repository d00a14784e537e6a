"""PyTorch's files: what it writes is read, and nothing runs."""

import io
import pickle
import struct
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from glide_jax.errors import UserError
from glide_jax.pretrained import weight_files
from glide_jax.pretrained.pickles import read_pickled_arrays
from glide_jax.pretrained.torch_files import _LEGACY_MAGIC
from glide_jax.pretrained.torch_writer import _pickled_tensor
from glide_jax.pretrained.weight_files import read_tensors, write_tensors
from tests.helpers.torch_pickles import legacy, pickled, refused, saved, tensor

GOLDEN = Path(__file__).parent / "golden" / "torch_files"
"""Written by torch 2.13: torch.save, its old format, and torch.jit.script(module).save."""

BASE = np.arange(24, dtype=np.float32)
WRITTEN = {
    "float32": BASE[:6].reshape(2, 3),
    "float16": BASE[:4],
    "bfloat16": BASE[:4],
    "float64": BASE[:3],
    "transposed": BASE.reshape(4, 6).T,
    "slice": BASE.reshape(4, 6)[1:3, ::2],
    "expanded": BASE[:1],
    "scalar": np.float32(7),
    "empty": BASE[:0].reshape(0, 3),
    "parameter": BASE[2:5],
}


@pytest.mark.parametrize("name", ["zip.pt", "legacy.pth"])
def test_files_that_pytorch_wrote(name):
    found = read_tensors(GOLDEN / name)
    assert list(found) == list(WRITTEN)  # without the integer "counter"
    for key, value in WRITTEN.items():
        np.testing.assert_array_equal(found[key], value)
        assert found[key].dtype == np.float32


def test_torchscript_archives_and_training_checkpoints():
    found = read_tensors(GOLDEN / "script.pt")
    shapes = {name: value.shape for name, value in found.items()}
    assert shapes == {"visual.w": (2, 2), "blocks.0.w": (2, 2), "blocks.1.w": (2, 2), "scale": ()}
    np.testing.assert_array_equal(found["visual.w"], [[0, 1], [2, 3]])
    assert found["scale"] == 4
    np.testing.assert_array_equal(read_tensors(GOLDEN / "nested.pt")["a.weight"], [0, 1])


def test_written_files_are_read_back(tmp_path):
    tensors = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "b.\u00e9": np.array(2.5, np.float16),
        "c": np.arange(3).astype(ml_dtypes.bfloat16),
        "d": np.zeros((0, 2)),
        "e": np.arange(70_000.0).reshape(2, -1),
    }
    for suffix in ("pt", "pth", "bin"):
        write_tensors(tmp_path / f"x.{suffix}", tensors)
        found = read_tensors(tmp_path / f"x.{suffix}")
        assert list(found) == list(tensors)
        for name, value in tensors.items():
            np.testing.assert_array_equal(found[name], value.astype(np.float32))
    with pytest.raises(UserError, match=r"a is of type complex64, which \.pt files do not have"):
        write_tensors(tmp_path / "x.pt", {"a": np.zeros(2, np.complex64)})


def test_files_hold_the_numbers_that_they_declare(tmp_path, monkeypatch):
    path = tmp_path / "x.pt"
    content = np.arange(3, dtype=np.float32).tobytes()
    np.testing.assert_array_equal(
        read_tensors(saved(path, pickled(t=tensor()), a=content))["t"], [0, 1, 2]
    )
    more = "'t' has more numbers than the file holds"
    for wrong, why in (
        (tensor(shape=(2**32,), strides=(0,)), more),
        (tensor(size=2**40, shape=(2**40,)), "it declares 1,099,511,627,776 numbers"),
        (tensor(size=4, shape=(4,)), "it declares 4 numbers in 12 bytes"),
        (tensor(size=2), more),
        (tensor(offset=1), more),
        (tensor(strides=(2,)), more),
        (tensor(offset=-1), "a tensor is not as PyTorch writes it"),
        (tensor(strides=(-1,)), "a tensor is not as PyTorch writes it"),
        (tensor(shape=(3, 1)), "a tensor is not as PyTorch writes it"),
        (tensor(key="../../secret"), "is not a valid .pt file"),
        (tensor(storage="QInt8Storage"), "it contains torch.QInt8Storage"),
    ):
        assert why in refused(saved(path, pickled(t=wrong), a=content)), why
    # Each holds its numbers, but all share them.
    monkeypatch.setattr(weight_files, "SMALL_BYTES", 2**12)
    shared = tensor(size=2**10, shape=(2**10,))
    all_of_one = pickled(**{f"t{i}": shared for i in range(2**9)})
    line = refused(saved(path, all_of_one, a=bytes(2**12)))
    assert line.startswith("is refused: it declares 524,288 numbers, more than its")
    packed = saved(path, pickled(t=tensor()), zipfile.ZIP_DEFLATED, a=content)
    assert "it is compressed" in refused(packed)


def test_old_files_hold_the_numbers_that_they_declare(tmp_path):
    path = tmp_path / "x.pt"
    content = struct.pack("<q3f", 3, 0, 1, 2)
    path.write_bytes(legacy(pickled(t=tensor()), ["a"], content))
    np.testing.assert_array_equal(read_tensors(path)["t"], [0, 1, 2])
    wider = pickled(t=tensor(storage="DoubleStorage"), u=tensor())
    for data in (
        legacy(pickled(t=tensor()), ["a"], struct.pack("<q3f", 2**40, 0, 1, 2)),
        legacy(pickled(t=tensor()), ["a"], struct.pack("<q3f", -1, 0, 1, 2)),
        legacy(pickled(t=tensor()), ["b"], content),
        legacy(pickled(t=tensor()), [], content),
        legacy(pickled(t=tensor()), ["a"], content[:-1]),
        legacy(wider, ["a"], content),  # one storage of two types
        pickle.dumps(_LEGACY_MAGIC, 2),
        pickle.dumps({"a": 1}, 2),
        b"hello there",
        b"",
    ):
        path.write_bytes(data)
        assert refused(path).startswith("is not a valid .pt file"), data


def test_files_of_the_first_versions_of_pytorch(tmp_path):
    """By Python 2: texts are bytes, and a dict is called with its items."""

    def text(x):
        return b"U" + bytes([len(x)]) + x.encode()

    pid = text("storage") + b"ctorch\nFloatStorage\n" + text("a") + text("cpu") + b"\x8a\x01\x03N"
    rebuilt = b"ctorch._utils\n_rebuild_tensor\n((" + pid + b"tQK\x01K\x02\x85K\x01\x85tR"
    item = b"](" + text("t") + rebuilt + b"e"
    root = b"\x80\x02ccollections\nOrderedDict\n](" + item + b"e\x85R."
    path = tmp_path / "x.pth"
    content = struct.pack("<q3f", 3, 0, 1, 2)
    path.write_bytes(legacy(root, ["a"], content))
    np.testing.assert_array_equal(read_tensors(path)["t"], [1, 2])
    # A view of a storage starts inside of it, which is refused.
    part = pid[:-1] + text("b") + b"K\x01K\x02\x87"
    path.write_bytes(legacy(root.replace(pid, part), ["a"], content))
    assert "a storage is not as PyTorch writes it" in refused(path)


def test_anything_but_tensors_is_refused(tmp_path):
    path = tmp_path / "x.pt"
    for root, why in (
        (pickle.dumps(3, 2), "it contains one int, not tensors by name"),
        (b"\x80\x02" + tensor() + b".", "it contains one Tensor, not tensors by name"),
        (pickle.dumps({"a": {"b": 1}}, 2), "it must contain only tensors, but 'a' is of type dict"),
        (pickle.dumps({"state_dict": {"b": "c"}}, 2), "but 'b' is of type str"),
        (b"\x80\x02c__torch__.M\nN\n)\x81.", "it contains one _Module, not tensors by name"),
    ):
        assert why in refused(saved(path, root, a=bytes(12)))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "hello")
    assert "it has no data.pkl" in refused(path)
    whole = (GOLDEN / "zip.pt").read_bytes()
    for size in (len(whole) // 2, len(whole) - 1, 100):
        path.write_bytes(whole[:size])
        assert refused(path).startswith("is not a valid .pt file")


def test_pickled_arrays():
    values = {
        "fid": {"mu": np.arange(3.0), "sigma": np.eye(3, dtype=np.float32).T},
        "n": np.int64(5),
        "text": ["a", 2, 0.5, True, b"c"],
    }
    for protocol in range(6):
        found = read_pickled_arrays(pickle.dumps(values, protocol))
        np.testing.assert_array_equal(found["fid"]["mu"], values["fid"]["mu"])
        np.testing.assert_array_equal(found["fid"]["sigma"], values["fid"]["sigma"])
        assert found["n"] == 5
        assert found["text"] == values["text"]
    with pytest.raises(UserError, match="array of 'O8', not of numbers"):
        read_pickled_arrays(pickle.dumps(np.array([{}]), 2))
    with pytest.raises(UserError, match="refers to objects outside"):
        file = io.BytesIO()
        pickler = pickle.Pickler(file, 2)
        pickler.persistent_id = lambda value: "x" if value == 1 else None
        pickler.dump([1])
        read_pickled_arrays(file.getvalue())


def test_tensor_opcodes_match_the_writer():
    """The tests' tensors are written as the real ones are."""
    assert (
        tensor("0", 3, storage="HalfStorage")[:60]
        == _pickled_tensor("0", np.zeros(3, np.float16), "HalfStorage")[:60]
    )
