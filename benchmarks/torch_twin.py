"""GLIDE's denoiser and its train step in PyTorch: the yardstick of this project's speed.

The modules have the released checkpoints' names, so `pretrained.names.to_original` converts our
parameters. `check` compares outputs, loss and gradient with ours; benchmarks call it before they
time anything. Written as PyTorch runs it fastest: channels_last, scaled_dot_product_attention,
fused AdamW, and matmuls, norms and activations in the compute dtype (with float32 sums inside
PyTorch's kernels). Images are (b, c, h, w) inside, (b, h, w, c) at the border.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from glide_jax.config import GROUPS, ModelConfig
from glide_jax.pretrained.names import to_original

TextKV = tuple[Tensor, Tensor]
"""Keys and values of the text for one attention layer, each (b, l, n, k)."""


class Text(NamedTuple):
    """Text conditioning, independent of x_t and t."""

    embedding: Tensor
    """(b, d)."""
    kv: list[TextKV]
    """For each attention layer, in order."""


# Layers, whose parameters are cast to the type of their input


class Linear(nn.Linear):
    """A dense layer."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) to (..., d2)."""
        return F.linear(x, self.weight.to(x.dtype), self.bias.to(x.dtype))


class PixelLinear(nn.Conv1d):
    """A dense layer whose weights are stored as a convolution of size 1."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, c) to (b, l, c2)."""
        assert self.bias is not None
        return F.linear(x, self.weight[..., 0].to(x.dtype), self.bias.to(x.dtype))


class Conv(nn.Conv2d):
    """A convolution that keeps the resolution."""

    def __init__(self, c_in: int, c_out: int, size: int) -> None:
        super().__init__(c_in, c_out, size, padding=size // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) to (b, c2, h, w)."""
        assert self.bias is not None
        return F.conv2d(x, self.weight.to(x.dtype), self.bias.to(x.dtype), padding=self.padding)


class GroupNorm(nn.GroupNorm):
    """Group normalization."""

    def __init__(self, channels: int) -> None:
        super().__init__(GROUPS, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w)."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.group_norm(x, self.num_groups, weight, bias, self.eps)


class LayerNorm(nn.LayerNorm):
    """Layer normalization."""

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, d)."""
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention (b, q, n, k), (b, l, n, k), (b, l, n, k) to (b, q, n*k)."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids [cos | sin] of t, (b, width) float32."""
    half = torch.arange(width // 2, dtype=torch.float32, device=t.device)
    angles = t.float()[:, None] * torch.exp(-math.log(10_000) * half / (width // 2))
    return torch.cat([angles.cos(), angles.sin()], 1)


# Text transformer


class SelfAttention(nn.Module):
    """Attention among all positions."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.c_qkv = Linear(width, 3 * width)
        self.c_proj = Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, d)."""
        q, k, v = self.c_qkv(x).unflatten(2, (self.heads, 3, -1)).unbind(3)
        return self.c_proj(attend(q, k, v))


class TransformerBlock(nn.Module):
    """Pre-norm residual attention and MLP."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.ln_1 = LayerNorm(width)
        self.attn = SelfAttention(width, heads)
        self.ln_2 = LayerNorm(width)
        self.mlp = nn.ModuleDict(
            {"c_fc": Linear(width, 4 * width), "c_proj": Linear(4 * width, width)}
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, l, d)."""
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x))))


# U-Net


