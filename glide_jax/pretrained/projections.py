"""Joined and split projections to queries, keys and values.

diffusers and transformers have a linear layer for each. Here, as in OpenAI's and Karlo's code, one
linear layer has the rows of all of them: for each attention head its queries', keys' and values'
(CLIP: all queries', all keys', all values').
"""

from collections.abc import Mapping
from typing import Any

from glide_jax.errors import UserError

PARTS = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "add_kv_proj": ("add_k_proj", "add_v_proj"),
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
}
"""diffusers' layers, then transformers', by the name of the joined layer in the tables."""


def fused(tensors: Mapping[str, Any], head_width: int | None) -> dict[str, Any]:
    """Tensors with projections joined.

    Args:
        tensors: by diffusers' or transformers' name.
        head_width: rows of a head; None: all rows of a part are together.

    Raises:
        UserError: the parts of a layer are incomplete, or do not fit each other or head_width.
    """
    joined = {part: name for name, parts in PARTS.items() for part in parts}
    found: dict[str, Any] = {}
    for name, tensor in tensors.items():
        before, layer, leaf = _split(name)
        if layer not in joined:
            found[name] = tensor
            continue
        whole = f"{before}{joined[layer]}.{leaf}"
        if whole not in found:
            names = [f"{before}{part}.{leaf}" for part in PARTS[joined[layer]]]
            found[whole] = _interleaved(tensors, names, head_width)
    return found


def split(tensors: Mapping[str, Any], head_width: int | None) -> dict[str, Any]:
    """The inverse of `fused`."""
    found = {}
    for name, tensor in tensors.items():
        before, layer, leaf = _split(name)
        if layer not in PARTS:
            found[name] = tensor
            continue
        parts = PARTS[layer]
        rows, *rest = tensor.shape
        width = head_width or rows // len(parts)
        heads = tensor.reshape(-1, len(parts), width, *rest)
        for i, part in enumerate(parts):
            found[f"{before}{part}.{leaf}"] = heads[:, i].reshape(-1, *rest)
    return found


def _split(name: str) -> tuple[str, str, str]:
    """What is before a layer's name, the layer, and the leaf."""
    path, _, leaf = name.rpartition(".")
    before, dot, layer = path.rpartition(".")
    return before + dot, layer, leaf


def _interleaved(tensors: Mapping[str, Any], names: list[str], head_width: int | None) -> Any:
    for name in names:
        if name not in tensors:
            raise UserError(f"the weights lack {name}")
    parts = [tensors[name] for name in names]
    rows, *rest = parts[0].shape or (0,)
    for name, part in zip(names, parts, strict=True):
        if part.shape != parts[0].shape:
            raise UserError(f"{name} has shape {part.shape}, but {names[0]} has {parts[0].shape}")
    width = head_width or rows
    if not rows or rows % width:
        raise UserError(
            f"{names[0]} has shape {parts[0].shape}, which heads of {width} do not divide"
        )
    library = parts[0].__array_namespace__()  # NumPy's, or JAX's for abstract arrays
    heads = library.stack([part.reshape(-1, width, *rest) for part in parts], axis=1)
    return heads.reshape(-1, *rest)
