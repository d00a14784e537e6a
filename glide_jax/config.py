"""Every setting of a run, declared once, with its unit and where its default comes from.

`configs/*.py` name only what differs; `train.py --optim.learning-rate 3e-5` overrides on the
command line; the resolved config is saved in the run folder as config.json.
"""

import dataclasses
import json
import math
import re
import shlex
import types
import typing
from dataclasses import dataclass, field
from typing import Any, Literal

from glide_jax.errors import UserError
from glide_jax.storage import AnyPath, storage_errors

Remat = Literal["none", "matmuls", "blocks", "everything", "offload"]

GROUPS = 32
"""Groups of every GroupNorm; channel counts are multiples of it."""


def _require(ok: bool, name: str, why: str) -> None:
    if not ok:
        raise UserError(f"config: {name} {why}")


@dataclass(frozen=True)
class TextConfig:
    """The text transformer inside the model (released GLIDE: 512 wide, 16 layers, 8 heads)."""

    vocab_size: int = 50_257
    """Rows of the token embedding; a tokenizer trained for the run has no more entries."""
    length: int = 128
    """Context, in tokens: longer captions are truncated, shorter ones padded."""
    width: int = 512
    layers: int = 16
    heads: int = 8

    def __post_init__(self) -> None:
        for name in ("vocab_size", "length", "width", "layers", "heads"):
            _require(getattr(self, name) >= 1, f"model.text.{name}", "must be at least 1")
        _require(
            self.width % self.heads == 0,
            "model.text.width",
            f"({self.width}) must be divisible by model.text.heads ({self.heads})",
        )


@dataclass(frozen=True)
class UNetConfig:
    """The U-Net (released GLIDE base: 192 channels, multipliers 1 2 3 4, 3 blocks a level)."""

    resolution_px: int = 64
    channels: int = 192
    """Width of the first level."""
    channel_mult: tuple[int, ...] = (1, 2, 3, 4)
    """Width of each level, in units of `channels`; each further level halves the resolution."""
    res_blocks: int = 3
    """Residual blocks a level on the way down; one more on the way up."""
    attention_px: tuple[int, ...] = (32, 16, 8)
    """Attend at these resolutions (and always in the middle)."""
    head_width: int = 64
    """Channels of one attention head."""
    dropout: float = 0.0

    def __post_init__(self) -> None:
        levels = len(self.channel_mult)
        _require(levels >= 1, "model.unet.channel_mult", "needs at least one level")
        _require(min(self.channel_mult) >= 1, "model.unet.channel_mult", "must be at least 1")
        _require(self.res_blocks >= 1, "model.unet.res_blocks", "must be at least 1")
        _require(
            self.channels >= GROUPS and self.channels % GROUPS == 0,
            "model.unet.channels",
            f"({self.channels}) must be divisible by {GROUPS}, the number of GroupNorm groups",
        )
        _require(
            self.resolution_px >= 1 and self.resolution_px % 2 ** (levels - 1) == 0,
            "model.unet.resolution_px",
            f"({self.resolution_px}) must be divisible by {2 ** (levels - 1)} "
            f"(halved {levels - 1} times by {levels} levels)",
        )
        resolutions = [self.resolution_px >> i for i in range(levels)]
        for px in self.attention_px:
            _require(
                px in resolutions,
                "model.unet.attention_px",
                f"has {px}, but the levels are {', '.join(map(str, resolutions))} px",
            )
        attended = [
            mult
            for mult, px in zip(self.channel_mult, resolutions, strict=True)
            if px in self.attention_px
        ]
        for mult in [*attended, self.channel_mult[-1]]:
            _require(
                self.head_width >= 1 and self.channels * mult % self.head_width == 0,
                "model.unet.head_width",
                f"({self.head_width}) must divide every attended width, "
                f"but one is {self.channels * mult}",
            )
        _require(0 <= self.dropout < 1, "model.unet.dropout", "must be in [0, 1)")


