"""Parameter names and layouts of the released checkpoints, to and from this project's.

`Rules` for each kind of file map every parameter name to the original's. Layouts follow from the
shapes: PyTorch stores a linear layer as (out, in) and a convolution as (out, in, height, width);
here, as in TensorFlow, they are (in, out) and (height, width, in, out).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from glide_jax.errors import UserError

Patterns = tuple[tuple[str, str], ...]
"""(pattern of our names, template of the original's)."""
Tables = Mapping[str, Mapping[str, str]]
"""The original's word for each of ours, by named group of the patterns."""


KERNELS = r".*\.kernel"
"""Our names of parameters that PyTorch stores in another layout."""
CONV_1D = r"unet\..*\.attention\.\w+\.kernel"
"""Linear layers that OpenAI's U-Nets store as 1D convolutions with kernels of size 1."""
NONE = "(?!)"
"""A pattern that matches no name."""


@dataclass(frozen=True)
class Rules:
    """Names and layouts of one kind of file.

    Args:
        patterns: the first that matches a name applies.
        tables: translations of named groups.
        transposed: pattern of our names whose arrays have PyTorch's layout, not ours.
        conv_1d: pattern of our names of linear layers stored as 1D convolutions.
    """

    patterns: Patterns
    tables: Tables
    transposed: str = KERNELS
    conv_1d: str = CONV_1D


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
_CLIP = {
    "norm1": "f_attn.ln",
    "q": "f_attn.f_q",
    "k": "f_attn.f_k",
    "v": "f_attn.f_v",
    "out": "f_attn.f_c",
    "norm2": "f_mlp.ln",
    "mlp_in": "f_mlp.f_1",
    "mlp_out": "f_mlp.f_2",
}
LEAF = {"kernel": "weight", "scale": "weight", "bias": "bias"}
_CLIP_LEAF = {"kernel": "w", "scale": "g", "bias": "b"}
TABLES = {
    "res": _RES,
    "attention": _ATTENTION,
    "text": _TEXT,
    "clip": _CLIP,
    "leaf": LEAF,
    "clip_leaf": _CLIP_LEAF,
}

DENOISER = Rules((
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
    (r"unet\.middle\.1\.res\.(?P<res>\w+)\.(?P<leaf>\w+)", "middle_block.{middle}.{res}.{leaf}"),
    (r"unet\.down\.(?P<n>\d+)\.res\.(?P<res>\w+)\.(?P<leaf>\w+)",
     "input_blocks.{next}.0.{res}.{leaf}"),
    (r"unet\.down\.(?P<n>\d+)\.attention\.(?P<attention>\w+)\.(?P<leaf>\w+)",
     "input_blocks.{next}.1.{attention}.{leaf}"),
    (r"unet\.up\.(?P<n>\d+)\.res\.(?P<res>\w+)\.(?P<leaf>\w+)", "output_blocks.{n}.0.{res}.{leaf}"),
    (r"unet\.up\.(?P<n>\d+)\.attention\.(?P<attention>\w+)\.(?P<leaf>\w+)",
     "output_blocks.{n}.1.{attention}.{leaf}"),
    (r"unet\.up\.(?P<n>\d+)\.up\.(?P<res>\w+)\.(?P<leaf>\w+)",
     "output_blocks.{n}.{last}.{res}.{leaf}"),
), TABLES)  # fmt: skip
"""Names in base.pt, upsample.pt, base_inpaint.pt and upsample_inpaint.pt."""

_TOWER: Patterns = (
    (r"position_embedding", "blocks.input.w_pos"),
    (r"blocks\.(?P<n>\d+)\.(?P<clip>\w+)\.(?P<clip_leaf>\w+)",
     "blocks.block_{n}.{clip}.{clip_leaf}"),
    (r"final_norm\.(?P<clip_leaf>\w+)", "blocks.output.ln.{clip_leaf}"),
    (r"projection\.kernel", "blocks.output.f.w"),
)  # fmt: skip
CLIP_TEXT = Rules(((r"token_embedding", "blocks.input.w_voc"), *_TOWER), TABLES)
"""Names in clip_text_enc.pt; ours without the leading `text.`."""
CLIP_IMAGE = Rules((
    (r"time_embedding", "blocks.input.w_t"),
    (r"patches\.kernel", "blocks.input.patch_proj"),
    (r"input_norm\.(?P<clip_leaf>\w+)", "blocks.input.ln.{clip_leaf}"),
    *_TOWER,
), TABLES)  # fmt: skip
"""Names in clip_image_enc.pt; ours without the leading `image.`."""


class _UNet(NamedTuple):
    """What a block's original name depends on besides our own."""

    attended: set[str]
    """Blocks of the decoder with attention."""
    blocks: int
    """Blocks of the decoder per level."""
    middle: str
    """Their index of our second middle block, before which attention may count as one."""

    @classmethod
    def of(cls, names: Iterable[str]) -> "_UNet":
        """The U-Net, or those of one shape, that parameters are of."""
        joined = "\n".join(names)
        up = {int(n) for n in re.findall(r"unet\.up\.(\d+)\.res\.", joined)}
        resampling = {int(n) for n in re.findall(r"unet\.up\.(\d+)\.up\.", joined)}
        return cls(
            attended=set(re.findall(r"unet\.up\.(\d+)\.attention\.", joined)),
            blocks=min(resampling, default=len(up) - 1) + 1,
            middle="2" if "unet.middle.0.attention." in joined else "1",
        )

    def fields(self, n: str) -> dict[str, str]:
        """Words for a template, given a block's number in our encoder or decoder."""
        level, index = divmod(int(n), max(self.blocks, 1))
        resamples = index == self.blocks - 1  # in the encoder, which has one block less per level
        return {
            "next": str(int(n) + 1),  # their encoder starts with conv_in
            "last": "2" if n in self.attended else "1",  # after attention
            "level": str(level),
            "index": str(index),
            "down": "downsamplers.0" if resamples else f"resnets.{index}",
        }


def prefixed(patterns: Patterns, ours: str, theirs: str) -> Patterns:
    """Patterns of a part of a model: both names after a prefix with a dot, unless it is empty."""
    before = (re.escape(f"{ours}.") if ours else "", f"{theirs}." if theirs else "")
    return tuple((before[0] + pattern, before[1] + template) for pattern, template in patterns)


def original_names(names: Iterable[str], rules: Rules) -> dict[str, str]:
    """The original's name of each of our parameters.

    Args:
        names: all parameter names of one model, or of one of CLIP's towers.
        rules: of the kind of file.

    Raises:
        KeyError: no rule matches a name.
    """
    names = list(names)
    unet = _UNet.of(names)
    return {name: _original_name(name, rules, unet) for name in names}


def _original_name(name: str, rules: Rules, unet: _UNet) -> str:
    for pattern, template in rules.patterns:
        match = re.fullmatch(pattern, name)
        if match is not None:
            fields = {
                key: rules.tables[key][value] if key in rules.tables else value
                for key, value in match.groupdict().items()
            }
            if "n" in fields:
                fields |= unet.fields(fields["n"])
            return template.format(**fields, middle=unet.middle)
    raise KeyError(name)


def from_original(
    tensors: Mapping[str, Any], shapes: Mapping[str, Any], rules: Rules = DENOISER
) -> dict[str, Any]:
    """Convert the tensors of a released checkpoint to our names and layouts.

    Args:
        tensors: arrays by their original names.
        shapes: arrays or ShapeDtypeStructs by our names, as `Network.shapes`.
        rules: of the kind of file.

    Raises:
        UserError: a tensor is missing, unexpected or of the wrong shape.
    """
    names = original_names(shapes, rules)
    missing = [theirs for theirs in names.values() if theirs not in tensors]
    if missing:
        raise UserError(f"the weights lack {missing[0]} ({len(missing)} tensors missing)")
    unused = sorted(set(tensors) - set(names.values()))
    if unused:
        raise UserError(f"unexpected tensor {unused[0]} ({len(unused)} tensors are not used)")
    for ours, theirs in names.items():
        found = tuple(tensors[theirs].shape)
        expected = original_shape(ours, shapes[ours].shape, rules)
        if found != expected:
            raise UserError(f"{theirs} has shape {found}, but {expected} is needed")
    return {ours: _to_our_layout(ours, tensors[theirs], rules) for ours, theirs in names.items()}


def to_original(params: Mapping[str, Any], rules: Rules = DENOISER) -> dict[str, Any]:
    """The inverse of `from_original`."""
    names = original_names(params, rules)
    return {names[name]: _to_their_layout(name, value, rules) for name, value in params.items()}


def original_shape(name: str, shape: tuple[int, ...], rules: Rules = DENOISER) -> tuple[int, ...]:
    """Shape of a parameter in the original's layout."""
    if not re.fullmatch(rules.transposed, name):
        return shape
    *size, c_in, c_out = shape
    return (c_out, c_in, 1) if re.fullmatch(rules.conv_1d, name) else (c_out, c_in, *size)


def tower(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The values of one of CLIP's towers, with names relative to it."""
    prefix = f"{name}."
    return {key.removeprefix(prefix): x for key, x in values.items() if key.startswith(prefix)}


def _to_our_layout(name: str, value: Any, rules: Rules) -> Any:
    if not re.fullmatch(rules.transposed, name):
        return value
    if value.ndim == 3:
        value = value[:, :, 0]
    return value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T


def _to_their_layout(name: str, value: Any, rules: Rules) -> Any:
    if not re.fullmatch(rules.transposed, name):
        return value
    value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
    return value[:, :, None] if re.fullmatch(rules.conv_1d, name) else value
