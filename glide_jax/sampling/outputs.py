"""Output files of sampling, and which of them already exist, so that a command can resume."""

import contextlib
import hashlib
import re
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from glide_jax.errors import UserError
from glide_jax.images import MAX_FILE_BYTES, NOT_AN_IMAGE, open_image
from glide_jax.storage import read_regular, require_file, require_folder, storage_errors

NAMES_OF_INPUTS = ("checkpoint", "image", "mask", "low_res")
"""Metadata that name inputs. When a command resumes, the contents of the inputs are compared."""


@dataclass(frozen=True, slots=True)
class Job:
    """What is sampled at once: one image, or with --keep the best images of a prompt."""

    prompt: str
    seed: int
    """Of the first image that is sampled."""
    files: tuple[Path, ...]
    """Of the images that are saved."""
    low_res: Path | None = None
    """The image to upsample."""
    n: int = 1
    """Images that are sampled; with --keep, the best of them are saved."""
    staged: Path | None = None
    """The base image that was sampled before; only upsampled then."""

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of this job's images only. Raises UserError if `low_res` cannot be read."""
        if self.low_res is None:
            return {"prompt": self.prompt}
        low_res = {"low_res": str(self.low_res), "low_res_digest": digest(self.low_res)}
        return {"prompt": self.prompt} | low_res

    def base_jobs(self, folder: Path) -> list["Job"]:
        """A job for each base image, into the folder of a stage."""
        names = [f"{self.files[0].stem}-{i}.png" for i in range(self.n)]
        return [Job(self.prompt, self.seed + i, (folder / name,)) for i, name in enumerate(names)]

    def is_done(self, common: Mapping[str, str | None]) -> bool:
        """Whether all images of this job exist, sampled with the same settings and weights.

        A damaged image counts as missing. Other metadata of a file, as image editors add it, is
        ignored.

        Args:
            common: the metadata that the images of all jobs share, None where unset.

        Raises:
            UserError: a file cannot be read, is no image, or was sampled with other flags,
                settings, inputs or weights, or by an earlier version.
        """
        expected = {**common, **self.metadata}
        done = True
        for file in self.files:
            if not file.exists():
                done = False
                continue
            found = read_metadata(file)
            if found is None:
                sys.stderr.write(f"{file} is damaged: it is sampled again\n")
                done = False
                continue
            if not set(found) >= ALWAYS_RECORDED:
                raise UserError(
                    f"{file} was sampled by an earlier version, or written by another program: "
                    "give another --out, or remove it"
                )
            for name, value in expected.items():
                if found.get(name) != value and name not in NAMES_OF_INPUTS:
                    raise UserError(
                        f"{file} was sampled with {name} {found.get(name)!r}, not {value!r}: "
                        "give another --out, or remove it"
                    )
        return done


ALWAYS_RECORDED = {"first_seed", "weights"}
"""Metadata of every image that a command has sampled."""


def read_metadata(file: Path) -> dict[str, str] | None:
    """The text chunks of a PNG file; None if it is empty or damaged.

    Raises:
        UserError: it cannot be read, is no image, or has too many pixels.
    """
    hint = "remove it, or give another --out"
    try:
        content = read_regular(file, MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}; {hint}") from None
    try:
        image = open_image(content)
        image.load()  # chunks may follow the pixels
    except Image.DecompressionBombError as error:
        raise UserError(f"cannot read {file}: it has {error}; {hint}") from None
    except Exception:  # Pillow raises nearly any type for a damaged file
        if content and not content.startswith(b"\x89PNG"):
            raise UserError(f"cannot read {file}: {NOT_AN_IMAGE}; {hint}") from None
        return None
    return {name: str(value) for name, value in getattr(image, "text", {}).items()}


def digest(file: Path) -> str:
    """A digest of a file's content, 16 hexadecimal digits. Raises UserError if it is unreadable."""
    try:
        content = read_regular(file, MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from None
    return hashlib.sha256(content).hexdigest()[:16]


def is_folder(out: Path) -> bool:
    """Whether `--out` names a folder instead of a PNG file. Raises UserError if neither."""
    if out.suffix.lower() == ".png":
        require_file("--out", out)
        return False
    require_folder("--out", out)
    if out.suffix and not out.is_dir():
        raise UserError(f"--out {out}: must end in .png, or be a folder")
    return True


def grid_folder(out: Path) -> Path:
    """The folder of a grid's images."""
    return out.with_suffix("")


def earlier_images(out: Path, files: Collection[Path]) -> list[Path]:
    """Images of an earlier grid of the same name.

    Args:
        out: the grid, or a single image.
        files: of the images.

    Raises:
        UserError: the grid's folder has other files, which are not to be mixed with images.
    """
    folder = grid_folder(out)
    is_grid = out not in files
    if is_grid:
        require_folder("--out", folder)
    earlier = []
    for file in sorted(folder.iterdir()) if folder.is_dir() else ():
        if file.name.startswith("."):
            continue
        if _is_of_a_grid(file):
            earlier.append(file)
        elif is_grid:
            raise UserError(
                f"--out {out}: its images go to the folder {folder}, which has other files "
                f"({file.name}): give another --out"
            )
    return earlier


def _is_of_a_grid(file: Path) -> bool:
    if not re.fullmatch(r"\d{4,}\.png", file.name) or not file.is_file():
        return False
    with contextlib.suppress(UserError):
        found = read_metadata(file)
        return found is None or "first_seed" in found
    return False


def stage_folder(folder: Path) -> Path:
    """The hidden folder in which base images wait to be upsampled, in the folder of the images."""
    return folder / ".base-images"


def remove_stage(folder: Path) -> None:
    """Removes the `stage_folder` of a folder, if there is one. Raises UserError."""
    stage = stage_folder(folder)
    if stage.exists():
        with storage_errors("remove", stage):
            shutil.rmtree(stage)


def remove_images(files: Sequence[Path]) -> None:
    """Removes images, and their folder once it is empty. Raises UserError."""
    try:
        for file in files:
            file.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot remove {error.filename}: {error.strerror}") from None
    for folder in {file.parent for file in files}:
        with contextlib.suppress(OSError):  # it has files
            folder.rmdir()


def make_jobs(
    prompts: Sequence[str],
    low_res: Sequence[Path] | None,
    seeds: Sequence[int],
    keep: int,
    out: Path,
    n: int = 1,
) -> list[Job]:
    """Jobs for each prompt, one for each seed.

    Args:
        prompts: captions.
        low_res: the image to upsample for each prompt, if any.
        seeds: of each prompt's jobs.
        keep: images of each job.
        out: a PNG file: the image if there is only one, else a grid, with a folder of the same name
            for the images. Or a folder, whose files are named after the prompt's row and the image.
        n: images that are sampled for each job.

    Raises:
        UserError: `out` is neither.
    """
    into_folder = is_folder(out)
    per_prompt = len(seeds) * keep
    one = not into_folder and len(prompts) * per_prompt == 1
    jobs = []
    for row, prompt in enumerate(prompts):
        for place, seed in enumerate(seeds):
            first = place * keep
            if into_folder:
                files = [out / f"{row:05d}-{i}.png" for i in range(first, first + keep)]
            else:
                first += row * per_prompt
                files = [grid_folder(out) / f"{i:04d}.png" for i in range(first, first + keep)]
            jobs.append(
                Job(
                    prompt,
                    seed,
                    (out,) if one else tuple(files),
                    None if low_res is None else low_res[row],
                    n,
                )
            )
    return jobs