@dataclass(frozen=True)
class ModelConfig:
    """A text-conditional denoiser: base or upsampler, made for inpainting or not."""

    text: TextConfig = field(default_factory=TextConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    low_res_px: int = 0
    """Side of the smaller image that an upsampler sees beside x_t; 0 for a base model."""
    low_res_noise: bool = False
    """Whether an upsampler is told how much noise there is in the smaller image."""
    inpaint: bool = False
    """Whether it sees known pixels and their mask beside x_t."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the matmuls; parameters are float32, and norms and softmax computed in it."""
    remat: Remat = "none"
    """What the backward pass recomputes instead of keeping, from nothing, the quickest, to what
    takes the least memory: glide_jax.models.remat."""

    def __post_init__(self) -> None:
        _require(
            0 <= self.low_res_px < self.unet.resolution_px,
            "model.low_res_px",
            f"({self.low_res_px}) must be below model.unet.resolution_px "
            f"({self.unet.resolution_px})",
        )
        _require(
            self.low_res_px == 0 or self.unet.resolution_px % self.low_res_px == 0,
            "model.low_res_px",
            f"({self.low_res_px}) must divide model.unet.resolution_px ({self.unet.resolution_px})",
        )
        _require(
            bool(self.low_res_px) or not self.low_res_noise,
            "model.low_res_noise",
            "is for upsamplers: model.low_res_px is 0",
        )

    @property
    def resolution_px(self) -> int:
        """Side of the images."""
        return self.unet.resolution_px

    @property
    def upscale_factor(self) -> int:
        """How many times an upsampler's images are larger than the smaller ones; 1 for a base."""
        return self.unet.resolution_px // self.low_res_px if self.low_res_px else 1

    @property
    def condition_channels(self) -> int:
        """Input channels beside x_t: known pixels and mask, then the smaller image."""
        return 4 * self.inpaint + 3 * bool(self.low_res_px)


@dataclass(frozen=True)
class ClipTextConfig:
    """CLIP's text tower (released: as the defaults)."""

    vocab_size: int = 65_536
    length: int = 77
    """Context, in tokens, start and end included."""
    width: int = 512
    layers: int = 12
    heads: int = 8


@dataclass(frozen=True)
class ClipImageConfig:
    """CLIP's image tower (released: as the defaults)."""

    resolution_px: int = 64
    patch_px: int = 4
    width: int = 768
    layers: int = 12
    heads: int = 12

    def __post_init__(self) -> None:
        _require(
            self.patch_px >= 1 and self.resolution_px % self.patch_px == 0,
            "model.image.patch_px",
            f"({self.patch_px}) must divide model.image.resolution_px ({self.resolution_px})",
        )


@dataclass(frozen=True)
class ClipConfig:
    """A noised CLIP: tells how well an image, with noise in it, fits a caption."""

    text: ClipTextConfig = field(default_factory=ClipTextConfig)
    image: ClipImageConfig = field(default_factory=ClipImageConfig)
    embedding_width: int = 512
    """Of the space in which captions and images are compared."""
    steps: int = 1000
    """Noise levels that the image tower tells apart: T of the base model's diffusion; or 1, for a
    plain CLIP that sees images without noise and is for ranking alone."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of the matmuls; parameters are float32, and norms and softmax computed in it."""
    remat: Remat = "none"
    """As ModelConfig's."""

    def __post_init__(self) -> None:
        for name, tower in (("text", self.text), ("image", self.image)):
            _require(
                tower.heads >= 1 and tower.width % tower.heads == 0,
                f"model.{name}.width",
                f"({tower.width}) must be divisible by model.{name}.heads ({tower.heads})",
            )

    @property
    def resolution_px(self) -> int:
        """Side of the images."""
        return self.image.resolution_px


@dataclass(frozen=True)
class DiffusionConfig:
    """The noise process."""

    schedule: Literal["squaredcos_cap_v2", "linear"] = "squaredcos_cap_v2"
    steps: int = 1000
    prediction: Literal["eps", "v"] = "eps"
    """What the network predicts and its error is measured in: noise, as GLIDE, or velocity."""
    zero_terminal_snr: bool = False
    """Rescale the schedule so that nothing of the image is left in the last step, as sampling
    takes for granted (arXiv 2305.08891); needs prediction=v."""
    low_res_std: float = 0.0
    """For upsamplers, where images are in [-1, 1]: their root mean square difference from the
    smaller ones enlarged. Above 0, the network corrects the smaller image instead of drawing the
    larger one from nothing (`velocity_around`); needs prediction=v. 0: as GLIDE."""
    timesteps: Literal["uniform", "rising", "loss-second-moment"] = "uniform"
    """How training draws t: uniformly, as GLIDE; with a probability that rises in proportion to
    t, which dwells on the noisy steps, where the caption decides most; or in proportion to the root
    mean square of t's latest losses, each loss weighted back (sec. 3.3, arXiv 2102.09672)."""
    weighting: Literal["simple", "min-snr"] = "simple"
    """Weight of each t's squared error: the same for all, as GLIDE, or with the signal-to-noise
    ratio clamped at min_snr_gamma (arXiv 2303.09556)."""
    min_snr_gamma: float = 5.0

    def __post_init__(self) -> None:
        _require(self.steps >= 2, "diffusion.steps", "must be at least 2")
        _require(
            self.prediction == "v" or not self.zero_terminal_snr,
            "diffusion.zero_terminal_snr",
            "needs diffusion.prediction v: where no image is left, its noise says nothing of it",
        )
        _require(self.min_snr_gamma > 0, "diffusion.min_snr_gamma", "must be above 0")
        _require(self.low_res_std >= 0, "diffusion.low_res_std", "must be at least 0")
        _require(
            self.prediction == "v" or not self.low_res_std,
            "diffusion.low_res_std",
            "needs diffusion.prediction v",
        )


@dataclass(frozen=True)
class MaskConfig:
    """What inpainting training hides: relative frequencies of the kinds of masks.

    Which regions GLIDE's training erased is not published ("random regions").
    """

    rectangle: float = 1.0
    """A rectangle anywhere."""
    brush: float = 1.0
    """Free strokes of a brush."""
    half_plane: float = 0.5
    """All on one side of a straight line."""
    whole: float = 0.25
    """All of the image: the model stays able to draw from nothing."""
    place_caption: float = 0.0
    """Share of captions that are told where the hidden part is, as ", at the top left"."""

    def __post_init__(self) -> None:
        kinds = (self.rectangle, self.brush, self.half_plane, self.whole)
        _require(
            min(kinds) >= 0 and sum(kinds) > 0,
            "data.masks",
            "needs frequencies of at least 0, not all of them 0, or there is nothing to paint",
        )
        _require(0 <= self.place_caption <= 1, "data.masks.place_caption", "must be in [0, 1]")


@dataclass(frozen=True)
class LowResConfig:
    """What training does to an upsampler's smaller images, which base models draw imperfectly."""

    crop_px: int = 0
    """Train on squares of this side, cut from anywhere in the larger image (sec. 2.5, arXiv
    2205.11487): cheaper by their share of its area. 0: on whole images."""
    blur_px: float = 0.0
    """Gaussian blur: its standard deviation is uniform up to this, in pixels of the smaller
    image. unCLIP blurs with 0.6 (arXiv 2204.06125)."""
    noise_steps: int = 0
    """Noise-conditioning augmentation (arXiv 2106.15282): noise as at a step drawn below this of
    the model's own schedule, of which the model is told; needs model.low_res_noise."""

    def __post_init__(self) -> None:
        _require(self.crop_px >= 0, "data.low_res.crop_px", "must be at least 0")
        _require(self.blur_px >= 0, "data.low_res.blur_px", "must be at least 0")
        _require(self.noise_steps >= 0, "data.low_res.noise_steps", "must be at least 0")


MIXTURE_SETTINGS = (
    *("source", "name", "path", "data_dir", "cache_dir", "image_key", "caption_key"),
    *("train_split", "validation_split"),
)
"""Settings of a data set that each part of a mixture may have for itself."""


@dataclass(frozen=True)
class DataConfig:
    """Where captioned images come from and how they are prepared."""

    source: str = "scenes"
    """A key of glide_jax.data.sources.SOURCES: scenes, tfds, folder or shards."""
    name: str = ""
    """source=tfds: the data set's TFDS name, such as coco_captions or coco_captions/2014.
    source=scenes: full (or empty); closeups, of one large object each; or mini, a few hundred
    images for trying things out."""
    mixture: tuple[str, ...] = ()
    """Several data sets at once, in place of `source`: each as "weight=3 source=folder path=cats",
    with any of the settings of MIXTURE_SETTINGS; what it does not set is as said here."""
    path: str = ""
    """source=folder: the folder of images with captions beside them. source=shards: what
    glide_jax.prepare wrote, a folder or a URL such as gs://bucket/folder."""
    data_dir: str = ""
    """Where prepared data sets are kept; empty: TFDS's own default (~/tensorflow_datasets)."""
    cache_dir: str = ""
    """source=shards: where the shards of a URL are copied to; empty: ~/.cache/glide_jax/shards."""
    train_split: str = "train"
    validation_split: str = "validation"
    image_key: str = "image"
    """source=tfds: the image feature."""
    caption_key: str = "captions"
    """source=tfds: the caption feature, a text or a list of texts; parts separated by '/'."""
    caption_pattern: str = ""
    """Only captions in which this regular expression is found (case counts), and images that have
    one: for a part of a data set, or lessons. Held-out images go by it too. Empty: all."""
    crop: Literal["center", "random"] = "center"
    """Square crop after resizing the shorter side to the model's resolution."""
    horizontal_flip: bool = False
    """Mirror half of the images; wrong where captions speak of left and right."""
    caption_dropout: float = 0.2
    """Share of captions replaced by the empty one, for classifier-free guidance (paper: 0.2). A
    CLIP always gets its captions: without one there is nothing to compare."""
    masks: MaskConfig = field(default_factory=MaskConfig)
    low_res: LowResConfig = field(default_factory=LowResConfig)
    tokenizer: str = "train"
    """'train' (byte-level BPE on this data set's captions), a local folder, or a hub name: gpt2."""
    max_bad_fraction: float = 0.01
    """Bad records are skipped and counted; past this share of those read, the run stops."""
    loader_threads: int = 4

    def __post_init__(self) -> None:
        _require(0 <= self.caption_dropout <= 1, "data.caption_dropout", "must be in [0, 1]")
        try:
            re.compile(self.caption_pattern)
        except re.error as error:
            raise UserError(
                f"config: data.caption_pattern is no regular expression: {error}"
            ) from None
        _require(0 <= self.max_bad_fraction <= 1, "data.max_bad_fraction", "must be in [0, 1]")
        _require(self.loader_threads >= 1, "data.loader_threads", "must be at least 1")
        _require(self.source != "tfds" or bool(self.name), "data.name", "is needed by source=tfds")
        _require(
            self.source not in ("folder", "shards") or bool(self.path),
            "data.path",
            f"is needed by source={self.source}",
        )
        for text in self.mixture:
            _mixed(self, text)

    @property
    def parts(self) -> "tuple[tuple[float, DataConfig], ...]":
        """The data sets of the mixture, each with its weight; without a mixture, itself.

        Raises:
            UserError: one is not spelled as a mixture is.
        """
        return tuple(_mixed(self, text) for text in self.mixture) or ((1.0, self),)


def _mixed(data: DataConfig, text: str) -> tuple[float, DataConfig]:
    """A part of data.mixture: its weight, and `data` with its settings."""
    where = repr(text)
    try:
        words = shlex.split(text)
    except ValueError as error:  # an open quotation
        raise UserError(f"config: data.mixture {where}: {error}") from None
    values: dict[str, Any] = dict(word.partition("=")[::2] for word in words)
    unknown = [name for name in values if name not in MIXTURE_SETTINGS and name != "weight"]
    _require(
        not unknown and all("=" in word for word in words),
        "data.mixture",
        f"{where}: must be name=value, separated by spaces, with names of weight, "
        + ", ".join(MIXTURE_SETTINGS),
    )
    try:
        weight = float(values.pop("weight"))
    except (KeyError, ValueError):
        weight = 0.0
    _require(0 < weight < math.inf, "data.mixture", f"{where}: needs a weight above 0: weight=1")
    try:
        return weight, dataclasses.replace(data, **values, mixture=())
    except UserError as error:
        raise UserError(f"{error} (data.mixture {where})") from None


@dataclass(frozen=True)
class OptimConfig:
    """AdamW with linear warm-up; the defaults are ADM's at 64 px unless said otherwise."""

    learning_rate: float = 3e-4
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_steps: int = 1000
    """Not published; a common choice."""
    decay_steps: int = 0
    """Cosine decay to zero, ending at this step; 0 keeps the rate constant as ADM does."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down. Not published."""
    ema_decay: float = 0.9999
    """Exponential moving average of the parameters, reached gradually in the first steps."""

    def __post_init__(self) -> None:
        _require(self.learning_rate > 0, "optim.learning_rate", "must be above 0")
        _require(self.warmup_steps >= 0, "optim.warmup_steps", "must be at least 0")
        _require(
            self.decay_steps == 0 or self.decay_steps > self.warmup_steps,
            "optim.decay_steps",
            "must be 0 or above optim.warmup_steps",
        )
        _require(self.clip_norm > 0, "optim.clip_norm", "must be above 0")
        _require(0 <= self.ema_decay < 1, "optim.ema_decay", "must be in [0, 1)")


@dataclass(frozen=True)
class SampleConfig:
    """How images are drawn unless the caller says otherwise; the defaults are GLIDE's base's."""

    sampler: str = "ddpm"
    """A key of glide_jax.diffusion.loop.SAMPLERS."""
    steps: str = "100"
    """Respacing: a number of steps, sections as '10,10,3,2,2', 'ddim50', 'karras20' or 'fast27'."""
    guidance_scale: float = 3.0
    """Classifier-free guidance: 1 is none, 0 ignores the prompt."""
    eta: float = 0.0
    """Noise of DDIM: 0 is deterministic, 1 is ancestral."""
    temperature: float = 1.0
    """Of the first noise (released upsampler: 0.997)."""
    guidance_interval: tuple[int, int] = (0, 1_000_000)
    """Least and largest t at which guidance is applied (arXiv 2404.07724)."""
    guidance_rescale: float = 0.0
    """How far a guided prediction is given back the contrast it would have without, 0..1
    (arXiv 2305.08891)."""
    clip_guidance_scale: float = 0.0
    """Guidance by a noised CLIP; 0 is none. Use sampler ddpm: docs/samplers.md says why."""
    dynamic_threshold: float = 0.0
    """Percentile, such as 0.995, of a predicted x_0's values that is scaled to fit (arXiv
    2205.11487, sec. 2.3); 0 clips to [-1, 1]."""
    low_res_noise: int = 0
    """Noise added to an upsampler's smaller images, as at this step of its schedule: hides what a
    base model gets wrong; for models that are told of it (model.low_res_noise)."""

    def __post_init__(self) -> None:
        for name in ("guidance_scale", "clip_guidance_scale", "temperature"):
            _require(math.isfinite(getattr(self, name)), f"sample.{name}", "must be a number")
        low, high = self.guidance_interval
        _require(low <= high, "sample.guidance_interval", f"({low} {high}) must be low, then high")
        _require(0 <= self.guidance_rescale <= 1, "sample.guidance_rescale", "must be in [0, 1]")
        _require(0 <= self.dynamic_threshold < 1, "sample.dynamic_threshold", "must be in [0, 1)")


@dataclass(frozen=True)
class TrainConfig:
    """The loop."""

    run_dir: str = ""
    """Run folder, here or as gs://BUCKET/FOLDER; empty: runs/<name of the config>."""
    init_from: str = ""
    """Fine-tune: the run folder (or shipped model, as demo/base) whose averaged parameters training
    starts from; input channels that are new start as zeros. Empty: from scratch."""
    trainable: Literal["all", "unet"] = "all"
    """What training changes: everything, or all but the text transformer."""
    clip_run: str = ""
    """Run folder of a CLIP for the auxiliary loss of `clip_loss_weight`."""
    clip_loss_weight: float = 0.0
    """Of alpha_bar_t (1 - cos(caption, predicted x_0)) by that CLIP, added to the loss; noisy steps
    count less, as their x_0 is a blur that no CLIP has seen. 0, as GLIDE: none."""
    seed: int = 0
    steps: int = 1_000_000
    batch_examples: int = 2048
    """Images a step, over all devices and micro-batches."""
    micro_batches: int = 1
    """Gradient accumulation: a step's batch is computed in this many parts."""
    fsdp: int = 1
    """Devices along the 'fsdp' axis of the mesh, over which parameters are sharded."""
    max_bad_steps: int = 50
    """Stop after this many steps in a row whose loss or gradient is not finite."""
    log_every_steps: int = 50
    checkpoint_every_steps: int = 5000
    max_checkpoints: int = 3
    sample_every_steps: int = 5000
    """A grid of `sample_prompts`, drawn with the EMA parameters; 0 never."""
    sample_prompts: tuple[str, ...] = ()
    """Empty: the first captions of the validation split."""
    validate_every_steps: int = 5000
    """Loss of the EMA parameters on `validation_examples` held-out images; 0 never."""
    validation_examples: int = 512

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "batch_examples",
            "micro_batches",
            "fsdp",
            "max_bad_steps",
            "log_every_steps",
            "checkpoint_every_steps",
            "max_checkpoints",
        ):
            _require(getattr(self, name) >= 1, f"train.{name}", "must be at least 1")
        _require(
            self.validation_examples >= 1,
            "train.validation_examples",
            "must be at least 1; train.validate_every_steps=0 switches validation off",
        )
        _require(
            self.batch_examples % self.micro_batches == 0,
            "train.batch_examples",
            f"({self.batch_examples}) must be divisible by train.micro_batches "
            f"({self.micro_batches})",
        )
        _require(self.clip_loss_weight >= 0, "train.clip_loss_weight", "must be at least 0")
        _require(
            bool(self.clip_run) or not self.clip_loss_weight,
            "train.clip_run",
            "is needed by train.clip_loss_weight",
        )


