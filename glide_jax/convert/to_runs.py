"""Published checkpoint files to run folders."""

import dataclasses
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from glide_jax.config import Config, DataConfig, ModelConfig, Unknown
from glide_jax.convert.models import CLIP, recipe_of
from glide_jax.convert.parts import Part, parts_of, tokenizer_of, with_text_length
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.build import load_tokenizer, tokenizer_class
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.errors import UserError
from glide_jax.pretrained.sizes import UnstoredSettings
from glide_jax.pretrained.weight_files import FORMATS, Tensors
from glide_jax.runs.checkpoint import Checkpoints
from glide_jax.runs.folder import Run

CLIP_TOKENIZER = "openai/clip-vit-base-patch32"
"""Tokenizer of all released CLIPs, on the hub."""


def files_to_runs(
    places: Sequence[Path],
    to: Path,
    tokenizer: str,
    clip_tokenizer: str,
    unstored: UnstoredSettings,
) -> None:
    """Convert published models to run folders, each when its last part is read.

    Args:
        places: files and folders as of `parts_of`, of one set of models: at most one of each kind.
        to: folder for the run folders.
        tokenizer: of GLIDE's denoisers; a local folder or a name on the Hugging Face hub.
        clip_tokenizer: of CLIP and of models that read its text states; the same, or empty: that
            of a pipeline, or else CLIP_TOKENIZER.
        unstored: settings that the tensors do not determine.

    Raises:
        UserError: a part cannot be converted or is missing, or a folder cannot be written. Run
            folders that are already complete remain.
    """
    if to.suffix in FORMATS:
        raise UserError(f"--to {to}: files are converted to a folder, so give a folder's name")
    clip_tokenizer = clip_tokenizer or tokenizer_of(places) or CLIP_TOKENIZER
    unstored = with_text_length(places, unstored)
    waiting: dict[tuple[str, ...], dict[str, Part]] = {}
    seen: dict[str, str] = {}
    made: dict[str, str] = {}
    for part in (part for place in places for part in parts_of(place)):
        recipe = recipe_of(part.kind)
        _require_first(seen, part.kind, part.place)
        parts = waiting.setdefault(recipe.kinds, {})
        parts[part.kind] = part
        if len(parts) < len(recipe.kinds):
            continue
        del waiting[recipe.kinds]
        _require_first(made, recipe.run, part.place)
        with _naming(" and ".join(part.place for part in parts.values())):
            config, params = recipe.build(parts, unstored)
        for done in parts.values():
            done.tensors = {}  # the parameters may be views of them, which are freed one by one
        uses_clip = tokenizer_class(config.model) is ClipTokenizer
        write_run(to / recipe.run, config, params, clip_tokenizer if uses_clip else tokenizer)
    for kinds, parts in waiting.items():
        recipe = recipe_of(kinds[0])
        if recipe.run not in made:  # else the run is made of other parts
            given = " and ".join(part.place for part in parts.values())
            missing = " and ".join(kind for kind in kinds if kind not in parts)
            hint = f" ({recipe.hint})" if recipe.hint else ""
            raise UserError(f"{given} is a part of a {recipe.run}: {missing} is missing{hint}")
    if CLIP in made:
        clip = Run.open(to / CLIP)
        for model in (Run.open(to / run) for run in ("prior", "decoder") if run in made):
            if model.config.embedding_width == clip.config.embedding_width:
                model.record_clip(clip.clip_fingerprint)


def _require_first(places: dict[str, str], kind: str, place: str) -> None:
    """Notes where a kind is from. Raises UserError if there was one before."""
    if kind in places:
        raise UserError(f"{places[kind]} and {place} are both {kind} models: give one of them")
    places[kind] = place


def write_run(folder: Path, config: Config, params: Tensors, tokenizer_name: str) -> None:
    """Write a complete run folder or none. Empties `params`, to save memory.

    Raises:
        UserError: the folder already exists or cannot be written, or there is no such tokenizer.
    """
    folder = folder.absolute()
    if folder.exists():
        raise UserError(f"{folder} already exists: remove it, or give another --to")
    tokenizer = None
    if not (isinstance(config.model, ModelConfig) and config.model.text.encoder == "none"):
        tokenizer = _load_tokenizer(config, tokenizer_name)
    config = dataclasses.replace(config, data=DataConfig(Unknown(), tokenizer=tokenizer_name))
    # Beside the set's folder, which then never contains an incomplete run.
    unfinished = folder.parent.with_name(f"{folder.parent.name}.{folder.name}.{os.getpid()}")
    shutil.rmtree(unfinished, ignore_errors=True)
    Run.create(unfinished, config, tokenizer)
    checkpoints = Checkpoints(unfinished, max_checkpoints=1)
    count = sum(value.size for value in params.values())
    checkpoints.save_ema({name: np.asarray(params.pop(name), order="C") for name in list(params)})
    checkpoints.close()
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished.rename(folder)
    print(f"{folder}: {count:,} parameters")


def _load_tokenizer(config: Config, name: str) -> Tokenizer:
    kind = tokenizer_class(config.model)
    try:
        return load_tokenizer(name, config.model.text.vocab_size, kind)
    except UserError as error:
        flag = "--clip-tokenizer" if kind is ClipTokenizer else "--tokenizer"
        raise UserError(f"{error}; name another folder or hub name with {flag}") from None


@contextmanager
def _naming(file: str) -> Iterator[None]:
    """Put the file's name before the message of a UserError."""
    try:
        yield
    except UserError as error:
        # Sizes that the config refuses together: a wrong one must be an unstored setting.
        hint = " (--help lists the settings that files do not store)"
        message = f"{error}{hint}" if "config:" in str(error) else str(error)
        raise UserError(f"{file}: {message}") from None
