"""Objective and tokenizer of a configuration, and the checks before a run starts."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from glide_jax.config import AnyModel, ClipConfig, Config, ModelConfig, PriorConfig
from glide_jax.data.embeddings import embeddings_clip, require_clip
from glide_jax.data.loader import Loader
from glide_jax.data.mixture import parts_of
from glide_jax.data.records import BadRecordError, Source
from glide_jax.data.sources import open_source
from glide_jax.data.tokenizers.bpe import MIN_VOCAB_SIZE, Tokenizer
from glide_jax.data.tokenizers.build import make_tokenizer, tokenizer_class
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer
from glide_jax.errors import UserError
from glide_jax.parallel import sharding
from glide_jax.runs.folder import Run
from glide_jax.sampling.settings import require_usable
from glide_jax.storage import AnyPath
from glide_jax.training.ar_prior import AutoregressivePrior
from glide_jax.training.batch_sizes import require_distinct_images, with_validation_batch
from glide_jax.training.contrastive import Contrastive
from glide_jax.training.denoising import Denoising
from glide_jax.training.frozen_clip import FrozenClip
from glide_jax.training.objective import Objective
from glide_jax.training.prior import DiffusionPrior, embeddings_of


def require_startable(config: Config, source: Source, held_out: int) -> None:
    """Checks what previews and validation would only refuse once the run folder exists.

    Args:
        config: of the run.
        source: the training split.
        held_out: images in the validation split.

    Raises:
        UserError: the learning rate would be 0 at the end, config.sample has settings that the
            model cannot use, a CLIP has too few images or is OpenAI's, or embeddings lack the
            images that the model needs.
    """
    steps, decay_steps = config.train.steps, config.optim.decay_steps
    if 0 < decay_steps < steps and not config.optim.min_learning_rate:
        raise UserError(
            f"train.steps ({steps}) is beyond optim.decay_steps ({decay_steps}), where the "
            f"learning rate is 0: give --optim.decay-steps {steps}, or --optim.min-learning-rate"
        )
    if not isinstance(config.model, PriorConfig):
        _require_images(config, source)
    if isinstance(config.model, ModelConfig):
        _require_trainable(config, config.model)
        if config.train.sample_every_steps:
            require_usable(config, config.sample)
    if isinstance(config.model, ClipConfig):
        if config.model.architecture == "openai":
            raise UserError("OpenAI's CLIP is not trained here: give --model.architecture glide")
        require_distinct_images(config, source)
        if config.train.validate_every_steps:
            with_validation_batch(config, held_out)


def _require_images(config: Config, source: Source) -> None:
    """Raises UserError for embeddings without images."""
    if embeddings_clip(config.data.source) is None:
        return
    with contextlib.suppress(BadRecordError):  # the loader counts them
        if not source[0].image:
            raise UserError(
                "data.source: its embeddings have no images, from which this model learns: write "
                "them with python -m glide_jax.embed --images"
            )


def _require_trainable(config: Config, model: ModelConfig) -> None:
    """Raises UserError for a model of two networks, or embeddings that do not fit a decoder."""
    if model.last_step_network:
        raise UserError(
            "the network of the last step is not trained here: give --model.no-last-step-network"
        )
    given = embeddings_clip(config.data.source)
    if given is not None and model.image_embedding_width:
        if model.image_embedding_width != given[0]:
            raise UserError(
                f"model.image_embedding_width is {model.image_embedding_width}, but data.source "
                f"has embeddings of {given[0]}: give --model.image-embedding-width {given[0]}"
            )
        if config.data.crop != "center" or config.data.horizontal_flip:
            raise UserError(
                "data.source: its embeddings are of center crops: give --data.crop center and "
                "--data.no-horizontal-flip"
            )


def clip_run_of(config: Config) -> Run | None:
    """The run of the CLIP that a run learns from; None if it needs none.

    Raises:
        UserError: train.clip_run is not given, or is not a CLIP's run, or its embeddings and
            captions do not fit the model.
    """
    if not (learns_from_clip(config) or config.train.clip_loss_weight):
        return None
    if not config.train.clip_run:
        raise UserError("train.clip_run is needed: give --train.clip-run and the run of a CLIP")
    run = Run.open(config.train.clip_run)
    require_clip(config.data.source, run.clip_fingerprint)
    clip = run.config.clip
    for name, ours, theirs in _clip_sizes(config.model, clip):
        if ours != theirs:
            raise UserError(
                f"model.{name} is {ours}, but the CLIP of train.clip_run has {theirs}: give "
                f"--model.{name.replace('_', '-')} {theirs}"
            )
    return run


def learns_from_clip(config: Config) -> bool:
    """Whether a run needs a CLIP for its images or captions: a prior, a decoder without them."""
    model = config.model
    if isinstance(model, ModelConfig):
        embeds = model.image_embedding_width and embeddings_clip(config.data.source) is None
        return bool(embeds) or model.text.encoder == "clip"
    return isinstance(model, PriorConfig)


def _clip_sizes(model: AnyModel, clip: ClipConfig) -> Iterator[tuple[str, int, int]]:
    """Sizes that a model shares with its CLIP: name, the model's, the CLIP's."""
    text: tuple[str, ...] = ()
    if isinstance(model, PriorConfig):
        yield "embedding_width", model.embedding_width, clip.embedding_width
        yield "resolution_px", model.resolution_px, clip.resolution_px
        text = ("width", "length", "vocab_size")
    elif isinstance(model, ModelConfig) and model.image_embedding_width:
        yield "image_embedding_width", model.image_embedding_width, clip.embedding_width
        if model.text.encoder == "clip":
            yield "text.clip_width", model.text.clip_width, clip.text.width
            text = ("length", "vocab_size")
    for name in text:
        yield f"text.{name}", getattr(model.text, name), getattr(clip.text, name)


def with_clip(config: Config, clip_run: Run | None) -> Config:
    """The configuration with what it records of the CLIP that a prior or a decoder learns from.

    Args:
        config: of the run.
        clip_run: see `clip_run_of`.

    Returns:
        It has the CLIP's fingerprint, or that of the data set's embeddings, and the resolution of
        images to embed.
    """
    model, given = config.model, embeddings_clip(config.data.source)
    fingerprint, px = "", 0
    if clip_run is not None and learns_from_clip(config):
        fingerprint, px = clip_run.clip_fingerprint, clip_px_of(config, clip_run.config.clip)
    elif given is not None and isinstance(model, ModelConfig) and model.image_embedding_width:
        fingerprint = given[1]
    return replace(config, train=replace(config.train, clip_fingerprint=fingerprint, clip_px=px))


def clip_px_of(config: Config, clip: ClipConfig) -> int:
    """train.clip_px of a decoder: 0 if its own images serve its CLIP too."""
    px, model, data = clip.resolution_px, config.model, config.data
    if (
        not isinstance(model, ModelConfig)
        or embeddings_clip(data.source) is not None
        or (px == model.resolution_px and not data.low_res.crop_px)
    ):
        return 0
    return px


def share_of_batches(config: Config, clip_run: Run | None) -> dict[str, Any]:
    """This process's part of every batch, as arguments of `Loader` and `validation_batches`.

    Args:
        config: of the run.
        clip_run: see `clip_run_of`.
    """
    clip_tokenizer = None
    if clip_run is not None and config.train.clip_loss_weight:
        length = clip_run.config.clip.text.length
        clip_tokenizer = partial(clip_run.tokenizer.encode, length=length)
    return {
        "process_index": jax.process_index(),
        "process_count": jax.process_count(),
        "clip_tokenizer": clip_tokenizer,
    }


def make_objective(config: Config, clip: FrozenClip | None = None) -> Objective:
    """The objective of a run.

    Args:
        config: the run.
        clip: the CLIP of `clip_run_of`, if the run needs one.
    """
    if isinstance(config.model, ClipConfig):
        return Contrastive(config)
    if isinstance(config.model, PriorConfig):
        assert clip is not None
        diffuses = config.model.architecture == "diffusion"
        return DiffusionPrior(config, clip) if diffuses else AutoregressivePrior(config, clip)
    return Denoising(config, clip)


def initial_params(
    objective: Objective, source: Source, tokenizer: Tokenizer, mesh: Mesh, **share: Any
) -> dict[str, np.ndarray] | None:
    """Initial parameters that are measured on the training data: those of a prior.

    All processes must call it. None for other objectives.

    Args:
        objective: of the run.
        source: its training split.
        tokenizer: of the run.
        mesh: of the run.
        share: see `share_of_batches`.
    """
    if not isinstance(objective, DiffusionPrior | AutoregressivePrior):
        return None
    config = objective.config
    # Dropped captions say nothing of how close captions and images are.
    config = replace(config, data=replace(config.data, caption_dropout=0.0))
    count = min(objective.statistics_examples, sum(map(len, parts_of(source))))
    place = partial(sharding.to_devices, mesh=mesh)
    with Loader(source, tokenizer, config, **share, place=place) as batches:
        image, text = embeddings_of(objective.clip, batches, mesh, count)
    return objective.network.init(config.train.seed) | objective.statistics(image, text)


def tokenizer_of(config: Config, source: Source, before: str | AnyPath = "") -> Tokenizer:
    """The tokenizer of a run: the one of the run before, its CLIP's, or a new one.

    A model that reads a CLIP's text has its tokenizer; one without captions has that of bytes. A
    new one is trained on all captions, also those that data.caption_pattern excludes: a later
    curriculum stage may train on them.

    Args:
        config: of the run.
        source: its training split.
        before: folder of the run to resume or to start from; empty: neither.

    Raises:
        UserError: the other run's tokenizer cannot be read.
    """
    model = config.model
    if not before and tokenizer_class(model) is ClipTokenizer and not isinstance(model, ClipConfig):
        before = config.train.clip_run
    if before:
        return Run.open(before).tokenizer
    if isinstance(model, ModelConfig) and model.text.encoder == "none":
        return Tokenizer.train((), MIN_VOCAB_SIZE)
    if config.data.caption_pattern:
        source = open_source(replace(config.data, caption_pattern=""), config.data.train_split)
    kind = tokenizer_class(model)
    return make_tokenizer(config.data, config.model.text.vocab_size, source, kind)
