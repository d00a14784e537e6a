"""Sets of images to evaluate: a folder, a tar archive, an .npz file, or a split of a data set.

All are read one image at a time, in a fixed order, so memory does not grow with their number.
Images that cannot be read are skipped and named; past a fraction of them the set is refused.
"""

import contextlib
import hashlib
import json
import logging
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageFilter, UnidentifiedImageError

from glide_jax.config import DataConfig
from glide_jax.config.source_words import KINDS, parse_source, spell_source
from glide_jax.data.folder_index import IMAGE_SUFFIXES, list_files
from glide_jax.data.records import BadRecordError, Source, list_problems
from glide_jax.data.sources import open_source
from glide_jax.data.transforms import decode
from glide_jax.errors import UserError, first_line
from glide_jax.evaluation.crops import CROPS
from glide_jax.evaluation.npz_images import read_npz
from glide_jax.hub import fetched
from glide_jax.images import MAX_FILE_BYTES, NOT_AN_IMAGE, open_image
from glide_jax.storage import expand_home, read_regular, text_lines

logger = logging.getLogger(__name__)

TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")
MAX_BAD_FRACTION = 0.01
"""Of the images of a set; 1 in a set of up to 100."""
EARLY = 1000
"""Images that a set is assumed to have until all are read, so that few bad ones do not stop it."""


@dataclass(frozen=True)
class EvaluatedImage:
    """An image of a set."""

    name: str
    """Its path in the folder or archive, or its index."""
    pixels: UInt8[np.ndarray, "h w 3"]
    read_captions: Callable[[], tuple[str, ...]]

    @property
    def captions(self) -> tuple[str, ...]:
        """Its captions, or the prompt that it was sampled for; none if they are unknown.

        Raises:
            UserError: they cannot be read.
        """
        try:
            return self.read_captions()
        except (BadRecordError, OSError, UnicodeDecodeError) as error:
            raise UserError(f"{self.name}: cannot read its caption: {first_line(error)}") from None


class Encoded(NamedTuple):
    """An image before it is read. Reading raises any Exception."""

    name: str
    read_pixels: Callable[[], UInt8[np.ndarray, "h w 3"]]
    read_captions: Callable[[], tuple[str, ...]] = tuple


