"""The frozen CLIP of a planned run: its sizes, without its weights."""

from dataclasses import replace
from pathlib import Path

from glide_jax.cli import load_config, named_configs
from glide_jax.config import ClipConfig, Config
from glide_jax.errors import UserError
from glide_jax.models.build import build_network
from glide_jax.models.openai_clip import RELEASED
from glide_jax.models.platform import Platform
from glide_jax.runs.folder import Run
from glide_jax.training.build import clip_px_of, learns_from_clip
from glide_jax.training.frozen_clip import FrozenClip


def with_planned_clip(config: Config) -> tuple[Config, FrozenClip | None]:
    """A run's configuration as training completes it, and the shapes of its CLIP.

    Raises:
        UserError: the sizes of the CLIP are not known.
    """
    if not learns_from_clip(config):
        return config, None
    clip = clip_config_of(config)
    train = replace(config.train, clip_px=clip_px_of(config, clip))
    shapes = build_network(clip).storage(Platform(training=False))
    return replace(config, train=train), FrozenClip(clip, dict(shapes))


def clip_config_of(config: Config) -> ClipConfig:
    """The CLIP's own run; else the configuration that its run is named after; else a released CLIP
    whose embeddings have this width."""
    folder = config.train.clip_run
    try:
        return Run.open(folder).config.clip
    except UserError:
        name = Path(folder).name
    if name in named_configs():
        return load_config(name).clip
    for clip in RELEASED.values():
        if clip.embedding_width == config.embedding_width:
            return clip
    raise UserError(
        f"train.clip_run {folder!r}: the sizes of this CLIP are not known: give a run, or the name "
        "of a configuration"
    )
