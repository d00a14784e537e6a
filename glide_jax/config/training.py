"""The optimizer and the training loop."""

from dataclasses import dataclass
from typing import Annotated, Literal

from glide_jax.config.bounds import FRACTION, NOT_NEGATIVE, SEED, Between
from glide_jax.config.checks import Settings
from glide_jax.config.model import MAX_PX

STEPS = Between(0, 10**9)
AT_LEAST_ONE_STEP = Between(1, 10**9)


@dataclass(frozen=True)
class OptimConfig(Settings):
    """AdamW with linear warmup (defaults: ADM at 64 px, arXiv 2105.05233, unless stated)."""

    learning_rate: Annotated[float, Between(0, 1000)] = 3e-4
    """Peak learning rate."""
    b1: Annotated[float, FRACTION] = 0.9
    """Decay of Adam's first moment."""
    first_moment_dtype: Literal["float32", "bfloat16"] = "float32"
    """Storage of Adam's first moment; bfloat16 saves two bytes per parameter."""
    b2: Annotated[float, FRACTION] = 0.999
    """Decay of Adam's second moment."""
    eps: Annotated[float, FRACTION] = 1e-8
    """Adam's denominator offset."""
    weight_decay: Annotated[float, Between(0, 1000)] = 0.0
    """Decoupled weight decay."""
    warmup_steps: Annotated[int, STEPS] = 1000
    """Steps of linear warmup. Not published; a common choice."""
    decay_steps: Annotated[int, STEPS] = 0
    """Step at which a cosine decay to min_learning_rate ends; 0: constant learning rate (ADM)."""
    min_learning_rate: Annotated[float, Between(0, 1000)] = 0.0
    """Learning rate at decay_steps and beyond."""
    clip_norm: Annotated[float, NOT_NEGATIVE] = 1.0
    """Global gradient norm above which gradients are scaled down. Not published."""
    ema_decay: Annotated[float, FRACTION] = 0.9999
    """Decay of the exponential moving average (EMA) of the parameters, ramped up in the first
    steps."""

    def _check(self) -> None:
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            self.require(value > 0, name, f"must be above 0, not {value}")
        self.require(
            self.decay_steps == 0 or self.decay_steps > self.warmup_steps,
            "decay_steps",
            f"({self.decay_steps}) must be 0 or above warmup_steps ({self.warmup_steps})",
        )
        least = self.min_learning_rate
        self.require(
            0 <= least <= self.learning_rate,
            "min_learning_rate",
            f"must be in [0, optim.learning_rate ({self.learning_rate:g})], not {least:g}",
        )
        self.require(
            self.decay_steps > 0 or not least, "min_learning_rate", "needs optim.decay_steps"
        )
        for name in ("b1", "b2", "ema_decay"):
            decay = getattr(self, name)
            self.require(decay < 1, name, f"must be in [0, 1), not {decay}")