class ResBlock(nn.Module):
    """Residual block with adaptive group normalization, resampling by 2 unless `scale` is 1."""

    def __init__(self, c_in: int, c_out: int, d_emb: int, dropout: float, scale: float = 1) -> None:
        super().__init__()
        self.scale = scale
        self.in_layers = nn.ModuleList([GroupNorm(c_in), nn.SiLU(), Conv(c_in, c_out, 3)])
        self.emb_layers = nn.Sequential(nn.SiLU(), Linear(d_emb, 2 * c_out))
        self.out_layers = nn.ModuleList(
            [GroupNorm(c_out), nn.SiLU(), nn.Dropout(dropout), Conv(c_out, c_out, 3)]
        )
        self.skip_connection = nn.Identity() if c_in == c_out else Conv(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """(b, c, h, w) and (b, d) to (b, c2, h2, w2)."""
        norm, silu, conv = self.in_layers
        h = conv(self.resample(silu(norm(x))))
        scale, shift = self.emb_layers(emb)[:, :, None, None].chunk(2, 1)
        norm, silu, dropout, conv = self.out_layers
        h = torch.addcmul(shift, norm(h), 1 + scale)
        return self.skip_connection(self.resample(x)) + conv(dropout(silu(h)))

    def resample(self, x: Tensor) -> Tensor:
        """Mean pooling or nearest-neighbor upsampling."""
        if self.scale == 1:
            return x
        return F.avg_pool2d(x, 2) if self.scale < 1 else F.interpolate(x, scale_factor=2)


class AttentionBlock(nn.Module):
    """Attention of the pixels to text and pixels."""

    def __init__(self, channels: int, head_width: int, d_text: int) -> None:
        super().__init__()
        self.heads = channels // head_width
        self.norm = GroupNorm(channels)
        self.qkv = PixelLinear(channels, 3 * channels)
        self.encoder_kv = PixelLinear(d_text, 2 * channels)
        self.proj_out = PixelLinear(channels, channels)

    def project_text(self, text: Tensor) -> TextKV:
        """(b, l, d) to keys and values."""
        k, v = self.encoder_kv(text).unflatten(2, (self.heads, 2, -1)).unbind(3)
        return k, v

    def forward(self, x: Tensor, text: TextKV) -> Tensor:
        """(b, c, h, w)."""
        pixels = self.norm(x).permute(0, 2, 3, 1).flatten(1, 2)  # a view, in channels_last
        q, k, v = self.qkv(pixels).unflatten(2, (self.heads, 3, -1)).unbind(3)
        out = attend(q, torch.cat([text[0], k], 1), torch.cat([text[1], v], 1))
        out = self.proj_out(out).unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return x + out


class Twin(nn.Module):
    """Text transformer and U-Net of a base model or upsampler.

    Args:
        config: sizes and compute dtype.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        if config.inpaint or config.low_res_noise:
            raise ValueError("the twin has base models and upsamplers only")
        self.config, self.dtype = config, getattr(torch, config.dtype)
        text, unet = config.text, config.unet
        c, d_emb, d_text = unet.channels, 4 * unet.channels, text.width
        self.token_embedding = nn.Embedding(text.vocab_size, d_text)
        self.positional_embedding = nn.Parameter(torch.empty(text.length, d_text))
        self.padding_embedding = nn.Parameter(torch.empty(text.length, d_text))
        blocks = [TransformerBlock(d_text, text.heads) for _ in range(text.layers)]
        self.transformer = nn.ModuleDict({"resblocks": nn.Sequential(*blocks)})
        self.final_ln = LayerNorm(d_text)
        self.transformer_proj = Linear(d_text, d_emb)
        self.time_embed = nn.Sequential(Linear(c, d_emb), nn.SiLU(), Linear(d_emb, d_emb))
        self._add_unet(c, d_emb, d_text)

    def _add_unet(self, c: int, d_emb: int, d_text: int) -> None:
        unet = self.config.unet

        def res(c_in: int, c_out: int, scale: float = 1) -> ResBlock:
            return ResBlock(c_in, c_out, d_emb, unet.dropout, scale)

        def block(c_in: int, c_out: int, attends: bool, up: bool = False) -> nn.ModuleList:
            attention = [AttentionBlock(c_out, unet.head_width, d_text)] if attends else []
            ups = [res(c_out, c_out, 2)] if up else []
            return nn.ModuleList([res(c_in, c_out), *attention, *ups])

        levels = [
            (unet.channels * mult, px in unet.attention_px)
            for mult, px in zip(unet.channel_mult, unet.levels_px, strict=True)
        ]
        c = levels[0][0]
        skips, down = [c], [nn.ModuleList([Conv(3 + self.config.condition_channels, c, 3)])]
        for level, (width, attends) in enumerate(levels):
            for _ in range(unet.res_blocks):
                down.append(block(c, width, attends))
                c = width
                skips.append(c)
            if level < len(levels) - 1:
                down.append(nn.ModuleList([res(c, c, 0.5)]))
                skips.append(c)
        self.input_blocks = nn.ModuleList(down)
        self.middle_block = nn.ModuleList([*block(c, c, True), res(c, c)])
        up = []
        for level, (width, attends) in reversed(list(enumerate(levels))):
            for i in range(unet.res_blocks + 1):
                last = level > 0 and i == unet.res_blocks
                up.append(block(c + skips.pop(), width, attends, last))
                c = width
        self.output_blocks = nn.ModuleList(up)
        self.out = nn.Sequential(GroupNorm(c), nn.SiLU(), Conv(c, 6, 3))

    @classmethod
    def of(cls, config: ModelConfig, params: Mapping[str, Any], device: str = "cpu") -> "Twin":
        """The twin with our parameters, float32, by our names."""
        with torch.device("meta"):  # allocates no initial values
            twin = cls(config)
        arrays = to_original({name: np.asarray(value) for name, value in params.items()})
        tensors = {name: torch.tensor(value, device=device) for name, value in arrays.items()}
        twin.load_state_dict(tensors, assign=True)
        return twin.to(memory_format=torch.channels_last)

    def store_in_compute_dtype(self) -> "Twin":
        """Itself, for sampling: all parameters but those of the output in the compute dtype."""
        self.to(self.dtype)
        self.out.float()
        return self.eval().requires_grad_(False)

    def _unet_blocks(self) -> Iterator[nn.ModuleList]:
        yield from self.input_blocks
        yield self.middle_block
        yield from self.output_blocks

    def encode_text(self, tokens: Tensor, mask: Tensor) -> Text:
        """(b, l) tokens and their mask, True where they hold caption."""
        embedded = self.token_embedding(tokens) + self.positional_embedding
        x = torch.where(mask[..., None], embedded, self.padding_embedding).to(self.dtype)
        x = self.final_ln(self.transformer["resblocks"](x).float()).to(self.dtype)
        attentions = (m for block in self._unet_blocks() for m in block)
        kv = [m.project_text(x) for m in attentions if isinstance(m, AttentionBlock)]
        return Text(self.transformer_proj(x[:, -1]), kv)

    def condition(self, low_res: Tensor) -> Tensor:
        """Low-resolution images (b, h2, w2, 3), resized to (b, h, w, 3)."""
        px = self.config.unet.resolution_px
        low_res = F.interpolate(low_res.permute(0, 3, 1, 2), (px, px), mode="bilinear")
        return low_res.permute(0, 2, 3, 1)

    def forward(
        self, x_t: Tensor, t: Tensor, text: Text, condition: Tensor | None = None
    ) -> Tensor:
        """(b, h, w, 3) float32 and (b,) steps to (b, h, w, 6) float32."""
        time = timestep_embedding(t, self.config.unet.channels).to(self.dtype)
        emb = self.time_embed(time) + text.embedding
        x = x_t if condition is None else torch.cat([x_t, condition], -1)
        h = x.permute(0, 3, 1, 2).to(self.dtype)  # channels_last
        kv = iter(text.kv)

        def run(block: nn.ModuleList, h: Tensor) -> Tensor:
            for module in block:
                if isinstance(module, ResBlock):
                    h = module(h, emb)
                else:
                    h = module(h, next(kv)) if isinstance(module, AttentionBlock) else module(h)
            return h

        skips = []
        for block in self.input_blocks:
            h = run(block, h)
            skips.append(h)
        h = run(self.middle_block, h)
        for block in self.output_blocks:
            h = run(block, torch.cat([h, skips.pop()], 1))
        return self.out(h.float()).permute(0, 2, 3, 1)
