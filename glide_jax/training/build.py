"""Objective and tokenizer of a configuration, and the checks before a run starts."""

from dataclasses import replace

from glide_jax.config import ClipConfig, Config
from glide_jax.data.records import Source
from glide_jax.data.sources import open_source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.build import make_tokenizer, tokenizer_class
from glide_jax.errors import UserError
from glide_jax.runs.folder import Run
from glide_jax.sampling.clip import ClipScorer
from glide_jax.sampling.settings import require_usable
from glide_jax.storage import AnyPath
from glide_jax.training.batch_sizes import require_distinct_images, with_validation_batch
from glide_jax.training.contrastive import Contrastive
from glide_jax.training.denoising import Denoising
from glide_jax.training.objective import Objective


def require_startable(config: Config, source: Source, held_out: int) -> None:
    """Checks what previews and validation would only refuse once the run folder exists.

    Args:
        config: of the run.
        source: the training split.
        held_out: images in the validation split.

    Raises:
        UserError: the learning rate would be 0 at the end, config.sample has settings that the
            model cannot use, or a CLIP has too few images.
    """
    steps, decay_steps = config.train.steps, config.optim.decay_steps
    if 0 < decay_steps < steps and not config.optim.min_learning_rate:
        raise UserError(
            f"train.steps ({steps}) is beyond optim.decay_steps ({decay_steps}), where the "
            f"learning rate is 0: give --optim.decay-steps {steps}, or --optim.min-learning-rate"
        )
    if not isinstance(config.model, ClipConfig):
        if config.train.sample_every_steps:
            require_usable(config, config.sample)
        return
    require_distinct_images(config, source)
    if config.train.validate_every_steps:
        with_validation_batch(config, held_out)


def make_objective(config: Config, clip: ClipScorer | None = None) -> Objective:
    """The objective of a run.

    Args:
        config: the run.
        clip: the CLIP of train.clip_run, for train.clip_loss_weight above 0.
    """
    if isinstance(config.model, ClipConfig):
        return Contrastive(config)
    if clip is None:
        return Denoising(config)
    return Denoising(config, clip.network, clip.params)


def tokenizer_of(config: Config, source: Source, before: str | AnyPath = "") -> Tokenizer:
    """The tokenizer of a run: the one of the run before, or a new one.

    A new one is trained on all captions, also those that data.caption_pattern excludes: a later
    curriculum stage may train on them.

    Args:
        config: of the run.
        source: its training split.
        before: folder of the run to resume or to start from; empty: neither.

    Raises:
        UserError: the other run's tokenizer cannot be read.
    """
    if before:
        return Run.open(before).tokenizer
    if config.data.caption_pattern:
        source = open_source(replace(config.data, caption_pattern=""), config.data.train_split)
    kind = tokenizer_class(config.model)
    return make_tokenizer(config.data, config.model.text.vocab_size, source, kind)
