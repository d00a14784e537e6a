"""A prior for the embeddings of `model_set.clip_config()`, as small as that CLIP."""

import dataclasses
from pathlib import Path

from helpers import model_set

from glide_jax.config import (
    ClipStatesConfig,
    Config,
    DataConfig,
    OptimConfig,
    PriorConfig,
    TrainConfig,
)
from glide_jax.data.tokenizers.clip_bpe import ClipTokenizer


def prior_config() -> Config:
    clip = model_set.clip_config().clip
    text = ClipStatesConfig(clip.text.vocab_size, clip.text.length, clip.text.width)
    return Config(
        model=PriorConfig(
            text=text,
            embedding_width=clip.embedding_width,
            width=32,
            layers=1,
            heads=2,
            resolution_px=clip.resolution_px,
            dtype="float32",
        ),
        data=DataConfig(train_split="all", validation_split="all", loader_threads=1),
        optim=OptimConfig(learning_rate=3e-3, warmup_steps=5, ema_decay=0.9),
        train=TrainConfig(
            steps=40,
            batch_examples=8,
            log_every_steps=10,
            checkpoint_every_steps=20,
            validate_every_steps=20,
            validation_examples=8,
        ),
    )


def write_clip(folder: Path) -> Path:
    """The run folder of a CLIP with random weights."""
    tokenizer = ClipTokenizer.train(model_set.CAPTIONS, 600)
    model_set.write_random_run(folder, model_set.clip_config(), tokenizer)
    return folder


def changed(config: Config, part: str, **changes) -> Config:
    """A configuration with settings of one part changed."""
    return dataclasses.replace(
        config, **{part: dataclasses.replace(getattr(config, part), **changes)}
    )
