"""guided-diffusion's .npz files of images, read and written one image at a time."""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from glide_jax.errors import UserError, first_line

IMAGES_ARRAY = "arr_0"
"""Name of the images: uint8 (n, h, w, 3)."""


def read_npz(path: Path) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    """The images of a file, one after the other.

    Raises:
        UserError: it is damaged, or holds no images.
    """
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{IMAGES_ARRAY}.npy") as file:
            count, shape = _shape(path, file)
            size = math.prod(shape)
            for index in range(count):
                content = file.read(size)
                if len(content) < size:
                    raise UserError(f"{path} is truncated after {index:,} of {count:,} images")
                yield np.frombuffer(content, np.uint8).reshape(shape)
    except KeyError:
        raise UserError(f"{path} has no images: it has no array {IMAGES_ARRAY}") from None
    except UserError:
        raise
    except Exception as error:  # zipfile and zlib raise many types on damaged files
        raise UserError(f"{path} is not a valid .npz file: {first_line(error)}") from None


def _shape(path: Path, file: Any) -> tuple[int, tuple[int, ...]]:
    """Number and shape of the images of an array. Raises UserError if they are no images."""
    version = np.lib.format.read_magic(file)
    read = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    shape, fortran_order, dtype = read(file)
    if (
        dtype != np.uint8
        or len(shape) != 4
        or shape[3] != 3
        or fortran_order
        or not math.prod(shape[1:])
    ):
        raise UserError(
            f"{path}: {IMAGES_ARRAY} is {dtype} of shape {shape}: images must be uint8 levels "
            "0..255 of shape (n, h, w, 3)"
        )
    return shape[0], shape[1:]


def count_of_one_size(images: Iterator[UInt8[np.ndarray, "h w 3"]]) -> int:
    """The number of images that an .npz file can have. Raises UserError if their sizes differ."""
    return sum(1 for _ in _of_one_size(images))


def _of_one_size(
    images: Iterator[UInt8[np.ndarray, "h w 3"]],
) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
    shape = None
    for number, image in enumerate(images):
        shape = shape or image.shape
        if image.shape != shape:
            raise UserError(
                f"image {number} has the shape {image.shape}, the first {shape}: an .npz file "
                "needs one size; give --px"
            )
        yield image


def write_npz(path: Path, images: Iterator[UInt8[np.ndarray, "h w 3"]], count: int) -> None:
    """Writes images as guided-diffusion's evaluator reads them, one after the other.

    Args:
        path: ends in .npz.
        images: of one size.
        count: number of images, see `count_of_one_size`.

    Raises:
        UserError: an image has another size, or there are more or fewer.
    """
    unfinished = path.with_name(f".{path.name}.unfinished")
    images = _of_one_size(images)
    first = next(images)
    written = 1
    try:
        with (
            zipfile.ZipFile(unfinished, "w", zipfile.ZIP_STORED) as archive,
            archive.open(f"{IMAGES_ARRAY}.npy", "w", force_zip64=True) as file,
        ):
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *first.shape)}
            np.lib.format.write_array_header_1_0(file, header)
            file.write(first.tobytes())
            for image in images:
                file.write(image.tobytes())
                written += 1
        if written != count:
            raise UserError(f"{path}: there are {written:,} images now, not {count:,}")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