@dataclass(frozen=True)
class Config:
    """A run: config.json in its folder."""

    model: ModelConfig | ClipConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        _require(
            not self.diffusion.low_res_std
            or (isinstance(self.model, ModelConfig) and self.model.low_res_px > 0),
            "diffusion.low_res_std",
            "is for upsamplers",
        )
        if isinstance(self.model, ClipConfig):
            _require(
                self.train.batch_examples >= 2,
                "train.batch_examples",
                "must be at least 2: a CLIP learns by telling captions apart",
            )
            _require(
                self.model.steps in (1, self.diffusion.steps),
                "model.steps",
                f"({self.model.steps}) must be diffusion.steps ({self.diffusion.steps}), or 1 for "
                "a CLIP that sees images without noise",
            )
            _require(not self.data.low_res.crop_px, "data.low_res.crop_px", "must be 0 for a CLIP")
            _require(
                self.train.trainable == "all" and not self.train.clip_loss_weight,
                "train",
                "of a CLIP has trainable all and clip_loss_weight 0",
            )
            for name, default in (("timesteps", "uniform"), ("weighting", "simple")):
                _require(
                    getattr(self.diffusion, name) == default,
                    f"diffusion.{name}",
                    f"must be {default} for a CLIP",
                )
            return
        crop_px = self.data.low_res.crop_px
        if crop_px:
            unet = self.model.unet
            smallest = math.lcm(self.model.upscale_factor, 2 ** (len(unet.channel_mult) - 1))
            _require(self.model.low_res_px > 0, "data.low_res.crop_px", "is for upsamplers")
            _require(
                crop_px <= unet.resolution_px and crop_px % smallest == 0,
                "data.low_res.crop_px",
                f"({crop_px}) must be at most model.unet.resolution_px ({unet.resolution_px}) and "
                f"divisible by {smallest}",
            )
            _require(
                not self.train.clip_loss_weight,
                "train.clip_loss_weight",
                "must be 0 with data.low_res.crop_px: captions are of whole images",
            )
        _require(
            self.model.low_res_noise or not self.data.low_res.noise_steps,
            "data.low_res.noise_steps",
            "needs model.low_res_noise: the model must be told of the noise",
        )
        _require(
            self.data.low_res.noise_steps <= self.diffusion.steps,
            "data.low_res.noise_steps",
            f"({self.data.low_res.noise_steps}) must be at most diffusion.steps "
            f"({self.diffusion.steps})",
        )
        _require(
            self.model.low_res_noise or not self.sample.low_res_noise,
            "sample.low_res_noise",
            "needs model.low_res_noise: the model must be told of the noise",
        )
        _require(
            0 <= self.sample.low_res_noise < self.diffusion.steps,
            "sample.low_res_noise",
            f"({self.sample.low_res_noise}) must be a step below diffusion.steps "
            f"({self.diffusion.steps})",
        )

    @property
    def denoiser(self) -> ModelConfig:
        """The model of a run that draws. Raises UserError if it is a CLIP."""
        if not isinstance(self.model, ModelConfig):
            raise UserError("this is a CLIP, which draws nothing: a base or an upsampler is needed")
        return self.model

    @property
    def clip(self) -> ClipConfig:
        """The model of a run that compares. Raises UserError if it is none."""
        if not isinstance(self.model, ClipConfig):
            raise UserError("this is a model that draws, but a CLIP is needed")
        return self.model

    def to_json(self) -> str:
        """The whole config as JSON text."""
        return json.dumps(dataclasses.asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, where: str = "config.json") -> "Config":
        """Reads what `to_json` wrote; unknown or ill-typed settings are refused by name.

        Args:
            text: JSON text.
            where: what to call it in errors.

        Raises:
            UserError: not JSON, an unknown setting, or one of the wrong type.
        """
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise UserError(f"{where} is not JSON: {error}") from None
        return _from_dict(cls, values, where, "")

    @classmethod
    def load(cls, path: AnyPath) -> "Config":
        """Reads a config.json. Raises UserError if it cannot be read."""
        with storage_errors("read", path):
            text = path.read_text()
        return cls.from_json(text, str(path))


