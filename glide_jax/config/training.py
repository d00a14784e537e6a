"""The optimizer and the training loop."""

from dataclasses import dataclass
from typing import Literal

from glide_jax.config.checks import Settings


@dataclass(frozen=True)
class OptimConfig(Settings):
    """AdamW with linear warmup (defaults: ADM at 64 px, arXiv 2105.05233, unless stated)."""

    learning_rate: float = 3e-4
    """Peak learning rate."""
    b1: float = 0.9
    """Decay of Adam's first moment."""
    b2: float = 0.999
    """Decay of Adam's second moment."""
    eps: float = 1e-8
    """Adam's denominator offset."""
    weight_decay: float = 0.0
    """Decoupled weight decay."""
    warmup_steps: int = 1000
    """Steps of linear warmup. Not published; a common choice."""
    decay_steps: int = 0
    """Step at which a cosine decay to min_learning_rate ends; 0: constant learning rate (ADM)."""
    min_learning_rate: float = 0.0
    """Learning rate at decay_steps and beyond."""
    clip_norm: float = 1.0
    """Global gradient norm above which gradients are scaled down. Not published."""
    ema_decay: float = 0.9999
    """Decay of the exponential moving average (EMA) of the parameters, ramped up in the first
    steps."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "clip_norm"):
            value = getattr(self, name)
            self.require(value > 0, name, f"must be above 0, not {value}")
        self.require_at_least(0, "warmup_steps")
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
        ema = self.ema_decay
        self.require(0 <= ema < 1, "ema_decay", f"must be in [0, 1), not {ema}")


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
    """Run folder of the CLIP for the auxiliary loss; see clip_loss_weight."""
    clip_loss_weight: float = 0.0
    """Weight of the auxiliary loss alpha_bar_t (1 - cos(caption, predicted x_0)), embedded by
    clip_run; alpha_bar_t lowers the weight of noisy steps, whose x_0 is blurred. 0: off (GLIDE)."""
    seed: int = 0
    """Seed of initialization, data order and noise."""
    steps: int = 1_000_000
    """Training steps."""
    batch_examples: int = 2048
    """Images per step, over all devices and micro-batches."""
    micro_batches: int = 1
    """Gradient accumulation: micro-batches per step."""
    fsdp: int = 1
    """Devices along the 'fsdp' axis of the mesh, over which parameters are sharded."""
    max_bad_steps: int = 50
    """Stop after this many consecutive steps with a non-finite loss or gradient."""
    log_every_steps: int = 50
    """Interval of log lines, in steps."""
    checkpoint_every_steps: int = 5000
    """Interval of checkpoints, in steps."""
    max_checkpoints: int = 3
    """Newest checkpoints to keep."""
    sample_every_steps: int = 5000
    """Interval of sample grids from the EMA parameters, in steps; 0: never."""
    sample_prompts: tuple[str, ...] = ()
    """Prompts of the sample grids, all sampled from the same noise. Empty: the first captions of
    the validation split."""
    validate_every_steps: int = 5000
    """Interval of the validation losses, in steps; 0: never. Their timesteps are uniform, whatever
    diffusion.timesteps is, with the same noise every time."""
    validation_examples: int = 512
    """Held-out images for validation."""

    def __post_init__(self) -> None:
        self.require_at_least(1, "steps", "batch_examples", "micro_batches", "fsdp")
        self.require_at_least(1, "max_bad_steps", "max_checkpoints")
        self.require_at_least(1, "log_every_steps", "checkpoint_every_steps")
        self.require_at_least(0, "sample_every_steps", "validate_every_steps", "clip_loss_weight")
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
        self.require(
            bool(self.clip_run) or not self.clip_loss_weight,
            "clip_run",
            "is needed by train.clip_loss_weight",
        )
