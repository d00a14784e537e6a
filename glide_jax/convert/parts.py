"""Parts of published models: files, and folders of diffusers' pipelines."""

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from glide_jax.errors import UserError
from glide_jax.hub import local_file
from glide_jax.pretrained.diffusers_folder import (
    MODEL_INDEX,
    is_component,
    read_component,
    read_config,
)
from glide_jax.pretrained.sizes import Shapes, UnstoredSettings, kind_of
from glide_jax.pretrained.weight_files import Tensors, read_tensors

COMPONENTS = (
    "prior",
    "decoder",
    "text_proj",
    "super_res_first",
    "super_res_last",
    "text_encoder",
    "image_encoder",
)
"""Folders of a pipeline with weights. Their kind is their name with a slash."""
TOKENIZER = "tokenizer"
"""Folder of a pipeline's tokenizer."""


@dataclass
class Part:
    """A file or a component."""

    kind: str
    """As of `sizes.kind_of`, or a component's name with a slash."""
    place: str
    """Its path."""
    tensors: Tensors
    config: dict[str, Any] = field(default_factory=dict)
    """config.json of a component."""

    @property
    def shapes(self) -> Shapes:
        """Of its tensors."""
        return {name: tensor.shape for name, tensor in self.tensors.items()}

    @property
    def prefixed(self) -> Tensors:
        """The tensors of a component as the tables name them: FOLDER.NAME."""
        return {f"{self.kind.rstrip('/')}.{name}": x for name, x in self.tensors.items()}


def is_published_folder(place: Path) -> bool:
    """Whether a folder is a pipeline of diffusers or one of its components, not a run folder."""
    return (place / MODEL_INDEX).is_file() or is_component(place)


def parts_of(place: Path) -> Iterator[Part]:
    """The parts of a model or a pipeline, read one at a time.

    Args:
        place: a file of weights, local or hf://ORG/REPO/FILE; a pipeline's folder; or the folder of
            one component, named as in a pipeline.

    Raises:
        UserError: it is none of them, or cannot be read.
    """
    if not place.is_dir():
        file = local_file(place)
        part = Part("", str(file), read_tensors(file))
        try:
            part.kind = kind_of(part.shapes)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        yield part
        return
    folders = [place]
    if (place / MODEL_INDEX).is_file():
        folders = [place / name for name in COMPONENTS if (place / name).is_dir()]
    elif place.absolute().name not in COMPONENTS:
        raise UserError(
            f"{place} is a component of an unknown kind: name it as in a pipeline of diffusers, "
            f"one of {', '.join(COMPONENTS)}"
        )
    if not folders:
        raise UserError(f"{place} has no components of unCLIP: none of {', '.join(COMPONENTS)}")
    for folder in folders:
        config = read_config(folder)
        yield Part(f"{folder.absolute().name}/", str(folder), read_component(folder), config)


def tokenizer_of(places: Sequence[Path]) -> str:
    """The folder of the tokenizer in one of the pipelines, or an empty name."""
    found = [place / TOKENIZER for place in places if (place / TOKENIZER).is_dir()]
    return str(found[0]) if found else ""


def with_text_length(places: Sequence[Path], unstored: UnstoredSettings) -> UnstoredSettings:
    """Unstored settings, with the context length of the text encoder in one of the pipelines."""
    for place in places:
        if is_component(place / "text_encoder"):
            length = read_config(place / "text_encoder").get("max_position_embeddings")
            if type(length) is int and length > 0:
                return dataclasses.replace(unstored, text_length=length)
    return unstored