@dataclass(frozen=True)
class TrainConfig(Settings):
    """Training loop."""

    run_dir: str = ""
    """Run folder, local or gs://BUCKET/FOLDER. Empty: runs/NAME, after the configuration's name."""
    init_from: str = ""
    """Run folder or shipped model (demo/base) to fine-tune: training starts from its EMA
    parameters; additional input channels start at zero. Empty: train from scratch."""
    trainable: Literal["all", "unet"] = "all"
    """Trained parameters: all, or all except the text transformer."""
    clip_run: str = ""
    """Run folder of the CLIP that a prior or a decoder learns from: its image embeddings, and its
    text states for text.encoder clip. Also the CLIP of the auxiliary loss; see clip_loss_weight."""
    clip_fingerprint: str = ""
    """Fingerprint of the CLIP whose embeddings a prior or a decoder learns from. Recorded when
    training starts."""
    clip_px: Annotated[int, Between(0, MAX_PX)] = 0
    """Side of the images that this CLIP embeds, cut from the same square as the model's; 0: the
    model's own. Recorded when training starts."""
    clip_loss_weight: Annotated[float, Between(0, 10**6)] = 0.0
    """Weight of the auxiliary loss alpha_bar_t (1 - cos(caption, predicted x_0)), embedded by
    clip_run; alpha_bar_t lowers the weight of noisy steps, whose x_0 is blurred. 0: off (GLIDE)."""
    seed: Annotated[int, SEED] = 0
    """Seed of initialization, data order and noise."""
    steps: Annotated[int, AT_LEAST_ONE_STEP] = 1_000_000
    """Training steps."""
    batch_examples: Annotated[int, Between(1, 2**20)] = 2048
    """Images per step, over all devices and micro-batches."""
    micro_batches: Annotated[int, Between(1, 2**20)] = 1
    """Gradient accumulation: micro-batches per step."""
    fsdp: Annotated[int, Between(1, 2**16)] = 1
    """Devices along the 'fsdp' axis of the mesh, over which parameters are sharded."""
    max_bad_steps: Annotated[int, AT_LEAST_ONE_STEP] = 50
    """Stop after this many consecutive steps with a non-finite loss or gradient."""
    log_every_steps: Annotated[int, AT_LEAST_ONE_STEP] = 50
    """Interval of log lines, in steps."""
    checkpoint_every_steps: Annotated[int, AT_LEAST_ONE_STEP] = 5000
    """Interval of checkpoints, in steps."""
    max_checkpoints: Annotated[int, Between(1, 10**6)] = 3
    """Newest checkpoints to keep."""
    keep_checkpoint_every_steps: Annotated[int, STEPS] = 0
    """Interval of checkpoints that are never deleted, in steps; 0: none."""
    best_metric: str = ""
    """Metric of the best checkpoint, which is kept: a name in metrics.jsonl such as validation_loss
    or evaluation_kid. A step with a better value than all checkpoints is saved. Accuracies,
    precision, recall and the like are better when higher, all others when lower. Empty: none."""
    sample_every_steps: Annotated[int, STEPS] = 5000
    """Interval of sample grids from the EMA parameters, in steps; 0: never."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the sample grids, all sampled from the same noise. Empty: the first captions of
    the validation split."""
    validate_every_steps: Annotated[int, STEPS] = 5000
    """Interval of the validation losses, in steps; 0: never. Their timesteps are uniform, whatever
    diffusion.timesteps is, with the same noise every time."""
    validation_examples: Annotated[int, Between(0, 10**6)] = 512
    """Held-out images for validation."""
    validate_captions: bool = True
    """Whether validation also computes the loss with shuffled and with empty captions, which are
    higher if the model uses its captions. Doubles the time of a validation."""

    evaluate_every_steps: Annotated[int, STEPS] = 0
    """Interval of metrics of samples from the EMA parameters, in steps; 0: never. They are of the
    same captions and seeds every time. Needs the extra "metrics"."""
    evaluate_metrics: tuple[str, ...] = ("kid",)
    """Metrics to compute on features of EfficientNet-Lite0: kid, fd (from thousands of images on),
    precision_recall, density_coverage."""
    evaluate_examples: Annotated[int, Between(2, 10**6)] = 256
    """Captions to sample, the first of the validation split; their images are the reference."""

    def _check(self) -> None:
        self.require(
            self.validation_examples >= 1,
            "validation_examples",
            "must be at least 1; train.validate_every_steps=0 disables validation",
        )
        self.require(
            self.batch_examples % self.micro_batches == 0,
            "batch_examples",
            f"({self.batch_examples}) must be divisible by micro_batches ({self.micro_batches})",
        )
        if self.best_metric:
            intervals = {
                "validation": self.validate_every_steps,
                "evaluation": self.evaluate_every_steps,
            }
            kind = self.best_metric.partition("_")[0]
            self.require(
                intervals.get(kind, 0) > 0,
                "best_metric",
                f"must be a metric such as validation_loss, with train.validate_every_steps, or "
                f"evaluation_kid, with train.evaluate_every_steps, not {self.best_metric}",
            )
        self.require(
            bool(self.clip_run) or not self.clip_loss_weight,
            "clip_run",
            "is needed by train.clip_loss_weight",
        )
