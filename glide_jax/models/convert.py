"""The released checkpoints' names and layouts, and ours.

One table maps every parameter's name to the original's. Layouts follow from the shapes: PyTorch
keeps a linear layer as (out, in) and a convolution as (out, in, height, width); here they are
(in, out) and (height, width, in, out).
"""

import re
from collections.abc import Mapping

import numpy as np

from glide_jax.errors import UserError

_RES = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "emb": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
}
_ATTENTION = {"norm": "norm", "qkv": "qkv", "text_kv": "encoder_kv", "out": "proj_out"}
_TEXT = {
    "norm1": "ln_1",
    "attention.qkv": "attn.c_qkv",
    "attention.out": "attn.c_proj",
    "norm2": "ln_2",
    "mlp_in": "mlp.c_fc",
    "mlp_out": "mlp.c_proj",
}
_LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_TABLES = {"res": _RES, "attention": _ATTENTION, "text": _TEXT, "leaf": _LEAF}
_ATTENDED_ON_THE_WAY_UP = r"unet\.up\.(?P<n>\d+)\.attention\."

_RULES: tuple[tuple[str, str], ...] = (
    (r"text\.token_embedding", "token_embedding.weight"),
    (r"text\.position_embedding", "positional_embedding"),
    (r"text\.padding_embedding", "padding_embedding"),
    (r"text\.blocks\.(?P<n>\d+)\.(?P<text>.+)\.(?P<leaf>\w+)",
     "transformer.resblocks.{n}.{text}.{leaf}"),
    (r"text\.final_norm\.(?P<leaf>\w+)", "final_ln.{leaf}"),
    (r"text_emb\.(?P<leaf>\w+)", "transformer_proj.{leaf}"),
    (r"time_emb1\.(?P<leaf>\w+)", "time_embed.0.{leaf}"),
    (r"time_emb2\.(?P<leaf>\w+)", "time_embed.2.{leaf}"),
    (r"unet\.conv_in\.(?P<leaf>\w+)", "input_blocks.0.0.{leaf}"),
    (r"unet\.norm_out\.(?P<leaf>\w+)", "out.0.{leaf}"),
    (r"unet\.conv_out\.(?P<leaf>\w+)", "out.2.{leaf}"),
    (r"unet\.middle\.0\.res\.(?P<res>\w+)\.(?P<leaf>\w+)", "middle_block.0.{res}.{leaf}"),
    (r"unet\.middle\.0\.attention\.(?P<attention>\w+)\.(?P<leaf>\w+)",
     "middle_block.1.{attention}.{leaf}"),
    (r"unet\.middle\.1\.res\.(?P<res>\w+)\.(?P<leaf>\w+)", "middle_block.2.{res}.{leaf}"),
    (r"unet\.down\.(?P<n>\d+)\.res\.(?P<res>\w+)\.(?P<leaf>\w+)",
     "input_blocks.{next}.0.{res}.{leaf}"),
    (r"unet\.down\.(?P<n>\d+)\.attention\.(?P<attention>\w+)\.(?P<leaf>\w+)",
     "input_blocks.{next}.1.{attention}.{leaf}"),
    (r"unet\.up\.(?P<n>\d+)\.res\.(?P<res>\w+)\.(?P<leaf>\w+)", "output_blocks.{n}.0.{res}.{leaf}"),
    (r"unet\.up\.(?P<n>\d+)\.attention\.(?P<attention>\w+)\.(?P<leaf>\w+)",
     "output_blocks.{n}.1.{attention}.{leaf}"),
    (r"unet\.up\.(?P<n>\d+)\.up\.(?P<res>\w+)\.(?P<leaf>\w+)",
     "output_blocks.{n}.{last}.{res}.{leaf}"),
)  # fmt: skip


def original_names(names: list[str]) -> dict[str, str]:
    """Our parameter names to the released checkpoints' names.

    Args:
        names: all parameter names of one `GlideModel`.

    Raises:
        KeyError: a name that no rule knows.
    """
    attended = {match["n"] for name in names if (match := re.match(_ATTENDED_ON_THE_WAY_UP, name))}
    return {name: _original_name(name, attended) for name in names}


def _original_name(name: str, attended: set[str]) -> str:
    for pattern, template in _RULES:
        match = re.fullmatch(pattern, name)
        if match is not None:
            fields = {
                key: _TABLES[key][value] if key in _TABLES else value
                for key, value in match.groupdict().items()
            }
            if "n" in fields:
                fields["next"] = str(int(fields["n"]) + 1)  # their `down` starts with conv_in
                fields["last"] = "2" if fields["n"] in attended else "1"  # after any attention
            return template.format(**fields)
    raise KeyError(name)


def from_original(
    tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, np.ndarray]:
    """Converts a released checkpoint's tensors to our names and layouts, float32.

    Args:
        tensors: arrays by their original names.
        shapes: the shape of each of our parameters, by our names.

    Raises:
        UserError: a tensor is missing, left over, or of the wrong shape.
    """
    names = original_names(list(shapes))
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    if missing:
        raise UserError(f"the weights lack {missing[0]} ({len(missing)} tensors missing)")
    unused = sorted(set(tensors) - set(names.values()))
    if unused:
        raise UserError(f"no place for the weights' {unused[0]} ({len(unused)} tensors left over)")
    params = {}
    for ours, theirs in names.items():
        value = _to_our_layout(ours, np.asarray(tensors[theirs], np.float32))
        if value.shape != shapes[ours]:
            raise UserError(
                f"{theirs} has shape {tensors[theirs].shape}, which does not fit {ours} of shape "
                f"{shapes[ours]}"
            )
        params[ours] = value
    return params


def _to_our_layout(name: str, value: np.ndarray) -> np.ndarray:
    if not name.endswith(".kernel"):
        return value
    if value.ndim == 3:  # the original's attention projections are convolutions of width 1
        value = value[:, :, 0]
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