@dataclass(frozen=True)
class Preparation:
    """What is done to every image of a set before its features are computed."""

    px: int = 0
    """Side of the squares that images are cropped to; 0: images stay as they are."""
    crop: str = "adm"
    """A key of CROPS."""
    blur_radius_px: float = 0.0
    """Standard deviation of a Gaussian blur (Fig. 9, arXiv 2102.12092); 0: none."""

    @property
    def settings(self) -> dict[str, str]:
        """What changes the images."""
        cropped = {"px": str(self.px), "crop": self.crop} if self.px else {}
        return cropped | ({"blur": f"{self.blur_radius_px:g}"} if self.blur_radius_px else {})

    def __call__(self, pixels: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
        """The prepared image."""
        if self.px and pixels.shape[:2] != (self.px, self.px):
            pixels = CROPS[self.crop](pixels, self.px)
        if self.blur_radius_px:
            blur = ImageFilter.GaussianBlur(self.blur_radius_px)
            pixels = np.asarray(Image.fromarray(pixels).filter(blur))
        return pixels


class ImageSet:
    """Images in a fixed order. Iterate over it as often as you like.

    Args:
        name: for messages.
        digest: of the contents.
        read: yields all images.
        preparation: of every image.
        n: how many of the first images to take; None for all.
    """

    def __init__(
        self,
        name: str,
        digest: Callable[[], str],
        read: Callable[[], Iterator[Encoded]],
        preparation: Preparation,
        n: int | None = None,
    ) -> None:
        self.name, self.preparation = name, preparation
        self._digest, self._read, self._n = digest, read, n

    def digest(self) -> str:
        """Changes with the images and their preparation. Reads all files."""
        own = [self._digest(), str(self._n), *sorted(self.preparation.settings.items())]
        return hashlib.sha256(repr(own).encode()).hexdigest()

    def __iter__(self) -> Iterator[EvaluatedImage]:
        """Yields the images.

        Raises:
            UserError: there are none, or too many of them cannot be read.
        """
        problems: list[str] = []
        found = 0
        for name, read_pixels, read_captions in self._read():
            if found == self._n:
                break
            try:
                pixels = read_pixels()
            except Exception as error:  # Pillow raises nearly any type for a damaged file
                problems.append(f"{name}: {first_line(error)}")
                logger.warning("skipped an image: %s", problems[-1])
                self._check(problems, found + len(problems), EARLY)
                continue
            found += 1
            yield EvaluatedImage(name, self.preparation(pixels), read_captions)
        self._check(problems, found + len(problems))
        if not found:
            raise UserError(f"{self.name}: no images")
        if self._n is not None and found < self._n:
            logger.warning(f"{self.name}: {found:,} images, fewer than the {self._n:,} asked for")

    def _check(self, problems: list[str], count: int, at_least: int = 100) -> None:
        """Raises UserError if too many of `count` images cannot be read."""
        if len(problems) > MAX_BAD_FRACTION * max(count, at_least):
            raise UserError(
                f"{self.name}: {len(problems):,} of {count:,} images cannot be read: "
                f"{list_problems(problems)}; repair or remove them"
            )


def open_images(
    words: Sequence[str | Path],
    split: str = "validation",
    preparation: Preparation | None = None,
    n: int | None = None,
) -> ImageSet:
    """A set of images.

    Args:
        words: one path of a folder, a .tar or an .npz file, also hf://ORG/REPO/FILE; or the words
            of `--data.source`, such as `scenes` or `tfds coco_captions`.
        split: of a data set.
        preparation: of every image; by default none. A data set's images need `px`.
        n: how many of the first images to take; None for all.

    Raises:
        UserError: there is no such file, folder or data set.
    """
    preparation = preparation or Preparation()
    place = Path(expand_home(fetched(words[0]))) if len(words) == 1 else None
    if place is not None and place.is_dir():
        return _folder(place, preparation, n)
    if place is not None and place.name.lower().endswith((".npz", *TAR_SUFFIXES)):
        if not place.is_file():
            raise UserError(f"{place}: no such file")
        read = _npz if place.suffix.lower() == ".npz" else _tar
        return ImageSet(str(place), lambda: _digest([place]), lambda: read(place), preparation, n)
    if str(words[0]) not in KINDS:
        raise UserError(
            f"{' '.join(map(str, words))}: {'' if place and place.exists() else 'not found: '}"
            "give a folder, a .tar or an .npz file of images, or a data set that begins with one "
            f"of {', '.join(KINDS)}"
        )
    source = DataConfig(source=parse_source([str(word) for word in words]))
    return data_set(open_source(source, split), source, split, preparation, n)


def data_set(
    source: Source,
    config: DataConfig,
    split: str,
    preparation: Preparation,
    n: int | None = None,
) -> ImageSet:
    """The images of an opened data set.

    Raises:
        UserError: the preparation has no `px`.
    """
    words = " ".join(spell_source(config.source))
    if not preparation.px:
        raise UserError(f"{words}: give --px, the side of the squares to compare")

    def pixels(index: int) -> UInt8[np.ndarray, "h w 3"]:
        return _decoded(source[index].image)

    def read() -> Iterator[Encoded]:
        for i in range(len(source)):
            yield Encoded(f"record {i}", partial(pixels, i), partial(source.captions, i))

    def digest() -> str:
        total = hashlib.sha256(json.dumps([words, split, config.caption_pattern]).encode())
        for i in range(len(source) if n is None else min(n, len(source))):
            with contextlib.suppress(BadRecordError):
                total.update(b"%d " % i + hashlib.sha256(source[i].image).digest())
        return total.hexdigest()

    return ImageSet(f"split {split!r} of {words}", digest, read, preparation, n)


def _folder(folder: Path, preparation: Preparation, n: int | None) -> ImageSet:
    def files() -> list[Path]:
        return [folder / name for name in list_files(folder) if _is_image(PurePosixPath(name))]

    def read() -> Iterator[Encoded]:
        for path in files():
            name = path.relative_to(folder).as_posix()
            yield Encoded(name, partial(_pixels, path), partial(_captions, path))

    return ImageSet(str(folder), lambda: _digest(files()), read, preparation, n)


def _pixels(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    return _decoded(read_regular(path, MAX_FILE_BYTES))


def _is_image(path: PurePath) -> bool:
    """Whether a relative path is that of an image, and not hidden."""
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden


def _captions(path: Path) -> tuple[str, ...]:
    text = path.with_suffix(".txt")
    content = read_regular(path, MAX_FILE_BYTES)
    return _prompt(content) or _lines(text.read_bytes() if text.is_file() else b"")


def _prompt(content: bytes) -> tuple[str, ...]:
    """The prompt in a PNG file's metadata, as this project writes it; no graph of ComfyUI's."""
    prompt = getattr(open_image(content), "text", {}).get("prompt")
    return () if prompt is None or _is_json_object(prompt) else (str(prompt),)


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _lines(text: bytes) -> tuple[str, ...]:
    return tuple(line.strip() for line in text_lines(text) if line.strip())


def _npz(path: Path) -> Iterator[Encoded]:
    for index, pixels in enumerate(read_npz(path)):
        yield Encoded(f"image {index}", partial(np.asarray, pixels))


def _tar(path: Path) -> Iterator[Encoded]:
    """Images in a tar archive. Captions are read in a pass of their own: they may be anywhere."""

    @cache
    def texts() -> dict[PurePath, bytes]:
        return dict(_members(path, lambda name: name.suffix.lower() == ".txt"))

    def captions(name: PurePath, content: bytes) -> tuple[str, ...]:
        return _prompt(content) or _lines(texts().get(name.with_suffix(".txt"), b""))

    for name, content in _members(path, _is_image):
        read_captions = partial(captions, name, content)
        yield Encoded(name.as_posix(), partial(_decoded, content), read_captions)


def _members(path: Path, wanted: Callable[[PurePath], bool]) -> Iterator[tuple[PurePath, bytes]]:
    """The wanted files of a tar archive, in its order. Raises UserError if it is damaged."""
    archive: Any
    end = 0
    try:
        with tarfile.open(path) as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # which tarfile would collect
                if archive.offset <= end:
                    raise tarfile.ReadError("a header leads backward")
                end = archive.offset
                if not member.isfile() or not wanted(PurePosixPath(member.name)):
                    continue
                if member.size > MAX_FILE_BYTES:
                    limit = f"{MAX_FILE_BYTES / 1e6:,.0f} MB"
                    raise UserError(f"{path}: {member.name} is larger than {limit}")
                yield PurePosixPath(member.name), archive.extractfile(member).read()
            archive.fileobj.seek(archive.offset)
            if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError("it has no end marker")  # tarfile would stop silently
    except UserError:
        raise
    except Exception as error:  # tarfile raises many types on malformed archives
        raise UserError(f"{path} is damaged, or not a tar archive: {first_line(error)}") from None


def _decoded(content: bytes) -> UInt8[np.ndarray, "h w 3"]:
    if not content:
        raise BadRecordError("the file is empty")
    try:
        return np.asarray(decode(content))
    except UnidentifiedImageError:
        raise BadRecordError(NOT_AN_IMAGE) from None


def _digest(files: Sequence[Path]) -> str:
    total = hashlib.sha256()
    for path in files:
        total.update(path.name.encode(errors="surrogateescape"))
        with contextlib.suppress(OSError), path.open("rb") as file:  # reading it reports the error
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
