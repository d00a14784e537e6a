"""Sizes of the networks: text transformer, U-Net, CLIP's towers."""

from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from glide_jax.config.bounds import FRACTION, Between
from glide_jax.config.checks import Settings
from glide_jax.config.diffusion import MAX_DIFFUSION_STEPS
from glide_jax.config.sizes import Size, transformer_size, unet_size

Remat = Literal["none", "matmuls", "blocks", "everything", "offload"]

GROUPS = 32
"""Groups of every GroupNorm; channel counts are multiples of it."""

MAX_PX, MAX_LEVELS = 2**14, 12
WIDTHS, LAYERS, HEADS = Between(1, 2**16), Between(1, 512), Between(1, 2**12)
"""Bounds of each setting; `Size` has those of the network."""


@dataclass(frozen=True)
class TextConfig(Settings):
    """How a denoiser sees captions (defaults: the released GLIDE)."""

    encoder: Literal["transformer", "clip", "none"] = "transformer"
    """A transformer trained with the model (GLIDE), the text states of a frozen CLIP, projected to
    `width` (unCLIP as Karlo has it), or none: no captions (unCLIP's upsamplers)."""
    vocab_size: Annotated[int, Between(1, 2**24)] = 50_257
    """Token embeddings. A tokenizer trained for the run has at most this many tokens."""
    length: Annotated[int, Between(1, 2**16)] = 128
    """Context length, in tokens. Longer captions are truncated, shorter ones padded."""
    width: Annotated[int, WIDTHS] = 512
    """Channels of the features that the U-Net attends to; of the transformer's residual stream."""
    layers: Annotated[int, LAYERS] = 16
    """Transformer blocks. Encoder transformer only."""
    heads: Annotated[int, HEADS] = 8
    """Attention heads per block. Encoder transformer only."""
    clip_width: Annotated[int, WIDTHS] = 768
    """Channels of the CLIP's text states. Encoder clip only."""

    def _check(self) -> None:
        self.require(
            self.encoder != "transformer" or self.width % self.heads == 0,
            "width",
            f"({self.width}) must be divisible by heads ({self.heads})",
        )

    @property
    def size(self) -> Size:
        """Rough size of the network."""
        if self.encoder == "transformer":
            return transformer_size(
                self.width, self.layers, self.heads, self.length, self.vocab_size
            )
        return Size(self.clip_width * self.width, self.length * self.width)


@dataclass(frozen=True)
class UNetConfig(Settings):
    """U-Net (defaults: the released GLIDE base model)."""

    resolution_px: Annotated[int, Between(1, MAX_PX)] = 64
    """Side of the images, in pixels."""
    channels: Annotated[int, Between(GROUPS, 2**16)] = 192
    """Channels of the first level."""
    channel_mult: Annotated[tuple[int, ...], Between(1, 1024)] = (1, 2, 3, 4)
    """Width of each level, in multiples of `channels`. Each level halves the resolution of the one
    before."""
    res_blocks: Annotated[int, Between(1, 64)] = 3
    """Residual blocks per level on the way down; one more per level on the way up."""
    attention_px: Annotated[tuple[int, ...], Between(1, MAX_PX)] = (32, 16, 8)
    """Resolutions with attention, in pixels."""
    middle_attention: bool = True
    """Attention in the middle block."""
    head_width: Annotated[int, WIDTHS] = 64
    """Channels per attention head."""
    embedding: Literal["scale-shift", "add"] = "scale-shift"
    """How a residual block takes the embedding of time and text: as scale and shift of its second
    norm (GLIDE), or added before it (Karlo's upsamplers)."""
    dropout: Annotated[float, FRACTION] = 0.0
    """Dropout rate in the residual blocks."""

    def _check(self) -> None:
        self.require(len(self.channel_mult) >= 1, "channel_mult", "needs at least one level")
        self.require(
            self.channels % GROUPS == 0,
            "channels",
            f"({self.channels}) must be divisible by {GROUPS}, the number of GroupNorm groups",
        )
        self.require(self.dropout < 1, "dropout", f"must be in [0, 1), not {self.dropout}")
        self._check_levels()

    def _check_levels(self) -> None:
        levels = len(self.channel_mult)
        self.require(levels <= MAX_LEVELS, "channel_mult", f"has more than {MAX_LEVELS} levels")
        self.require(
            self.resolution_px % 2 ** (levels - 1) == 0,
            "resolution_px",
            f"({self.resolution_px}) must be divisible by {2 ** (levels - 1)} "
            f"(halved {levels - 1} times by {levels} levels)",
        )
        widths = [self.channels * mult for mult in self.channel_mult]
        width_at = dict(zip(self.levels_px, widths, strict=True))
        for px in self.attention_px:
            self.require(
                px in width_at,
                "attention_px",
                f"has {px}, but the levels are {', '.join(map(str, width_at))} px",
            )
        attending = [width_at[px] for px in self.attention_px]
        if self.middle_attention:
            attending.append(widths[-1])
        for width in attending:
            self.require(
                width % self.head_width == 0,
                "head_width",
                f"({self.head_width}) must divide the width of every attention layer, "
                f"but one is {width}",
            )

    def size_with(self, text: TextConfig) -> Size:
        """Rough size of the network, given the text transformer's settings."""
        levels = [
            (px, self.channels * mult, px in self.attention_px)
            for mult, px in zip(self.channel_mult, self.levels_px, strict=True)
        ]
        return unet_size(levels, self.res_blocks, self.head_width, text.width, text.length)

    @property
    def levels_px(self) -> list[int]:
        """Resolution of each level, in pixels."""
        return [self.resolution_px >> level for level in range(len(self.channel_mult))]


