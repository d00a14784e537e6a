"""Output files of sampling, and which of them already exist, so that a command can resume."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import PngImagePlugin

from glide_jax.errors import UserError
from glide_jax.storage import require_file, require_folder


@dataclass(frozen=True)
class Job:
    """One prompt and the files of its images."""

    prompt: str
    files: tuple[Path, ...]
    low_res: Path | None = None
    """The image to upsample."""

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of this prompt's images only."""
        low_res = {} if self.low_res is None else {"low_res": str(self.low_res)}
        return {"prompt": self.prompt} | low_res

    def is_done(self, common: Mapping[str, str | None]) -> bool:
        """Whether all images of this job exist.

        Other metadata of a file, as image editors add it, is ignored.

        Args:
            common: the metadata that the images of all jobs share, None where unset.

        Raises:
            UserError: a file cannot be read, or was sampled with other flags or settings, or by an
                earlier version.
        """
        expected = {**common, **self.metadata}
        for file in self.files:
            if not file.exists():
                return False
            found = read_metadata(file)
            if "first_seed" not in found:
                raise UserError(
                    f"{file} was sampled by an earlier version, or written by another program: "
                    "give another --out, or remove it"
                )
            for name, value in expected.items():
                if found.get(name) != value:
                    raise UserError(
                        f"{file} was sampled with {name} {found.get(name)!r}, not {value!r}: "
                        "give another --out, or remove it"
                    )
        return True


def read_metadata(file: Path) -> dict[str, str]:
    """The text chunks of a PNG file. Raises UserError if it cannot be read."""
    try:
        with PngImagePlugin.PngImageFile(file) as image:
            image.load()  # chunks may follow the pixels
            return {name: str(value) for name, value in image.text.items()}
    except (OSError, SyntaxError, ValueError) as error:  # Pillow's, of a damaged file
        raise UserError(f"cannot read {file}: {error}; remove it, or give another --out") from None


def is_folder(out: Path) -> bool:
    """Whether `--out` names a folder instead of a PNG file. Raises UserError if neither."""
    if out.suffix.lower() == ".png":
        require_file("--out", out)
        return False
    require_folder("--out", out)
    if out.suffix and not out.is_dir():
        raise UserError(f"--out {out}: must end in .png, or be a folder")
    return True


def make_jobs(
    prompts: Sequence[str], low_res: Sequence[Path] | None, images_per_prompt: int, out: Path
) -> list[Job]:
    """A job for each prompt.

    Args:
        prompts: captions.
        low_res: the image to upsample for each prompt, if any.
        images_per_prompt: files of each job.
        out: a PNG file: the image if there is only one, else a grid, with a folder of the same name
            for the images. Or a folder, whose files are named after the prompt's row and the image.

    Raises:
        UserError: `out` is neither.
    """
    into_folder = is_folder(out)
    folder = out if into_folder else out.with_suffix("")
    jobs = []
    for row, prompt in enumerate(prompts):
        if into_folder:
            files = [folder / f"{row:05d}-{i}.png" for i in range(images_per_prompt)]
        elif len(prompts) * images_per_prompt == 1:
            files = [out]
        else:
            numbers = range(row * images_per_prompt, (row + 1) * images_per_prompt)
            files = [folder / f"{number:04d}.png" for number in numbers]
        jobs.append(Job(prompt, tuple(files), None if low_res is None else low_res[row]))
    return jobs