def _from_dict(cls: Any, values: Any, where: str, prefix: str) -> Any:
    if not isinstance(values, dict):
        raise UserError(f"{where}: {prefix.rstrip('.') or 'the config'} must be an object")
    types_by_name = typing.get_type_hints(cls)
    unknown = [name for name in values if name not in types_by_name]
    if unknown:
        raise UserError(f"{where}: unknown setting {prefix}{unknown[0]}")
    return cls(
        **{
            name: _typed(types_by_name[name], value, where, prefix + name)
            for name, value in values.items()
        }
    )


def _typed(expected: Any, value: Any, where: str, name: str) -> Any:
    if dataclasses.is_dataclass(expected):
        return _from_dict(expected, value, where, name + ".")
    origin = typing.get_origin(expected)
    if origin is types.UnionType:  # of config classes: the one that has all these settings
        fitting = (
            option
            for option in typing.get_args(expected)
            if isinstance(value, dict) and value.keys() <= typing.get_type_hints(option).keys()
        )
        return _typed(next(fitting, typing.get_args(expected)[0]), value, where, name)
    if origin is Literal:
        ok = value in typing.get_args(expected)
    elif origin is tuple and isinstance(value, list):
        element = typing.get_args(expected)[0]
        return tuple(_typed(element, item, where, name) for item in value)
    elif expected is float and type(value) is int:
        return float(value)
    else:
        ok = origin is None and type(value) is expected
    if not ok:
        raise UserError(f"{where}: {name} must be {_type_name(expected)}, not {value!r}")
    return value


def _type_name(expected: Any) -> str:
    return expected.__name__ if isinstance(expected, type) else str(expected)