@dataclass(frozen=True)
class ModelConfig(Settings):
    """Denoiser: base model, unCLIP decoder or upsampler, with or without inpainting."""

    kind: ClassVar[str] = "denoiser"

    text: TextConfig = field(default_factory=TextConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    low_res_px: Annotated[int, Between(0, MAX_PX)] = 0
    """Side of the low-resolution image an upsampler is conditioned on, in pixels; 0: base model."""
    low_res_noise: bool = False
    """Condition an upsampler on the noise level of its low-resolution image (noise-conditioning
    augmentation, arXiv 2106.15282)."""
    low_res_resize: Literal["bilinear", "bicubic"] = "bilinear"
    """Interpolation of an upsampler's low-resolution image: GLIDE's, or Karlo's (a = -0.5)."""
    inpaint: bool = False
    """Condition on known pixels and their mask (sec. 3.3, arXiv 2112.10741)."""
    image_embedding_width: Annotated[int, Between(0, 2**16)] = 0
    """unCLIP's decoder (sec. 2.1, arXiv 2204.06125): channels of the CLIP image embedding that the
    model is conditioned on; 0: none."""
    image_tokens: Annotated[int, Between(0, 64)] = 4
    """Tokens to which the image embedding is projected, before those of the text; it is also added
    to the embedding of time. 0: only added, which lets training start from a GLIDE base model's
    very outputs."""
    learned_variance: bool = True
    """The network predicts the variance of x_{t-1} too (GLIDE). False: it is fixed, the
    posterior's (Karlo's upsampler)."""
    last_step_network: bool = False
    """A second network of the same sizes takes the last step, t = 0 (Karlo's upsampler)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of matmuls and convolutions. Parameters, norms and softmax are float32."""
    remat: Remat = "none"
    """Activations that the backward pass recomputes, from none (fastest) to everything, or keeps in
    host memory (offload): glide_jax.models.remat."""

    def _check(self) -> None:
        px = self.unet.resolution_px
        self.require(
            self.low_res_px < px,
            "low_res_px",
            f"({self.low_res_px}) must be below unet.resolution_px ({px})",
        )
        self.require(
            self.low_res_px == 0 or px % self.low_res_px == 0,
            "low_res_px",
            f"({self.low_res_px}) must divide unet.resolution_px ({px})",
        )
        self.require(
            bool(self.low_res_px) or not self.low_res_noise,
            "low_res_noise",
            "is for upsamplers: low_res_px is 0",
        )
        self._check_captions()
        self.require(not self.size.refusal, "", self.size.refusal)

    def _check_captions(self) -> None:
        unet, encoder = self.unet, self.text.encoder
        self.require(
            encoder != "none" or not (unet.attention_px or unet.middle_attention),
            "text.encoder",
            "none needs a U-Net without attention: unet.attention_px empty, "
            "unet.middle_attention False",
        )
        self.require(
            encoder != "clip" or bool(self.image_embedding_width),
            "text.encoder",
            "clip needs image_embedding_width, the channels of that CLIP's embeddings",
        )
        self.require(
            not (self.last_step_network and self.image_embedding_width),
            "last_step_network",
            "is for models without image_embedding_width",
        )
        self.require(
            encoder != "none" or not self.image_embedding_width,
            "image_embedding_width",
            "needs captions: text.encoder is none",
        )

    @property
    def size(self) -> Size:
        """Rough size of the network."""
        return self.text.size + self.unet.size_with(self.text)

    @property
    def resolution_px(self) -> int:
        """Side of the images, in pixels."""
        return self.unet.resolution_px

    @property
    def upscale_factor(self) -> int:
        """Ratio of an upsampler's resolution to its low resolution; 1 for a base model."""
        return self.unet.resolution_px // self.low_res_px if self.low_res_px else 1

    @property
    def condition_channels(self) -> int:
        """Input channels besides x_t: known pixels and mask, then the low-resolution image."""
        return 4 * self.inpaint + 3 * bool(self.low_res_px)


@dataclass(frozen=True)
class ClipTextConfig(Settings):
    """CLIP's text tower (defaults: the released noised CLIP)."""

    vocab_size: Annotated[int, Between(1, 2**24)] = 65_536
    """Token embeddings. A tokenizer trained for the run has at most this many tokens."""
    length: Annotated[int, Between(1, 2**16)] = 77
    """Context length, in tokens, including start and end of text."""
    width: Annotated[int, WIDTHS] = 512
    """Channels of the residual stream."""
    layers: Annotated[int, LAYERS] = 12
    """Transformer blocks."""
    heads: Annotated[int, HEADS] = 8
    """Attention heads per block."""

    def _check(self) -> None:
        self.require(
            self.width % self.heads == 0,
            "width",
            f"({self.width}) must be divisible by heads ({self.heads})",
        )

    @property
    def size(self) -> Size:
        """Rough size of the network."""
        return transformer_size(self.width, self.layers, self.heads, self.length, self.vocab_size)


@dataclass(frozen=True)
class ClipImageConfig(Settings):
    """CLIP's image tower (defaults: the released noised CLIP)."""

    resolution_px: Annotated[int, Between(1, MAX_PX)] = 64
    """Side of the images, in pixels."""
    patch_px: Annotated[int, Between(1, MAX_PX)] = 4
    """Side of a patch, in pixels."""
    width: Annotated[int, WIDTHS] = 768
    """Channels of the residual stream."""
    layers: Annotated[int, LAYERS] = 12
    """Transformer blocks."""
    heads: Annotated[int, HEADS] = 12
    """Attention heads per block."""

    def _check(self) -> None:
        self.require(
            self.resolution_px % self.patch_px == 0,
            "patch_px",
            f"({self.patch_px}) must divide resolution_px ({self.resolution_px})",
        )
        self.require(
            self.width % self.heads == 0,
            "width",
            f"({self.width}) must be divisible by heads ({self.heads})",
        )

    def size_with(self, steps: int) -> Size:
        """Rough size of the network, given the number of noise levels."""
        tokens, inputs = (self.resolution_px // self.patch_px) ** 2 + 1, 3 * self.patch_px**2
        return transformer_size(self.width, self.layers, self.heads, tokens, inputs + steps)


@dataclass(frozen=True)
class ClipConfig(Settings):
    """Noised CLIP: scores how well a noisy image matches a caption (sec. 3.4, arXiv 2112.10741)."""

    kind: ClassVar[str] = "clip"

    architecture: Literal["glide", "openai"] = "glide"
    """GLIDE's, which also sees noised images, or OpenAI's (arXiv 2103.00020), which is converted
    from released weights."""
    text: ClipTextConfig = field(default_factory=ClipTextConfig)
    image: ClipImageConfig = field(default_factory=ClipImageConfig)
    embedding_width: Annotated[int, WIDTHS] = 512
    """Channels of the joint embedding space of captions and images."""
    steps: Annotated[int, Between(1, MAX_DIFFUSION_STEPS)] = 1000
    """Noise levels the image tower is conditioned on: T of the base model's diffusion, or 1 for a
    plain CLIP that ranks clean images only."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of matmuls and convolutions. Parameters, norms and softmax are float32."""
    remat: Remat = "none"
    """Activations that the backward pass recomputes: glide_jax.models.remat."""

    def _check(self) -> None:
        self.require(not self.size.refusal, "", self.size.refusal)
        self.require(
            self.architecture == "glide" or self.steps == 1,
            "steps",
            f"({self.steps}) must be 1: OpenAI's CLIP sees images without noise",
        )

    @property
    def size(self) -> Size:
        """Rough size of the network."""
        return self.text.size + self.image.size_with(self.steps)

    @property
    def resolution_px(self) -> int:
        """Side of the images, in pixels."""
        return self.image.resolution_px
