"""Objective and tokenizer of a configuration."""

from dataclasses import replace

from glide_jax.config import ClipConfig, Config
from glide_jax.data.records import Source
from glide_jax.data.sources import open_source
from glide_jax.data.tokenizers.bpe import Tokenizer
from glide_jax.data.tokenizers.build import make_tokenizer, tokenizer_class
from glide_jax.runs.folder import Run
from glide_jax.sampling.clip import ClipScorer
from glide_jax.training.contrastive import Contrastive
from glide_jax.training.denoising import Denoising
from glide_jax.training.objective import Objective


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


def tokenizer_of(config: Config, source: Source, before: Run | None = None) -> Tokenizer:
    """The tokenizer of a run: the one of the run before, or a new one.

    A new one is trained on all captions, also those that data.caption_pattern excludes: a later
    curriculum stage may train on them.

    Args:
        config: of the run.
        source: its training split.
        before: the run to resume or to start from.
    """
    if before is not None:
        return before.tokenizer
    if config.data.caption_pattern:
        source = open_source(replace(config.data, caption_pattern=""), config.data.train_split)
    kind = tokenizer_class(config.model)
    return make_tokenizer(config.data, config.model.text.vocab_size, source, kind)
