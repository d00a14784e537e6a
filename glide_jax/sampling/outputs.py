"""Where drawn images go, and which of them are there already, so that a long run can go on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from glide_jax.errors import UserError
from glide_jax.storage import require_local


@dataclass(frozen=True)
class Job:
    """One prompt, what it is drawn from, and where its images go."""

    prompt: str
    files: tuple[Path, ...]
    low_res: Path | None = None

    @property
    def metadata(self) -> dict[str, str]:
        """What is true of this prompt's images only."""
        low_res = {} if self.low_res is None else {"low_res": str(self.low_res)}
        return {"prompt": self.prompt} | low_res

    def is_done(self, common: Mapping[str, str]) -> bool:
        """Whether all of its images are there.

        Args:
            common: the metadata that all jobs' images have in common.

        Raises:
            UserError: a file is there, but was drawn with something else.
        """
        for file in self.files:
            if not file.exists():
                return False
            text = Image.open(file).info
            for name, value in {**common, **self.metadata}.items():
                if text.get(name) != value:
                    raise UserError(
                        f"{file} was drawn with {name} {text.get(name)!r}, not {value!r}: "
                        "give another --out, or remove it"
                    )
        return True


def is_folder(out: Path) -> bool:
    """Whether `--out` names a folder instead of a PNG file. Raises UserError if neither."""
    require_local(out)
    if out.suffix.lower() == ".png":
        return False
    if out.suffix and not out.is_dir():
        raise UserError(f"--out {out}: must end in .png, or be a folder")
    return True


def make_jobs(
    prompts: Sequence[str], low_res: Sequence[Path | None], each: int, out: Path
) -> list[Job]:
    """A job a prompt.

    Args:
        prompts: what to draw.
        low_res: the smaller image that each is drawn from, or None.
        each: images a prompt.
        out: a PNG file: the image if it is the only one, else a grid with a folder beside it; or
            a folder, whose files' names tell the prompt's row and the image.

    Raises:
        UserError: `out` is neither.
    """
    into_folder = is_folder(out)
    jobs = []
    for row, (prompt, small) in enumerate(zip(prompts, low_res, strict=True)):
        if into_folder:
            files = [out / f"{row:05d}-{i}.png" for i in range(each)]
        elif len(prompts) * each == 1:
            files = [out]
        else:
            folder = out.with_suffix("")
            files = [folder / f"{row * each + i:04d}.png" for i in range(each)]
        jobs.append(Job(prompt, tuple(files), small))
    return jobs
