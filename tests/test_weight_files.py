"""Files of tensors: nothing but their numbers is read, and no more than they hold."""

import io
import json
import warnings
import zipfile

import numpy as np
import pytest
from helpers.torch_pickles import refused

from glide_jax.pretrained import weight_files
from glide_jax.pretrained.weight_files import read_tensors, write_tensors


def write_npz(path, **members):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name.replace("_", "."), content)


def npy(shape, content=b"", descr="<f4"):
    file = io.BytesIO()
    header = {"descr": descr, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + content


def test_npz_files_of_anything_but_their_arrays_are_refused(tmp_path, monkeypatch):
    path = tmp_path / "x.npz"
    write_npz(path, a_npy=npy((3,), bytes(12)))
    assert read_tensors(path)["a"].shape == (3,)
    for members, why in (
        ({"README_txt": "hello"}, "must contain only arrays, but it has 'README.txt'"),
        ({"a_npy": npy((2**40,), bytes(12))}, r"a.npy declares 1,099,511,627,776 numbers in 12"),
        ({"a_npy": npy((-2, -3), bytes(24))}, "is not a valid .npz file"),
        ({"a_npy": npy((1,), bytes(12), "<f8")}, "a.npy declares 1 numbers in 12 bytes"),
        ({"a_npy": npy((3,), b"abc", "|S1")}, "a is of type |S1, not floating-point"),
        ({"a_npy": b"\x93NUMPY\x03\x00" + bytes(100)}, "of an unknown version"),
        ({"a_npy": b"\x93NUMPY\x02\x00\xff\xff\xff\xff{"}, "is not a valid .npz file"),
        ({"a_npy": b"hello"}, "is not a valid .npz file"),
    ):
        write_npz(path, **members)
        assert why in refused(path)
    with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as archive:
        warnings.simplefilter("ignore")
        for _ in range(2):
            archive.writestr("a.npy", npy((3,), bytes(12)))
    assert "two arrays of one name" in refused(path)
    with zipfile.ZipFile(path, "w"):
        pass
    assert read_tensors(path) == {}
    # Compressed zeros: a thousand times as large in memory as on disk.
    monkeypatch.setattr(weight_files, "SMALL_BYTES", 2**20)
    write_npz(path, a_npy=npy((2**19,), bytes(2**19), "|i1"))
    assert "is refused: it declares 524,288 numbers, more than its" in refused(path)
    # A header of spaces, which NumPy would read whole before it checks the length.
    write_npz(path, a_npy=b"\x93NUMPY\x02\x00\0\0\x20\0" + b" " * 2**21)
    assert "is refused: it declares" in refused(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, value):
    path = tmp_path / "x.safetensors"
    write_tensors(path, {"a": np.ones(3, np.float32), "b": np.array([1, value], np.float16)})
    assert refused(path).startswith(": b is not finite: the file is damaged")


def test_safetensors_headers_are_checked(tmp_path):
    path = tmp_path / "x.safetensors"
    entry = {"dtype": "F32", "shape": [3], "data_offsets": [0, 12]}
    for header, content in (
        ({"a": entry | {"shape": [2**40]}}, bytes(12)),
        ({"a": entry | {"shape": [2**33, 2**33]}}, bytes(12)),
        ({"a": entry | {"data_offsets": [0, 2**40]}}, bytes(12)),
        ({"a": entry, "b": entry}, bytes(12)),
        ({"a": entry}, bytes(4)),
        ({"a": entry | {"dtype": "PICKLE"}}, bytes(12)),
        ({"a": 7}, bytes(12)),
    ):
        text = json.dumps(header).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + content)
        assert "is not a valid .safetensors file" in refused(path)
    path.write_bytes((2**62).to_bytes(8, "little") + b"{}")
    assert "is not a valid .safetensors file" in refused(path)
    path.unlink()
    path.symlink_to("/dev/zero")
    assert refused(path) == ": not a regular file"
