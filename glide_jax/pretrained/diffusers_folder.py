"""Folders of diffusers' and transformers' models: config.json and weights, whole or in shards."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from glide_jax.errors import UserError, first_line
from glide_jax.pretrained.weight_files import Tensors, read_tensors, write_tensors
from glide_jax.storage import read_regular, write_atomically

MODEL_INDEX = "model_index.json"
"""File of a pipeline, whose components have a folder each."""
CONFIG = "config.json"
MAX_JSON_BYTES = 2**24

PLAIN = re.compile(r"\w[\w.-]{0,250}")
"""Name of a file in the same folder."""

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")
_SUFFIXES = (".safetensors", ".bin")


def is_component(folder: Path) -> bool:
    """Whether a folder is one model, with weights under diffusers' or transformers' file names."""
    return (folder / CONFIG).is_file() and bool(_weights(folder))


def read_config(folder: Path) -> dict[str, Any]:
    """The settings of a component. Raises UserError if they cannot be read."""
    return _read_json(folder / CONFIG)


def read_component(folder: Path) -> Tensors:
    """All tensors of a component by name, float32; safetensors before .bin, shards joined.

    Raises:
        UserError: there are none, or a file is missing or cannot be read.
    """
    files = _weights(folder)
    if not files:
        raise UserError(
            f"{folder} has no weights: it needs {_STEMS[0]} or model.safetensors, or .bin"
        )
    tensors: Tensors = {}
    for file in files:
        for name, tensor in read_tensors(file).items():
            if name in tensors:
                raise UserError(f"{folder}: two of its files have {name}")
            tensors[name] = tensor
    return tensors


def write_component(
    folder: Path, config: Mapping[str, Any], tensors: Mapping[str, np.ndarray]
) -> None:
    """Write a component; the weights' file name says whose it is. Raises UserError."""
    stem = _STEMS[0] if "_class_name" in config else _STEMS[1]
    write_tensors(folder / f"{stem}.safetensors", tensors)
    write_json(folder / CONFIG, config)


def write_json(file: Path, values: Mapping[str, Any]) -> None:
    """Write a JSON object, complete or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(file, (json.dumps(values, indent=2) + "\n").encode())


def _weights(folder: Path) -> list[Path]:
    """The files of a component's weights, one or shards; of a variant such as fp16 if no other."""
    for suffix in _SUFFIXES:
        for stem in _STEMS:
            index = folder / f"{stem}{suffix}.index.json"
            if index.is_file():
                return _shards(index)
            if (folder / f"{stem}{suffix}").is_file():
                return [folder / f"{stem}{suffix}"]
    for suffix in _SUFFIXES:
        for stem in _STEMS:
            variants = sorted(folder.glob(f"{stem}.*{suffix}"))
            if variants:
                return variants[:1]
    return []


def _shards(index: Path) -> list[Path]:
    listed = _read_json(index).get("weight_map")
    names = set(listed.values()) if isinstance(listed, dict) else set()
    if not names or not all(isinstance(name, str) and PLAIN.fullmatch(name) for name in names):
        raise UserError(f"{index} does not list the files of tensors: download it again")
    for name in sorted(names):
        if not (index.parent / name).is_file():
            raise UserError(f"{index} lists {name}, which is missing: download it too")
    return [index.parent / name for name in sorted(names)]


def _read_json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(read_regular(file, MAX_JSON_BYTES))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {file}: {first_line(error)}") from error
    if not isinstance(values, dict):
        raise UserError(f"{file} is not a JSON object")
    return values
